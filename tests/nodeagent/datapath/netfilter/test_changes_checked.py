"""An update is refused exactly when looking at the whole table would refuse it, though only its surroundings are looked at."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_core import netfilter as nf
from podwire_core.netlink import ChainSplice, ChainsUpdate, NetlinkError, Splice
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.netfilter import Netfilter, graph, ruleset

CHAINS = [*nf.BUILTIN_CHAINS["nat"], *"ABCDEF"]
DNAT, MASQUERADE = nf.Dnat("10.0.0.1"), nf.Masquerade()
TARGET = st.one_of(st.sampled_from("ABCDEF").map(nf.Jump), st.sampled_from([DNAT, MASQUERADE, nf.Verdict("RETURN")]))
RULES = st.lists(TARGET.map(lambda target: nf.Rule((), target)), max_size=3).map(tuple)
UPDATE = st.tuples(
    st.dictionaries(st.sampled_from(CHAINS), RULES, min_size=1, max_size=3),
    st.lists(st.sampled_from("ABCDEF"), max_size=1).map(tuple),
)


def made() -> Netfilter:
    netfilter = Netfilter(RandomChooser(random.Random(1)), {}, lambda address: False, lambda link, family: None)
    netfilter.replace([nf.Table("nat", 4, tuple(nf.Chain(name) for name in "ABCDEF"))])
    return netfilter


def outcome(netfilter: Netfilter, chains, delete) -> str:
    try:
        netfilter.update(ChainsUpdate("nat", 4, tuple(nf.Chain(name, rules) for name, rules in chains.items()), delete))
    except NetlinkError as error:
        return error.errno_name
    return ""


@settings(max_examples=300, deadline=None)
@given(st.lists(UPDATE, min_size=1, max_size=12))
def test_it_refuses_what_the_whole_check_refuses(updates):
    short, whole = made(), made()
    for chains, delete in updates:
        told = outcome(short, chains, delete)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ruleset, "check_changes", lambda *_: False)
            assert outcome(whole, chains, delete) == told
    assert short.dump() == whole.dump()
    chains = short.ruleset.tables["nat", 4].values()
    jumps = Counter(
        rule.argument.name for chain in chains for rule in chain.body.rules if isinstance(rule.source.target, nf.Jump)
    )
    assert {chain.name: chain.uses for chain in chains if chain.uses} == jumps


@pytest.mark.interpreted
def test_one_service_is_not_looked_for_among_all(monkeypatch):
    """As kube-proxy adds and removes one: its chains, and its rule in the long chain."""
    netfilter = made()
    services = tuple(nf.Rule((), nf.Jump(f"SVC-{i}")) for i in range(50))
    chains = [nf.Chain(f"SVC-{i}", (nf.Rule((), DNAT),)) for i in range(50)]
    jump = nf.Chain("PREROUTING", (nf.Rule((), nf.Jump("A")),))
    netfilter.update(ChainsUpdate("nat", 4, (jump, nf.Chain("A", services), *chains)))
    monkeypatch.setattr(ruleset, "check_graph", lambda *_: pytest.fail("the whole table was looked at"))
    one_more = nf.Chain("A", (*services, nf.Rule((), nf.Jump("SVC-50"))))
    netfilter.update(ChainsUpdate("nat", 4, (one_more, nf.Chain("SVC-50", (nf.Rule((), DNAT),)))))
    splice = Splice(49, services[48], services[49:], ())
    netfilter.update(ChainsUpdate("nat", 4, (), ("SVC-49",), (ChainSplice("A", 51, (splice,)),)))


@pytest.mark.interpreted
def test_new_probabilities_of_many_endpoints_are_no_new_jumps(monkeypatch):
    """One endpoint more of a Service changes the rules of all others, but not where they lead."""
    netfilter = made()

    def choice(count: int) -> nf.Chain:
        return nf.Chain("SVC", tuple(nf.Rule((nf.Statistic(1 / (count - i)),), nf.Jump(f"SEP-{i}")) for i in range(count)))

    count = graph.WORTH_LOOKING + 1
    ends = [nf.Chain(f"SEP-{i}", (nf.Rule((), DNAT),)) for i in range(count)]
    netfilter.update(ChainsUpdate("nat", 4, (nf.Chain("PREROUTING", (nf.Rule((), nf.Jump("SVC")),)), choice(count), *ends)))
    monkeypatch.setattr(ruleset, "check_graph", lambda *_: pytest.fail("the whole table was looked at"))
    netfilter.update(ChainsUpdate("nat", 4, (choice(count + 1), nf.Chain(f"SEP-{count}", (nf.Rule((), DNAT),)))))
    netfilter.update(ChainsUpdate("nat", 4, (choice(count),), (f"SEP-{count}",)))
