"""IPv6 through whole nodes: real stacks, configured as Flannel's backend configures dual-stack nodes, joined in memory."""

from __future__ import annotations

from collections import deque
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import packets, packets6
from support.packets import ACK, FIN, PSH, RST, SYN
from support.packets6 import decode, echo, frame, icmp, tcp, udp

from podwire_cni.backends import flannel
from podwire_core import netfilter as nf
from podwire_core.netlink import ConntrackDel, LinkAdd, LinkSet, NeighAdd, RouteAdd, RouteDel, Subscribe, SysctlSet, TablesReplace
from podwire_nodeagent import network
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.stack import Stack
from podwire_nodeagent.node_rules import sysctls_of

HOST_MAC = network.HOST_TAP_MAC
A, B, REMOTE = "fd00:10:244:1::5", "fd00:10:244:1::6", "fd00:10:244:2::7"
GATEWAY, SERVICE, NEAR = "fd00:10:244:1::1", "fd00:10:96::50", "fd00:10:96::51"
NODE1, NODE2 = "fd00:192:168:1::11", "fd00:192:168:1::12"
VERDICTS = ("forwarded", "delivered", "dropped", "rejected", "consumed")


def node_object(number: int, families=(4, 6)) -> dict:
    ips = {4: f"192.168.1.{10 + number}", 6: f"fd00:192:168:1::{10 + number}"}
    cidrs = {4: f"10.244.{number}.0/24", 6: f"fd00:10:244:{number}::/64"}
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"node{number}"},
        "spec": {"podCIDRs": [cidrs[f] for f in families]},
        "status": {"addresses": [{"type": "InternalIP", "address": ips[f]} for f in families]},
    }
    node["metadata"]["annotations"] = flannel.publish(node, f"127.0.0.{10 + number}")
    return node


def service_rule(address: str, port: int, backend: str, backend_port: int) -> nf.Rule:
    match = (nf.Destination(f"{address}/128"), nf.Protocol("tcp"), nf.DestinationPort("tcp", port, port))
    return nf.Rule(match, nf.Dnat(backend, backend_port))


def rules(masquerade: bool = False) -> TablesReplace:
    services = (service_rule(SERVICE, 80, REMOTE, 8080), service_rule(NEAR, 80, B, 8080))
    chains = [nf.Chain("PREROUTING", services, "ACCEPT"), nf.Chain("OUTPUT", services, "ACCEPT")]
    if masquerade:
        match = (nf.Source("fd00:10:244::/56"), nf.Destination("fd00:10:244::/56", invert=True))
        chains.append(nf.Chain("POSTROUTING", (nf.Rule(match, nf.Masquerade()),), "ACCEPT"))
    return TablesReplace((nf.Table("nat", 6, tuple(chains)),))


class Pod:
    """The other end of a TAP: answers neighbour solicitations and pings, keeps the rest."""

    def __init__(self, node: Node, link: str, address: str, mac: str) -> None:
        self.node, self.link, self.address, self.mac = node, link, address, mac
        self.inbox: list[packets6.Seen6] = []
        self.answers = True

    def send(self, packet: bytes, to: str = "") -> None:
        self.node.cluster.push(self.node, self.link, frame(to or self.node.bridge_mac, self.mac, packet))

    def receive(self, data: bytes) -> None:
        seen = decode(data)
        group = packets6.solicited_node(self.address)
        if seen.icmp[0] == 135 and seen.dst in (group, self.address):
            if seen.payload[:16] == packets6.ip(self.address) and self.answers:
                self.send(packets6.advertisement(self.address, seen.src, self.address, self.mac), seen.src_mac)
            return
        if seen.dst_mac != self.mac or seen.kind != 0x86DD:
            return
        self.inbox.append(seen)
        if seen.icmp == (128, 0):
            self.send(icmp(self.address, seen.src, 129, 0, seen.rest, seen.payload), seen.src_mac)

    def take(self) -> list[packets6.Seen6]:
        taken, self.inbox = self.inbox, []
        return taken


class Node:
    def __init__(self, cluster: Cluster, number: int, objects: list[dict]) -> None:
        self.cluster, self.number = cluster, number
        self.stack = Stack(f"node{number}", RandomChooser(Random(number)))
        own = objects[number - 1]
        self.desired = flannel.desired(own, objects, gateway="192.168.1.1")
        self.stack.apply([network.host_link(), *self.desired, *sysctls_of(own)], cluster.now)
        self.bridge_mac = next(link.mac for link in self.stack.dump("links", 0.0) if link.name == "cni0")
        self.ends: dict[str, Pod] = {network.HOST_LINK: Pod(self, network.HOST_LINK, f"fd00:192:168:1::{10 + number}", HOST_MAC)}

    def add_pod(self, address: str) -> Pod:
        link = f"veth{len(self.ends)}"
        self.stack.apply([LinkAdd(link, "tap", mtu=1450, master="cni0", hairpin=True)], self.cluster.now)
        self.ends[link] = Pod(self, link, address, f"02:00:00:00:{self.number:02x}:{len(self.ends):02x}")
        return self.ends[link]

    def counter(self, name: str) -> int:
        return self.stack.dump("counters", self.cluster.now).get(name, 0)


class Cluster:
    def __init__(self, families=(4, 6)) -> None:
        self.now = 1000.0
        self.queue: deque[tuple[Node, str, bytearray]] = deque()
        self.tunnelled: list[tuple[str, str]] = []  # by which link, to which node
        objects = [node_object(n, families) for n in (1, 2)]
        self.nodes = [Node(self, n, objects) for n in (1, 2)]
        self.ips = {packets6.IPv6Address(f"fd00:192:168:1::{10 + n.number}").packed: n for n in self.nodes}

    def push(self, node: Node, link: str, data: bytes) -> None:
        self.queue.append((node, link, bytearray(data)))

    def run(self) -> None:
        for _ in range(500):
            if not self.queue:
                return
            node, link, data = self.queue.popleft()
            self._emit(node, node.stack.receive(node.stack.link_index(link), data, self.now))
        raise AssertionError("a storm")

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds * 2)):
            self.now += 0.5
            for node in self.nodes:
                self._emit(node, node.stack.tick(self.now))
            self.run()

    def _emit(self, node: Node, emits) -> None:
        names = {link.index: link.name for link in node.stack.links}
        for index, sent, tunnel in emits:
            name = names[index]
            if tunnel is not None:
                peer = self.ips[tunnel.remote]
                self.tunnelled.append((name, peer.stack.node))
                into = peer.stack.vxlan_index(tunnel.vni, bytes(sent[10:16]))
                link = next(link.name for link in peer.stack.links if link.index == into)
                self.push(peer, link, sent)
            elif name in node.ends:
                node.ends[name].receive(bytes(sent))
                assert decode(sent).bad == [] or sent[0]
            else:
                other = self.nodes[2 - node.number]
                self.push(other, name, sent)


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def pods(cluster):
    one, two = cluster.nodes
    return one.add_pod(A), one.add_pod(B), two.add_pod(REMOTE)


# --- neighbours --------------------------------


def test_the_gateway_answers_solicitations_and_learns_the_asker(cluster, pods):
    a = pods[0]
    group = packets6.solicited_node(GATEWAY)
    a.send(packets6.solicitation(A, group, GATEWAY, a.mac), packets6.group_mac(group))
    cluster.run()
    [answer] = a.take()
    assert (answer.icmp, answer.hops, answer.src, answer.rest[0]) == ((136, 0), 255, GATEWAY, 0xE0)
    assert answer.payload == packets6.ip(GATEWAY) + b"\2\1" + packets.mac(a.node.bridge_mac)
    states = {n.dst: n.state for n in a.node.stack.dump("neighs", cluster.now)}
    assert states[A] == "STALE"


def test_pods_of_a_bridge_find_each_other_by_flooding(cluster, pods):
    a, b, _ = pods
    group = packets6.solicited_node(B)
    a.send(packets6.solicitation(A, group, B, a.mac), packets6.group_mac(group))
    cluster.run()
    assert [(seen.icmp, seen.src) for seen in a.take()] == [((136, 0), B)]
    a.send(echo(A, B), b.mac)
    cluster.run()
    assert [seen.icmp for seen in a.take()] == [(129, 0)]


def test_pods_of_two_nodes_ping_through_flannels_second_device(cluster, pods):
    a, _, remote = pods
    a.send(echo(A, REMOTE, hops=64))
    cluster.run()
    assert [(seen.icmp, seen.hops) for seen in remote.take()] == [((128, 0), 62)]
    assert [(seen.icmp, seen.src) for seen in a.take()] == [((129, 0), REMOTE)]
    assert cluster.tunnelled == [("flannel-v6.1", "node2"), ("flannel-v6.1", "node1")]


def test_packets_wait_for_the_neighbour_and_fail_when_nobody_is_there(cluster, pods):
    a, b, _ = pods
    b.answers = False
    a.send(udp(A, B, 1, 2, b"data"))
    cluster.run()
    assert (a.take(), b.take()) == ([], [])
    cluster.wait(5)
    [error] = a.take()
    assert (error.icmp, error.src) == ((1, 3), GATEWAY)
    b.answers = True
    a.send(udp(A, B, 1, 2, b"data"))
    cluster.run()
    assert [seen.payload for seen in b.take()] == [b"data"]


def test_a_neighbour_in_use_is_confirmed_by_a_unicast_solicitation(cluster, pods):
    a, b, _ = pods
    for _ in range(12):
        a.send(udp(A, B, 1, 2, b"data"))
        cluster.run()
        cluster.wait(5)
    states = {n.dst: n.state for n in a.node.stack.dump("neighs", cluster.now)}
    assert states[B] in ("REACHABLE", "STALE", "DELAY")
    assert len(b.take()) == 12


def test_the_node_answers_for_its_own_addresses(cluster, pods):
    a = pods[0]
    host = a.node.ends[network.HOST_LINK]
    a.send(echo(A, NODE1))
    cluster.run()
    assert [seen.dst for seen in host.take()] == [NODE1]
    assert [seen.icmp for seen in a.take()] == [(129, 0)]
    host.send(udp(NODE1, REMOTE, 5, 6, b"from the node"), packets.BROADCAST)
    cluster.run()
    assert [seen.payload for seen in pods[2].take()] == [b"from the node"]


def test_what_a_kernel_says_to_groups_goes_nowhere(cluster, pods):
    a = pods[0]
    host = a.node.ends[network.HOST_LINK]
    report = icmp("::", "ff02::16", 143, 0, bytes(4), bytes(20), hops=1, extensions=((0, bytes((5, 2, 0, 0, 1, 0))),))
    solicit = icmp("fe80::5", "ff02::2", 133, 0, bytes(4), hops=255)
    for end in (a, host):
        end.send(report, "33:33:00:00:00:16")
        end.send(solicit, "33:33:00:00:00:02")
    cluster.run()
    assert (a.take(), host.take(), cluster.tunnelled) == ([], [], [])
    assert a.node.counter("ndp.ignored") == 1


def test_a_node_without_pods_of_the_family_drops_it():
    cluster = Cluster((4,))
    node = cluster.nodes[0]
    pod = node.add_pod(A)
    pod.send(echo(A, B))
    cluster.run()
    assert node.counter("drop.ipv6_not_enabled") == 1


# --- translation --------------------------------


def test_a_service_on_another_node_and_its_answers(cluster, pods):
    a, _, remote = pods
    a.node.stack.apply([rules()], cluster.now)
    a.send(tcp(A, SERVICE, 1000, 80, SYN, 1, 0))
    cluster.run()
    assert [(seen.dst, seen.dport, seen.src) for seen in remote.take()] == [(REMOTE, 8080, A)]
    remote.send(tcp(REMOTE, A, 8080, 1000, SYN | ACK, 9, 2))
    cluster.run()
    assert [(seen.src, seen.sport) for seen in a.take()] == [(SERVICE, 80)]


def test_a_service_on_the_clients_own_bridge(cluster, pods):
    """The answer passes the bridge only: br_netfilter translates it."""
    a, b, _ = pods
    a.node.stack.apply([rules()], cluster.now)
    a.send(tcp(A, NEAR, 1000, 80, SYN, 1, 0))
    cluster.run()
    assert [(seen.dst, seen.dport) for seen in b.take()] == [(B, 8080)]
    b.send(tcp(B, A, 8080, 1000, SYN | ACK, 9, 2), a.mac)
    cluster.run()
    assert [(seen.src, seen.sport) for seen in a.take()] == [(NEAR, 80)]


def test_masquerade_takes_the_outgoing_links_address(cluster, pods):
    a = pods[0]
    a.node.stack.apply([rules(masquerade=True)], cluster.now)
    a.send(echo(A, NODE2))
    cluster.run()
    assert [(seen.src, seen.icmp) for seen in cluster.nodes[1].ends[network.HOST_LINK].take()] == [(NODE1, (128, 0))]
    assert [(seen.src, seen.icmp) for seen in a.take()] == [(NODE2, (129, 0))]


def test_an_error_about_a_translated_packet_is_translated(cluster, pods):
    a, _, remote = pods
    a.node.stack.apply([rules()], cluster.now)
    a.send(tcp(A, SERVICE, 1000, 80, SYN, 1, 0))
    cluster.run()
    [seen] = remote.take()
    remote.send(icmp(REMOTE, A, 1, 4, bytes(4), seen.packet))
    cluster.run()
    [error] = a.take()
    quoted = packets6.decode_ip(error.payload, packets6.Seen6())
    assert (error.icmp, error.src, quoted.dst, quoted.dport, quoted.bad) == ((1, 4), SERVICE, SERVICE, 80, [])


def test_fragments_are_translated_as_one(cluster, pods):
    a, _, remote = pods
    rule = nf.Rule((nf.Destination(f"{SERVICE}/128"),), nf.Dnat(REMOTE))
    table = nf.Table("nat", 6, (nf.Chain("PREROUTING", (rule,), "ACCEPT"),))
    a.node.stack.apply([TablesReplace((table,))], cluster.now)
    data = bytes(i & 255 for i in range(2000))
    for piece in packets6.fragments(udp(A, SERVICE, 7, 8, data), 1024):
        a.send(piece)
    cluster.run()
    got = remote.take()
    assert [(seen.dst, seen.offset, seen.more) for seen in got] == [(REMOTE, 0, True), (REMOTE, 1024, False)]
    assert b"".join(seen.payload for seen in got)[8:] == data


def test_a_trace_names_protocol_and_addresses(cluster, pods):
    a = pods[0]
    a.node.stack.trace(Subscribe(1, addresses=(A,), protocol="icmpv6"))
    a.send(echo(A, REMOTE))
    cluster.run()
    hop = next(hop for hop in a.node.stack.traced if hop.entered.sport == 128)
    assert (hop.entered.src, hop.entered.dst, hop.entered.proto) == (A, REMOTE, "icmpv6")
    assert any("fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel-v6.1" in step.detail for step in hop.steps)


# --- the flow cache --------------------------------

PATHS = [
    ("veth1", A, REMOTE, 1000, 2000),
    ("veth1", A, B, 1001, 2001),
    ("veth1", A, SERVICE, 1002, 80),
    ("veth1", A, NEAR, 1003, 80),
]
BACK = [
    ("flannel-v6.1", REMOTE, A, 2000, 1000),
    ("veth2", B, A, 2001, 1001),
    ("flannel-v6.1", REMOTE, A, 8080, 1002),
    ("veth2", B, A, 8080, 1003),
]
CHANGES = [
    RouteAdd("fd00:10:244:2::7/128", type="blackhole", replace=True),
    RouteDel("fd00:10:244:2::7/128", missing_ok=True),
    LinkSet("flannel-v6.1", mtu=1300),
    LinkSet("flannel-v6.1", mtu=1450),
    ConntrackDel(),
    rules(),
    NeighAdd(B, "02:00:00:00:00:77", "cni0", replace=True),
    SysctlSet("net.ipv6.conf.all.forwarding", "0"),
    SysctlSet("net.ipv6.conf.all.forwarding", "1"),
    SysctlSet("net.bridge.bridge-nf-call-ip6tables", "0"),
    SysctlSet("net.bridge.bridge-nf-call-ip6tables", "1"),
]


def fresh(cached: bool) -> Node:
    cluster = Cluster()
    node = cluster.nodes[0]
    node.stack.cache.enabled = cached
    node.stack.apply([rules()], cluster.now)
    for pod in (node.add_pod(A), node.add_pod(B)):
        pod.send(packets6.solicitation(pod.address, packets6.solicited_node(GATEWAY), GATEWAY, pod.mac), "33:33:ff:00:00:01")
        cluster.run()
    return node


def macs_of(node: Node, path) -> tuple[str, str]:
    if path[0].startswith("flannel"):
        links = {link.name: link.mac for link in node.stack.dump("links", 0.0)}
        return links[path[0]], "02:f6:00:00:00:12"
    return node.bridge_mac, node.ends[path[0]].mac


def play(node: Node, event) -> list:
    if event[0] == "wait":
        node.cluster.now += event[1]
        return [(i, bytes(f), t) for i, f, t in node.stack.tick(node.cluster.now)]
    if event[0] == "change":
        node.stack.apply([CHANGES[event[1]]], node.cluster.now)
        return []
    _, path, proto, flags, size, hops, odd = event
    link, src, dst, sport, dport = path
    data = bytes(i & 255 for i in range(size))
    header = {"hops": hops, "extensions": ((60, bytes((1, 4, 0, 0, 0, 0))),) if odd == "extension" else ()}
    packet = (
        tcp(src, dst, sport, dport, flags, 5, 6, data, **header)
        if proto == "tcp"
        else udp(src, dst, sport, dport, data, **header)
    )
    made = frame(*macs_of(node, path), packet)
    if odd == "padding":
        made += bytes(3)
    if odd == "truncated":
        made = made[:-5]
    if odd == "superframe" and proto == "tcp" and size > 536:
        made[:10] = bytes((0, 4, 0, 0)) + (536).to_bytes(2, "little") + bytes(4)
    out = node.stack.receive(node.stack.link_index(link), made, node.cluster.now)
    return [(i, bytes(f), t) for i, f, t in out]


PACKET = st.tuples(
    st.just("packet"), st.sampled_from([*PATHS, *BACK]), st.sampled_from(["tcp", "udp"]),
    st.sampled_from([ACK, ACK, ACK, ACK | PSH, SYN, SYN | ACK, FIN | ACK, RST]), st.sampled_from([0, 64, 64, 1200, 1400, 3000]),
    st.sampled_from([64, 64, 2, 1]), st.sampled_from(["", "", "", "padding", "truncated", "extension", "superframe"]),
)  # fmt: skip
EVENT = st.one_of(
    PACKET,
    PACKET,
    st.tuples(st.just("change"), st.sampled_from(range(len(CHANGES)))),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 5.0, 12.0, 40.0])),
)


def state(node: Node) -> dict:
    dumps = {
        what: node.stack.dump(what, node.cluster.now) for what in ("links", "conntrack", "fdb", "neighs", "rules", "counters")
    }
    dumps["counters"] = {k: v for k, v in dumps["counters"].items() if not k.startswith(("cache.", "generation"))}
    return dumps


def established(node: Node, way: int) -> None:
    for path, flags in ((PATHS[way], SYN), (BACK[way], SYN | ACK), (PATHS[way], ACK), (BACK[way], ACK)):
        play(node, ("packet", path, "tcp", flags, 0, 64, ""))


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENT, min_size=5, max_size=50))
def test_cache_on_is_cache_off(events):
    on, off = fresh(True), fresh(False)
    for node in (on, off):
        for way in range(len(PATHS)):
            established(node, way)
    for event in events:
        ordinary = [("packet", event[1], event[2], ACK, 64, 64, "")] * 2 if event[0] == "packet" else []
        for each in (*ordinary, event):
            assert play(on, each) == play(off, each), each
    assert state(on) == state(off)


@pytest.mark.parametrize("way", range(len(PATHS)))
def test_established_flows_hit(way):
    node = fresh(True)
    established(node, way)
    before = node.counter("cache.hits")
    for _ in range(10):
        play(node, ("packet", PATHS[way], "tcp", ACK, 64, 64, ""))
    assert node.counter("cache.hits") - before >= 9


# --- fuzz --------------------------------


def seeds(node: Node) -> list[tuple[str, bytearray]]:
    a = node.ends["veth1"]
    inner = udp(REMOTE, NODE2, 5, 6, b"data")
    good = [
        tcp(A, SERVICE, 1, 80, SYN, 1, 0),
        tcp(A, REMOTE, 2, 80, ACK, 1, 1, b"hello"),
        udp(A, REMOTE, 1, 2, b"x" * 100, hops=1),
        udp(A, REMOTE, 1, 2, b"x" * 1460),
        udp(A, REMOTE, 1, 2, b"x", extensions=((0, bytes((1, 4, 0, 0, 0, 0))), (43, bytes((4, 0, 0, 0, 0, 0))))),
        echo(A, GATEWAY),
        icmp(A, REMOTE, 1, 4, bytes(4), inner),
        packets6.solicitation(A, GATEWAY, GATEWAY, a.mac),
        packets6.advertisement(A, GATEWAY, A, a.mac),
        *packets6.fragments(udp(A, REMOTE, 1, 2, b"y" * 2000), 1024),
        *packets6.fragments(udp(A, B, 1, 2, b"y" * 200), 104),
    ]
    found = [("veth1", frame(node.bridge_mac, a.mac, packet)) for packet in good]
    found.append(
        ("veth1", frame("33:33:ff:00:00:01", a.mac, packets6.solicitation(A, packets6.solicited_node(GATEWAY), GATEWAY, a.mac)))
    )
    found.append(("flannel-v6.1", frame(*macs_of(node, BACK[0]), tcp(REMOTE, A, 80, 2, ACK, 1, 2))))
    return [*found, (network.HOST_LINK, frame(packets.BROADCAST, HOST_MAC, tcp(NODE1, SERVICE, 1, 80, SYN, 1, 0)))]


def mutate(random: Random, data: bytearray) -> bytearray:
    made = bytearray(data)
    for _ in range(random.choice((0, 1, 1, 2, 5))):
        kind = random.randrange(4)
        if kind == 0:
            made[random.randrange(min(len(made), 90))] = random.choice(
                (0, 1, 6, 17, 43, 44, 51, 58, 60, 0xFF, random.randrange(256))
            )
        elif kind == 1:
            made[random.randrange(len(made))] ^= 1 << random.randrange(8)
        elif kind == 2:
            made = made[: random.randrange(10, len(made) + 1)]
        else:
            made += bytes(random.randrange(8))
    return made


@pytest.mark.parametrize("traced", [False, True])
def test_mutated_frames(traced):
    random, node = Random(11), fresh(True)
    if traced:
        node.stack.trace(Subscribe(1))
    good, before = seeds(node), node.counter("frames.received")
    for i in range(4000):
        link, data = random.choice(good)
        node.cluster.now += random.choice((0, 0, 0, 0.01, 1))
        for index, sent, _ in node.stack.receive(node.stack.link_index(link), memoryview(mutate(random, data)), node.cluster.now):
            assert index in node.stack.links.by_index
            assert len(sent) >= 24
        if not i % 50:
            node.stack.tick(node.cluster.now)
    counters = node.stack.dump("counters", node.cluster.now)
    assert counters["frames.received"] - before == 4000
    assert counters["frames.received"] == sum(counters.get(f"frames.{verdict}", 0) for verdict in VERDICTS)
    drops = sum(number for name, number in counters.items() if name.startswith("drop."))
    assert drops == counters["frames.dropped"] + counters.get("frames.lost", 0)
