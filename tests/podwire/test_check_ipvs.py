"""`podwire check` in IPVS mode: every real server that could be chosen, sources, refusals, and who decided."""

from __future__ import annotations

import pytest

from podwire.check import check

NODES = [
    {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"node{n}"},
        "spec": {"podCIDR": f"10.244.{n}.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": f"192.168.1.{10 + n}"}]},
    }
    for n in (1, 2)
]


def pod(name, node, ip, app=""):
    containers = [{"name": "c", "image": "nginx", "ports": [{"name": "http", "containerPort": 8080}]}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": app}},
        "spec": {"nodeName": f"node{node}", "containers": containers},
        "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def service(name, cluster_ip, status=None, **spec):
    fields = {"clusterIP": cluster_ip, "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": fields, "status": status or {}}


def node_port(number):
    return [{"port": 80, "targetPort": "http", "nodePort": number}]


OBJECTS = [
    *NODES,
    pod("client", 1, "10.244.1.10"),
    *(pod(f"web-{n}-{i}", n, f"10.244.{n}.1{i}", "web") for n in (1, 2) for i in (1, 2)),
    service("web", "10.96.0.50"),
    service("none", "10.96.0.51", selector={"app": "nobody"}),
    service("out", "10.96.0.52", type="NodePort", ports=node_port(30080)),
    service("near", "10.96.0.53", type="NodePort", externalTrafficPolicy="Local", ports=node_port(30081)),
    service("sticky", "10.96.0.54", sessionAffinity="ClientIP"),
    service(
        "balanced",
        "10.96.0.55",
        {"loadBalancer": {"ingress": [{"ip": "203.0.113.80"}]}},
        type="LoadBalancer",
        ports=node_port(30082),
        loadBalancerSourceRanges=["198.51.100.0/24"],
    ),
    service("inside", "10.96.0.56", internalTrafficPolicy="Local"),
    service("ext", "10.96.0.57", externalIPs=["203.0.113.90"]),
]
CLIENT, WEB11 = {"pod": "default/client"}, {"pod": "default/web-1-1"}
OUTSIDE, STRANGER = {"ip": "198.51.100.7", "node": "node1"}, {"ip": "192.0.2.7", "node": "node1"}
HOST = {"node": "node1"}
ALL = {f"10.244.{n}.1{i}" for n in (1, 2) for i in (1, 2)}
HERE = {"10.244.1.11", "10.244.1.12"}


def ask(source, to, port=80, **options):
    flow = {"id": "f", "from": source, "to": {"ip": to}, "port": port, "protocol": "TCP"}
    (result,) = check(OBJECTS, [flow], proxy="ipvs", **options)
    return result


FLOWS = [
    # from, to, port, verdict, destinations, is the source rewritten
    (CLIENT, "10.96.0.50", 80, "delivered", ALL, False),
    (CLIENT, "10.96.0.54", 80, "delivered", ALL, False),
    (CLIENT, "10.96.0.56", 80, "delivered", HERE, False),
    (CLIENT, "10.96.0.51", 80, "rejected", set(), False),
    (CLIENT, "10.96.0.50", 81, "rejected", set(), False),
    (OUTSIDE, "10.96.0.50", 80, "delivered", ALL, True),
    (OUTSIDE, "192.168.1.11", 30080, "delivered", ALL, True),
    (OUTSIDE, "192.168.1.11", 30081, "delivered", HERE, False),
    (OUTSIDE, "203.0.113.80", 80, "delivered", ALL, True),
    (STRANGER, "203.0.113.80", 80, "dropped", set(), False),
    (STRANGER, "192.168.1.11", 30082, "delivered", ALL, True),
    (OUTSIDE, "203.0.113.90", 80, "delivered", ALL, True),
    (HOST, "10.96.0.50", 80, "delivered", ALL, True),
]


@pytest.mark.parametrize(("source", "to", "port", "verdict", "destinations", "snat"), FLOWS)
def test_flows(source, to, port, verdict, destinations, snat):
    result = ask(source, to, port)
    assert result["verdict"] == verdict
    assert {each["ip"] for each in result["destinations"]} == destinations
    assert result["snat"] is snat
    assert result["translated"] is bool(destinations)


def test_a_pod_that_reaches_itself_is_masqueraded():
    sources = {each["ip"]: each["snat"] for each in ask(WEB11, "10.96.0.50")["destinations"]}
    assert sources == {address: address == "10.244.1.11" for address in ALL}


def test_the_virtual_and_the_real_server_decide():
    decided = ask(CLIENT, "10.96.0.50")["decided_by"]
    assert decided["stage"] == "ipvs/INPUT"
    assert decided["object"] == "Service default/web"
    assert decided["rule"].startswith("-a -t 10.96.0.50:80 -r 10.244.")


def test_nobody_to_choose_is_said_with_its_service():
    decided = ask(CLIENT, "10.96.0.51")["decided_by"]
    assert (decided["stage"], decided["rule"], decided["object"]) == (
        "ipvs/INPUT",
        "TCP 10.96.0.51:80 rr",
        "Service default/none",
    )


def test_a_hash_of_the_client_has_one_answer():
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "ipvs",
        "ipvs": {"scheduler": "sh"},
    }
    flow = {"id": "f", "from": CLIENT, "to": {"ip": "10.96.0.50"}, "port": 80, "protocol": "TCP"}
    (result,) = check([*OBJECTS, config], [flow])
    assert len(result["destinations"]) == 1
    (result,) = check([*OBJECTS, {**config, "ipvs": {"scheduler": "mh"}}], [flow])  # by the client's port too
    assert {each["ip"] for each in result["destinations"]} == ALL
