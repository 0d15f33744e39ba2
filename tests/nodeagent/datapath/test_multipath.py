"""Routes with several next hops: each flow keeps one, all are used, in proportion to their weights; and what is refused."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import packets
from support.stacks import Cluster

from podwire_core.netlink import AddrAdd, LinkAdd, LinkDel, NetlinkError, NextHop, RouteAdd, RouteDel, SysctlSet
from podwire_nodeagent.datapath.fib import HASHES, Route, flow_hash

SERVICE = "198.51.100.1"
POLICY = SysctlSet("net.ipv4.fib_multipath_hash_policy", "1")


def hops(*weights):
    return tuple(NextHop(f"192.168.1.{12 + i}", "eth0", weight) for i, weight in enumerate(weights))


@pytest.fixture
def cluster():
    """node1 spreads SERVICE over the three others."""
    made = Cluster(4)
    made.nodes[0].apply(POLICY, RouteAdd(f"{SERVICE}/32", nexthops=hops(1, 1, 1)))
    return made


def chosen(cluster, pod, sport, dst=SERVICE):
    """To which node a UDP packet goes over the cable."""
    cluster.wire.clear()
    pod.send(packets.udp(pod.address, dst, sport, 53, b"x"))
    cluster.run()
    frames = [seen for node, link, seen in cluster.wire if (node, link) == ("node1", "eth0") and seen.kind == 0x800]
    assert frames[0].dst == dst
    return next(node.name for node in cluster.nodes if node.mac == frames[0].dst_mac)


def test_a_flow_keeps_its_hop_and_all_are_used(cluster):
    pod = cluster.nodes[0].add_pod("10.244.1.2")
    first = {sport: chosen(cluster, pod, sport) for sport in range(4000, 4060)}
    assert set(first.values()) == {"node2", "node3", "node4"}
    for sport in (4000, 4001, 4002):
        for _ in range(3):  # walked, and from the flow cache
            assert chosen(cluster, pod, sport) == first[sport]


def test_by_addresses_alone_as_linux_does_by_default(cluster):
    cluster.nodes[0].apply(SysctlSet("net.ipv4.fib_multipath_hash_policy", "0"))
    pod = cluster.nodes[0].add_pod("10.244.1.2")
    assert len({chosen(cluster, pod, sport) for sport in range(4000, 4030)}) == 1


def test_the_host_spreads_too(cluster):
    host = cluster.nodes[0].host
    assert len({chosen(cluster, host, sport) for sport in range(4000, 4060)}) == 3


@given(st.lists(st.integers(1, 256), min_size=1, max_size=8))
def test_every_hash_has_a_hop_in_proportion(weights):
    route = Route(b"\1\1\1\1", 32, None)
    ways = [Route(b"\1\1\1\1", 32, None, via=bytes([10, 0, 0, i])) for i in range(len(weights))]
    route.spread(list(zip(weights, ways, strict=True)))
    counted = Counter(id(route.towards(HASHES * i // 4096)) for i in range(4096))
    for weight, way in zip(weights, ways, strict=True):
        assert abs(counted[id(way)] - 4096 * weight / sum(weights)) <= 1
    assert route.towards(0) is ways[0]
    assert route.towards(HASHES - 1) is ways[-1]


def test_neighbouring_ports_do_not_go_together():
    """3 000 flows that differ only in their source port, over three hops: chi-square, 2 degrees of freedom, p = 0.001."""
    keys = [b"\xcb\x00\x71\x0a\xc6\x33\x64\x01" + sport.to_bytes(2, "big") + b"\x00\x50\x06" for sport in range(40000, 43000)]
    counted = Counter(flow_hash(key) * 3 // HASHES for key in keys)
    assert sum((n - 1000) ** 2 / 1000 for n in counted.values()) < 13.8


def test_dump_says_the_hops(cluster):
    [info] = [r for r in cluster.nodes[0].stack.dump("routes", 0) if r.nexthops]
    assert (info.dst, info.dev, info.via, info.nexthops) == (f"{SERVICE}/32", "", "", hops(1, 1, 1))
    cluster.nodes[0].apply(RouteAdd(f"{SERVICE}/32", nexthops=hops(2, 1), replace=True))
    [info] = [r for r in cluster.nodes[0].stack.dump("routes", 0) if r.nexthops]
    assert info.nexthops == hops(2, 1)
    cluster.nodes[0].apply(RouteDel(f"{SERVICE}/32"))
    assert not [r for r in cluster.nodes[0].stack.dump("routes", 0) if r.nexthops]


@pytest.mark.parametrize(
    ("route", "errno"),
    [
        (RouteAdd("1.1.1.1/32", dev="eth0", nexthops=hops(1)), "EINVAL"),
        (RouteAdd("1.1.1.1/32", type="blackhole", nexthops=hops(1)), "EINVAL"),
        (RouteAdd("1.1.1.1/32", nexthops=hops(0)), "EINVAL"),
        (RouteAdd("1.1.1.1/32", nexthops=(NextHop("fd00::1", "eth0"),)), "EINVAL"),
        (RouteAdd("1.1.1.1/32", nexthops=(NextHop("172.16.0.1", "eth0"),)), "ENETUNREACH"),
        (RouteAdd("1.1.1.1/32", nexthops=(NextHop("192.168.1.12", "eth7"),)), "ENODEV"),
    ],
)
def test_refusals(cluster, route, errno):
    before = cluster.nodes[0].stack.dump("routes", 0)
    with pytest.raises(NetlinkError) as caught:
        cluster.nodes[0].apply(route)
    assert caught.value.errno_name == errno
    assert cluster.nodes[0].stack.dump("routes", 0) == before


def test_it_goes_with_a_link(cluster):
    node = cluster.nodes[0]
    node.apply(LinkAdd("d0", "dummy", "02:00:00:00:00:d0"), AddrAdd("d0", "172.30.0.1/24"))
    node.apply(RouteAdd("1.1.1.1/32", nexthops=(*hops(1), NextHop("172.30.0.2", "d0"))))
    node.apply(LinkDel("d0"))
    assert [r.dst for r in node.stack.dump("routes", 0) if r.nexthops] == [f"{SERVICE}/32"]
