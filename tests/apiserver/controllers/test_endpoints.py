"""EndpointSlices and Endpoints: conditions, named ports, packing, mirroring, and no write without a reason."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from podwire_core.objects import key_of


def service(cluster, name="web", namespace="default", **spec):
    fields = {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}], **spec}
    return cluster.put("Service", name, namespace, spec=fields)


def pod(cluster, name, port=8080, labels=None, node="", **spec):
    container = {"name": "c", "ports": [{"name": "http", "containerPort": port}]}
    fields = {"containers": [container], **({"nodeName": node} if node else {}), **spec}
    return cluster.put("Pod", name, labels=labels or {"app": "web"}, spec=fields)


def slices(cluster, name="web"):
    return cluster.view.slices_of(f"default/{name}")


def endpoints(cluster, name="web"):
    found = {}
    for each in slices(cluster, name):
        for endpoint in each["endpoints"] or ():
            found[endpoint["targetRef"]["name"]] = (endpoint, each["ports"])
    return found


def test_conditions_follow_the_pod(cluster):
    service(cluster)
    pod(cluster, "a")
    cluster.settle()
    assert endpoints(cluster) == {}  # no address yet
    cluster.converge()
    endpoint, ports = endpoints(cluster)["a"]
    assert endpoint["conditions"] == {"ready": True, "serving": True, "terminating": False}
    assert endpoint["nodeName"] == cluster.get("Pod", "a")["spec"]["nodeName"]
    assert ports == [{"name": "http", "protocol": "TCP", "port": 8080}]
    cluster.delete("Pod", "default/a", cluster.now)
    cluster.settle()
    assert endpoints(cluster)["a"][0]["conditions"] == {"ready": False, "serving": True, "terminating": True}
    cluster.finish("default/a")
    cluster.settle()
    assert [each["endpoints"] for each in slices(cluster)] == [[]]  # a placeholder stays


def test_not_ready_pods_are_not_ready_unless_published(cluster):
    service(cluster)
    service(cluster, "all", publishNotReadyAddresses=True)
    pod(cluster, "a")
    cluster.converge()
    cluster.set_ready("default/a", False)
    cluster.settle()
    assert endpoints(cluster)["a"][0]["conditions"]["ready"] is False
    assert endpoints(cluster, "all")["a"][0]["conditions"] == {"ready": True, "serving": False, "terminating": False}


def test_named_ports_are_each_pods_own(cluster):
    service(cluster)
    pod(cluster, "a", port=8080)
    pod(cluster, "b", port=9090)
    cluster.converge()
    assert {name: ports[0]["port"] for name, (_, ports) in endpoints(cluster).items()} == {"a": 8080, "b": 9090}
    assert len(slices(cluster)) == 2


def test_labels_owner_zone_and_hostname(cluster):
    node = cluster.get("Node", "node1", "")
    labels = {**node["metadata"]["labels"], "topology.kubernetes.io/zone": "z1"}
    cluster.update({**node, "metadata": {**node["metadata"], "labels": labels}})
    owner = service(cluster, clusterIP="None", trafficDistribution="PreferClose")
    pod(cluster, "a", node="node1", hostname="a", subdomain="web")
    cluster.converge()
    (only,) = slices(cluster)
    assert only["metadata"]["labels"] == {
        "kubernetes.io/service-name": "web",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "service.kubernetes.io/headless": "",
    }
    assert only["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"]
    assert only["metadata"]["name"].startswith("web-")
    (endpoint,) = only["endpoints"]
    assert (endpoint["zone"], endpoint["hostname"]) == ("z1", "a")
    assert endpoint["hints"] == {"forZones": [{"name": "z1"}]}
    cluster.delete("Service", "default/web", cluster.now)
    cluster.settle()
    assert slices(cluster) == []
    assert cluster.get("Endpoints", "web") is None


def test_slices_hold_a_hundred_and_change_one_at_a_time(cluster):
    service(cluster)
    for number in range(250):
        pod(cluster, f"p{number:03}", node="node1")
    cluster.converge()
    assert sorted(len(each["endpoints"]) for each in slices(cluster)) == [50, 100, 100]
    before = {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in slices(cluster)}
    cluster.set_ready("default/p007", False)
    cluster.settle()
    changed = [each for each in slices(cluster) if before[each["metadata"]["name"]] != each["metadata"]["resourceVersion"]]
    assert len(changed) == 1
    assert cluster.settle() == 0


def test_a_change_that_is_none_writes_nothing(cluster):
    service(cluster)
    pod(cluster, "a")
    cluster.converge()
    before = cluster.revision
    a = cluster.get("Pod", "a")
    cluster.update_status({**a, "status": {**a["status"], "message": "all is well"}})
    cluster.settle()
    assert cluster.revision == before + 1


def test_endpoints_have_the_older_form(cluster):
    service(cluster)
    pod(cluster, "a")
    pod(cluster, "b")
    cluster.converge()
    cluster.set_ready("default/b", False)
    cluster.settle()
    (subset,) = cluster.get("Endpoints", "web")["subsets"]
    assert [each["targetRef"]["name"] for each in subset["addresses"]] == ["a"]
    assert [each["targetRef"]["name"] for each in subset["notReadyAddresses"]] == ["b"]
    assert subset["ports"] == [{"name": "http", "protocol": "TCP", "port": 8080}]


def test_addresses_of_endpoints_are_sorted_as_text(cluster):
    service(cluster)
    for name in "abcdef":
        pod(cluster, name)
    cluster.converge()
    (subset,) = cluster.get("Endpoints", "web")["subsets"]
    listed = [each["ip"] for each in subset["addresses"]]
    assert len(listed) == 6
    assert listed == sorted(listed)


def test_endpoints_of_users_are_mirrored(cluster):
    service(cluster, "out", selector=None)
    subset = {"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}], "ports": [{"port": 5432}]}
    made = cluster.put("Endpoints", "out", subsets=[subset])
    cluster.settle()
    by_family = {each["addressType"]: each for each in slices(cluster, "out")}
    assert by_family["IPv4"]["endpoints"][0]["addresses"] == ["192.0.2.1"]
    assert by_family["IPv6"]["ports"] == [{"name": "", "protocol": "TCP", "port": 5432}]
    cluster.update({**made, "subsets": [{**subset, "addresses": [{"ip": "192.0.2.2"}]}]})
    cluster.settle()
    assert [each["endpoints"][0]["addresses"] for each in slices(cluster, "out")] == [["192.0.2.2"]]
    cluster.delete("Endpoints", "default/out", cluster.now)
    cluster.settle()
    assert slices(cluster, "out") == []


@pytest.mark.parametrize("spec", [{"selector": None}, {"type": "ExternalName", "externalName": "example.org"}])
def test_services_without_a_selector_get_none(cluster, spec):
    service(cluster, **spec)
    pod(cluster, "a")
    cluster.converge()
    assert slices(cluster) == []


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "ready", "unready", "delete", "finish", "port"]), st.integers(0, 9)), max_size=40
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_slices_always_say_what_the_pods_are(make_cluster, steps):
    """The naive twin: what a fresh look at all pods gives."""
    cluster = make_cluster()
    service(cluster)
    for what, number in steps:
        key = f"default/p{number}"
        there = cluster.view.get("Pod", key)
        if what in ("add", "port") and there is None:
            pod(cluster, f"p{number}", node="node1", port=8080 if what == "add" else 9000)
        elif there is not None and what in ("ready", "unready"):
            cluster.set_ready(key, what == "ready")
        elif there is not None and what in ("delete", "finish"):
            cluster.delete("Pod", key, cluster.now) if what == "delete" else cluster.finish(key)
        cluster.settle()
        want = {
            (each["metadata"]["name"], each["spec"]["containers"][0]["ports"][0]["containerPort"])
            for each in cluster.pods()
            if (each.get("status") or {}).get("podIP")
        }
        assert {(name, ports[0]["port"]) for name, (_, ports) in endpoints(cluster).items()} == want
        for name, (endpoint, _) in endpoints(cluster).items():
            state = cluster.get("Pod", name)
            serving = any(c["type"] == "Ready" and c["status"] == "True" for c in state["status"]["conditions"])
            terminating = "deletionTimestamp" in state["metadata"]
            assert endpoint["conditions"] == {
                "ready": serving and not terminating,
                "serving": serving,
                "terminating": terminating,
            }
        assert len({key_of(each) for each in slices(cluster)}) == len(slices(cluster)) >= 1
