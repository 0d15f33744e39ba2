"""Compiled chains and their walk, which is linear as Linux's: rule after rule, from the first.

Theory of speed. In a chain such as KUBE-SERVICES nearly every rule begins with the same kind of condition, `-d
10.96.0.10/32` (in KUBE-NODEPORTS `-p tcp --dport 30080`), and it fails. Such a chain has a column beside its rules:
for each rule the value which that condition compares, or `ANY` if the rule has no such condition.
`column.index(value, start)` then does what the walk would do, comparison after comparison, but in C (about 16 ns a
rule). What it finds is the next rule that deserves a look. `evaluated` counts the rules passed, as a plain walk would.

A jump refers to the other `CompiledChain` itself; a transaction gives a chain a new `Body`, in one assignment, and
all who jump to it see it. A body that differs from the old one in a few rules is spliced: rules and column are copied by C, and
only the rules that changed are looked at.

Order to read: CompiledRule, Column, Body, walk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from podwire_core import netfilter as nf
from podwire_core.iptables_save import rule_line
from podwire_nodeagent.datapath.netfilter.matches import Test, host_address, protocol_number
from podwire_nodeagent.datapath.packet import Counted, Packet

# operations: what a rule does when its conditions hold. Those from ACCEPT_OP on end the walk of the table.
NOTHING, SET_MARK, RETURN, JUMP, GOTO, ACCEPT_OP, DROP_OP, REJECT_OP, DNAT_OP, SNAT_OP, MASQUERADE_OP = range(11)

DESTINATION, SERVICE = range(2)  # what a column compares: the destination, or the protocol and the destination's port
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

    __slots__ = ("argument", "bytes", "chain_name", "operation", "packets", "source", "tests")

    def __init__(self, source: nf.Rule, chain_name: str, tests: tuple[Test, ...], operation: int, argument: Any) -> None:
        self.source, self.chain_name = source, chain_name
        self.tests, self.operation, self.argument = tests, operation, argument
        self.packets = self.bytes = 0

    def text(self) -> str:
        """As iptables-save prints it."""
        return rule_line(self.chain_name, self.source)


class Policy(CompiledRule):
    """What is reached in a built-in chain when no rule decided."""

    __slots__ = ()

    def text(self) -> str:
        """As iptables -S prints it."""
        return f"-P {self.chain_name} {self.name}"

    @property
    def name(self) -> str:
        """ACCEPT or DROP."""
        assert isinstance(self.source.target, nf.Verdict)
        return self.source.target.name


Cut = tuple[int, int, Sequence[CompiledRule]]  # from this place so many rules become these

# --- columns --------------------------------


class Column:
    """`values` stand beside a chain's rules; `counts`: how many rules have a value, by what a column can compare."""

    __slots__ = ("counts", "field", "values")

    def __init__(self, field: int, values: list[Any], counts: tuple[int, int]) -> None:
        self.field, self.values, self.counts = field, values, counts


def column_of(rules: Sequence[CompiledRule]) -> Column | None:
    """The more useful of both; None if neither saves enough."""
    if len(rules) < _WORTH:
        return None
    keys = [_keys(rule.source) for rule in rules]
    counts = _counts(keys)
    field = _best(counts)
    return None if field is None else Column(field, [key[field] for key in keys], counts)


def _spliced_column(column: Column, rules: Sequence[CompiledRule], cuts: Sequence[Cut]) -> Column | None:
    """The column of a chain after these cuts, which are of `rules`: what `column_of` would find."""
    counts = list(column.counts)
    values = []
    for at, length, new in cuts:
        keys = [_keys(rule.source) for rule in new]
        gone = _counts([_keys(rule.source) for rule in rules[at : at + length]])
        counts = [count - less + more for count, less, more in zip(counts, gone, _counts(keys), strict=True)]
        values.append((at, length, [key[column.field] for key in keys]))
    now = counts[0], counts[1]
    if _best(now) != column.field:
        return column_of(_spliced(rules, cuts))
    return Column(column.field, _spliced(column.values, values), now)


def _counts(keys: Iterable[tuple[Any, Any]]) -> tuple[int, int]:
    keys = list(keys)
    return sum(key[DESTINATION] is not ANY for key in keys), sum(key[SERVICE] is not ANY for key in keys)


def _best(counts: tuple[int, int]) -> int | None:
    field = DESTINATION if counts[DESTINATION] >= counts[SERVICE] else SERVICE
    return field if counts[field] >= _WORTH else None


def _keys(rule: nf.Rule) -> tuple[Any, Any]:
    """The rule's values in both columns."""
    destination: Any = ANY
    service: Any = ANY
    for match in rule.matches:
        if isinstance(match, nf.Destination) and not match.invert:
            destination = host_address(match.net) or ANY
        elif isinstance(match, nf.DestinationPort) and not match.invert and match.low == match.high:
            service = protocol_number(match.proto) << 16 | match.low
    return destination, service


def _spliced(items: Sequence[Any], cuts: Iterable[tuple[int, int, Sequence[Any]]]) -> list[Any]:
    made: list[Any] = []
    behind = 0
    for at, length, new in cuts:
        made += items[behind:at]
        made += new
        behind = at + length
    made += items[behind:]
    return made


# --- chains --------------------------------


class Body:
    """What a chain holds at one time. Never changed, only replaced."""

    __slots__ = ("column", "policy", "rules")

    def __init__(self, rules: tuple[CompiledRule, ...], policy: Policy | None, column: Column | None) -> None:
        self.rules, self.policy, self.column = rules, policy, column

    @classmethod
    def of(cls, rules: Iterable[CompiledRule], policy: Policy | None = None) -> Body:
        every = tuple(rules)
        return cls(every, policy, column_of(every))

    def spliced(self, cuts: Sequence[Cut]) -> Body:
        """With these cuts, in order of place. Costs what they hold, and a copy."""
        rules = tuple(_spliced(self.rules, cuts))
        return Body(rules, self.policy, _spliced_column(self.column, self.rules, cuts) if self.column else column_of(rules))


class CompiledChain:
    """The identity of a chain, which jumps refer to; `uses` counts them."""

    __slots__ = ("body", "name", "uses")

    def __init__(self, name: str, body: Body) -> None:
        self.name, self.body, self.uses = name, body, 0


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
        rules, column = body.rules, body.column
        if column is not None:
            found, at = _scan(rules, column, at, packet)
        else:
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


def _scan(rules: tuple[CompiledRule, ...], column: Column, at: int, packet: Packet) -> tuple[CompiledRule | None, int]:
    """In a chain with a column: the next rule from `at` on whose conditions hold, and the place after it."""
    values, end = column.values, len(rules)
    value: Any = packet.dst if column.field == DESTINATION else packet.proto << 16 | packet.dport
    while at < end:
        try:
            at = values.index(value, at)
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
