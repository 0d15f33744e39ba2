"""Ages, pod states and tables, against what kubectl prints for the same objects."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.cli import formats as f


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((-10, "<invalid>"), (-1, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (121, "2m1s"), (599, "9m59s"), (600, "10m")),
        *(
            (10_799, "179m"),
            (10_800, "3h"),
            (10_860, "3h1m"),
            (28_799, "7h59m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
        ),
        *(
            (176_400, "2d1h"),
            (691_200, "8d"),
            (63_071_999, "729d"),
            (63_072_000, "2y"),
            (94_694_400, "3y1d"),
            (300_000_000, "9y"),
        ),
    ],
)
def test_duration_is_kubernetes_human_duration(seconds, text):
    assert f.duration(seconds) == text


@given(st.floats(min_value=-1e9, max_value=1e10, allow_nan=False))
def test_duration_is_short(seconds):
    assert len(f.duration(seconds)) <= 9


def test_age_of_what_has_no_time():
    assert f.age(None, 0.0) == "<unknown>"
    assert f.age("yesterday", 0.0) == "<unknown>"
    assert f.age("1970-01-01T00:01:00Z", 90.0) == "30s"


def test_table_is_kubectls():
    text = f.table(["NAME", "READY"], [["a", "1/1"], ["longer-name", ""]])
    assert text == "NAME          READY\na             1/1\nlonger-name"
    assert f.table(["NAME"], [["a\nb"]], titles=False) == "a b"
    assert f.table(["NAME"], [], titles=False) == ""


def pod(status, init=0, **meta):
    containers = {"containers": [{}, {}], "initContainers": [{}] * init}
    return {"metadata": {"name": "p", **meta}, "spec": containers, "status": status}


RUNNING = {"state": {"running": {}}, "ready": True}


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ({}, "Pending"),
        ({"phase": "Running", "containerStatuses": [RUNNING, RUNNING]}, "Running"),
        ({"phase": "Failed", "reason": "Evicted"}, "Evicted"),
        (
            {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]},
            "ContainerCreating",
        ),
        ({"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}, "CrashLoopBackOff"),
        ({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}, "ExitCode:3"),
        ({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 137, "signal": 9}}}]}, "Signal:9"),
        ({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"reason": "Completed"}}}]}, "Completed"),
        (
            {"phase": "Running", "containerStatuses": [{"state": {"terminated": {"reason": "Completed"}}}, RUNNING]},
            "NotReady",
        ),
    ],
)
def test_pod_status(status, text):
    assert f.pod_status(pod(status)) == text


@pytest.mark.parametrize(
    ("states", "text"),
    [
        ([{"running": {}}], "Init:0/2"),
        ([{"terminated": {"exitCode": 0}}, {"running": {}}], "Init:1/2"),
        ([{"terminated": {"exitCode": 1, "reason": "Error"}}], "Init:Error"),
        ([{"waiting": {"reason": "CrashLoopBackOff"}}], "Init:CrashLoopBackOff"),
        ([{"waiting": {"reason": "PodInitializing"}}], "Init:0/2"),
    ],
)
def test_pod_status_while_initialising(states, text):
    statuses = [{"state": state} for state in states]
    assert f.pod_status(pod({"phase": "Pending", "initContainerStatuses": statuses}, init=2)) == text


def test_a_deleted_pod_is_terminating():
    status = {"phase": "Running", "containerStatuses": [RUNNING]}
    assert f.pod_status(pod(status, deletionTimestamp="2024-01-01T00:00:00Z")) == "Terminating"
    assert f.pod_status(pod({"phase": "Succeeded"}, deletionTimestamp="2024-01-01T00:00:00Z")) == "Succeeded"


def test_restarts_say_when_the_last_was():
    last = {"terminated": {"finishedAt": "1970-01-01T00:00:10Z"}}
    statuses = [{"restartCount": 2, "lastState": last}, {"restartCount": 1}]
    assert f.pod_restarts(pod({"containerStatuses": statuses}), 70.0) == "3 (60s ago)"
    assert f.pod_restarts(pod({}), 70.0) == "0"


def test_ready_counts_running_containers():
    assert f.pod_ready(pod({"containerStatuses": [RUNNING, {"state": {"waiting": {}}, "ready": False}]})) == "1/2"


def test_selectors():
    assert f.selector({"matchLabels": {"b": "2", "a": "1"}}) == "a=1,b=2"
    expressions = [
        {"key": "k", "operator": "In", "values": ["x", "y"]},
        {"key": "e", "operator": "Exists"},
        {"key": "n", "operator": "DoesNotExist"},
    ]
    assert f.selector({"matchExpressions": expressions}) == "k in (x,y),e,!n"
    assert f.selector(None) == f.selector({}) == "<none>"


def test_service_columns():
    ports = [{"port": 80}, {"port": 443, "nodePort": 30443, "protocol": "TCP"}]
    assert f.service_ports({"spec": {"ports": ports}}) == "80/TCP,443:30443/TCP"
    assert f.service_ports({"spec": {}}) == "<none>"
    assert f.service_external({"spec": {"type": "LoadBalancer"}}) == "<pending>"
    assert f.service_external({"spec": {"type": "ExternalName", "externalName": "a.b"}}) == "a.b"
    assert f.service_external({"spec": {"externalIPs": ["192.0.2.1"]}}) == "192.0.2.1"
    assert f.service_external({"spec": {}}) == "<none>"


def test_some_of_many():
    assert f.some(list("abcde")) == "a,b,c + 2 more..."
    assert f.some([]) == "<none>"


def test_nodes():
    node = {"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": True}}
    assert f.node_status(node) == "NotReady,SchedulingDisabled"
    assert f.node_roles(node) == "control-plane"
