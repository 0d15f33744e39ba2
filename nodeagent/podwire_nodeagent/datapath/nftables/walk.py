"""A packet's walk through a base chain. Linear in the rules of a chain, of which kube-proxy's have few; a map is one lookup,
however many elements it has."""

from __future__ import annotations

from podwire_nodeagent.datapath.netfilter.chains import ACCEPT_OP, GOTO, JUMP, RETURN
from podwire_nodeagent.datapath.nftables.compiled import DISPATCH, Chain, Decision, Element, Rule
from podwire_nodeagent.datapath.packet import Counted, Packet


class Path:
    """What one walk did, besides its result: for traces. `elements`: of the maps that were asked, those that were found."""

    __slots__ = ("chains", "elements", "evaluated", "origin")

    def __init__(self) -> None:
        self.chains: list[str] = []
        self.elements: list[Element] = []
        self.evaluated = 0
        self.origin = ""

    def found(self, decision: Decision) -> None:
        self.origin = decision.source.origin or self.origin
        if isinstance(decision, Element):
            self.elements.append(decision)


def walk(chain: Chain, packet: Packet, hits: list[Counted] | None, path: Path | None) -> Decision:
    """The rule or element that decided, or the chain's policy as a rule."""
    rules, policy = chain.rules, chain.policy
    assert policy is not None, "only base chains are walked"
    returns: list[tuple[tuple[Rule, ...], int]] = []
    at = evaluated = 0
    size = packet.length
    if path:
        path.chains.append(chain.name)
    while True:
        if at == len(rules):
            if not returns:
                break
            rules, at = returns.pop()
            continue
        rule = rules[at]
        at += 1
        evaluated += 1
        for test in rule.tests:
            if not test(packet):
                break
        else:
            decision: Decision = rule
            operation = rule.operation
            if operation == DISPATCH:
                element = rule.argument(packet)
                if element is None:
                    continue
                decision, operation = element, element.operation
            decision.packets += 1
            decision.bytes += size
            if hits is not None:
                hits.append(decision)
            if path:
                path.found(decision)
                path.evaluated = evaluated
            if operation >= ACCEPT_OP:
                return decision
            if operation == JUMP or operation == GOTO:  # noqa: SIM109 (hot)
                if operation == JUMP:
                    returns.append((rules, at))
                target = decision.argument
                rules, at = target.rules, 0
                if path:
                    path.chains.append(target.name)
            elif operation == RETURN:
                if not returns:
                    break
                rules, at = returns.pop()
    policy.packets += 1
    policy.bytes += size
    if hits is not None:
        hits.append(policy)
    if path:
        path.evaluated = evaluated
    return policy
