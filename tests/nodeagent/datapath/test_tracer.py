"""Traces: the hops of one packet join by their digests, name what decided, and only what was asked for is recorded."""

from __future__ import annotations

from itertools import pairwise

import pytest
from support import packets
from support.packets import ACK, SYN, tcp, udp
from support.stacks import Cluster, service_rules

from podwire_core.netlink import Subscribe

SERVICE = "10.96.0.50"


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster(2)
    made.client = made.nodes[0].add_pod("10.244.1.5")
    made.server = made.nodes[1].add_pod("10.244.2.6")
    made.nodes[0].apply(service_rules(SERVICE, 80, [(made.server.address, 8080)]))
    made.ping(made.client, made.server.address)
    made.server.take()
    return made


def watch(cluster: Cluster, **want) -> None:
    for node in cluster.nodes:
        node.stack.trace(Subscribe(1, **want))


def test_a_syn_to_a_service_and_its_answer(cluster):
    watch(cluster, addresses=(SERVICE,))
    cluster.nodes[1].stack.trace(Subscribe(1, addresses=(cluster.server.address,)))
    cluster.client.send(tcp(cluster.client.address, SERVICE, 40000, 80, SYN, 1, 0))
    cluster.run()
    cluster.server.send(tcp(cluster.server.address, cluster.client.address, 8080, 40000, SYN | ACK, 5, 2))
    cluster.run()
    there, back = cluster.nodes[0].stack.traced
    far_there, far_back = cluster.nodes[1].stack.traced
    assert [h.verdict for h in (there, far_there, far_back, back)] == ["forwarded", "delivered", "forwarded", "delivered"]
    assert (there.in_alias, there.out_link, there.tunnel_dst) == ("pod default/veth1", "flannel.1", "192.168.1.12")
    assert (far_there.in_link, far_there.out_alias) == ("flannel.1", "pod default/veth1")
    assert (there.entered.dst, there.out.dst, there.out.dport) == (SERVICE, cluster.server.address, 8080)
    assert (there.out, far_back.out) == (far_there.entered, back.entered)
    assert (back.out.src, back.out.sport, back.out.flags) == (SERVICE, 80, "SA")
    assert there.entered.ttl - there.out.ttl == 1
    decided = [step for step in there.steps if step.origin.startswith("Service default/web")]
    assert decided
    assert "DNAT" in decided[0].rule
    stages = [step.stage for step in there.steps]
    for earlier, later in [
        ("link", "conntrack"),
        ("conntrack", "nat/PREROUTING"),
        ("nat/PREROUTING", "fib"),
        ("fib", "filter/FORWARD"),
        ("filter/FORWARD", "neighbour"),
        ("neighbour", "tunnel"),
    ]:
        assert stages.index(earlier) < stages.index(later)


def test_only_what_matches_is_recorded(cluster):
    for want, sent, number in [
        ({"addresses": ("10.9.9.9",)}, udp("10.244.1.5", "10.244.2.6", 5, 6), 0),
        ({"addresses": ("10.244.2.6",)}, udp("10.244.1.5", "10.244.2.6", 5, 6), 1),
        ({"ports": (6,)}, udp("10.244.1.5", "10.244.2.6", 5, 6), 1),
        ({"ports": (7,)}, udp("10.244.1.5", "10.244.2.6", 5, 6), 0),
        ({"protocol": "tcp"}, udp("10.244.1.5", "10.244.2.6", 5, 6), 0),
        ({"protocol": "udp"}, udp("10.244.1.5", "10.244.2.6", 5, 6), 1),
    ]:
        watch(cluster, **want)
        cluster.client.send(sent)
        cluster.run()
        assert len(cluster.nodes[0].stack.traced) == number, want
        cluster.nodes[0].stack.traced.clear()


def test_a_drop_says_why(cluster):
    watch(cluster)
    cluster.client.send(udp("10.244.1.5", "10.244.2.6", 5, 6, ttl=1))
    cluster.run()
    error, dropped = cluster.nodes[0].stack.traced
    assert (dropped.verdict, dropped.reason) == ("dropped", "ttl_exceeded")
    assert (error.entered.proto, error.entered.sport, error.in_link, error.out_link) == ("icmp", 11, "", "veth1")


def test_a_packet_that_waits_for_its_neighbour_is_one_hop(cluster):
    cluster.nodes[1].add_pod("10.244.2.7")
    watch(cluster, addresses=("10.244.2.7",), protocol="udp")
    cluster.client.send(udp("10.244.1.5", "10.244.2.7", 5, 6))
    cluster.run()
    (hop,) = cluster.nodes[1].stack.traced
    assert (hop.verdict, hop.in_link, hop.out.dst) == ("delivered", "flannel.1", "10.244.2.7")
    assert any("INCOMPLETE" in step.detail for step in hop.steps)


def test_stages_are_timed_and_hops_numbered(cluster):
    watch(cluster)
    for _ in range(3):
        cluster.client.send(udp("10.244.1.5", "10.244.2.6", 5, 6))
    cluster.run()
    hops = cluster.nodes[0].stack.traced
    assert [b.seq - a.seq for a, b in pairwise(hops)] == [1] * (len(hops) - 1)
    assert all(hop.ns > 0 and sum(step.ns for step in hop.steps) <= hop.ns for hop in hops)
    assert any(step.ns for step in hops[0].steps)


def test_time_is_that_of_the_walk_and_the_offset(cluster):
    watch(cluster)
    cluster.nodes[0].stack.time_offset = 5e8
    cluster.client.send(udp("10.244.1.5", "10.244.2.6", 5, 6))
    cluster.run()
    assert cluster.nodes[0].stack.traced[0].time == cluster.now + 5e8


def test_arp_is_traced_as_consumed(cluster):
    watch(cluster, protocol="arp")
    far = cluster.nodes[1]
    ask = packets.arp(1, far.mac, far.ip, "00:00:00:00:00:00", "192.168.1.11")
    cluster.push(cluster.nodes[0], "eth0", packets.ethernet(packets.BROADCAST, far.mac, 0x806, ask))
    cluster.run()
    (asked,) = cluster.nodes[0].stack.traced  # the stack's own ARP packets have no hop
    assert (asked.verdict, asked.entered.dst, asked.steps[-1].stage) == ("consumed", "192.168.1.11", "neighbour")
