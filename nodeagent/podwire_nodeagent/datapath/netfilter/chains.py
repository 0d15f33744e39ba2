"""Compiled chains and their walk, which is linear as Linux's: rule after rule, from the first.

Theory of speed. In a chain such as KUBE-SERVICES nearly every rule begins with the same kind of condition, `-d
10.96.0.10/32` (in KUBE-NODEPORTS `-p tcp --dport 30080`), and it fails. Such a chain has a column beside its rules:
for each rule the value which that condition compares, or `ANY` if the rule has no such condition.
`column.index(value, start)` then does what the walk would do, comparison after comparison, but in C (about 16 ns a
rule). What it finds is the next rule that deserves a look. `evaluated` counts the rules passed, as a plain walk would.

A jump refers to the other `CompiledChain` itself; a transaction gives a chain a new `Body`, in one assignment, and
all who jump to it see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from podwire_core import netfilter as nf
from podwire_core.iptables_save import rule_line
from podwire_nodeagent.datapath.netfilter.matches import Test
from podwire_nodeagent.datapath.packet import Counted, Packet

# operations: what a rule does when its conditions hold. Those from ACCEPT_OP on end the walk of the table.
NOTHING, SET_MARK, RETURN, JUMP, GOTO, ACCEPT_OP, DROP_OP, REJECT_OP, DNAT_OP, SNAT_OP, MASQUERADE_OP = range(11)

# columns
NO_COLUMN, DESTINATION, SERVICE = range(3)
_WORTH: Final = 8  # a chain with fewer such rules is walked plainly


class _Any:
    """Equal to every value: a rule that must be looked at whatever the packet is."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


ANY: Final = _Any()


class CompiledRule:
    """A rule ready to be walked, with its counters. `argument`: a CompiledChain (jump, goto), (clear mask, value) of
    a mark, a Target's values."""

    __slots__ = ("argument", "bytes", "chain_name", "keys", "operation", "packets", "source", "tests")

    def __init__(
        self, source: nf.Rule, chain_name: str, tests: tuple[Test, ...], operation: int, argument: Any, keys: tuple[Any, Any, Any]
    ) -> None:
        self.source, self.chain_name = source, chain_name
        self.tests, self.operation, self.argument = tests, operation, argument
        self.keys = keys  # by column: None, the destination or ANY, the service or ANY
        self.packets = self.bytes = 0

    def text(self) -> str:
        """As iptables-save prints it (a built-in chain's policy as iptables -S does)."""
        if isinstance(self.source.target, nf.Verdict) and not self.source.matches and self.keys[1] is None:
            return f"-P {self.chain_name} {self.source.target.name}"
        return rule_line(self.chain_name, self.source)


class Body:
    """What a chain holds at one time. Never changed, only replaced."""

    __slots__ = ("column", "keys", "policy", "rules", "source")

    def __init__(self, source: nf.Chain, rules: Sequence[CompiledRule], policy: CompiledRule | None) -> None:
        self.source, self.rules, self.policy = source, tuple(rules), policy
        self.column, self.keys = _best_column(self.rules)


class CompiledChain:
    """The identity of a chain, which jumps refer to."""

    __slots__ = ("body", "name")

    def __init__(self, name: str, body: Body) -> None:
        self.name, self.body = name, body


def _best_column(rules: tuple[CompiledRule, ...]) -> tuple[int, list[Any]]:
    if len(rules) < _WORTH:
        return NO_COLUMN, []
    counts = [(sum(rule.keys[column] is not ANY for rule in rules), column) for column in (DESTINATION, SERVICE)]
    useful, column = max(counts, key=lambda pair: (pair[0], -pair[1]))
    if useful < _WORTH:
        return NO_COLUMN, []
    return column, [rule.keys[column] for rule in rules]


class Walk:
    """What one walk of a table did, besides its result: for traces."""

    __slots__ = ("chains", "evaluated", "origin")

    def __init__(self) -> None:
        self.chains: list[str] = []
        self.evaluated = 0
        self.origin = ""


def walk(chain: CompiledChain, packet: Packet, hits: list[Counted] | None, record: Walk | None) -> CompiledRule:
    """Walk a built-in chain; the rule that decided, or the chain's policy as a rule."""
    body = chain.body
    policy = body.policy
    returns: list[tuple[Body, int]] = []
    at = evaluated = 0
    size = packet.length
    if record:
        record.chains.append(chain.name)
    while True:
        start, found = at, None
        if body.column:
            found, at = _scan(body, at, packet)
        else:
            rules = body.rules
            end = len(rules)
            while at < end:
                rule = rules[at]
                at += 1
                for test in rule.tests:
                    if not test(packet):
                        break
                else:
                    found = rule
                    break
        evaluated += at - start
        if found is None:
            if not returns:
                break
            body, at = returns.pop()
            continue
        found.packets += 1
        found.bytes += size
        if hits is not None:
            hits.append(found)
        if record and found.source.origin:
            record.origin = found.source.origin
        operation = found.operation
        if operation >= ACCEPT_OP:
            if record:
                record.evaluated = evaluated
            return found
        if operation == JUMP or operation == GOTO:  # noqa: SIM109 (hot)
            if operation == JUMP:
                returns.append((body, at))
            body, at = found.argument.body, 0
            if record:
                record.chains.append(found.argument.name)
        elif operation == SET_MARK:
            keep, value = found.argument
            packet.mark = packet.mark & keep ^ value
        elif operation == RETURN:
            if not returns:
                break
            body, at = returns.pop()
    assert policy is not None, "only built-in chains are walked"
    policy.packets += 1
    policy.bytes += size
    if hits is not None:
        hits.append(policy)
    if record:
        record.evaluated = evaluated
    return policy


def _scan(body: Body, at: int, packet: Packet) -> tuple[CompiledRule | None, int]:
    """In a chain with a column: the next rule from `at` on whose conditions hold, and the place after it."""
    rules, keys, end = body.rules, body.keys, len(body.rules)
    value: Any = packet.dst if body.column == DESTINATION else packet.proto << 16 | packet.dport
    while at < end:
        try:
            at = keys.index(value, at)
        except ValueError:
            return None, end
        rule = rules[at]
        at += 1
        for test in rule.tests:
            if not test(packet):
                break
        else:
            return rule, at
    return None, end
