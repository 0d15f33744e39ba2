"""Operations on virtual services, ipsets and host addresses: what is refused, and that a refused transaction leaves nothing."""

from __future__ import annotations

from random import Random

import pytest

from podwire_core import netfilter as nf
from podwire_core.ipset import IpSet
from podwire_core.ipvs import RealServer, VirtualService
from podwire_core.netlink import (
    AddrsUpdate,
    IpsetDestroy,
    IpsetSet,
    IpsetUpdate,
    IpvsDel,
    IpvsReplace,
    IpvsServerDel,
    IpvsServerSet,
    IpvsSet,
    LinkAdd,
    LinkDel,
    NetlinkError,
    TablesReplace,
)
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.stack import Stack

WEB = VirtualService("tcp", "10.96.0.10", 80, servers=(RealServer("10.244.1.5", 8080), RealServer("10.244.2.5", 8080)))
SET = IpSet("A", "hash:ip,port", elements=("10.96.0.1,tcp:443",))
KEY = ("tcp", "10.96.0.10", 80)


@pytest.fixture
def stack():
    made = Stack("node1", RandomChooser(Random(1)))
    made.apply([LinkAdd("kube-ipvs0", "dummy"), AddrsUpdate("kube-ipvs0", ("10.96.0.1",)), IpsetSet(SET), IpvsSet(WEB)], 0)
    return made


def state(stack):
    return [stack.dump(what, 0) for what in ("ipvs", "ipsets", "addrs", "routes")]


def rule(name="A", flags=("dst", "dst")):
    return TablesReplace((nf.Table("filter", 4, (nf.Chain("INPUT", (nf.Rule((nf.Set(name, flags),), nf.Verdict("DROP")),)),)),))


REFUSED = [
    (IpvsSet(VirtualService("tcp", "10.96.0.11", 80, "best")), "ENOENT"),
    (IpvsSet(VirtualService("tcp", "10.96.0.11", 80, flags=("x",))), "EINVAL"),
    (IpvsSet(VirtualService("icmp", "10.96.0.11", 80)), "EINVAL"),
    (IpvsSet(VirtualService("tcp", "10.96.0.11", 0)), "EINVAL"),
    (IpvsSet(VirtualService("tcp", "ten", 80)), "EINVAL"),
    (IpvsSet(VirtualService("tcp", "10.96.0.11", 80, servers=(RealServer("10.244.1.1", 1, 70000),))), "EINVAL"),
    (IpvsDel("tcp", "10.96.0.11", 80), "ESRCH"),
    (IpvsReplace((WEB, WEB)), "EEXIST"),
    (IpvsServerSet(*KEY, RealServer("10.244.1.5", 8080)), "EEXIST"),
    (IpvsServerDel(*KEY, RealServer("10.244.9.9", 8080)), "ENOENT"),
    (IpvsServerSet("udp", "10.96.0.10", 80, RealServer("10.244.1.5", 1)), "ESRCH"),
    (IpsetSet(IpSet("A", "hash:ip")), "EINVAL"),
    (IpsetSet(IpSet("B", "hash:mac")), "EINVAL"),
    (IpsetSet(IpSet("B", "hash:ip", elements=("10.96.0.1,tcp:80",))), "EINVAL"),
    (IpsetSet(IpSet("B", "hash:ip", elements=("1.1.1.1", "1.1.1.2"), maxelem=1)), "EMSGSIZE"),
    (IpsetUpdate("B", ("1.1.1.1",)), "ENOENT"),
    (IpsetUpdate("A", ("1.1.1.1,tcp:99999",)), "EINVAL"),
    (IpsetDestroy("B"), "ENOENT"),
    (AddrsUpdate("kube-ipvs1", ("1.1.1.1",)), "ENODEV"),
    (AddrsUpdate("kube-ipvs0", ("224.0.0.1",)), "EINVAL"),
    (rule("B"), "ENOENT"),
    (rule(flags=("dst",)), "EINVAL"),
]


@pytest.mark.parametrize(("op", "errno"), REFUSED)
def test_what_is_refused_undoes_the_whole_transaction(stack, op, errno):
    before = state(stack)
    ops = [
        IpvsSet(VirtualService("tcp", "10.96.0.10", 80, "wlc", servers=(RealServer("10.244.3.3", 1),))),
        IpvsServerSet(*KEY, RealServer("10.244.3.4", 1)),
        IpvsDel(*KEY),
        IpvsSet(WEB),
        IpsetUpdate("A", ("10.96.0.2,tcp:80",), ("10.96.0.1,tcp:443",)),
        IpsetSet(IpSet("C", "bitmap:port", elements=("30080",))),
        AddrsUpdate("kube-ipvs0", ("10.96.0.2", "10.96.0.3"), ("10.96.0.1",)),
        op,
    ]
    with pytest.raises(NetlinkError) as error:
        stack.apply(ops, 0)
    assert (error.value.errno_name, error.value.failed) == (errno, len(ops) - 1)
    assert state(stack) == before


def test_a_refused_change_leaves_the_scheduler_as_it_was(stack):
    service = stack.netfilter.ipvs.services[6, b"\x0a\x60\0\x0a", 80]
    with pytest.raises(NetlinkError):
        stack.apply([IpvsServerDel(*KEY, RealServer("10.244.1.5", 8080)), IpvsDel("udp", "1.1.1.1", 1)], 0)
    assert list(service.scheduler.servers) == service.servers
    assert len(service.servers) == 2
    assert all(server.available for server in service.servers)


def test_a_set_in_use_cannot_be_destroyed_by_name(stack):
    stack.apply([rule()], 0)
    with pytest.raises(NetlinkError, match="EBUSY"):
        stack.apply([IpsetDestroy("A")], 0)
    stack.apply([IpsetDestroy("")], 0)
    assert [s.name for s in stack.dump("ipsets", 0)] == ["A"]


def test_a_transaction_that_removes_the_rules_can_remove_the_sets(stack):
    stack.apply([rule()], 0)
    stack.apply([IpsetDestroy(""), TablesReplace((nf.Table("filter", 4),))], 0)
    assert stack.dump("ipsets", 0) == []


def test_a_rule_sees_a_set_of_the_same_transaction_and_its_later_content(stack):
    stack.apply([IpsetSet(IpSet("N", "hash:ip")), rule("N", ("dst",))], 0)
    live = stack.netfilter.ipsets["N"]
    stack.apply([IpsetSet(IpSet("N", "hash:ip", elements=("10.0.0.1",)))], 0)
    assert stack.netfilter.ipsets["N"] is live
    assert len(live.elements) == 1


def test_many_host_addresses(stack):
    many = tuple(f"10.97.{i >> 8}.{i & 255}" for i in range(3000))
    stack.apply([AddrsUpdate("kube-ipvs0", many)], 0)
    assert all(stack.fib.is_local(bytes(map(int, a.split(".")))) for a in (many[0], many[-1]))
    stack.apply([AddrsUpdate("kube-ipvs0", many[:2] + many[:1], replace=True)], 0)
    assert [a.address for a in stack.dump("addrs", 0) if a.dev == "kube-ipvs0"] == [f"{a}/32" for a in many[:2]]
    assert not stack.fib.is_local(b"\x0a\x60\0\x01")
    stack.apply([AddrsUpdate("kube-ipvs0", replace=True), LinkDel("kube-ipvs0")], 0)
    stack.apply([AddrsUpdate("kube-ipvs0", replace=True, missing_ok=True)], 0)
    assert not any(r.dst.startswith("10.97.") for r in stack.dump("routes", 0))
