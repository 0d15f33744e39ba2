"""The compiled walk against a naive twin that knows only what rules mean: verdict, mark, rules evaluated, chains, counters."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_core import netfilter as nf
from podwire_nodeagent.datapath.netfilter import ACCEPT
from podwire_nodeagent.datapath.packet import Packet
from tests.support.hooks import LOCAL, Gate
from tests.support.packets import echo, tcp, udp

NETS = ["10.96.0.1/32", "10.96.0.2/32", "10.96.0.0/12", "10.244.1.5/32", "10.244.0.0/16", "192.168.1.11/32", "0.0.0.0/0"]
ADDRESSES = ["10.96.0.1", "10.96.0.2", "10.97.1.1", "10.244.1.5", "10.244.2.9", "192.168.1.11"]
CHAINS = ["A", "B", "C"]
PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1}
CTSTATES = {"NEW": 2, "ESTABLISHED": 0}

# --- the twin --------------------------------


def holds(match: nf.AnyMatch, packet: Packet) -> bool:
    invert = getattr(match, "invert", False)
    if isinstance(match, nf.Source | nf.Destination):
        address = ip_address(packet.src if isinstance(match, nf.Source) else packet.dst)
        return (address in ip_network(match.net)) != invert
    if isinstance(match, nf.InInterface | nf.OutInterface):
        name = packet.in_link if isinstance(match, nf.InInterface) else packet.out_link
        hit = name.startswith(match.name[:-1]) if match.name.endswith("+") else name == match.name
        return hit != invert
    if isinstance(match, nf.Protocol):
        return (packet.proto == PROTOCOLS[match.name]) != invert
    if isinstance(match, nf.SourcePort | nf.DestinationPort):
        port = packet.sport if isinstance(match, nf.SourcePort) else packet.dport
        return packet.proto == PROTOCOLS[match.proto] and (match.low <= port <= match.high) != invert
    if isinstance(match, nf.Mark):
        return (packet.mark & match.mask == match.value) != invert
    if isinstance(match, nf.ConntrackState):
        return (packet.ctinfo in {CTSTATES[state] for state in match.states}) != invert
    if isinstance(match, nf.AddrType):
        return (packet.dst in LOCAL) != match.invert_dst
    assert isinstance(match, nf.Comment)
    return True


class Twin:
    """iptables(8), word by word."""

    def __init__(self, table: nf.Table) -> None:
        self.chains = {chain.name: chain for chain in table.chains}
        self.evaluated = 0
        self.hits: dict[tuple[str, int], int] = {}
        self.walked: list[str] = []

    def judge(self, packet: Packet) -> str:
        return self.walk("FORWARD", packet) or self.chains["FORWARD"].policy

    def walk(self, name: str, packet: Packet) -> str:
        """ACCEPT, DROP, or "" at the end of the chain (or RETURN)."""
        self.walked.append(name)
        for number, rule in enumerate(self.chains[name].rules):
            self.evaluated += 1
            if not all(holds(match, packet) for match in rule.matches):
                continue
            self.hits[name, number] = self.hits.get((name, number), 0) + 1
            target = rule.target
            if isinstance(target, nf.Verdict):
                return "" if target.name == "RETURN" else target.name
            if isinstance(target, nf.Jump):
                verdict = self.walk(target.chain, packet)
                if verdict or target.goto:
                    return verdict
            elif isinstance(target, nf.SetMark):
                packet.mark = (packet.mark & ~target.mask) ^ target.value
        return ""


# --- rulesets --------------------------------

ports = st.sampled_from([53, 80, 443])


@st.composite
def matches(draw) -> tuple[nf.AnyMatch, ...]:
    invert = st.booleans()
    chosen: list[nf.AnyMatch] = []
    if draw(st.booleans()):
        chosen.append(nf.Destination(draw(st.sampled_from(NETS)), draw(st.integers(0, 9)) == 0))
    if draw(st.integers(0, 3)) == 0:
        chosen.append(nf.Source(draw(st.sampled_from(NETS)), draw(invert)))
    if draw(st.booleans()):
        name = draw(st.sampled_from(["tcp", "udp"]))
        chosen.append(nf.Protocol(name))
        if draw(st.booleans()):
            low = draw(ports)
            chosen.append(nf.DestinationPort(name, low, draw(st.sampled_from([low, 65535])), draw(st.integers(0, 9)) == 0))
        if draw(st.integers(0, 3)) == 0:
            chosen.append(nf.SourcePort(name, 0, draw(ports), draw(invert)))
    others = [
        nf.Comment("says nothing"),
        nf.InInterface("cni0", draw(invert)),
        nf.OutInterface("e+", draw(invert)),
        nf.Mark(draw(st.integers(0, 3)), 3, draw(invert)),
        nf.ConntrackState(("NEW",), draw(invert)),
        nf.AddrType(dst_type="LOCAL", invert_dst=draw(invert)),
    ]
    return (*chosen, *draw(st.lists(st.sampled_from(others), max_size=2)))


@st.composite
def rules(draw, below: list[str]) -> nf.Rule:
    targets: list[nf.AnyTarget] = [
        nf.Verdict("ACCEPT"),
        nf.Verdict("DROP"),
        nf.Verdict("RETURN"),
        nf.NoTarget(),
        nf.SetMark(draw(st.integers(0, 3)), draw(st.integers(0, 3))),
    ]
    targets += [nf.Jump(name, draw(st.integers(0, 3)) == 0) for name in below] * 3
    return nf.Rule(draw(matches()), draw(st.sampled_from(targets)))


@st.composite
def tables(draw) -> nf.Table:
    size = st.integers(0, 30)
    chains = [
        nf.Chain("FORWARD", tuple(draw(st.lists(rules(CHAINS), max_size=draw(size)))), draw(st.sampled_from(["ACCEPT", "DROP"])))
    ]
    for number, name in enumerate(CHAINS):
        chains.append(nf.Chain(name, tuple(draw(st.lists(rules(CHAINS[number + 1 :]), max_size=draw(size))))))
    return nf.Table("filter", 4, tuple(chains))


packets = st.one_of(
    st.builds(udp, st.sampled_from(ADDRESSES), st.sampled_from(ADDRESSES), ports, ports),
    st.builds(
        lambda src, dst, sport, dport: tcp(src, dst, sport, dport, 2, 1, 0), *[st.sampled_from(ADDRESSES)] * 2, ports, ports
    ),
    st.builds(echo, st.sampled_from(ADDRESSES), st.sampled_from(ADDRESSES)),
)


@settings(max_examples=150, deadline=None)
@given(tables(), st.lists(packets, min_size=1, max_size=5))
def test_same_as_the_twin(table, sent):
    gate = Gate()
    gate.netfilter.replace([table])
    twin = Twin(table)
    for data in sent:
        twin.evaluated, twin.walked = 0, []
        steps: list = []
        outcome = gate.forward(data, steps=steps)
        step = next(step for step in steps if step.stage == "filter/FORWARD")
        mark = gate.packet.mark
        gate.packet.mark = 0
        assert twin.judge(gate.packet) == ("ACCEPT" if outcome is ACCEPT else "DROP")
        assert (mark, step.evaluated, list(step.chain)) == (gate.packet.mark, twin.evaluated, twin.walked)
    (dump,) = gate.netfilter.dump()
    for chain in table.chains:
        got = [counter.packets for counter in dump.counters.get(chain.name, [])]
        assert got == [twin.hits.get((chain.name, number), 0) for number in range(len(chain.rules))]


@pytest.mark.parametrize("place", [0, 1, 499, 998, 999])
def test_long_chain_is_walked_linearly(place):
    """A thousand Services: as many rules evaluated as stand before the one that holds, wherever general rules are mixed in."""
    chain = [
        nf.Rule(
            (nf.Destination(f"10.97.{n >> 8}.{n & 255}/32"), nf.Protocol("udp"), nf.DestinationPort("udp", 53, 53)),
            nf.Verdict("DROP"),
        )
        for n in range(1000)
    ]
    chain[500] = nf.Rule((nf.Mark(7),), nf.Verdict("ACCEPT"))
    gate = Gate()
    gate.netfilter.replace([nf.Table("filter", 4, (nf.Chain("FORWARD", tuple(chain), "ACCEPT"),))])
    steps: list = []
    assert gate.forward(udp("10.244.1.5", f"10.97.{place >> 8}.{place & 255}", 1, 53), steps=steps).action == "drop"
    assert steps[-1].evaluated == place + 1
    steps.clear()
    assert gate.forward(udp("10.244.1.5", "10.98.0.1", 1, 53), steps=steps) is ACCEPT
    assert steps[1].evaluated == 1000


def test_statistic_asks_the_chooser_and_recent_remembers():
    asked: list[float] = []

    class Script:
        def chance(self, probability):
            asked.append(probability)
            return len(asked) == 2

        def below(self, n):
            return 0

    gate = Gate(
        "*filter\n-A FORWARD -m statistic --mode random --probability 0.25 -m recent --set --name X --rsource -j DROP\n"
        "-A FORWARD -m recent --rcheck --seconds 10 --reap --name X --rsource -j DROP\nCOMMIT\n",
        chooser=Script(),
    )
    data = udp("10.244.1.5", "10.244.1.6", 1, 53)
    assert gate.forward(data) is ACCEPT
    assert gate.packet.volatile
    gate.now = 1.0
    assert gate.forward(data).action == "drop"
    gate.now = 10.5
    assert gate.forward(data).action == "drop"
    gate.now = 11.5
    assert gate.forward(data) is ACCEPT
    assert asked == [0.25] * 4


def test_recent_holds_a_hundred_addresses():
    gate = Gate(
        "*filter\n-A FORWARD -i cni0 -m recent --set --name X --rsource\n"
        "-A FORWARD -i eth0 -m recent --rcheck --name X --rsource -j DROP\nCOMMIT\n"
    )
    for n in range(101):
        gate.forward(udp(f"10.244.7.{n}", "192.0.2.1", 1, 53))
    assert gate.forward(udp("10.244.7.0", "192.0.2.1", 2, 53), "eth0") is ACCEPT
    assert gate.forward(udp("10.244.7.1", "192.0.2.1", 2, 53), "eth0").action == "drop"


def test_trace_names_rule_and_origin():
    rule = nf.Rule((nf.Destination("10.96.0.1/32"),), nf.Jump("SVC"), "Service default/web:http")
    table = nf.Table("filter", 4, (nf.Chain("FORWARD", (rule,), "ACCEPT"), nf.Chain("SVC", (nf.Rule((), nf.Reject()),))))
    gate = Gate()
    gate.netfilter.replace([table])
    steps: list = []
    outcome = gate.forward(udp("10.244.1.5", "10.96.0.1", 1, 53), steps=steps)
    assert (outcome.action, outcome.reject_with, outcome.reason) == (
        "reject",
        "icmp-port-unreachable",
        "netfilter.filter/FORWARD",
    )
    step = steps[-1]
    assert (step.stage, step.action, step.evaluated, step.chain) == ("filter/FORWARD", "reject", 2, ("FORWARD", "SVC"))
    assert step.rule == "-A SVC -j REJECT --reject-with icmp-port-unreachable"
    assert step.origin == "Service default/web:http"
    gate.forward(udp("10.244.1.5", "10.96.0.2", 1, 53), steps=steps)
    assert steps[-1].rule == "-P FORWARD ACCEPT"


def test_credit_for_cached_packets():
    gate = Gate("*filter\n:X - [0:0]\n-A FORWARD -j X\n-A X -p udp\nCOMMIT\n")
    packet = gate._parse(udp("10.244.1.5", "10.96.0.2", 1, 53), "cni0")
    packet.hits = []
    gate.netfilter.prerouting(packet, 0.0)
    gate.netfilter.forward(packet, 0.0)
    gate.netfilter.credit(packet.hits, 10, 1000)
    (dump,) = gate.netfilter.dump()
    assert (dump.counters["X"][0].packets, dump.counters["X"][0].bytes) == (11, 1028)
    assert dump.policy_counters["FORWARD"].packets == 11
