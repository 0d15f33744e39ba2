"""`podwire check` over a cluster of three nodes: verdicts, destinations, sources, who decided, and bad input."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.check import check
from podwire_nodeagent.proxy import modes

NODES = [
    {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"node{n}"},
        "spec": {"podCIDR": f"10.244.{n}.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": f"192.168.1.{10 + n}"}]},
    }
    for n in (1, 2, 3)
]


def pod(name, node=1, labels=None, ports=(("http", 8080, "TCP"),), ip="", ready=True, **spec):
    container = {"name": "c", "image": "nginx", "ports": [{"name": n, "containerPort": p, "protocol": t} for n, p, t in ports]}
    conditions = [{"type": "Ready", "status": str(ready)}]
    status = {"phase": "Running", "conditions": conditions} | ({"podIP": ip} if ip else {})
    metadata = {"name": name, "labels": labels or {}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"nodeName": f"node{node}", "containers": [container], **spec},
        "status": status,
    }


def service(name="web", ports=None, status=None, **spec):
    fields = {"selector": {"app": "web"}, "ports": ports or [{"name": "http", "port": 80, "targetPort": "http"}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": fields, "status": status or {}}


WEB = {"app": "web"}
OBJECTS = [
    *NODES,
    pod("client", ip="10.244.1.10"),
    pod("web-1", 1, WEB, ip="10.244.1.11"),
    pod("web-2", 2, WEB, ip="10.244.2.11"),
    pod("web-3", 3, WEB, ip="10.244.3.11", ready=False),
    pod("host", 3, ports=(("admin", 9100, "TCP"),), hostNetwork=True),
    service(clusterIP="10.96.0.50"),
    service("none", selector={"app": "nobody"}, clusterIP="10.96.0.51"),
    service("out", type="NodePort", clusterIP="10.96.0.52", ports=[{"port": 80, "targetPort": "http", "nodePort": 30080}]),
    service(
        "local",
        type="NodePort",
        externalTrafficPolicy="Local",
        clusterIP="10.96.0.53",
        ports=[{"port": 80, "targetPort": "http", "nodePort": 30081}],
    ),
    service("headless", clusterIP="None"),
    service("sticky", sessionAffinity="ClientIP", clusterIP="10.96.0.54"),
    service(
        "balanced",
        type="LoadBalancer",
        clusterIP="10.96.0.55",
        ports=[{"port": 443, "targetPort": "http", "nodePort": 30082}],
        status={"loadBalancer": {"ingress": [{"ip": "203.0.113.80"}]}},
        externalIPs=["203.0.113.81"],
    ),
    service("name", type="ExternalName", externalName="example.org", selector=None),
]
CLIENT = {"pod": "default/client"}
OUTSIDE = {"ip": "198.51.100.7", "node": "node1"}
BOTH = {("10.244.1.11", 8080), ("10.244.2.11", 8080)}


def ask(source, to, port, protocol="TCP", objects=OBJECTS):
    (result,) = check(objects, [{"id": "f", "from": source, "to": to, "port": port, "protocol": protocol}])
    return result


def reached(result):
    return {(each["ip"], each["port"]) for each in result["destinations"]}


# --- verdicts --------------------------------


@pytest.mark.parametrize(
    ("source", "to", "port", "verdict", "destinations", "source_seen"),
    [
        (CLIENT, {"pod": "default/web-1"}, "http", "delivered", {("10.244.1.11", 8080)}, "10.244.1.10"),
        (CLIENT, {"pod": "default/web-2"}, 8080, "delivered", {("10.244.2.11", 8080)}, "10.244.1.10"),
        (CLIENT, {"service": "default/web"}, "http", "delivered", BOTH, "10.244.1.10"),
        (CLIENT, {"service": "default/sticky"}, 80, "delivered", BOTH, "10.244.1.10"),
        (CLIENT, {"service": "default/headless"}, "http", "delivered", BOTH, "10.244.1.10"),
        (CLIENT, {"service": "default/none"}, 80, "rejected", set(), None),
        (CLIENT, {"ip": "203.0.113.9"}, 443, "forwarded", {("203.0.113.9", 443)}, "192.168.1.11"),
        (CLIENT, {"ip": "10.244.2.99"}, 80, "dropped", set(), None),
        (CLIENT, {"ip": "10.244.1.99"}, 80, "dropped", set(), None),
        (CLIENT, {"node": "node2"}, 22, "delivered", {("192.168.1.12", 22)}, "192.168.1.11"),
        (CLIENT, {"pod": "default/host"}, "admin", "delivered", {("192.168.1.13", 9100)}, "192.168.1.11"),
        (CLIENT, {"node": "node2"}, 30080, "delivered", BOTH, None),
        (CLIENT, {"ip": "203.0.113.80"}, 443, "delivered", BOTH, None),
        (CLIENT, {"ip": "203.0.113.81"}, 443, "delivered", BOTH, None),
        ({"node": "node2"}, {"pod": "default/web-2"}, 8080, "delivered", {("10.244.2.11", 8080)}, "10.244.2.1"),
        ({"node": "node2"}, {"pod": "default/web-1"}, 8080, "delivered", {("10.244.1.11", 8080)}, "10.244.2.0"),
        ({"node": "node1"}, {"node": "node2"}, 22, "delivered", {("192.168.1.12", 22)}, "192.168.1.11"),
        ({"pod": "default/host"}, {"service": "default/web"}, 80, "delivered", BOTH, None),
        (OUTSIDE, {"node": "node1"}, 30080, "delivered", BOTH, None),
        (OUTSIDE, {"node": "node1"}, 30081, "delivered", {("10.244.1.11", 8080)}, "198.51.100.7"),
        ({"ip": "198.51.100.7", "node": "node3"}, {"node": "node3"}, 30081, "dropped", {("192.168.1.13", 30081)}, None),
        (OUTSIDE, {"ip": "203.0.113.80"}, 443, "delivered", BOTH, None),
        ({"ip": "10.244.1.10"}, {"service": "default/web"}, 80, "delivered", BOTH, "10.244.1.10"),
        ({"ip": "127.0.0.1", "node": "node1"}, {"ip": "127.0.0.1"}, 30080, "delivered", BOTH, None),
    ],
)
def test_verdicts(source, to, port, verdict, destinations, source_seen):
    result = ask(source, to, port)
    assert (result["verdict"], reached(result)) == (verdict, destinations), result["decided_by"]
    if source_seen:
        assert result["source"] == source_seen
    assert result["warnings"] == []


@pytest.mark.parametrize("protocol", ["UDP", "SCTP"])
def test_other_protocols(protocol):
    ports = [{"name": "p", "port": 53, "targetPort": 5353, "protocol": protocol}]
    objects = [*OBJECTS, service("dns", ports=ports, clusterIP="10.96.0.60")]
    result = ask(CLIENT, {"service": "default/dns"}, "p", protocol, objects)
    assert reached(result) == {("10.244.1.11", 5353), ("10.244.2.11", 5353)}
    assert result["verdict"] == "delivered"
    other = ask(CLIENT, {"ip": "10.96.0.60"}, 53, "TCP", objects)
    assert not other["translated"]


# --- what a result says --------------------------------


def test_where_a_packet_went_and_who_decided():
    result = ask(CLIENT, {"service": "default/web"}, 80)
    far = next(each for each in result["destinations"] if each["ip"] == "10.244.2.11")
    assert (far["pod"], far["node"], far["verdict"]) == ("default/web-2", "node2", "delivered")
    assert (result["translated"], result["snat"]) == (True, False)
    decided = result["decided_by"]
    assert (decided["node"], decided["stage"], decided["object"]) == ("node1", "nat/PREROUTING", "Service default/web:http")
    assert "-j DNAT --to-destination" in decided["rule"]


def test_hops_follow_the_packet_through_the_tunnel():
    hops = ask(CLIENT, {"pod": "default/web-2"}, 8080)["hops"]
    assert [hop["node"] for hop in hops] == ["node1", "node2"]
    assert (hops[0]["tunnel_dst"], hops[0]["in_alias"], hops[1]["out_alias"]) == (
        "192.168.1.12",
        "pod default/client",
        "pod default/web-2",
    )
    assert "encapsulate" in [step["action"] for step in hops[0]["steps"]]


def test_a_pod_that_reaches_itself_is_masqueraded_and_others_are_not():
    result = ask({"pod": "default/web-1"}, {"service": "default/web"}, 80)
    by_ip = {each["ip"]: (each["source"], each["snat"]) for each in result["destinations"]}
    assert by_ip == {"10.244.1.11": ("10.244.1.1", True), "10.244.2.11": ("10.244.1.11", False)}


def test_a_rejection_names_the_service():
    result = ask(CLIENT, {"service": "default/none"}, 80)
    assert result["decided_by"]["stage"] == "filter/FORWARD"
    assert result["decided_by"]["object"] == "Service default/none:http"
    assert "REJECT" in result["decided_by"]["rule"]
    assert (result["source"], result["translated"]) == (None, False)


def test_a_headless_service_with_nothing_ready_has_no_address():
    empty = service("empty", clusterIP="None", selector={"app": "nobody"})
    result = ask(CLIENT, {"service": "default/empty"}, 80, objects=[*OBJECTS, empty])
    assert (result["verdict"], result["destinations"], result["decided_by"]["stage"]) == ("rejected", [], "dns")


def test_nobody_at_an_address_is_said():
    assert ask(CLIENT, {"ip": "10.244.2.99"}, 80)["decided_by"]["stage"] == "neighbour"
    decided = ask(CLIENT, {"ip": "10.244.1.99"}, 80)["decided_by"]
    assert decided == {"node": "node1", "stage": "neighbour", "rule": "10.244.1.99 does not answer", "object": None}


def test_nodes_of_different_networks_meet_outside():
    far = {**NODES[1], "status": {"addresses": [{"type": "InternalIP", "address": "172.16.5.2"}]}}
    result = ask({"node": "node1"}, {"node": "node2"}, 22, objects=[NODES[0], far])
    assert (result["verdict"], reached(result)) == ("delivered", {("172.16.5.2", 22)})
    objects = [NODES[0], far, pod("client", ip="10.244.1.10"), pod("far", 2, ip="10.244.2.10")]
    assert ask(CLIENT, {"pod": "default/far"}, 80, objects=objects)["source"] == "10.244.1.10"


def test_policies_are_not_passed_over_in_silence():
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "deny"},
        "spec": {"podSelector": {}},
    }
    (warning,) = ask(CLIENT, {"pod": "default/web-1"}, 8080, objects=[*OBJECTS, policy])["warnings"]
    assert warning.startswith("NetworkPolicy: nothing acts on it yet")


# --- objects --------------------------------


def test_manifests_become_pods_on_nodes():
    template = {
        "metadata": {"labels": WEB},
        "spec": {"containers": [{"name": "c", "image": "nginx", "ports": [{"name": "http", "containerPort": 80}]}]},
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {"replicas": 4, "selector": {"matchLabels": WEB}, "template": template},
    }
    objects = [{"apiVersion": "v1", "kind": "List", "items": [deployment, service()]}, pod("client")]
    result = ask(CLIENT, {"service": "default/web"}, "http", objects=objects)
    assert result["verdict"] == "delivered"
    assert reached(result) == {(f"10.244.1.{n}", 80) for n in (2, 3, 4, 5)} or len(reached(result)) == 4


def test_given_slices_are_kept():
    slice_ = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.3.11"]}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }
    assert reached(ask(CLIENT, {"service": "default/web"}, 80, objects=[*OBJECTS, slice_])) == {("10.244.3.11", 8080)}


def test_a_pod_may_have_an_address_of_no_network():
    objects = [*NODES, pod("client", ip="10.244.1.10"), pod("odd", 2, ip="10.99.0.5"), pod("strange", 1, ip="10.99.0.6")]
    # Flannel masquerades between nodes what is not of the cluster's network
    for name, ip, source in (("odd", "10.99.0.5", "10.244.2.0"), ("strange", "10.99.0.6", "10.99.0.6")):
        result = ask(CLIENT, {"pod": f"default/{name}"}, 80, objects=objects)
        assert (result["verdict"], reached(result)) == ("delivered", {(ip, 80)})
        back = ask({"pod": f"default/{name}"}, CLIENT, 80, objects=objects)
        assert (back["verdict"], back["source"]) == ("delivered", source)


def test_the_configuration_of_kube_proxy_counts():
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "iptables": {"masqueradeAll": True},
    }
    assert ask(CLIENT, {"service": "default/web"}, 80, objects=[*OBJECTS, config])["snat"]


def test_ids_come_back_in_order():
    flows = [{"id": n, "from": CLIENT, "to": {"pod": "default/web-1"}, "port": n} for n in (3, 1, 2)]
    assert [result["id"] for result in check(OBJECTS, flows)] == [3, 1, 2]


FLOWS = [
    {"id": number, "from": source, "to": to, "port": port}
    for number, (source, to, port) in enumerate(
        [
            (CLIENT, {"service": "default/web"}, 80),
            (CLIENT, {"service": "default/sticky"}, 80),
            ({"pod": "default/web-2"}, {"service": "default/sticky"}, 80),
            ({"node": "node1"}, {"service": "default/web"}, 80),
            (OUTSIDE, {"node": "node1"}, 30080),
            (OUTSIDE, {"node": "node1"}, 30081),
            (CLIENT, {"ip": "10.244.2.99"}, 80),
            (CLIENT, {"pod": "default/web-2"}, 8080),
            (CLIENT, {"service": "default/none"}, 80),
        ]
    )
]


def essence(result):
    return {key: value for key, value in result.items() if key not in ("hops", "decided_by")}


@settings(max_examples=15, deadline=None)
@given(st.permutations(FLOWS))
def test_an_answer_does_not_depend_on_what_was_asked_before(flows):
    alone = {flow["id"]: essence(check(OBJECTS, [flow])[0]) for flow in FLOWS}
    assert {result["id"]: essence(result) for result in check(OBJECTS, flows)} == alone


# --- bad input --------------------------------


def flow(**changes):
    return {"id": "x", "from": CLIENT, "to": {"service": "default/web"}, "port": 80, "protocol": "TCP", **changes}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("x", "flows[0]: expected an object, got str"),
        ({"id": 1, "to": CLIENT, "port": 1}, "flows[0].from: missing"),
        (flow(port=None), "flows[0].port: expected a number or a port's name, got NoneType"),
        (flow(port=True), "flows[0].port: expected a number or a port's name, got bool"),
        (flow(port=70000), "flows[0].port: expected 1 to 65535, got 70000"),
        (flow(port="https"), "flows[0].port: Service default/web has no port 'https'"),
        (flow(protocol="tcp"), "flows[0].protocol: expected TCP, UDP or SCTP, got 'tcp'"),
        (flow(to={"service": "default/nix"}), "flows[0].to.service: no Service default/nix"),
        (flow(to={"service": "default/name"}), "flows[0].to.service: default/name is an ExternalName, which only DNS knows"),
        (flow(to={"pod": "default/nix"}), "flows[0].to.pod: no Pod default/nix"),
        (flow(to={"pod": "default/web-1"}, port="nix"), "flows[0].port: Pod default/web-1 has no TCP port named 'nix'"),
        (flow(to={}), "flows[0].to: expected one of service, pod, node, ip, got none"),
        (flow(to={"pod": "a/b", "ip": "1.2.3.4"}), "flows[0].to: expected one of service, pod, node, ip, got pod, ip"),
        (flow(to={"ip": "10.0.0.300"}), "flows[0].to.ip: '10.0.0.300' is not an IP address"),
        (flow(to={"ip": "fd00::g"}), "flows[0].to.ip: 'fd00::g' is not an IP address"),
        (flow(to={"ip": "1.2.3.4"}, port="http"), "flows[0].port: 'http': a name needs a pod or a service to look it up in"),
        (flow(to={"ip": 5}), "flows[0].to.ip: expected a name, got 5"),
        ({**flow(), "from": {"node": "nix"}}, "flows[0].from.node: no Node nix"),
        (
            {**flow(), "from": {"ip": "198.51.100.7"}},
            "flows[0].from.node: missing: at which node does a packet from 198.51.100.7 arrive?",
        ),
    ],
)
def test_bad_flows_are_named(asked, message):
    with pytest.raises(ValueError) as error:
        check(OBJECTS, [asked])
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([5], "objects[0]: expected an object with apiVersion and kind"),
        ([{"apiVersion": "v1", "kind": "Pod"}], "objects[0] (Pod): $.metadata.name: missing"),
        ([service(ports=[{"port": "80"}])], "objects[0] (Service web): $.spec.ports[0].port: expected int, got str"),
        ([pod("a", ip="10.244.1.5"), pod("b", ip="10.244.1.5"), *NODES], "objects: pods default/a, default/b share 10.244.1.5"),
        ([pod("a"), pod("a"), *NODES], "Pod default/a is there twice"),
        (
            [service("a", clusterIP="10.96.0.9"), service("b", clusterIP="10.96.0.9")],
            "Service default/b: $.spec.clusterIP: 10.96.0.9 is taken by Service default/a",
        ),
        (
            [{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "clusterCIDR": "x"}],
            "KubeProxyConfiguration: $.clusterCIDR: 'x' is not a network in CIDR form",
        ),
    ],
)
def test_bad_objects_are_named(objects, message):
    with pytest.raises(ValueError) as error:
        check(objects, [])
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proxy": "userspace"}, f"proxy: mode 'userspace' is not there; there are: {', '.join(modes.MODES)}"),
        ({"cni": "calico"}, "cni: 'calico' is not there; there are: flannel"),
    ],
)
def test_what_is_not_there_yet_is_refused(options, message):
    with pytest.raises(ValueError) as error:
        check(OBJECTS, [], **options)
    assert str(error.value) == message


def test_an_unschedulable_pod_is_explained():
    lost = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "lost"},
        "spec": {"nodeSelector": {"a": "b"}, "containers": [{"name": "c", "image": "i"}]},
    }
    with pytest.raises(ValueError, match=r"default/lost has no address \(Pending: 0/3 nodes are available: 3 node"):
        ask({"pod": "default/lost"}, {"node": "node1"}, 80, objects=[*OBJECTS, lost])


# --- IPv6 --------------------------------


def node6(number: int, families=(4, 6)) -> dict:
    ips = {4: f"192.168.1.{10 + number}", 6: f"fd00:192:168:1::{10 + number}"}
    cidrs = {4: f"10.244.{number}.0/24", 6: f"fd00:10:244:{number}::/64"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"node{number}"},
        "spec": {"podCIDR": cidrs[families[0]], "podCIDRs": [cidrs[f] for f in families]},
        "status": {"addresses": [{"type": "InternalIP", "address": ips[f]} for f in families]},
    }


def dual(families=(4, 6)) -> list[dict]:
    ranges = {4: "10.96.0.0/12", 6: "fd00:10:96::/112"}
    ranges_of = {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}}
    return [node6(1, families), node6(2, families), {**ranges_of, "spec": {"cidrs": [ranges[f] for f in families]}}]


def pod6(name: str, node: str, **labels: str) -> dict:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 8080}]}]},
    }


def web6(**spec: object) -> dict:
    ports = [{"port": 80, "targetPort": 8080, "nodePort": 30080}]
    spec = {"selector": {"app": "web"}, "type": "NodePort", "ports": ports, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec}


@pytest.mark.parametrize("backend", ["node1", "node2"])
def test_a_service_of_an_ipv6_cluster(backend):
    objects = [*dual((6,)), pod6("client", "node1"), pod6("web", backend, app="web"), web6()]
    flow = {"from": {"pod": "default/client"}, "to": {"service": "default/web"}, "port": 80}
    [found] = check(objects, [flow])
    [destination] = found["destinations"]
    assert (found["verdict"], found["translated"], found["snat"]) == ("delivered", True, False)
    assert (destination["pod"], destination["port"]) == ("default/web", 8080)
    assert destination["ip"].startswith("fd00:10:244:")


def test_a_dual_stack_service_answers_in_both_families():
    service = web6(ipFamilyPolicy="RequireDualStack", clusterIPs=["10.96.0.9", "fd00:10:96::9"], clusterIP="10.96.0.9")
    objects = [*dual(), pod6("client", "node1"), pod6("web", "node2", app="web"), service]
    flows = [{"from": {"pod": "default/client"}, "to": {"ip": ip}, "port": 80} for ip in ("10.96.0.9", "fd00:10:96::9")]
    found = check(objects, flows)
    assert [each["verdict"] for each in found] == ["delivered", "delivered"]
    assert [":" in each["destinations"][0]["ip"] for each in found] == [False, True]


def test_a_node_port_from_outside_by_ipv6_is_masqueraded():
    objects = [*dual((6,)), pod6("web", "node2", app="web"), web6()]
    flow = {"from": {"ip": "2001:db8::7", "node": "node1"}, "to": {"node": "node1"}, "port": 30080}
    [found] = check(objects, [flow])
    assert (found["verdict"], found["snat"], found["source"]) == ("delivered", True, "fd00:10:244:1::")
    assert found["destinations"][0]["pod"] == "default/web"


def test_an_ipv6_service_without_endpoints_rejects():
    objects = [*dual((6,)), pod6("client", "node1"), web6()]
    [found] = check(objects, [{"from": {"pod": "default/client"}, "to": {"service": "default/web"}, "port": 80}])
    assert found["verdict"] == "rejected"
    assert "icmp6-port-unreachable" in found["decided_by"]["rule"]


def test_a_pod_without_the_family_gets_nowhere():
    objects = [*dual((4,)), pod6("client", "node1")]
    [found] = check(objects, [{"from": {"pod": "default/client"}, "to": {"ip": "fd00:10:96::9"}, "port": 80}])
    assert (found["verdict"], found["destinations"]) == ("dropped", [])


def test_a_service_that_needs_both_families_makes_the_cluster_dual():
    service = web6(ipFamilyPolicy="RequireDualStack")
    bare = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}} for name in ("node1", "node2")]
    objects = [pod6("client", "node1"), pod6("web", "node2", app="web"), service, *bare]
    flows = [
        {"from": {"pod": "default/client"}, "to": {"service": "default/web"}, "port": 80},
        {"from": {"node": "node1"}, "to": {"ip": "fd00:192:168:1::12"}, "port": 30080},
    ]
    found = check(objects, flows)
    assert [each["verdict"] for each in found] == ["delivered", "delivered"]
    assert [":" in each["destinations"][0]["ip"] for each in found] == [False, True]
