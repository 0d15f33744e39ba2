"""The Linux kernel judges kube-proxy's rules in iptables mode: generated clusters, compiled, printed, loaded by the real
iptables-restore (legacy and nft) into a namespace that is a node; the same packets through it and through our own stack.

A difference found here is to be kept as a case of its own. Seeds: support/judged.py.
"""

from __future__ import annotations

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from support.judged import SEED, SETTINGS, Judge
from support.kernel_node import KernelNode
from support.probes import UDP, Probe
from support.services import by_key, endpoint, endpoint_slice, node, port, service
from support.stack_node import StackNode

from podwire_cni.backends import flannel
from podwire_core import iptables_save
from podwire_core.netlink import LinkAdd, NeighAdd
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.iptables import Proxier
from podwire_nodeagent.proxy.model import NodeFacts

pytestmark = pytest.mark.root

VARIANTS = ("legacy", "nft")

# --- the node: 192.168.1.11 with pods 10.244.1.2 to .5, a peer 192.168.1.12 with 10.244.2.0/24, and the world behind 192.168.1.1

NODE = node("node1", "192.168.1.11", "10.244.1.0/24", "zone-a")
PEER = node("node2", "192.168.1.12", "10.244.2.0/24")
PEER["metadata"]["annotations"] = flannel.publish(PEER, "127.0.0.12")
OPS = [
    *flannel.desired(NODE, [NODE, PEER], gateway="192.168.1.1"),
    LinkAdd("vethpods", "tap", mac="02:00:00:00:00:01", mtu=1450, master="cni0", hairpin=True),
    *(NeighAdd(f"192.168.1.{i}", f"02:00:c0:a8:01:{i:02x}", "eth0") for i in (1, 12)),
    *(NeighAdd(f"10.244.1.{i}", f"02:00:0a:f4:01:{i:02x}", "cni0") for i in range(2, 6)),
]
SENTINEL = Probe("vethpods", "10.244.1.5", "10.244.2.250", 9)

CLIENTS = [
    *(("vethpods", f"10.244.1.{i}") for i in (2, 5)),
    ("flannel.1", "10.244.2.7"),
    *(("eth0", address) for address in ("203.0.113.2", "203.0.113.200", "192.168.1.12")),
    *(("", address) for address in ("192.168.1.11", "10.244.1.1", "10.244.1.0")),
]
LOCAL_PODS, REMOTE_PODS = [f"10.244.1.{i}" for i in (2, 3, 4)], [f"10.244.2.{i}" for i in (2, 3)]
OTHER_BACKENDS = ["192.168.1.11", "192.168.1.12", "203.0.113.9"]
NODE_ADDRESSES = ["192.168.1.11", "10.244.1.1", "10.244.1.0"]

# --- generated clusters


@st.composite
def endpoints(draw):
    addresses = draw(st.lists(st.sampled_from([*LOCAL_PODS, *REMOTE_PODS, *OTHER_BACKENDS]), unique=True, max_size=4))
    hints = st.sampled_from(HINTS) if draw(st.integers(0, 2)) == 0 else st.just({})
    return [
        endpoint(a, "node1" if a in LOCAL_PODS or a == "192.168.1.11" else "node2", **draw(hints), **draw(CONDITIONS))
        for a in addresses
    ]


TERMINATING = [{"ready": False, "serving": serving, "terminating": True} for serving in (True, False)]
CONDITIONS = st.sampled_from([{}, {}, {"ready": False}, *TERMINATING])
HINTS = [{"zones": ["zone-a"]}, {"zones": ["zone-b"]}, {"zones": ["zone-a"], "nodes": ["node1"]}, {"nodes": ["node2"]}]
POLICIES = st.sampled_from(["Cluster", "Local"])


@st.composite
def services(draw):
    found, slices = [], []
    for i in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]))
        spec = {"type": kind, "internalTrafficPolicy": draw(POLICIES)}
        ports = [port(80), port(53, "dns", "UDP")]
        if kind != "ClusterIP":
            spec["externalTrafficPolicy"] = draw(POLICIES)
            ports = [{**each, "nodePort": 30000 + 100 * i + n} for n, each in enumerate(ports)]
        if draw(st.booleans()):
            spec["externalIPs"] = [f"192.0.2.{i}"]
            spec["externalTrafficPolicy"] = draw(POLICIES)
        if kind == "LoadBalancer":
            more = draw(
                st.sampled_from([[], [{"ip": f"198.51.100.{10 + i}"}], [{"ip": f"198.51.100.{10 + i}", "ipMode": "Proxy"}]])
            )
            spec["status"] = {"loadBalancer": {"ingress": [{"ip": f"198.51.100.{i}"}, *more]}}
            spec["loadBalancerSourceRanges"] = draw(st.sampled_from([[], ["203.0.113.0/25"], ["192.168.0.0/16", "10.0.0.0/8"]]))
            spec["healthCheckNodePort"] = 32000 + i
        if draw(st.integers(0, 3)) == 0:
            spec["sessionAffinity"] = "ClientIP"
        found.append(service(f"s{i}", f"10.96.0.{i + 1}", ports, **spec))
        slices.append(endpoint_slice(f"s{i}", draw(endpoints()), [port(8080, "p80"), port(53, "dns", "UDP")]))
    return found, slices


CONFIGS = st.builds(
    ProxyConfiguration,
    masquerade_all=st.booleans(),
    localhost_node_ports=st.booleans(),
    cluster_cidrs=st.sampled_from([("10.244.0.0/16",), ()]),
    detect_local_mode=st.sampled_from(["ClusterCIDR", "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"]),
    bridge_interface=st.just("cni0"),
    interface_name_prefix=st.just("cn"),
    node_port_addresses=st.sampled_from([(), ("192.168.1.0/24",), ("10.244.0.0/16", "127.0.0.0/8")]),
)


def probes_of(found) -> list[Probe]:
    """Every address and port of the Services, one that is nobody's, and the pods themselves, from everywhere."""
    targets = [
        ("10.96.0.99", 80, 6),
        ("10.244.1.3", 8080, 6),
        ("10.244.2.2", 8080, 6),
        ("192.168.1.11", 9, 6),
        ("203.0.113.9", 9, 6),
    ]
    for each in found:
        spec = each["spec"]
        ingress = each["status"]["loadBalancer"].get("ingress", [])
        addresses = [spec["clusterIP"], *spec.get("externalIPs", []), *(i["ip"] for i in ingress)]
        for given_port in spec["ports"]:
            proto = UDP if given_port["protocol"] == "UDP" else 6
            targets += [(address, given_port["port"], proto) for address in addresses]
            targets += [(address, given_port["nodePort"], proto) for address in NODE_ADDRESSES if "nodePort" in given_port]
        targets += [(NODE_ADDRESSES[0], spec.get("healthCheckNodePort", 10250), 6), (spec["clusterIP"], 81, 6)]
    found = [Probe(link, source, *target) for link, source in CLIENTS for target in targets]
    loopback = [Probe("", "127.0.0.1", "127.0.0.1", number, proto) for a, number, proto in targets if a == NODE_ADDRESSES[0]]
    return found + loopback


def compiled(found, slices, config):
    facts = NodeFacts.of(NODE, tuple(NODE_ADDRESSES[1:]))
    proxier = Proxier(config, facts, 4, flannel.tables(NODE))
    proxier.changes(by_key(found), by_key(slices))
    return proxier.tables()


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    judge = KernelNode(tmp_path_factory.mktemp("px-oracle") / "netns", OPS)
    yield judge
    judge.close()


# --- the tests


def unanswered(probe, judged) -> bool:
    """Known: our stack sends no ICMP error to a loopback address."""
    return (probe.src, judged.what) == ("127.0.0.1", "rejected")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_packets_fare_the_same(kernel, variant, record_property):
    judge = Judge(record_property, unanswered)

    @seed(SEED)
    @settings(SETTINGS, max_examples=24)
    @given(cluster=services(), config=CONFIGS, data=st.data())
    def fare(cluster, config, data):
        tables = compiled(*cluster, config)
        kernel.load(iptables_save.print_tables(tables), variant)
        judge.compare(kernel, StackNode(OPS, tables), probes_of(cluster[0]), SENTINEL, data, at_most=120)

    fare()
    judge.report(at_least=1500)


@pytest.mark.parametrize("variant", VARIANTS)
@seed(SEED)
@settings(SETTINGS, max_examples=10)
@given(cluster=services(), config=CONFIGS)
def test_the_text_comes_back_as_it_was_written(kernel, variant, cluster, config):
    tables = compiled(*cluster, config)
    text = iptables_save.print_tables(tables)
    kernel.load(text, variant)
    assert _rules(kernel.saved(variant)) == _rules(text), f"seed {SEED}"


def _rules(text: str) -> dict[str, list[str]]:
    """The lines of each table, without counters; the order of tables is the tool's own."""
    found: dict[str, list[str]] = {}
    table: list[str] = []
    for line in text.splitlines():
        if line.startswith("*"):
            table = found.setdefault(line, [])
        elif line[:1] in (":", "-"):
            table.append(line.partition(" [")[0])
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_affinity_holds_in_both(kernel, variant):
    svc = service("web", "10.96.0.1", sessionAffinity="ClientIP")
    slices = endpoint_slice("web", [endpoint(a, "node1") for a in LOCAL_PODS])
    tables = compiled([svc], [slices], ProxyConfiguration())
    kernel.load(iptables_save.print_tables(tables), variant)
    ours, probe = StackNode(OPS, tables), Probe("flannel.1", "10.244.2.77", "10.96.0.1", 80)
    assert len({outcome.destination for outcome in kernel.send([probe] * 20, SENTINEL, 3000)}) == 1
    assert {outcome.destination[0] for outcome in ours.outcomes(probe)} == set(LOCAL_PODS)
    assert len({ours.send(probe, 1e9 + i).destination for i in range(20)}) == 1
    kernel.load("*nat\nCOMMIT\n*filter\nCOMMIT\n", variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_endpoints_are_chosen_evenly(kernel, variant):
    """Chi-square of 1 200 connections over three endpoints, below the 0.001 quantile of two degrees of freedom."""
    slices = endpoint_slice("web", [endpoint(a, "node1") for a in LOCAL_PODS])
    tables = compiled([service("web", "10.96.0.1")], [slices], ProxyConfiguration())
    kernel.load(iptables_save.print_tables(tables), variant)
    probe = Probe("flannel.1", "10.244.2.78", "10.96.0.1", 80)
    hits = [outcome.dst for outcome in kernel.send([probe] * 1200, SENTINEL, 40000)]
    assert set(hits) == set(LOCAL_PODS)
    assert sum((hits.count(a) - 400) ** 2 / 400 for a in LOCAL_PODS) < 13.8
