"""Services and slices to ports: which endpoints a node uses, what is skipped, and that changes recompute no more than needed."""

import pytest
from support.services import endpoint, endpoint_slice, node, port, service

from podwire_nodeagent.proxy.model import Model, NodeFacts

HERE = NodeFacts("node1", "zone-a", ("192.168.1.11",), ("10.244.1.0/24",))


def model_of(svc, *slices, facts=HERE, family=4):
    model = Model(facts, family)
    model.set_service(f"ns/{svc['metadata']['name']}", svc)
    for each in slices:
        model.set_slice(f"ns/{each['metadata']['name']}", each)
    model.refresh()
    return model


def classes(svc, endpoints, facts=HERE):
    (only,) = model_of(svc, endpoint_slice("web", endpoints), facts=facts).ports["ns/web"]
    names = tuple([e.ip.rpartition(".")[2] for e in group] for group in (only.cluster, only.local, only.reachable))
    return *names, only.has_endpoints


def web(**spec):
    return service("web", "10.96.0.7", **spec)


NODE_PORT = {"type": "NodePort", "ports": [port(80, nodePort=30080)]}
LINGERING = {"ready": False, "serving": True, "terminating": True}


# --- endpoint classes


def test_cluster_policy_uses_every_ready_endpoint():
    assert classes(web(), [endpoint("10.0.0.2", "node2"), endpoint("10.0.0.1", "node1")]) == (["1", "2"], [], ["1", "2"], True)


def test_not_ready_and_not_terminating_is_nothing():
    assert classes(web(), [endpoint("10.0.0.1", ready=False)]) == ([], [], [], False)


def test_terminating_ones_serve_only_when_none_is_ready():
    assert classes(web(), [endpoint("10.0.0.1"), endpoint("10.0.0.2", **LINGERING)])[0] == ["1"]
    assert classes(web(), [endpoint("10.0.0.1", ready=False), endpoint("10.0.0.2", **LINGERING)])[0] == ["2"]
    assert classes(web(), [endpoint("10.0.0.2", ready=False, serving=False, terminating=True)])[3] is False


def test_each_class_falls_back_on_its_own():
    svc = web(**NODE_PORT, externalTrafficPolicy="Local")
    given = [
        endpoint("10.0.0.1", "node2"),
        endpoint("10.0.0.2", "node1", **LINGERING),
        endpoint("10.0.0.3", "node2", **LINGERING),
    ]
    assert classes(svc, given) == (["1"], ["2"], ["1", "2"], True)


def test_internal_local_without_an_outside_needs_no_others():
    assert classes(web(internalTrafficPolicy="Local"), [endpoint("10.0.0.1", "node2")]) == ([], [], [], True)


def test_internal_local_with_an_outside_keeps_both():
    svc = web(**NODE_PORT, internalTrafficPolicy="Local")
    assert classes(svc, [endpoint("10.0.0.1", "node1"), endpoint("10.0.0.2")]) == (["1", "2"], ["1"], ["1", "2"], True)


def test_external_policy_needs_an_outside():
    assert classes(web(externalTrafficPolicy="Local"), [endpoint("10.0.0.1", "node1")])[1] == []


@pytest.mark.parametrize(
    ("zone", "hints", "used"),
    [
        ("zone-a", [(["zone-a"], []), (["zone-b"], [])], ["1"]),
        ("zone-c", [(["zone-a"], []), (["zone-b"], [])], ["1", "2"]),  # nobody for this zone
        ("", [(["zone-a"], []), (["zone-b"], [])], ["1", "2"]),  # a node without a zone
        ("zone-a", [(["zone-a"], []), ([], [])], ["1", "2"]),  # one without a hint
        ("zone-a", [([], []), (["zone-a"], [])], ["1", "2"]),
        ("zone-a", [(["zone-a"], ["node1"]), (["zone-a"], ["node2"])], ["1"]),
        ("zone-a", [(["zone-a"], ["node3"]), (["zone-b"], ["node2"])], ["1"]),  # nobody for this node: its zone
        ("zone-a", [(["zone-a"], ["node1"]), (["zone-a"], [])], ["1", "2"]),  # node hints not on all: zone
    ],
)
def test_hints(zone, hints, used):
    given = [endpoint(f"10.0.0.{i}", zones=zones, nodes=nodes) for i, (zones, nodes) in enumerate(hints, 1)]
    assert classes(web(), given, NodeFacts("node1", zone))[0] == used


def test_an_endpoint_without_hints_that_is_not_ready_does_not_count():
    given = [endpoint("10.0.0.1", zones=["zone-a"]), endpoint("10.0.0.2", zones=["zone-b"]), endpoint("10.0.0.3", ready=False)]
    assert classes(web(), given)[0] == ["1"]


# --- slices


def test_slices_are_merged_and_the_better_state_wins():
    model = model_of(
        web(),
        endpoint_slice("web", [endpoint("10.0.0.2", ready=False), endpoint("10.0.0.1")], name="a"),
        endpoint_slice("web", [endpoint("10.0.0.2", ready=True), endpoint("10.0.0.1", ready=False)], name="b"),
    )
    assert [e.name for e in model.ports["ns/web"][0].cluster] == ["10.0.0.1:80", "10.0.0.2:80"]


def test_ports_meet_by_name_and_protocol():
    svc = web(ports=[port(53, "dns", "UDP"), port(53, "dns-tcp"), port(9153, "metrics")])
    slices = endpoint_slice("web", [endpoint("10.0.0.1")], [port(5353, "dns", "UDP"), port(5354, "dns-tcp")])
    udp, tcp, metrics = model_of(svc, slices).ports["ns/web"]
    assert [e.port for e in udp.cluster] == [5353]
    assert [e.port for e in tcp.cluster] == [5354]
    assert not metrics.has_endpoints


def test_other_families_and_nameless_ports_are_left_out():
    six = endpoint_slice("web", [endpoint("fd00::1")], name="six", family=6)
    nowhere = endpoint_slice("web", [endpoint("10.0.0.1")], [{"name": "p80", "protocol": "TCP"}], name="nowhere")
    assert not model_of(web(), six, nowhere).ports["ns/web"][0].has_endpoints
    dual = web(clusterIPs=["10.96.0.7", "fd00:96::7"])
    (only,) = model_of(dual, six, family=6).ports["ns/web"]
    assert (only.cluster_ip, [e.name for e in only.cluster]) == ("fd00:96::7", ["[fd00::1]:80"])


# --- what is skipped, what a port says


@pytest.mark.parametrize(
    "svc",
    [
        service("web", "None"),
        service("web", ""),
        service("web", "10.96.0.7", type="ExternalName", externalName="example.org"),
        service("web", "fd00::7"),
        {
            **service("web", "10.96.0.7"),
            "metadata": {"name": "web", "namespace": "ns", "labels": {"service.kubernetes.io/headless": ""}},
        },
        {
            **service("web", "10.96.0.7"),
            "metadata": {"name": "web", "namespace": "ns", "labels": {"service.kubernetes.io/service-proxy-name": "other"}},
        },
    ],
)
def test_not_ours(svc):
    assert model_of(svc).ports == {}


def test_fields_of_a_load_balancer():
    svc = web(
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        healthCheckNodePort=30000,
        externalIPs=["010.0.0.9", "fd00::9", "what"],
        loadBalancerSourceRanges=[" 203.0.113.0/25"],
        sessionAffinity="ClientIP",
        status={"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}, {"ip": "5.6.7.8", "ipMode": "Proxy"}, {"hostname": "x"}]}},
    )
    (only,) = model_of(svc).ports["ns/web"]
    assert only.full_name == "ns/web:p80"
    assert (only.external_ips, only.load_balancer_ips) == (("10.0.0.9",), ("1.2.3.4",))
    assert (only.source_ranges, only.affinity_seconds) == (("203.0.113.0/25",), 10800)
    assert (only.external_local, only.health_check_port) == (True, 30000)


def test_no_health_check_with_policy_cluster():
    svc = web(type="LoadBalancer", externalTrafficPolicy="Cluster", healthCheckNodePort=30000)
    assert model_of(svc).ports["ns/web"][0].health_check_port == 0


def test_what_cannot_be_decoded_counts_as_absent():
    model = model_of(web())
    model.set_service("ns/web", {"metadata": {"name": "web"}, "spec": {"ports": "eighty"}})
    assert [c.service for c in model.refresh()] == ["ns/web"]
    assert model.ports == {}
    assert "$.spec.ports" in model.problems["Service ns/web"]
    model.set_service("ns/web", web())
    model.refresh()
    assert model.problems == {}


# --- changes


def test_only_what_changed_is_reported():
    model = model_of(web(), endpoint_slice("web", [endpoint("10.0.0.1")]))
    model.set_service("ns/other", service("other", "10.96.0.8"))
    (change,) = model.refresh()
    assert (change.service, change.old, len(change.new)) == ("ns/other", (), 1)
    model.set_service("ns/web", web())
    model.set_slice("ns/web-1", endpoint_slice("web", [endpoint("10.0.0.1")]))
    assert model.refresh() == []


def test_a_slice_that_moves_to_another_service():
    model = model_of(web(), endpoint_slice("web", [endpoint("10.0.0.1")], name="s"))
    model.set_service("ns/other", service("other", "10.96.0.8"))
    model.set_slice("ns/s", endpoint_slice("other", [endpoint("10.0.0.1")], name="s"))
    model.refresh()
    assert not model.ports["ns/web"][0].has_endpoints
    assert model.ports["ns/other"][0].has_endpoints
    model.set_slice("ns/s", None)
    model.refresh()
    assert not model.ports["ns/other"][0].has_endpoints


def test_slices_may_come_before_their_service():
    model = Model(HERE)
    model.set_slice("ns/web-1", endpoint_slice("web", [endpoint("10.0.0.1")]))
    assert model.refresh() == []
    model.set_service("ns/web", web())
    assert model.refresh()[0].new[0].has_endpoints


def test_a_node_that_changes_zone():
    given = [endpoint("10.0.0.1", zones=["zone-a"]), endpoint("10.0.0.2", zones=["zone-b"])]
    model = model_of(web(), endpoint_slice("web", given))
    model.set_node(NodeFacts("node1", "zone-b"))
    (change,) = model.refresh()
    assert [e.ip for e in change.new[0].cluster] == ["10.0.0.2"]


def test_facts_of_a_node():
    facts = NodeFacts.of(node("node1", "192.168.1.11", "10.244.1.0/24", "zone-a"), ("10.244.1.1",))
    assert facts == NodeFacts("node1", "zone-a", ("192.168.1.11", "10.244.1.1"), ("10.244.1.0/24",))
    assert (facts.primary(4), facts.primary(6)) == ("192.168.1.11", "")
    assert facts.node_port_addresses((), 4) is None
    assert facts.node_port_addresses(("0.0.0.0/0",), 4) is None
    assert facts.node_port_addresses(("primary",), 4) == ("192.168.1.11",)
    assert facts.node_port_addresses(("10.0.0.0/8", "127.0.0.0/8"), 4) == ("10.244.1.1", "127.0.0.1")
