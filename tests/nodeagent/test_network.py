"""Reconciling: operations that lead a real stack from any state of the cluster to any other, and then nothing more to do."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_cni.backends import flannel
from podwire_core.netlink import (
    AddrAdd,
    AddrDel,
    FdbAdd,
    FdbDel,
    LinkAdd,
    LinkDel,
    LinkSet,
    NeighAdd,
    NeighDel,
    RouteAdd,
    RouteDel,
    SysctlSet,
    UnderlayDel,
    UnderlaySet,
)
from podwire_nodeagent import network
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.stack import Stack


def node(number: int, cidr: int = 0, ip: int = 0) -> dict:
    """`cidr` and `ip` as if it had been made again with others; a negative cidr is none."""
    addresses = [{"type": "InternalIP", "address": f"192.168.1.{ip or 10 + number}"}]
    spec = {"podCIDR": f"10.244.{cidr or number}.0/24"} if cidr >= 0 else {}
    obj = {"metadata": {"name": f"node{number}"}, "spec": spec, "status": {"addresses": addresses}}
    obj["metadata"]["annotations"] = flannel.publish(obj, f"127.0.0.{10 + number}")
    return obj


def desired(*nodes: dict) -> list:
    """As the first of them has it."""
    return flannel.desired(nodes[0], nodes, gateway="192.168.1.1")


class Kernel:
    def __init__(self) -> None:
        self.stack, self.now = Stack("node1", RandomChooser(Random(1))), 1.0
        self.apply(network.host_link())

    def apply(self, *ops) -> None:
        self.stack.apply(ops, self.now)

    def dumps(self) -> dict[str, list]:
        return {what: self.stack.dump(what, self.now) for what in network.DUMPED}

    def reconcile(self, wanted: list) -> list:
        """What was applied; nothing is left to do after it."""
        ops = network.reconcile(wanted, self.dumps())
        self.apply(*ops)
        assert network.reconcile(wanted, self.dumps()) == []
        return ops

    def content(self) -> dict[str, set]:
        """All that matters: not indices, not counters."""
        found = {what: {repr(each) for each in self.stack.dump(what, self.now)} for what in network.DUMPED[1:]}
        fields = ("name", "kind", "mac", "mtu", "up", "master", "hairpin", "vni", "local", "dstport", "learning", "alias")
        links = self.stack.dump("links", self.now)
        return found | {"links": {repr([getattr(link, field) for field in fields]) for link in links}}


def fresh(wanted: list) -> dict[str, set]:
    kernel = Kernel()
    kernel.reconcile(wanted)
    return kernel.content()


def kinds(ops: list) -> list[str]:
    return [type(op).__name__ for op in ops]


# --- one change at a time --------------------------------


def test_a_fresh_kernel_gets_everything_in_an_order_that_it_takes():
    wanted = desired(node(1), node(2), node(3))
    ops = Kernel().reconcile(wanted)
    assert sorted(map(repr, ops)) == sorted(map(repr, wanted))


def test_a_node_that_comes_or_goes_is_only_its_own_entries():
    kernel = Kernel()
    kernel.reconcile(desired(node(1), node(2)))
    came = kernel.reconcile(desired(node(1), node(2), node(3)))
    assert sorted(kinds(came)) == ["FdbAdd", "NeighAdd", "RouteAdd", "UnderlaySet"]
    gone = kernel.reconcile(desired(node(1), node(2)))
    assert sorted(kinds(gone)) == ["FdbDel", "NeighDel", "RouteDel", "UnderlayDel"]
    assert kernel.content() == fresh(desired(node(1), node(2)))


def test_two_nodes_that_swap_their_pod_cidrs():
    kernel = Kernel()
    kernel.reconcile(desired(node(1), node(2), node(3)))
    wanted = desired(node(1), node(2, cidr=3), node(3, cidr=2))
    kernel.reconcile(wanted)
    assert kernel.content() == fresh(wanted)


def test_our_own_pod_cidr_swapped_with_a_peers():
    kernel = Kernel()
    kernel.reconcile(desired(node(1), node(2)))
    wanted = desired(node(1, cidr=2), node(2, cidr=1))
    kernel.reconcile(wanted)
    assert kernel.content() == fresh(wanted)


@pytest.mark.parametrize(
    "damage",
    [
        LinkDel("flannel.1"),
        LinkDel("cni0"),
        LinkDel("eth0"),
        LinkSet("flannel.1", up=False),
        LinkSet("cni0", mtu=1400),
        AddrDel("cni0", "10.244.1.1/24"),
        AddrAdd("cni0", "10.9.9.1/24"),
        RouteDel("10.244.2.0/24"),
        RouteAdd("10.9.0.0/16", dev="eth0", via="192.168.1.9"),
        RouteAdd("10.9.0.0/16", type="blackhole"),
        RouteAdd("10.244.2.0/24", dev="eth0", via="192.168.1.9", replace=True),
        NeighDel("10.244.2.0", "flannel.1"),
        NeighAdd("10.244.2.0", "02:00:00:00:00:01", "flannel.1", replace=True),
        NeighAdd("10.244.9.0", "02:00:00:00:00:01", "flannel.1"),
        FdbDel("02:f1:c0:a8:01:0c", "flannel.1"),
        FdbAdd("02:f1:c0:a8:01:0c", "flannel.1", dst="192.168.1.99", replace=True),
        FdbAdd("02:00:00:00:00:01", "flannel.1", dst="192.168.1.99"),
        UnderlayDel("192.168.1.12"),
        UnderlaySet("192.168.1.12", "02:00:c0:a8:01:0c", "127.0.0.99", 8473),
        LinkAdd("dummy0", "dummy"),
        LinkAdd("br9", "bridge"),
    ],
    ids=str,
)
def test_whatever_was_changed_by_hand_is_put_right(damage):
    wanted = desired(node(1), node(2))
    kernel = Kernel()
    kernel.reconcile(wanted)
    kernel.apply(damage)
    assert kernel.reconcile(wanted) != []
    assert kernel.content() == fresh(wanted)


def test_what_belongs_to_others_stays():
    wanted = desired(node(1), node(2))
    kernel = Kernel()
    kernel.reconcile(wanted)
    kernel.apply(
        LinkAdd("veth1", "tap", mtu=1450, master="cni0", hairpin=True, alias="pod shop/web"),
        RouteAdd("10.7.0.0/16", dev="eth0", via="192.168.1.12", proto="bird"),
        FdbAdd("02:00:00:00:00:07", "veth1"),
    )
    before = kernel.content()
    assert kernel.reconcile(wanted) == []
    kernel.reconcile(desired(node(1), node(3)))
    kernel.reconcile(wanted)
    assert kernel.content() == before


def test_a_link_of_another_kind_is_made_again():
    kernel = Kernel()
    kernel.apply(LinkAdd("cni0", "dummy"), AddrAdd("cni0", "10.244.1.1/24"))
    kernel.reconcile(desired(node(1), node(2)))
    assert kernel.content() == fresh(desired(node(1), node(2)))


def test_it_is_a_network_only():
    with pytest.raises(ValueError, match="SysctlSet"):
        network.reconcile([SysctlSet("net.ipv4.ip_forward", "1")], Kernel().dumps())


# --- any history --------------------------------


@st.composite
def clusters(draw) -> tuple[dict, ...]:
    """node1 and some others; no two of them have a podCIDR or an address in common."""
    numbers = [1, *draw(st.lists(st.integers(2, 6), unique=True, max_size=5))]
    cidrs = draw(st.permutations(range(1, 9)))
    ips = draw(st.permutations(range(11, 20))) if draw(st.booleans()) else range(11, 20)
    with_cidr = [cidr if draw(st.integers(0, 5)) else -1 for cidr in cidrs]
    return tuple(node(number, cidr, ip) for number, cidr, ip in zip(numbers, with_cidr, ips, strict=False))


@settings(deadline=None, max_examples=60)
@given(st.lists(clusters(), min_size=1, max_size=4))
def test_any_history_leads_to_what_a_fresh_kernel_would_hold(history):
    kernel = Kernel()
    for nodes in history:
        wanted = desired(*nodes)
        kernel.reconcile(wanted)
        kernel.now += 1
    assert kernel.content() == fresh(wanted)


# --- the host namespace --------------------------------


def test_the_host_namespace_mirrors_addresses_and_routes():
    assert network.host_batch(desired(node(1), node(2))).splitlines() == [
        "link set eth0 up",
        "addr replace 192.168.1.11/32 dev eth0",
        "addr replace 10.244.1.1/32 dev eth0",
        "addr replace 10.244.1.0/32 dev eth0",
        "neigh replace 169.254.1.1 lladdr 02:00:a9:fe:01:01 dev eth0 nud permanent",
        "route replace 10.244.1.0/24 via 169.254.1.1 dev eth0 onlink src 10.244.1.1 mtu 1450",
        "route replace 10.244.2.0/24 via 169.254.1.1 dev eth0 onlink src 10.244.1.0 mtu 1450",
        "route replace 192.168.1.0/24 via 169.254.1.1 dev eth0 onlink src 192.168.1.11",
        "route replace default via 169.254.1.1 dev eth0 onlink src 192.168.1.11",
    ]


def test_routes_to_what_is_gone_leave_the_host_namespace():
    present = [
        {"dst": "10.244.1.0/24", "gateway": "169.254.1.1"},
        {"dst": "10.244.3.0/24", "gateway": "169.254.1.1"},
        {"dst": "172.16.0.0/12", "gateway": "172.16.0.1"},
        {"dst": "169.254.0.0/16"},
    ]
    lines = network.host_batch(desired(node(1)), present).splitlines()
    assert [line for line in lines if " del " in line] == ["route del 10.244.3.0/24 via 169.254.1.1 dev eth0"]


def test_a_node_without_anything_has_a_link_and_its_neighbour():
    assert network.host_batch([]).splitlines() == [
        "link set eth0 up",
        "neigh replace 169.254.1.1 lladdr 02:00:a9:fe:01:01 dev eth0 nud permanent",
    ]
