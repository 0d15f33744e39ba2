"""Netlink operations: errors as the kernel's, all or nothing, idempotent replace, and what follows from what."""

from __future__ import annotations

from contextlib import suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stacks import Cluster

from podwire_core import netfilter as nf
from podwire_core.netlink import (
    DUMPS,
    AddrAdd,
    AddrDel,
    ChainsUpdate,
    FdbAdd,
    FdbDel,
    LinkAdd,
    LinkDel,
    LinkSet,
    NeighAdd,
    NeighDel,
    NetlinkError,
    RouteAdd,
    RouteDel,
    SysctlSet,
    TablesReplace,
    UnderlayDel,
    UnderlaySet,
)
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.stack import Stack

MAC = "02:00:00:00:00:05"


def fresh() -> Stack:
    stack = Stack("n", RandomChooser(Random(1)))
    stack.apply(
        [
            LinkAdd("eth0", "uplink", "02:00:00:00:00:01"),
            AddrAdd("eth0", "192.168.1.11/24"),
            LinkAdd("cni0", "bridge", "02:00:00:00:00:02"),
            AddrAdd("cni0", "10.244.1.1/24"),
            LinkAdd("veth1", "tap", master="cni0"),
            LinkAdd("down0", "dummy", up=False),
            LinkAdd("flannel.1", "vxlan", vni=1),
            RouteAdd("10.9.0.0/16", "eth0", "192.168.1.1"),
            NeighAdd("192.168.1.1", MAC, "eth0"),
            FdbAdd(MAC, "flannel.1", "192.168.1.12"),
        ],
        0.0,
    )
    return stack


REFUSED = [
    (LinkAdd("eth0", "uplink"), "EEXIST"),
    (LinkAdd("eth0", "bridge", replace=True), "EEXIST"),
    (LinkAdd("eth1", "uplink"), "EEXIST"),
    (LinkAdd("x", "gre"), "EOPNOTSUPP"),
    (LinkAdd("lo2", "loopback"), "EOPNOTSUPP"),
    (LinkAdd("", "tap"), "EINVAL"),
    (LinkAdd("sixteen-letters!", "tap"), "EINVAL"),
    (LinkAdd("a/b", "tap"), "EINVAL"),
    (LinkAdd("x", "tap", mac="zz"), "EINVAL"),
    (LinkAdd("x", "tap", mtu=10), "EINVAL"),
    (LinkAdd("x", "tap", master="nope"), "ENODEV"),
    (LinkAdd("x", "tap", master="eth0"), "EINVAL"),
    (LinkAdd("x", "vxlan", vni=1), "EEXIST"),
    (LinkAdd("x", "vxlan", vni=1 << 24), "EINVAL"),
    (LinkDel("nope"), "ENODEV"),
    (LinkDel("lo"), "EOPNOTSUPP"),
    (LinkSet("nope", up=True), "ENODEV"),
    (LinkSet("eth0", mtu=5), "EINVAL"),
    (AddrAdd("nope", "10.0.0.1/24"), "ENODEV"),
    (AddrAdd("eth0", "10.0.0/24"), "EINVAL"),
    (AddrAdd("eth0", "192.168.1.11/24"), "EEXIST"),
    (AddrAdd("eth0", "224.0.0.1/24"), "EINVAL"),
    (AddrDel("eth0", "10.0.0.1/24"), "EADDRNOTAVAIL"),
    (RouteAdd("10.1.0.1/16", "eth0"), "EINVAL"),
    (RouteAdd("10.1.0.0/16"), "ENODEV"),
    (RouteAdd("10.1.0.0/16", "nope"), "ENODEV"),
    (RouteAdd("10.1.0.0/16", "down0"), "ENETDOWN"),
    (RouteAdd("10.1.0.0/16", via="172.16.0.1"), "ENETUNREACH"),
    (RouteAdd("10.1.0.0/16", "cni0", "192.168.1.1"), "ENETUNREACH"),
    (RouteAdd("10.1.0.0/16", via="192.168.1.255"), "EINVAL"),
    (RouteAdd("10.1.0.0/16", via="10.9.0.1"), "ENETUNREACH"),
    (RouteAdd("10.1.0.0/16", "eth0", src="1.2.3.4"), "EINVAL"),
    (RouteAdd("10.1.0.0/16", via="172.16.0.1", onlink=True), "ENODEV"),
    (RouteAdd("10.1.0.0/16", "eth0", "fd00::1"), "EINVAL"),
    (RouteAdd("10.1.0.0/16", "eth0", onlink=True), "EINVAL"),
    (RouteAdd("10.1.0.0/16", "eth0", type="magic"), "EINVAL"),
    (RouteAdd("10.9.0.0/16", "eth0", "192.168.1.2"), "EEXIST"),
    (RouteAdd("192.168.1.0/24", "eth0"), "EEXIST"),
    (RouteDel("10.1.0.0/16"), "ESRCH"),
    (RouteDel("10.9.0.0/16", "cni0"), "ESRCH"),
    (NeighAdd("192.168.1.1", MAC, "eth0"), "EEXIST"),
    (NeighAdd("192.168.1.2", "02:00", "eth0"), "EINVAL"),
    (NeighAdd("192.168.1.2", MAC, "nope"), "ENODEV"),
    (NeighDel("192.168.1.2", "eth0"), "ENOENT"),
    (FdbAdd(MAC, "flannel.1", "192.168.1.13"), "EEXIST"),
    (FdbAdd("02:00:00:00:00:06", "flannel.1"), "EINVAL"),
    (FdbAdd(MAC, "eth0"), "EOPNOTSUPP"),
    (FdbDel("02:00:00:00:00:06", "flannel.1"), "ENOENT"),
    (FdbDel(MAC, "flannel.1", "192.168.1.99"), "ENOENT"),
    (UnderlaySet("nonsense", MAC, "127.0.0.1", 1), "EINVAL"),
    (UnderlayDel("192.168.1.99", missing_ok=False), "ENOENT"),
    (SysctlSet("net.ipv4.no_such", "1"), "ENOENT"),
    (SysctlSet("net.ipv4.ip_forward", "yes"), "EINVAL"),
]


@pytest.mark.parametrize(("op", "errno"), REFUSED, ids=[f"{i}-{errno}" for i, (_, errno) in enumerate(REFUSED)])
def test_refused_with_the_kernels_errno_and_nothing_is_left_of_it(op, errno):
    stack = fresh()
    before = everything(stack)
    with pytest.raises(NetlinkError) as caught:
        stack.apply([LinkAdd("new0", "dummy"), AddrAdd("new0", "10.77.0.1/24"), op], 0.0)
    assert (caught.value.errno_name, caught.value.failed) == (errno, 2)
    assert "\n" not in caught.value.message
    assert everything(stack) == before


def everything(stack: Stack) -> dict:
    return {what: stack.dump(what, 0.0) for what in DUMPS if what not in ("counters", "info")}


def test_missing_ok_and_replace_say_nothing():
    stack = fresh()
    before = everything(stack)
    stack.apply(
        [
            LinkDel("nope", missing_ok=True),
            AddrDel("nope", "10.0.0.1/24", missing_ok=True),
            AddrDel("eth0", "10.0.0.1/24", missing_ok=True),
            RouteDel("10.1.0.0/16", missing_ok=True),
            NeighDel("1.2.3.4", "eth0", missing_ok=True),
            FdbDel("02:00:00:00:00:06", "flannel.1", missing_ok=True),
            UnderlayDel("192.168.1.99"),
            LinkAdd("eth0", "uplink", "02:00:00:00:00:01", replace=True),
            LinkAdd("veth1", "tap", master="cni0", replace=True),
            AddrAdd("eth0", "192.168.1.11/24", replace=True),
            RouteAdd("10.9.0.0/16", "eth0", "192.168.1.1", replace=True),
            NeighAdd("192.168.1.1", MAC, "eth0", replace=True),
            FdbAdd(MAC, "flannel.1", "192.168.1.12", replace=True),
        ],
        0.0,
    )
    assert everything(stack) == before


def routes(stack: Stack, table: str = "main") -> set[str]:
    return {r.text() for r in stack.fib if r.table == table}


def test_an_address_makes_its_routes_and_takes_them_away():
    stack = fresh()
    before = routes(stack), routes(stack, "local")
    stack.apply([AddrAdd("eth0", "10.50.0.7/16")], 0.0)
    assert routes(stack) - before[0] == {"10.50.0.0/16 dev eth0 proto kernel scope link src 10.50.0.7"}
    assert routes(stack, "local") - before[1] == {
        "local 10.50.0.7 dev eth0 proto kernel scope host src 10.50.0.7",
        "broadcast 10.50.255.255 dev eth0 proto kernel scope link src 10.50.0.7",
    }
    stack.apply([RouteAdd("10.60.0.0/16", "eth0", "192.168.1.1", src="10.50.0.7"), AddrDel("eth0", "10.50.0.7/16")], 0.0)
    assert (routes(stack), routes(stack, "local")) == before


def test_a_host_address_makes_no_connected_route():
    stack = fresh()
    before = routes(stack)
    stack.apply([AddrAdd("flannel.1", "10.244.1.0/32")], 0.0)
    assert routes(stack) == before


def test_down_takes_routes_away_and_up_brings_back_the_connected_ones():
    stack = fresh()
    before = routes(stack)
    stack.apply([LinkSet("eth0", up=False)], 0.0)
    assert routes(stack) == {"10.244.1.0/24 dev cni0 proto kernel scope link src 10.244.1.1"}
    assert stack.fib.is_local(bytes([192, 168, 1, 11]))
    stack.apply([LinkSet("eth0", up=True)], 0.0)
    assert before - routes(stack) == {"10.9.0.0/16 via 192.168.1.1 dev eth0 proto static"}


def test_deleting_a_link_takes_all_that_hangs_on_it():
    stack = fresh()
    stack.apply([FdbAdd(MAC, "veth1"), RouteAdd("10.70.0.0/16", "eth0", "192.168.1.1", src="10.244.1.1")], 0.0)
    stack.apply([LinkDel("cni0"), LinkDel("flannel.1")], 0.0)
    dumps = everything(stack)
    assert [link.master for link in dumps["links"] if link.name == "veth1"] == [""]
    assert dumps["fdb"] == []
    assert {a.dev for a in dumps["addrs"]} == {"lo", "eth0"}
    assert "10.70.0.0/16" not in {r.dst for r in dumps["routes"]}
    stack.apply([LinkDel("eth0")], 0.0)
    assert stack.dump("neighs", 0.0) == []


def test_secondary_addresses_go_with_their_primary():
    stack = fresh()
    stack.apply([AddrAdd("eth0", "192.168.1.50/24"), AddrAdd("eth0", "192.168.1.51/32")], 0.0)
    stack.apply([AddrDel("eth0", "192.168.1.11/24")], 0.0)
    assert [a.address for a in stack.dump("addrs", 0.0) if a.dev == "eth0"] == ["192.168.1.51/32"]


def test_flood_list_of_a_vxlan_link_grows_and_shrinks():
    stack = fresh()
    zero = "00:00:00:00:00:00"
    stack.apply([FdbAdd(zero, "flannel.1", "192.168.1.12"), FdbAdd(zero, "flannel.1", "192.168.1.13")], 0.0)
    assert [f.dst for f in stack.dump("fdb", 0.0) if f.mac == zero] == ["192.168.1.12", "192.168.1.13"]
    stack.apply([FdbDel(zero, "flannel.1", "192.168.1.12")], 0.0)
    assert [f.dst for f in stack.dump("fdb", 0.0) if f.mac == zero] == ["192.168.1.13"]


def test_rules_are_part_of_the_transaction():
    stack = fresh()
    table = nf.Table("filter", 4, (nf.Chain("FORWARD", (), "DROP"),))
    broken = ChainsUpdate("filter", 4, (nf.Chain("FORWARD", (nf.Rule((), nf.Jump("NOWHERE")),)),))
    before = everything(stack)
    with pytest.raises(NetlinkError) as caught:
        stack.apply([TablesReplace((table,)), broken], 0.0)
    assert caught.value.failed == 1
    assert everything(stack) == before


def test_settings_have_linux_defaults():
    sysctls = fresh().dump("sysctls", 0.0)
    assert sysctls["net.ipv4.ip_forward"] == "0"
    assert sysctls["net.bridge.bridge-nf-call-iptables"] == "1"
    assert sysctls["net.netfilter.nf_conntrack_max"] == "262144"


def test_unknown_dump_and_unknown_link():
    stack = fresh()
    with pytest.raises(NetlinkError, match="EINVAL"):
        stack.dump("nonsense", 0.0)
    with pytest.raises(NetlinkError, match="ENODEV"):
        stack.link_index("nope")
    for what in DUMPS:
        stack.dump(what, 0.0)


def test_indexes_are_not_used_again():
    stack = fresh()
    old = stack.link_index("veth1")
    stack.apply([LinkDel("veth1")], 0.0)
    stack.apply([LinkAdd("veth1", "tap")], 0.0)
    assert stack.link_index("veth1") > old


LINKS = st.sampled_from(["eth0", "cni0", "veth1", "flannel.1", "new0", "new1"])
NETS = st.sampled_from(["10.0.0.0/8", "10.9.0.0/16", "10.244.1.0/24", "10.244.1.1/32", "default", "192.168.1.0/24"])
HOSTS = st.sampled_from(["10.244.1.1/24", "10.9.1.1/16", "192.168.1.11/24", "192.168.1.12/24", "10.244.1.7/32"])
VIAS = st.sampled_from(["", "192.168.1.1", "10.244.1.7", "10.9.0.1"])
FLAG = st.booleans()
OPS = st.one_of(
    st.builds(LinkAdd, LINKS, st.sampled_from(["tap", "bridge", "dummy"]), master=st.sampled_from(["", "cni0"]), replace=FLAG),
    st.builds(LinkDel, LINKS),
    st.builds(LinkSet, LINKS, up=FLAG, master=st.sampled_from([None, "", "cni0"])),
    st.builds(AddrAdd, LINKS, HOSTS, replace=FLAG),
    st.builds(AddrDel, LINKS, HOSTS),
    st.builds(RouteAdd, NETS, LINKS, VIAS, onlink=FLAG, metric=st.sampled_from([0, 5]), replace=FLAG),
    st.builds(RouteDel, NETS),
    st.builds(NeighAdd, st.sampled_from(["10.9.0.1", "192.168.1.1"]), st.just(MAC), LINKS, replace=FLAG),
    st.builds(FdbAdd, st.sampled_from([MAC, "00:00:00:00:00:00"]), LINKS, st.just("192.168.1.12"), replace=FLAG),
    st.builds(FdbDel, st.just(MAC), LINKS),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(OPS, max_size=8), st.lists(OPS, max_size=8))
def test_a_refused_transaction_leaves_everything_as_it_was(first, second):
    stack = fresh()
    for op in first:
        with suppress(NetlinkError):
            stack.apply([op], 0.0)
    before = everything(stack)
    with pytest.raises(NetlinkError):
        stack.apply([*second, LinkDel("no-such-link")], 0.0)
    assert everything(stack) == before


def test_pods_of_a_cluster_see_a_restated_configuration_as_the_same():
    """What an agent does after a restart: everything again, with replace."""
    node = Cluster(1).nodes[0]
    before = everything(node.stack)
    node.apply(
        LinkAdd("eth0", "uplink", node.mac, replace=True),
        AddrAdd("eth0", f"{node.ip}/24", replace=True),
        RouteAdd("default", "eth0", "192.168.1.1", replace=True),
    )
    assert everything(node.stack) == before
