"""What a set of objects becomes: given facts kept, missing ones filled in, the same every time."""

from __future__ import annotations

import pytest

from podwire_apiserver.controllers import settle
from podwire_core.objects import key_of


def obj(kind, name, labels=None, status=None, **fields):
    versions = {"Deployment": "apps/v1", "StatefulSet": "apps/v1", "EndpointSlice": "discovery.k8s.io/v1"}
    versions |= {"ServiceCIDR": "networking.k8s.io/v1", "Endpoints": "v1", "DaemonSet": "apps/v1"}
    meta = {"name": name} | ({"labels": labels} if labels else {})
    head = {"apiVersion": versions.get(kind, "v1"), "kind": kind, "metadata": meta}
    return head | fields | ({"status": status} if status else {})


def workload(kind, name, **spec):
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}
    return obj(kind, name, spec={"selector": {"matchLabels": {"app": name}}, "template": template, **spec})


def service(name, **spec):
    return obj("Service", name, spec={"selector": {"app": name}, "ports": [{"port": 80}], **spec})


def by_kind(objects):
    found = {}
    for each in objects:
        found.setdefault(each["kind"], {})[key_of(each)] = each
    return found


def test_a_deployment_without_nodes_gets_all_it_needs():
    found = by_kind(settle([workload("Deployment", "web", replicas=3), service("web")]))
    (node,) = found["Node"].values()
    assert node["spec"]["podCIDR"] == "10.244.1.0/24"
    assert node["status"]["addresses"] == [{"type": "InternalIP", "address": "192.168.1.11"}]
    pods = list(found["Pod"].values())
    assert sorted(pod["status"]["podIP"] for pod in pods) == ["10.244.1.2", "10.244.1.3", "10.244.1.4"]
    assert {pod["status"]["phase"] for pod in pods} == {"Running"}
    (slice_,) = found["EndpointSlice"].values()
    assert len(slice_["endpoints"]) == 3
    assert all(endpoint["conditions"]["ready"] for endpoint in slice_["endpoints"])
    assert found["Service"]["default/web"]["spec"]["clusterIP"].startswith("10.")


def test_the_same_objects_give_the_same_result():
    objects = [workload("StatefulSet", "db", replicas=3, serviceName="db"), workload("DaemonSet", "agent"), service("db")]
    objects += [obj("Node", f"node{n}") for n in (1, 2, 3)]
    first = settle(objects)
    assert first == settle(objects)
    assert len(by_kind(first)["Pod"]) == 6


def test_nobody_waits_for_min_ready_seconds():
    found = by_kind(settle([workload("StatefulSet", "db", replicas=3, serviceName="db", minReadySeconds=60)]))
    assert sorted(found["Pod"]) == ["default/db-0", "default/db-1", "default/db-2"]
    assert found["StatefulSet"]["default/db"]["status"]["availableReplicas"] == 3


def test_settling_what_is_settled_changes_nothing_that_was_given():
    once = by_kind(settle([workload("Deployment", "web", replicas=2), service("web", type="NodePort")]))
    again = by_kind(settle([each for kind in once.values() for each in kind.values()]))
    for kind in once:
        assert again[kind].keys() == once[kind].keys()
        for key, each in once[kind].items():
            assert again[kind][key].get("spec") == each.get("spec")
            assert again[kind][key].get("endpoints") == each.get("endpoints")
    assert [p["status"]["podIP"] for p in again["Pod"].values()] == [p["status"]["podIP"] for p in once["Pod"].values()]


def test_given_facts_are_kept():
    status = {"podIP": "10.244.7.9", "podIPs": [{"ip": "10.244.7.9"}]}
    pod = obj("Pod", "a", spec={"containers": []}, status=status)
    nodes = [obj("Node", "b", spec={"podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24"]}), obj("Node", "a")]
    found = by_kind(
        settle([pod, *nodes, service("s", clusterIP="10.1.2.3", ports=[{"port": 80, "nodePort": 80}], type="NodePort")])
    )
    made = found["Pod"]["default/a"]
    assert (made["spec"]["nodeName"], made["status"]["podIP"], made["status"]["hostIP"]) == ("b", "10.244.7.9", "192.168.1.11")
    assert found["Node"]["b"]["spec"]["podCIDR"] == "10.244.7.0/24"
    spec = found["Service"]["default/s"]["spec"]
    assert (spec["clusterIP"], spec["ports"][0]["nodePort"]) == ("10.1.2.3", 80)


@pytest.mark.parametrize(
    ("status", "phase", "ready"),
    [
        ({}, "Running", "True"),
        ({"podIP": "10.244.1.9"}, "Running", "True"),
        ({"phase": "Pending"}, "Pending", None),
        ({"phase": "Failed"}, "Failed", None),
        ({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}, "Running", "False"),
        ({"phase": "Running"}, "Running", "True"),
    ],
)
def test_pods_are_ready_unless_they_say_otherwise(status, phase, ready):
    found = by_kind(settle([obj("Pod", "p", spec={"containers": []}, status=status), obj("Node", "node1")]))
    made = found["Pod"]["default/p"]["status"]
    said = next((each["status"] for each in made.get("conditions", ()) if each["type"] == "Ready"), None)
    assert (made["phase"], said) == (phase, ready)


def test_given_slices_and_ranges_are_respected():
    slice_ = obj("EndpointSlice", "x", labels={"kubernetes.io/service-name": "web"}, addressType="IPv4", endpoints=[], ports=[])
    pods = [obj("Pod", "p", labels={"app": "web"}, spec={"containers": []})]
    ranges = obj("ServiceCIDR", "kubernetes", spec={"cidrs": ["172.30.0.0/16"]})
    found = by_kind(settle([service("web"), slice_, *pods, ranges]))
    assert list(found["EndpointSlice"]) == ["default/x"]
    assert found["Service"]["default/web"]["spec"]["clusterIP"].startswith("172.30.")


def test_host_network_pods_have_their_nodes_address():
    found = by_kind(settle([obj("Pod", "p", spec={"containers": [], "hostNetwork": True})]))
    assert found["Pod"]["default/p"]["status"]["podIP"] == "192.168.1.11"


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([obj("ConfigMap", "a"), obj("ConfigMap", "a")], "ConfigMap default/a is there twice"),
        ([service("a", clusterIP="10.96.0.9"), service("b", clusterIP="10.96.0.9")], "taken by Service default/a"),
    ],
)
def test_contradictions_are_named(objects, message):
    with pytest.raises(ValueError, match=message):
        settle(objects)
