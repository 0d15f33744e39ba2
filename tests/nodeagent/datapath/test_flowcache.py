"""The flow cache: the same as no cache, for any sequence of packets, changes and time; and that it is used at all."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import packets
from support.packets import ACK, FIN, PSH, RST, SYN, frame, tcp, udp
from support.services import by_key, endpoint, endpoint_slice, port, service
from support.stacks import Cluster, Node, pod_mac, service_rules

from podwire_core import netfilter as nf
from podwire_core.netlink import (
    AddrAdd,
    AddrDel,
    BpfReplace,
    ConntrackDel,
    FdbAdd,
    FdbDel,
    LinkSet,
    NeighAdd,
    NetlinkError,
    RouteAdd,
    RouteDel,
    Subscribe,
    SysctlSet,
    TablesReplace,
)
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.ebpf import Proxier
from podwire_nodeagent.proxy.model import NodeFacts

A, B, REMOTE, FAR, NEAR = "10.244.1.5", "10.244.1.6", "10.244.2.6", "10.96.0.50", "10.96.0.51"
RULES = {
    FAR: service_rules(FAR, 80, [(REMOTE, 8080)]),
    NEAR: service_rules(NEAR, 80, [(B, 8080)]),
}


def maps(cluster_ip: str, address: str, node: str) -> BpfReplace:
    """What the eBPF load balancer needs to do the same, and a NodePort."""
    ports = [port(80, nodePort=30080), port(80, "udp", "UDP", nodePort=30080)]
    proxier = Proxier(ProxyConfiguration("ebpf"), NodeFacts("node1", "", ("192.168.1.11",), ("10.244.1.0/24",)))
    slices = endpoint_slice("web", [endpoint(address, node)], [{**each, "port": 8080} for each in ports])
    ops = proxier.changes(by_key([service("web", cluster_ip, ports, type="NodePort")]), by_key([slices]))
    return next(op for op in ops if isinstance(op, BpfReplace))


BPF = {RULES[FAR]: maps(FAR, REMOTE, "node2"), RULES[NEAR]: maps(NEAR, B, "node1")}
CHANGES = [
    (RouteAdd("10.244.2.0/24", "flannel.1", "10.244.2.0", onlink=True, replace=True),),
    (RouteDel("10.244.2.0/24", missing_ok=True),),
    (RouteAdd("10.244.2.6/32", type="blackhole", replace=True),),
    (RouteDel("10.244.2.6/32", missing_ok=True),),
    (LinkSet("veth2", up=False),),
    (LinkSet("veth2", up=True),),
    (LinkSet("veth1", hairpin=False, mtu=600),),
    (LinkSet("flannel.1", mtu=1000),),
    (LinkSet("flannel.1", mtu=1450),),
    (RULES[FAR],),
    (RULES[NEAR],),
    (ConntrackDel(),),
    (ConntrackDel(proto="udp"),),
    (NeighAdd(B, "02:00:00:00:00:77", "cni0", replace=True),),
    (FdbAdd("02:cc:00:00:00:02", "flannel.1", "192.168.1.99", replace=True),),
    (FdbDel("02:cc:00:00:00:02", "flannel.1", missing_ok=True),),
    (SysctlSet("net.ipv4.ip_forward", "0"),),
    (SysctlSet("net.ipv4.ip_forward", "1"),),
    (SysctlSet("net.bridge.bridge-nf-call-iptables", "0"),),
    (SysctlSet("net.bridge.bridge-nf-call-iptables", "1"),),
    (AddrAdd("cni0", "10.244.2.6/32", replace=True),),
    (AddrDel("cni0", "10.244.2.6/32", missing_ok=True),),
]

# link, destination MAC, source MAC, source, destination, ports
GATEWAY, VTEP1, VTEP2 = "02:bb:00:00:00:01", "02:cc:00:00:00:01", "02:cc:00:00:00:02"
PATHS = [
    ("veth1", GATEWAY, pod_mac(A), A, REMOTE, 1000, 2000),
    ("flannel.1", VTEP1, VTEP2, REMOTE, A, 2000, 1000),
    ("veth1", pod_mac(B), pod_mac(A), A, B, 1001, 2001),
    ("veth2", pod_mac(A), pod_mac(B), B, A, 2001, 1001),
    ("veth1", GATEWAY, pod_mac(A), A, B, 1002, 2002),
    ("veth1", GATEWAY, pod_mac(A), A, FAR, 1003, 80),
    ("flannel.1", VTEP1, VTEP2, REMOTE, A, 8080, 1003),
    ("veth1", GATEWAY, pod_mac(A), A, NEAR, 1004, 80),
    ("veth2", pod_mac(A), pod_mac(B), B, A, 8080, 1004),
    ("veth1", GATEWAY, pod_mac(A), A, "192.168.1.12", 1005, 53),
    ("host0", "02:00:a9:fe:01:01", "02:00:00:00:00:99", "192.168.1.11", FAR, 1006, 80),
    ("host0", "02:00:a9:fe:01:01", "02:00:00:00:00:99", "192.168.1.11", A, 1007, 80),
    ("eth0", "02:aa:00:00:00:01", "02:aa:00:00:00:02", "192.168.1.12", "192.168.1.11", 1008, 22),
    ("eth0", "02:aa:00:00:00:01", "02:aa:00:00:00:02", "192.168.1.12", "192.168.1.11", 1009, 30080),
    ("flannel.1", VTEP1, VTEP2, REMOTE, "10.244.1.0", 8080, 1009),
    ("veth2", GATEWAY, pod_mac(B), B, "10.244.1.1", 8080, 1009),
]
ODD = ["", "", "padding", "checksum", "doff", "truncated"]
FLAGS = [ACK, ACK, ACK, ACK | PSH, SYN, SYN | ACK, FIN | ACK, RST]


def build(path, proto, flags, size, ttl, df, partial, odd) -> bytearray:
    _, dst_mac, src_mac, src, dst, sport, dport = path
    header = {"ttl": ttl, "df": df}
    data = bytes(i & 255 for i in range(size))
    if proto == "tcp":
        packet = tcp(src, dst, sport, dport, flags, 5, 6, data, **header)
    else:
        packet = udp(src, dst, sport, dport, data, checksum=proto != "udp0", **header)
    made = frame(dst_mac, src_mac, packet)
    if partial and proto == "tcp":
        size, at = len(made) - 44, 44 + 16
        pseudo = packets.inet(packets.ip(src) + packets.ip(dst) + b"\0\x06" + size.to_bytes(2, "big"))
        made[at : at + 2] = (0xFFFF ^ pseudo).to_bytes(2, "big")
        gso, gso_size = (1, 536) if len(data) > 536 else (0, 0)
        made[:10] = bytes((1, gso, 54, 0)) + gso_size.to_bytes(2, "little") + (34).to_bytes(2, "little") + b"\x10\0"
    if odd == "padding":
        made += b"\0\0\0"
    elif odd == "checksum":
        made[34] ^= 1
    elif odd == "doff" and proto == "tcp":
        made[56] = 0x10
    elif odd == "truncated":
        made = made[: max(24, len(made) // 2)]
    return made


# flags, size, ttl, df, partial checksum, oddity, how many: mostly ordinary, so that odd ones follow packets that made an entry
ORDINARY = (ACK, 64, 64, True, False, "", 2)
VARIANT = st.one_of(
    st.just(ORDINARY),
    st.tuples(
        st.sampled_from(FLAGS),
        st.sampled_from([0, 1, 64, 700, 1400, 1450, 3000]),
        st.sampled_from([64, 2, 1]),
        st.booleans(),
        st.booleans(),
        st.sampled_from(ODD),
        st.integers(1, 3),
    ),
)
PACKETS = st.tuples(
    st.just("packets"),
    st.sampled_from(PATHS),
    st.sampled_from(["tcp", "tcp", "udp", "udp0"]),
    st.lists(VARIANT, min_size=1, max_size=4).map(lambda variants: [ORDINARY, *variants]),
)
EVENT = st.one_of(
    PACKETS,
    PACKETS,
    st.tuples(st.just("change"), st.sampled_from(range(len(CHANGES)))),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 5.0, 12.0, 40.0, 200.0])),
    st.tuples(st.just("pass"), st.sampled_from([0.5, 11.0, 35.0])),
    st.tuples(st.just("arp"), st.sampled_from([("veth1", A), ("veth2", B)])),
)


class Switched(Node):
    """A node whose Services are served by iptables rules, or by the eBPF load balancer."""

    mode = "iptables"

    def apply(self, *ops) -> None:
        super().apply(*(BPF.get(op, op) if self.mode == "ebpf" and isinstance(op, TablesReplace) else op for op in ops))


def node(cached: bool, mode: str = "iptables") -> Node:
    made = Cluster(2).nodes[0]
    made.stack.cache.enabled = cached
    made.__class__, made.mode = Switched, mode
    for address in (A, B):
        made.add_pod(address)
    for name, address in (("veth1", A), ("veth2", B)):
        ask = packets.arp(1, pod_mac(address), address, "00:00:00:00:00:00", "10.244.1.1")
        index = made.stack.link_index(name)
        made.stack.receive(index, packets.ethernet(packets.BROADCAST, pod_mac(address), 0x806, ask), made.cluster.now)
    return made


def play(made: Node, event) -> list:
    """What one event makes the stack send; time is the cluster's."""
    stack, cluster = made.stack, made.cluster
    if event[0] == "wait":
        cluster.now += event[1]
        return [(i, bytes(f), t) for i, f, t in stack.tick(cluster.now)]
    if event[0] == "pass":  # time goes by and no timer looks
        cluster.now += event[1]
        return []
    if event[0] == "change":
        try:
            made.apply(*CHANGES[event[1]])
        except NetlinkError as error:
            return [error.errno_name]
        return []
    if event[0] == "arp":
        link, address = event[1]
        answer = packets.arp(2, pod_mac(address), address, GATEWAY, "10.244.1.1")
        data = packets.ethernet(GATEWAY, pod_mac(address), 0x806, answer)
        return [(i, bytes(f), t) for i, f, t in stack.receive(stack.link_index(link), data, cluster.now)]
    _, path, proto, variants = event
    out = []
    for *variant, times in variants:
        for _ in range(times):
            data = build(path, proto, *variant)
            out += [(i, bytes(f), t) for i, f, t in stack.receive(stack.link_index(path[0]), data, cluster.now)]
    return out


def state(made: Node) -> dict:
    """All that can be seen from outside, but what is the cache's own."""
    now = made.cluster.now
    dumps = {what: made.stack.dump(what, now) for what in ("links", "conntrack", "fdb", "neighs", "rules", "counters", "bpf")}
    dumps["counters"] = {k: v for k, v in dumps["counters"].items() if not k.startswith(("cache.", "generation"))}
    return dumps


def compare(events, mode="iptables") -> None:
    on, off = node(True, mode), node(False, mode)
    for made in (on, off):
        made.apply(RULES[FAR])
        for path, reverse in ((0, 1), (2, 3), (5, 6)):
            established(made, PATHS[path], PATHS[reverse])
    for event in events:
        assert play(on, event) == play(off, event), event
        assert event[0] == "packets" or state(on) == state(off), event
    assert state(on) == state(off)


@pytest.mark.parametrize("mode", ["iptables", "ebpf"])
@settings(max_examples=150, deadline=None)
@given(st.lists(EVENT, min_size=5, max_size=60))
def test_cache_on_is_cache_off(mode, events):
    compare(events, mode)


def test_a_client_that_begins_anew_is_counted_once():
    """Its load balancer's entry is another one from then on, while netfilter's connection goes on."""
    path = ("veth1", "02:bb:00:00:00:01", "02:00:0a:f4:01:05", "10.244.1.5", "10.96.0.50", 1003, 80)
    syn, ack = (2, 0, 64, False, False, "", 1), (16, 64, 64, True, False, "", 2)
    compare([("packets", path, "tcp", [ORDINARY, syn, ack])], "ebpf")


@pytest.mark.parametrize("mode", ["iptables", "ebpf"])
@pytest.mark.parametrize("seed", range(6))
def test_cache_on_is_cache_off_for_long(mode, seed):
    """Long sequences of mostly ordinary packets, which find entries, with changes between."""
    random = Random(seed)
    change = [("change", i) for i in range(len(CHANGES))] + [("change", i) for i in (0, 5, 8, 9, 17, 19)]
    wait = [("wait", s) for s in (0.1, 1.0, 5.0, 40.0)] + [("pass", s) for s in (0.5, 11.0, 35.0)]
    answers = [("arp", ("veth1", A)), ("arp", ("veth2", B))]

    def one() -> tuple:
        if random.random() < 0.2:
            return random.choice(random.choice((change, wait, answers)))
        odd = (random.choice(FLAGS), random.choice((0, 64, 700, 1400, 1450, 3000)), random.choice((64, 64, 2, 1)))
        odd += (
            random.random() < 0.5,
            random.random() < 0.5,
            random.choice(("", "", "padding", "checksum", "doff", "truncated")),
            1,
        )
        proto = random.choice(("tcp", "tcp", "udp", "udp0"))
        return ("packets", random.choice(PATHS), proto, [ORDINARY, ORDINARY, odd] if random.random() < 0.5 else [ORDINARY])

    compare([one() for _ in range(250)], mode)


def established(made: Node, path, reverse) -> None:
    for way, flags in ((path, SYN), (reverse, SYN | ACK), (path, ACK), (reverse, ACK)):
        play(made, ("packets", way, "tcp", [(flags, 0, 64, True, False, "", 1)]))


@pytest.mark.parametrize(("path", "reverse"), [(0, 1), (2, 3), (5, 6)])
def test_established_flows_hit(path, reverse):
    made = node(True)
    made.apply(RULES[FAR])
    established(made, PATHS[path], PATHS[reverse])
    play(made, ("packets", PATHS[path], "tcp", [(ACK, 64, 64, True, False, "", 10)]))
    play(made, ("packets", PATHS[reverse], "tcp", [(ACK, 64, 64, True, True, "", 10)]))
    counters = made.stack.dump("counters", made.cluster.now)
    assert counters["cache.hits"] >= 18
    assert counters["frames.received"] == sum(
        counters.get("frames." + verdict, 0) for verdict in ("forwarded", "delivered", "dropped", "rejected", "consumed")
    )


@pytest.mark.parametrize("change", [0, 2, 11], ids=["route", "blackhole", "conntrack"])
def test_any_change_makes_the_next_packet_walk(change):
    made = node(True)
    made.apply(RULES[FAR])
    established(made, PATHS[0], PATHS[1])
    again = ("packets", PATHS[0], "tcp", [(ACK, 64, 64, True, False, "", 1)])
    play(made, again)
    play(made, again)
    hits = made.stack.dump("counters", 0.0)["cache.hits"]
    made.apply(*CHANGES[change])
    play(made, again)
    assert made.stack.dump("counters", 0.0)["cache.hits"] == hits


def test_a_traced_flow_is_not_cached_and_others_are():
    made = node(True)
    made.apply(RULES[FAR])
    for path, reverse in ((0, 1), (2, 3)):
        established(made, PATHS[path], PATHS[reverse])
    made.stack.trace(Subscribe(1, (REMOTE,)))
    for path in (0, 2):
        play(made, ("packets", PATHS[path], "tcp", [(ACK, 64, 64, True, False, "", 5)]))
    assert len(made.stack.traced) == 5
    assert {hop.out_link for hop in made.stack.traced} == {"flannel.1"}
    assert made.stack.dump("counters", 0.0)["cache.flows"] == 1


def test_superframe_with_small_segments_hits_and_with_large_ones_does_not():
    made = node(True)
    made.apply(RULES[FAR])
    established(made, PATHS[5], PATHS[6])
    play(made, ("packets", PATHS[5], "tcp", [(ACK, 3000, 64, True, True, "", 3)]))
    hits = made.stack.dump("counters", 0.0)["cache.hits"]
    assert hits >= 2
    big = build(PATHS[5], "tcp", ACK, 3000, 64, True, True, "")
    big[4:6] = (1448).to_bytes(2, "little")
    (sent,) = made.stack.receive(made.stack.link_index("veth1"), big, made.cluster.now)
    answer = packets.decode(sent[1])
    assert (answer.icmp, int.from_bytes(answer.rest, "big")) == ((3, 4), 1450)


def test_hits_keep_the_bridge_entry_young():
    made = node(True)
    established(made, PATHS[2], PATHS[3])
    again = ("packets", PATHS[2], "tcp", [(ACK, 64, 64, True, False, "", 1)])
    play(made, again)
    made.cluster.now += 5
    play(made, again)
    ages = {info.mac: info.age for info in made.stack.dump("fdb", made.cluster.now)}
    assert (ages[pod_mac(A)], ages[pod_mac(B)]) == (0.0, 5.0)


def test_an_entry_is_walked_again_after_ten_seconds():
    made = node(True)
    established(made, PATHS[2], PATHS[3])
    again = ("packets", PATHS[2], "tcp", [(ACK, 64, 64, True, False, "", 1)])
    hits = []
    for _ in range(4):
        play(made, again)
        hits.append(made.stack.dump("counters", 0.0)["cache.hits"])
        made.cluster.now += 4
    assert [b - a for a, b in pairwise(hits)] == [1, 1, 0]


def test_what_the_nat_table_did_to_a_first_packet_is_no_rule_for_the_next():
    """A mark that only the nat table sets lets the first packet pass, and it alone."""
    sent = {}
    for cached in (True, False):
        made = node(cached)
        mark = nf.Chain("PREROUTING", (nf.Rule((), nf.SetMark(1, 1)),), "ACCEPT")
        only_marked = nf.Chain("FORWARD", (nf.Rule((nf.Mark(1, 1),), nf.Verdict("ACCEPT")),), "DROP")
        made.apply(TablesReplace((nf.Table("nat", 4, (mark,)), nf.Table("filter", 4, (only_marked,)))))
        sent[cached] = [len(play(made, ("packets", PATHS[0], "udp", [(ACK, 8, 64, True, False, "", 1)]))) for _ in range(3)]
    assert sent[True] == sent[False] == [1, 0, 0]
