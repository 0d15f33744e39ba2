"""Transactions: all or nothing, what is refused and in which words, what an update keeps."""

from __future__ import annotations

import pytest

from podwire_core import netfilter as nf
from podwire_core.iptables_save import parse
from podwire_core.netlink import ChainsUpdate, NetlinkError
from podwire_nodeagent.datapath.netfilter import ACCEPT
from tests.support.hooks import Gate
from tests.support.packets import udp

DROP53 = nf.Rule((nf.Protocol("udp"), nf.DestinationPort("udp", 53, 53)), nf.Verdict("DROP"))
QUERY = udp("10.244.1.5", "10.96.0.10", 4000, 53)


def table(name: str, *chains: nf.Chain, family: int = 4) -> nf.Table:
    return nf.Table(name, family, chains)


def one(target: nf.AnyTarget, *matches: nf.AnyMatch) -> tuple[nf.Rule, ...]:
    return (nf.Rule(matches, target),)


@pytest.mark.parametrize(
    ("wrong", "word", "message"),
    [
        (table("nope"), "ENOENT", "unknown table"),
        (table("filter", family=5), "EINVAL", "family 5"),
        (table("filter", nf.Chain("INPUT", one(nf.Jump("X")))), "ENOENT", "no chain X"),
        (table("filter", nf.Chain("INPUT", one(nf.Jump("OUTPUT")))), "EINVAL", "built-in"),
        (table("filter", nf.Chain("A"), nf.Chain("A")), "EEXIST", "twice"),
        (table("filter", nf.Chain("A", one(nf.Jump("A")))), "ELOOP", "A -> A"),
        (table("filter", nf.Chain("A", one(nf.Jump("B"))), nf.Chain("B", one(nf.Jump("A", True)))), "ELOOP", "->"),
        (table("filter", nf.Chain("x" * 29)), "EINVAL", "chain name"),
        (table("filter", nf.Chain("A", (), "DROP")), "EINVAL", "no policy"),
        (table("filter", nf.Chain("INPUT", (), "REJECT")), "EINVAL", "neither ACCEPT nor DROP"),
        (table("nat", nf.Chain("INPUT", (), "DROP")), "EINVAL", "not intended for filtering"),
        (table("nat", nf.Chain("A", one(nf.Verdict("DROP")))), "EINVAL", "not intended for filtering"),
        (table("filter", nf.Chain("A", one(nf.Verdict("QUEUE")))), "EINVAL", "unknown verdict"),
        (table("filter", nf.Chain("A", one(nf.Masquerade()))), "EINVAL", "table nat only"),
        (table("mangle", nf.Chain("FORWARD", one(nf.Reject()))), "EINVAL", "table filter only"),
        (table("filter", nf.Chain("A", one(nf.Reject("tcp-reset")))), "EINVAL", "needs -p tcp"),
        (table("filter", nf.Chain("A", one(nf.Reject("icmp6-no-route")))), "EINVAL", "unknown reject type"),
        (table("nat", nf.Chain("POSTROUTING", one(nf.Dnat("10.0.0.1")))), "EINVAL", "not allowed in POSTROUTING"),
        (
            table("nat", nf.Chain("POSTROUTING", one(nf.Jump("A"))), nf.Chain("A", one(nf.Dnat("10.0.0.1")))),
            "EINVAL",
            "reached from POSTROUTING",
        ),
        (table("nat", nf.Chain("PREROUTING", one(nf.Masquerade()))), "EINVAL", "not allowed in PREROUTING"),
        (table("nat", nf.Chain("A", one(nf.Dnat("10.0.0.1", 80)))), "EINVAL", "port specification"),
        (table("nat", nf.Chain("A", one(nf.Dnat("fd00::1")))), "EINVAL", "not of IPv4"),
        (table("nat", nf.Chain("A", one(nf.Dnat("bogus")))), "EINVAL", "bogus"),
        (table("filter", nf.Chain("A", one(nf.NoTarget(), nf.Source("10.0.0.1/8")))), "EINVAL", "host bits"),
        (table("filter", nf.Chain("A", one(nf.NoTarget(), nf.Source("fd00::/8")))), "EINVAL", "not of IPv4"),
        (table("filter", nf.Chain("A", one(nf.NoTarget(), nf.Protocol("quic")))), "EINVAL", "unknown protocol"),
        (table("filter", nf.Chain("A", one(nf.NoTarget(), nf.DestinationPort("tcp", 1, 2)))), "EINVAL", "needs -p tcp"),
        (
            table("filter", nf.Chain("A", one(nf.NoTarget(), nf.Protocol("tcp"), nf.DestinationPort("tcp", 9, 2)))),
            "EINVAL",
            "port range",
        ),
        (table("filter", nf.Chain("A", one(nf.NoTarget(), nf.ConntrackState(("OLD",))))), "EINVAL", "ctstate"),
        (table("filter", nf.Chain("A", one(nf.NoTarget(), nf.AddrType()))), "EINVAL", "addrtype"),
        (table("filter", nf.Chain("A", one(nf.NoTarget(), nf.AddrType("ANYCAST")))), "EINVAL", "address type"),
        (table("filter", nf.Chain("A", one(nf.NoTarget(), nf.Statistic(1.5)))), "EINVAL", "probability"),
        (table("filter", nf.Chain("A", one(nf.NoTarget(), nf.Recent("X")))), "EINVAL", "recent"),
        (table("filter", nf.Chain("A", one(nf.NoTarget(), nf.IcmpType(8, v6=True)))), "EINVAL", "family"),
        (table("filter", nf.Chain("A", one(nf.NoTarget(), nf.InInterface("a" * 16)))), "EINVAL", "interface name"),
        (table("filter", nf.Chain("OUTPUT", one(nf.NoTarget(), nf.InInterface("eth0")))), "EINVAL", "-i cannot be used"),
        (table("filter", nf.Chain("A", one(nf.SetMark(1 << 33, 0)))), "EINVAL", "mark"),
    ],
)
def test_refused(wrong, word, message):
    gate = Gate("*filter\n-A FORWARD -j DROP\nCOMMIT\n")
    before = gate.netfilter.dump()
    with pytest.raises(NetlinkError, match=message) as error:
        gate.netfilter.replace([wrong])
    assert error.value.errno_name == word
    assert gate.netfilter.dump() == before
    assert gate.netfilter.generation == 1


def test_errors_show_the_rule():
    with pytest.raises(NetlinkError, match=r"filter: -A A -p tcp -j JUNK: no chain JUNK"):
        Gate().netfilter.replace([table("filter", nf.Chain("A", one(nf.Jump("JUNK"), nf.Protocol("tcp"))))])


def test_nothing_is_visible_before_commit():
    gate = Gate()
    transaction = gate.netfilter.begin()
    transaction.replace([table("filter", nf.Chain("X", (DROP53,)))])
    transaction.update(ChainsUpdate("filter", 4, (nf.Chain("FORWARD", one(nf.Jump("X"))),)))
    assert gate.forward(QUERY) is ACCEPT
    transaction.commit()
    assert gate.forward(QUERY).action == "drop"
    assert gate.netfilter.generation == 1


def test_update_of_a_chain_that_is_jumped_to():
    gate = Gate("*filter\n:X - [0:0]\n-A FORWARD -j X\nCOMMIT\n")
    assert gate.forward(QUERY) is ACCEPT
    gate.netfilter.update(ChainsUpdate("filter", 4, (nf.Chain("X", (DROP53,)),)))
    assert gate.forward(QUERY).action == "drop"


def test_update_keeps_counters_of_rules_that_stay():
    gate = Gate("*filter\n:X - [0:0]\n-A FORWARD -j X\n-A X -p udp\n-A X -s 10.0.0.0/8\n-A X -p tcp\nCOMMIT\n")
    gate.forward(QUERY)
    (old,) = parse("*filter\n:X - [0:0]\n-A X -p udp\n-A X -p icmp\n-A X -s 10.0.0.0/8\n-A X -p tcp\nCOMMIT\n", 4)
    gate.netfilter.update(ChainsUpdate("filter", 4, tuple(chain for chain in old.chains if chain.name == "X")))
    (dump,) = gate.netfilter.dump()
    assert [counter.packets for counter in dump.counters["X"]] == [1, 0, 1, 0]
    assert dump.policy_counters["FORWARD"].packets == 1
    gate.netfilter.replace([dump.table])
    (dump,) = gate.netfilter.dump()
    assert [counter.packets for counter in dump.counters["X"]] == [0, 0, 0, 0]


def test_a_chain_in_use_cannot_go():
    gate = Gate("*filter\n:X - [0:0]\n-A FORWARD -j X\nCOMMIT\n")
    with pytest.raises(NetlinkError, match="EBUSY"):
        gate.netfilter.update(ChainsUpdate("filter", 4, (), ("X",)))
    with pytest.raises(NetlinkError, match="ENOENT"):
        gate.netfilter.update(ChainsUpdate("filter", 4, (), ("Y",)))
    with pytest.raises(NetlinkError, match="built in"):
        gate.netfilter.update(ChainsUpdate("filter", 4, (), ("FORWARD",)))
    gate.netfilter.update(ChainsUpdate("filter", 4, (nf.Chain("FORWARD"),), ("X",)))
    assert [chain.name for chain in gate.netfilter.dump()[0].table.chains] == ["INPUT", "FORWARD", "OUTPUT"]


def test_chain_deleted_and_made_anew():
    gate = Gate("*filter\n:X - [0:0]\n-A FORWARD -j X\nCOMMIT\n")
    gate.netfilter.update(ChainsUpdate("filter", 4, (nf.Chain("FORWARD", one(nf.Jump("X"))), nf.Chain("X", (DROP53,))), ("X",)))
    assert gate.forward(QUERY).action == "drop"


def test_update_makes_a_table():
    gate = Gate()
    gate.netfilter.update(ChainsUpdate("filter", 4, (nf.Chain("FORWARD", (DROP53,)),)))
    assert gate.forward(QUERY).action == "drop"


def test_families_are_apart():
    gate = Gate()
    gate.netfilter.replace([table("filter", nf.Chain("FORWARD", (), "DROP"), family=6)])
    assert gate.forward(QUERY) is ACCEPT
    assert gate.netfilter.dump()[0].table.family == 6


def test_dump_is_what_was_given():
    text = "*nat\n:S - [0:0]\n-A PREROUTING -j S\n-A S -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:80\nCOMMIT\n"
    (given,) = parse(text, 4)
    gate = Gate(text)
    assert gate.netfilter.dump()[0].table == given


def test_deep_chains_do_not_recurse():
    chains = [nf.Chain(f"C{n}", one(nf.Jump(f"C{n + 1}"))) for n in range(3000)]
    chains.append(nf.Chain("C3000", (DROP53,)))
    gate = Gate()
    gate.netfilter.replace([table("filter", nf.Chain("FORWARD", one(nf.Jump("C0"))), *chains)])
    assert gate.forward(QUERY).action == "drop"


def test_a_recent_list_goes_with_the_last_rule_that_names_it():
    gate = Gate("*filter\n-A FORWARD -m recent --set --name L --mask 255.255.255.255 --rsource\nCOMMIT\n")
    gate.forward(QUERY)
    lists = gate.netfilter.ruleset.context.recent.lists
    before = gate.netfilter.dump()[0].table
    again = nf.Chain("X", one(nf.NoTarget(), nf.Recent("L", set=True)))
    gate.netfilter.update(ChainsUpdate("filter", 4, (nf.Chain("FORWARD"), again)))
    assert set(lists) == {"L"}
    gate.netfilter.replace([before])  # the same rules, stated again
    assert set(lists) == {"L"}
    gate.netfilter.update(ChainsUpdate("filter", 4, (nf.Chain("FORWARD", (DROP53,)),)))
    assert lists == {}
