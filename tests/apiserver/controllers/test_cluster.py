"""Scheduler, nodes, namespaces, garbage collection, CustomResourceDefinitions."""

from __future__ import annotations

import pytest

from podwire_apiserver.controllers import view_of
from podwire_apiserver.controllers.common import condition_of
from podwire_apiserver.controllers.garbage import GarbageCollector
from podwire_core.objects import key_of


def pod(cluster, name="p", labels=None, requests=None, **spec):
    container = {"name": "c", "image": "nginx", "resources": {"requests": requests or {}}}
    return cluster.put("Pod", name, labels=labels or {}, spec={"containers": [container], **spec})


def node_of(cluster, name="p"):
    return cluster.get("Pod", name)["spec"].get("nodeName")


# --- scheduler --------------------------------


def test_pods_are_spread_and_given_nodes_kept(cluster):
    for number in range(6):
        pod(cluster, f"p{number}")
    pod(cluster, "fixed", nodeName="node2")
    cluster.settle()
    nodes = [node_of(cluster, f"p{number}") for number in range(6)]
    assert sorted(nodes) == ["node1", "node1", "node2", "node2", "node3", "node3"] or nodes.count("node2") == 1
    assert node_of(cluster, "fixed") == "node2"


def affinity(expressions):
    required = {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


@pytest.mark.parametrize(
    ("spec", "node", "expected"),
    [
        ({"nodeSelector": {"disk": "ssd"}}, {"labels": {"disk": "ssd"}}, None),
        ({"nodeSelector": {"disk": "ssd"}}, {}, "1 node(s) didn't match Pod's node affinity/selector"),
        ({"affinity": affinity([{"key": "gen", "operator": "Gt", "values": ["3"]}])}, {"labels": {"gen": "4"}}, None),
        (
            {"affinity": affinity([{"key": "gen", "operator": "Gt", "values": ["3"]}])},
            {"labels": {"gen": "2"}},
            "1 node(s) didn't match Pod's node affinity/selector",
        ),
        ({}, {"unschedulable": True}, "1 node(s) were unschedulable"),
        ({}, {"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}, "1 node(s) had untolerated taint {gpu: yes}"),
        ({"tolerations": [{"key": "gpu", "operator": "Exists"}]}, {"taints": [{"key": "gpu", "effect": "NoSchedule"}]}, None),
        ({}, {"taints": [{"key": "gpu", "effect": "PreferNoSchedule"}]}, None),
        ({}, {"status": {"allocatable": {"cpu": "100m"}}}, "1 Insufficient cpu"),
        ({}, {"status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "0"}}}, "1 Too many pods"),
    ],
)
def test_where_a_pod_fits(make_cluster, spec, node, expected):
    cluster = make_cluster(nodes=0)
    cluster.add_node("n", **node)
    pod(cluster, requests={"cpu": "200m"}, **spec)
    cluster.settle()
    condition = condition_of(cluster.get("Pod", "p"), "PodScheduled")
    if expected is None:
        assert (node_of(cluster), condition["status"]) == ("n", "True")
    else:
        assert condition["message"] == f"0/1 nodes are available: {expected}."
        (note,) = [each for each in cluster.events if each.reason == "FailedScheduling"]
        assert note.message == condition["message"]


def test_a_pod_that_did_not_fit_is_tried_again(cluster):
    pod(cluster, nodeSelector={"disk": "ssd"})
    cluster.settle()
    assert node_of(cluster) is None
    cluster.add_node("fast", labels={"disk": "ssd"})
    cluster.settle()
    assert node_of(cluster) == "fast"


def test_room_is_counted_and_comes_back(make_cluster):
    cluster = make_cluster(nodes=0)
    cluster.add_node("n", status={"allocatable": {"cpu": "1", "memory": "1Gi"}})
    pod(cluster, "a", requests={"cpu": "600m"})
    pod(cluster, "b", requests={"cpu": "600m"})
    cluster.settle()
    assert (node_of(cluster, "a"), node_of(cluster, "b")) == ("n", None)
    cluster.delete("Pod", "default/a", cluster.now, grace=0)
    cluster.settle()
    assert node_of(cluster, "b") == "n"


def test_host_ports_do_not_meet(cluster):
    for number in range(4):
        container = {"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}]}
        cluster.put("Pod", f"p{number}", spec={"containers": [container]})
    cluster.settle()
    assert sorted(filter(None, (node_of(cluster, f"p{number}") for number in range(4)))) == ["node1", "node2", "node3"]
    message = condition_of(cluster.get("Pod", "p3"), "PodScheduled")["message"]
    assert message == "0/3 nodes are available: 3 node(s) didn't have free ports for the requested pod ports."


def test_anti_affinity_by_hostname(cluster):
    term = {"labelSelector": {"matchLabels": {"app": "db"}}, "topologyKey": "kubernetes.io/hostname"}
    apart = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    for number in range(4):
        pod(cluster, f"p{number}", labels={"app": "db"}, affinity=apart)
    cluster.settle()
    assert [node_of(cluster, f"p{number}") for number in range(4)] == ["node1", "node2", "node3", None]
    pod(cluster, "other", labels={"app": "db"})  # those that are there do not want it, either
    cluster.settle()
    assert "existing pods anti-affinity" in condition_of(cluster.get("Pod", "other"), "PodScheduled")["message"]


def test_topology_spread(make_cluster):
    cluster = make_cluster(nodes=0)
    for name, zone in (("a1", "a"), ("a2", "a"), ("b1", "b")):
        cluster.add_node(name, labels={"zone": zone})
    selector = {"matchLabels": {"app": "web"}}
    constraint = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector}
    for number in range(4):
        pod(cluster, f"p{number}", labels={"app": "web"}, topologySpreadConstraints=[constraint])
    cluster.settle()
    zones = [node_of(cluster, f"p{number}")[0] for number in range(4)]
    assert sorted(zones) == ["a", "a", "b", "b"]


def test_the_same_view_gives_the_same_placement(make_cluster):
    def placed():
        cluster = make_cluster()
        for number in range(9):
            pod(cluster, f"p{number}")
        cluster.settle()
        return [node_of(cluster, f"p{number}") for number in range(9)]

    assert placed() == placed()


# --- nodes --------------------------------


def test_networks_follow_the_number_in_the_name(make_cluster):
    cluster = make_cluster(nodes=0)
    cluster.add_node("given", podCIDR="10.244.3.0/24", podCIDRs=["10.244.3.0/24"])
    for name in ("node2", "node1", "node3", "worker"):
        cluster.add_node(name)
    cluster.settle()
    networks = {name: cluster.get("Node", name, "")["spec"]["podCIDR"] for name in cluster.view.all("Node")}
    assert networks == {
        "given": "10.244.3.0/24",
        "node1": "10.244.1.0/24",
        "node2": "10.244.2.0/24",
        "node3": "10.244.4.0/24",
        "worker": "10.244.5.0/24",
    }


def test_a_silent_node_loses_its_pods_after_their_toleration(cluster):
    toleration = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}
    pod(cluster, "stays", nodeName="node1", tolerations=[toleration])
    pod(cluster, "leaves", nodeName="node1", tolerations=[{**toleration, "tolerationSeconds": 300}])
    cluster.converge()
    cluster.now += 39
    cluster.renew("node2")
    cluster.renew("node3")
    cluster.settle()
    assert condition_of(cluster.get("Node", "node1", ""), "Ready")["status"] == "True"
    cluster.now += 1
    cluster.settle()
    node = cluster.get("Node", "node1", "")
    assert condition_of(node, "Ready")["reason"] == "NodeStatusUnknown"
    assert [taint["effect"] for taint in node["spec"]["taints"]] == ["NoSchedule", "NoExecute"]
    assert {taint["key"] for taint in node["spec"]["taints"]} == {"node.kubernetes.io/unreachable"}
    assert condition_of(cluster.get("Pod", "stays"), "Ready")["status"] == "False"
    for _ in range(10):
        cluster.now += 29.9
        cluster.renew("node2")
        cluster.renew("node3")
        cluster.settle()
    assert "deletionTimestamp" not in cluster.get("Pod", "leaves")["metadata"]
    cluster.now += 1
    cluster.settle()
    assert "deletionTimestamp" in cluster.get("Pod", "leaves")["metadata"]
    assert "deletionTimestamp" not in cluster.get("Pod", "stays")["metadata"]


def test_a_node_that_speaks_again_loses_its_taints(cluster):
    cluster.settle()
    cluster.sleep(41, alive=False)
    assert len(cluster.get("Node", "node1", "")["spec"]["taints"]) == 2
    cluster.renew("node1")
    node = cluster.get("Node", "node1", "")
    cluster.update_status({**node, "status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    cluster.settle()
    assert not cluster.get("Node", "node1", "")["spec"].get("taints")


def test_pods_of_a_node_that_is_gone_are_forgotten(cluster):
    pod(cluster, nodeName="node1")
    cluster.converge()
    cluster.sleep(60)
    cluster.delete("Node", "node1", cluster.now)
    cluster.settle()
    assert cluster.get("Pod", "p") is None


# --- namespaces --------------------------------


def test_a_namespace_goes_with_all_that_is_in_it(cluster, template):
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template("web")}
    cluster.put("Namespace", "shop", namespace="", spec={"finalizers": ["kubernetes"]})
    cluster.put("Deployment", "web", "shop", spec=spec)
    cluster.put("ConfigMap", "held", "shop")
    cluster.converge()
    assert cluster.get("ServiceAccount", "default", "shop") is not None
    cluster.delete("Namespace", "shop", cluster.now)
    cluster.settle()
    assert cluster.get("Namespace", "shop", "")["status"]["phase"] == "Terminating"  # pods have their grace period
    cluster.converge()
    assert cluster.get("Namespace", "shop", "") is None
    assert cluster.view.everything_in("shop") == []


# --- garbage --------------------------------


def owned(cluster, name, *owners, block=True):
    references = [
        {
            "apiVersion": "v1",
            "kind": o["kind"],
            "name": o["metadata"]["name"],
            "uid": o["metadata"]["uid"],
            "blockOwnerDeletion": block,
        }
        for o in owners
    ]
    made = cluster.put("ConfigMap", name)
    return cluster.update({**made, "metadata": {**made["metadata"], "ownerReferences": references}})


def test_what_has_no_owner_left_goes(cluster):
    first, second = cluster.put("ConfigMap", "first"), cluster.put("ConfigMap", "second")
    owned(cluster, "both", first, second)
    child = owned(cluster, "child", first)
    owned(cluster, "grandchild", child)
    cluster.settle()
    cluster.delete("ConfigMap", "default/first", cluster.now)
    cluster.settle()
    assert cluster.get("ConfigMap", "child") is None
    assert cluster.get("ConfigMap", "grandchild") is None
    references = cluster.get("ConfigMap", "both")["metadata"]["ownerReferences"]
    assert [each["name"] for each in references] == ["second"]


def test_foreground_waits_for_the_dependents(cluster):
    owner = cluster.put("ConfigMap", "owner")
    child = owned(cluster, "child", owner)
    cluster.update({**child, "metadata": {**child["metadata"], "finalizers": ["example.org/held"]}})
    cluster.settle()
    cluster.delete("ConfigMap", "default/owner", cluster.now, propagation="Foreground")
    cluster.settle()
    assert cluster.get("ConfigMap", "owner") is not None
    child = cluster.get("ConfigMap", "child")
    assert "deletionTimestamp" in child["metadata"]
    cluster.update({**child, "metadata": {**child["metadata"], "finalizers": []}})
    cluster.settle()
    assert cluster.get("ConfigMap", "owner") is None
    assert cluster.get("ConfigMap", "child") is None


def test_orphans_stay(cluster):
    owner = cluster.put("ConfigMap", "owner")
    owned(cluster, "child", owner)
    cluster.delete("ConfigMap", "default/owner", cluster.now, propagation="Orphan")
    cluster.settle()
    assert cluster.get("ConfigMap", "owner") is None
    assert not cluster.get("ConfigMap", "child")["metadata"].get("ownerReferences")


def test_an_owner_of_the_same_name_is_another_owner():
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "o", "namespace": "d", "uid": "new"}}
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "old"}
    child = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "c", "namespace": "d", "uid": "c", "ownerReferences": [reference]},
    }
    actions = GarbageCollector().reconcile(view_of([owner, child]), "ConfigMap|d/c", 0)
    assert [action.key for action in actions] == [key_of(child)]


def test_a_crd_is_established(cluster):
    names = {"plural": "widgets", "kind": "Widget"}
    spec = {"group": "example.org", "names": names, "versions": [{"name": "v1", "storage": True, "served": True}]}
    cluster.put("CustomResourceDefinition", "widgets.example.org", namespace="", spec=spec)
    cluster.settle()
    crd = cluster.get("CustomResourceDefinition", "widgets.example.org", "")
    assert condition_of(crd, "Established")["status"] == "True"
    assert crd["status"]["storedVersions"] == ["v1"]
    assert cluster.settle() == 0
