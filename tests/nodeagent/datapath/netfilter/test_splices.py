"""Splices of a chain: they lead where stating it anew does, and one that does not fit is refused whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_core import netfilter as nf
from podwire_core.netlink import ChainSplice, ChainsUpdate, NetlinkError, Splice
from podwire_nodeagent.datapath.netfilter.chains import Body, Column
from tests.support.hooks import Gate
from tests.support.packets import udp

ACCEPT = nf.Verdict("ACCEPT")
RULES = [
    *(nf.Rule((nf.Destination(f"10.96.0.{n}/32"),), ACCEPT) for n in range(1, 7)),
    *(nf.Rule((nf.Protocol("udp"), nf.DestinationPort("udp", n, n)), ACCEPT) for n in range(50, 56)),
    nf.Rule((), nf.NoTarget()),
    nf.Rule((nf.Destination("10.0.0.0/8"),), nf.Jump("Y")),
]


def gate(rules) -> Gate:
    made = Gate()
    chains = (nf.Chain("FORWARD", (nf.Rule((), nf.Jump("X")),), "ACCEPT"), nf.Chain("X", tuple(rules)), nf.Chain("Y"))
    made.netfilter.replace([nf.Table("filter", 4, chains)])
    return made


def splice(chain: str, before, cuts) -> ChainSplice:
    """`cuts`: (place, how many, new rules), in order."""
    made = [Splice(at, before[at - 1] if at else None, tuple(before[at : at + count]), tuple(new)) for at, count, new in cuts]
    return ChainSplice(chain, len(before), tuple(made))


def state(made: Gate):
    """Text, counters, and what walks use."""
    chains = made.netfilter.ruleset.tables["filter", 4].values()
    return made.netfilter.dump(), [(chain.uses, column(chain.body)) for chain in chains]


def column(body: Body):
    found = body.column
    return found and (found.field, [value if isinstance(value, bytes | int) else None for value in found.values], found.counts)


@st.composite
def edits(draw):
    rules = draw(st.lists(st.sampled_from(RULES), max_size=24))
    cuts, behind = [], 0
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(behind, len(rules)))
        count = draw(st.integers(0, min(4, len(rules) - at)))
        cuts.append((at, count, draw(st.lists(st.sampled_from(RULES), max_size=12))))
        behind = at + count
    return rules, cuts


@settings(max_examples=200, deadline=None)
@given(edits())
def test_a_spliced_chain_is_as_one_stated_anew(edit):
    rules, cuts = edit
    after = list(rules)
    for at, count, new in reversed(cuts):
        after[at : at + count] = new
    made = gate(rules)
    made.netfilter.update(ChainsUpdate("filter", 4, splices=(splice("X", rules, cuts),)))
    assert state(made) == state(gate(after))


def test_rules_that_stay_keep_their_counters():
    made = gate(RULES[:8])
    made.forward(udp("10.244.1.5", "10.96.0.3", 4000, 9999))
    cut = splice("X", RULES[:8], [(1, 3, [RULES[12], RULES[2]])])
    made.netfilter.update(ChainsUpdate("filter", 4, splices=(cut,)))
    [dump] = made.netfilter.dump()
    assert [counter.packets for counter in dump.counters["X"]] == [0, 0, 1, 0, 0, 0, 0]


@pytest.mark.interpreted
def test_a_long_chain_is_not_compiled_anew(monkeypatch):
    rules = [nf.Rule((nf.Destination(f"10.96.{n >> 8}.{n & 255}/32"),), ACCEPT) for n in range(1000)]
    made = gate(rules)
    before = made.netfilter.ruleset.tables["filter", 4]["X"].body
    monkeypatch.setattr("podwire_nodeagent.datapath.netfilter.chains.column_of", lambda _: pytest.fail("the whole column"))
    made.netfilter.update(ChainsUpdate("filter", 4, splices=(splice("X", rules, [(500, 1, RULES[:1])]),)))
    after = made.netfilter.ruleset.tables["filter", 4]["X"].body
    assert after.rules[:500] == before.rules[:500]
    assert after.rules[501:] == before.rules[501:]
    assert isinstance(after.column, Column)


OTHER = nf.Rule((), nf.Verdict("DROP"))
FITTING = Splice(2, RULES[1], (RULES[2],), (OTHER,))


@pytest.mark.parametrize(
    "wrong",
    [
        ChainSplice("X", 7, (FITTING,)),
        ChainSplice("X", 9, (FITTING,)),
        ChainSplice("X", 8, (Splice(2, RULES[0], (RULES[2],), (OTHER,)),)),
        ChainSplice("X", 8, (Splice(2, None, (RULES[2],), (OTHER,)),)),
        ChainSplice("X", 8, (Splice(2, RULES[1], (RULES[3],), (OTHER,)),)),
        ChainSplice("X", 8, (Splice(0, RULES[7], (), (OTHER,)),)),
        ChainSplice("X", 8, (Splice(9, RULES[7], (), (OTHER,)),)),
        ChainSplice("X", 8, (Splice(-1, RULES[6], (), (OTHER,)),)),
        ChainSplice("X", 8, (Splice(7, RULES[6], (RULES[7], RULES[7]), ()),)),
        ChainSplice("X", 8, (FITTING, FITTING)),
        ChainSplice("X", 8, (Splice(4, RULES[3], (), (OTHER,)), FITTING)),
    ],
)
def test_one_that_does_not_fit_is_refused_whole(wrong):
    made = gate(RULES[:8])
    before = state(made)
    with pytest.raises(NetlinkError, match="chain X is not the one") as error:
        made.netfilter.update(ChainsUpdate("filter", 4, (nf.Chain("Y", (OTHER,)),), (), (wrong,)))
    assert error.value.errno_name == "EAGAIN"
    assert state(made) == before
    made.netfilter.update(ChainsUpdate("filter", 4, splices=(ChainSplice("X", 8, (FITTING,)),)))
    assert made.netfilter.dump()[0].table.chains[3].rules[2] == OTHER


@pytest.mark.parametrize(
    ("update", "word"),
    [
        (ChainsUpdate("filter", 4, splices=(splice("NONE", [], []),)), "ENOENT"),
        (ChainsUpdate("filter", 4, (nf.Chain("X"),), (), (splice("X", RULES[:8], []),)), "EEXIST"),
        (ChainsUpdate("filter", 4, splices=(splice("X", RULES[:8], []),) * 2), "EEXIST"),
        (ChainsUpdate("filter", 4, delete=("Y",), splices=(splice("Y", [], []),)), "ENOENT"),
        (ChainsUpdate("filter", 4, splices=(splice("X", RULES[:8], [(8, 0, [nf.Rule((), nf.Jump("X"))])]),)), "ELOOP"),
        (ChainsUpdate("filter", 4, splices=(splice("X", RULES[:8], [(8, 0, [nf.Rule((), nf.Jump("Q"))])]),)), "ENOENT"),
        (
            ChainsUpdate("filter", 4, splices=(splice("INPUT", [], [(0, 0, [nf.Rule((nf.OutInterface("a"),), ACCEPT)])]),)),
            "EINVAL",
        ),
    ],
)
def test_what_else_is_refused(update, word):
    made = gate(RULES[:8])
    before = state(made)
    with pytest.raises(NetlinkError) as error:
        made.netfilter.update(update)
    assert error.value.errno_name == word
    assert state(made) == before
