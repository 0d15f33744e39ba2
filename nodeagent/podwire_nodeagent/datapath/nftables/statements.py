"""A rule compiled: its matches and effects become closures, its last statement the operation of the rule.

Rules it keeps: statements are tested in their order; effects (mark, update) are closures that hold always; a verdict, a lookup,
a NAT statement or reject ends a rule. What is random or remembers something makes a packet volatile: no flow cache. What cannot
be read is EINVAL, a chain or set that is not there ENOENT, each with where it stands.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

from podwire_core import nft_text
from podwire_core import nftables as nft
from podwire_core.netlink import NetlinkError
from podwire_nodeagent.datapath.chooser import Chooser
from podwire_nodeagent.datapath.netfilter.chains import (
    ACCEPT_OP,
    DNAT_OP,
    DROP_OP,
    GOTO,
    JUMP,
    MASQUERADE_OP,
    NOTHING,
    REJECT_OP,
    RETURN,
)
from podwire_nodeagent.datapath.netfilter.matches import Context
from podwire_nodeagent.datapath.nftables.compiled import DISPATCH, Chain, Element, Rule, Set, Test
from podwire_nodeagent.datapath.packet import ESTABLISHED, INVALID, NEW, RELATED, UNTRACKED, Packet
from podwire_nodeagent.datapath.wire import address_bytes

FIELDS: Final = {"saddr": "src", "daddr": "dst", "l4proto": "proto", "dport": "dport"}
TYPES: Final = {"saddr": "addr", "daddr": "addr", "l4proto": "inet_proto", "dport": "inet_service"}
PROTOCOLS: Final = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}
_VERDICTS: Final = {"accept": ACCEPT_OP, "drop": DROP_OP, "return": RETURN, "jump": JUMP, "goto": GOTO}
_STATES: Final = {"established": ESTABLISHED, "related": RELATED, "new": NEW, "invalid": INVALID, "untracked": UNTRACKED}
_REJECT: Final = {4: "icmp-port-unreachable", 6: "icmp6-port-unreachable"}
_COMMON: Final = (nft.Verdict, nft.Address, nft.L4Proto, nft.Fib, nft.InInterface)
_ENDS: Final = (nft.Verdict, nft.Lookup, nft.Random, nft.Reject, nft.Dnat, nft.Masquerade)


def invalid(message: str) -> NetlinkError:
    return NetlinkError("EINVAL", message)


class Scope:
    """Of what a rule is compiled: its table's chains and sets. What many rules and elements have in common (verdicts, origins) is
    kept once while a transaction lasts."""

    def __init__(self, family: int, chains: Mapping[str, Chain], sets: Mapping[str, Set], context: Context) -> None:
        self.family, self.chains, self.sets, self.context = family, chains, sets, context
        self._common: dict[Any, Any] = {}
        self._networks_of: dict[nft.Address, Test] = {}

    def rule(self, source: nft.Rule, chain: Chain) -> Rule:
        """Raises NetlinkError."""
        refs: list[Chain | Set] = []
        tests: list[Test] = []
        operation, argument = NOTHING, None
        try:
            if not source.statements:
                raise invalid("a rule without statements")
            *before, last = source.statements
            for each in before:
                if isinstance(each, _ENDS):
                    raise invalid("statement after terminal statement has no effect")
                tests.append(self._test(each, refs))
            if isinstance(last, _ENDS):
                operation, argument = self._end(last, refs)
            else:
                tests.append(self._test(last, refs))
        except NetlinkError as error:
            where = f"{chain.name} {nft_text.rule(source, self.family)}" if error.errno_name != "EINVAL" else chain.name
            raise NetlinkError(error.errno_name, f"{where}: {error.message}") from None
        common = self._common.setdefault
        statements = tuple(common(each, each) if isinstance(each, _COMMON) else each for each in source.statements)
        kept = nft.Rule(statements, source.comment, common(source.origin, source.origin))
        return Rule(kept, chain.name, self.family, tuple(tests), operation, argument, tuple(refs))

    def element(self, source: nft.Element, where: Set) -> Element:
        operation, argument = ACCEPT_OP, None
        common = self._common.setdefault
        verdict = common(source.verdict, source.verdict)
        source = nft.Element(
            tuple(common(part, part) for part in source.key), verdict, source.comment, common(source.origin, source.origin)
        )
        if source.verdict is not None:
            operation, argument = self._verdict(source.verdict)
        return Element(source, where.source.name, operation, argument)

    # --- what ends a rule

    def _end(self, last: nft.AnyStatement, refs: list[Chain | Set]) -> tuple[int, Any]:
        match last:
            case nft.Verdict():
                operation, chain = self._verdict(last)
                refs += [chain] if chain is not None else []
                return operation, chain
            case nft.Lookup():
                found = self._set(last.map, last.fields, True, refs)
                return DISPATCH, _lookup(_getter(last.fields), found.elements)
            case nft.Random():
                return DISPATCH, self._random(last, refs)
            case nft.Reject():
                return REJECT_OP, _REJECT[self.family]
            case nft.Dnat():
                if not 0 < last.port < 65536:
                    raise invalid(f"invalid port {last.port}")
                return DNAT_OP, (self._address(last.address), last.port)
            case _:
                return MASQUERADE_OP, bool(getattr(last, "fully_random", False))

    def _verdict(self, given: nft.Verdict) -> tuple[int, Chain | None]:
        operation = _VERDICTS.get(given.name)
        if operation is None or bool(given.chain) != (given.name in ("jump", "goto")):
            raise invalid(f"unknown verdict {given.name!r}")
        if not given.chain:
            return operation, None
        chain = self.chains.get(given.chain)
        if chain is None:
            raise NetlinkError("ENOENT", f"no chain {given.chain}")
        if chain.hook is not None:
            raise NetlinkError("EOPNOTSUPP", f"{given.name} to the base chain {given.chain}")
        return operation, chain

    def _random(self, given: nft.Random, refs: list[Chain | Set]) -> Callable[[Packet], Element | None]:
        if not given.verdicts:
            raise invalid("numgen needs a modulus")
        choices = []
        for number, each in enumerate(given.verdicts):
            operation, chain = self._verdict(each)
            refs += [chain] if chain is not None else []
            choices.append(Element(nft.Element((str(number),), each), "", operation, chain))
        return _numgen(tuple(choices), self.context.chooser)

    def _set(self, name: str, fields: tuple[str, ...], verdicts: bool, refs: list[Chain | Set]) -> Set:
        found = self.sets.get(name)
        if found is None:
            raise NetlinkError("ENOENT", f"no set or map {name}")
        unknown = [field for field in fields if field not in FIELDS]
        if unknown:
            raise invalid(f"unknown field {unknown[0]!r}")
        address = f"ipv{self.family}_addr"
        if found.source.types != tuple(TYPES[f].replace("addr", address) for f in fields) or found.source.verdicts != verdicts:
            raise invalid(f"{name} is not a {'map' if verdicts else 'set'} of {', '.join(fields)}")
        refs.append(found)
        return found

    def _address(self, text: str) -> bytes:
        try:
            address = address_bytes(text)
        except ValueError as error:
            raise invalid(str(error)) from None
        if len(address) != (4 if self.family == 4 else 16):
            raise invalid(f"{text} is not of IPv{self.family}")
        return address

    # --- matches and effects

    def _test(self, given: nft.AnyStatement, refs: list[Chain | Set]) -> Test:
        match given:
            case nft.Address():
                return self._networks(given)
            case nft.InSet():
                found = self._set(given.set, given.fields, False, refs)
                return _in_set(_getter(given.fields), found, given.invert, self.context)
            case nft.Update():
                return _update(_getter((given.side,)), self._set(given.set, (given.side,), False, refs), self.context)
            case nft.Fib():
                return self._fib(given.side)
            case _:
                return _plain(given)

    def _networks(self, given: nft.Address) -> Test:
        if len(given.nets) == 1 and "/" not in given.nets[0] and given.side in ("saddr", "daddr"):
            return _one_address(given.side == "saddr", self._address(given.nets[0]), given.invert)
        test = self._networks_of.get(given)
        if test is None:
            test = self._networks_of[given] = self._several(given)
        return test

    def _several(self, given: nft.Address) -> Test:
        if given.side not in ("saddr", "daddr") or not given.nets:
            raise invalid(f"an address match of {given.side!r} with {len(given.nets)} networks")
        try:
            ranges = nft_text.merged(given.nets)
        except (ValueError, TypeError) as error:
            raise invalid(str(error)) from None
        if any(low.version != self.family for low, _ in ranges):
            raise invalid(f"{', '.join(given.nets)}: not of IPv{self.family}")
        lows, highs = [low.packed for low, _ in ranges], [high.packed for _, high in ranges]
        return _ranges(given.side == "saddr", lows, highs, given.invert)

    def _fib(self, side: str) -> Test:
        is_local = self.context.is_local
        if side == "saddr":
            return lambda packet: is_local(packet.src)
        return lambda packet: is_local(packet.dst)


# --- closures --------------------------------


@lru_cache(maxsize=64)
def _getter(fields: tuple[str, ...]) -> Callable[[Packet], Any]:
    return attrgetter(*(FIELDS[field] for field in fields))


def _lookup(key: Callable[[Packet], Any], elements: dict[Any, Element]) -> Callable[[Packet], Element | None]:
    return lambda packet: elements.get(key(packet))


def _numgen(choices: tuple[Element, ...], chooser: Chooser) -> Callable[[Packet], Element | None]:
    """`chance` decides, halving what is left, so that a check can play every outcome in few questions."""
    chance = chooser.chance

    def pick(packet: Packet) -> Element | None:
        packet.volatile = True
        low, high = 0, len(choices)
        while high - low > 1:
            middle = (low + high) >> 1
            if chance((middle - low) / (high - low)):
                high = middle
            else:
                low = middle
        return choices[low]

    return pick


def _in_set(key: Callable[[Packet], Any], found: Set, invert: bool, context: Context) -> Test:
    elements = found.elements
    if not found.source.timeout:
        return (lambda packet: key(packet) not in elements) if invert else (lambda packet: key(packet) in elements)

    def test(packet: Packet) -> bool:
        packet.volatile = True
        return (elements.get(key(packet), -1.0) > context.now) is not invert

    return test


def _update(key: Callable[[Packet], Any], found: Set, context: Context) -> Test:
    if not found.source.dynamic or not found.source.timeout:
        raise invalid(f"update needs a dynamic set with a timeout, {found.source.name} is none")
    elements, size = found.elements, found.source.size or 65535

    def update(packet: Packet) -> bool:
        packet.volatile = True
        value = key(packet)
        if len(elements) >= size and value not in elements:
            for old in [each for each, until in elements.items() if until <= context.now]:
                del elements[old]
            if len(elements) >= size:
                return False
        elements[value] = context.now + found.source.timeout
        return True

    return update


def _one_address(source: bool, address: bytes, invert: bool) -> Test:
    if source:
        return (lambda packet: packet.src != address) if invert else (lambda packet: packet.src == address)
    return (lambda packet: packet.dst != address) if invert else (lambda packet: packet.dst == address)


def _ranges(source: bool, lows: list[bytes], highs: list[bytes], invert: bool) -> Test:
    """Bytes of one length compare as the numbers they are."""
    field = attrgetter("src" if source else "dst")
    if len(lows) == 1:
        low, high = lows[0], highs[0]
        return lambda packet: (low <= field(packet) <= high) is not invert

    def test(packet: Packet) -> bool:
        address = field(packet)
        at = bisect_right(lows, address) - 1
        return (at >= 0 and address <= highs[at]) is not invert

    return test


@lru_cache(maxsize=4096)
def _plain(given: nft.AnyStatement) -> Test:
    """Statements that look at the packet alone, one closure for all who write the same."""
    match given:
        case nft.L4Proto():
            proto = _protocol(given.name)
            return lambda packet: packet.proto == proto
        case nft.DestinationPort():
            proto, port = _protocol(given.proto), given.port
            return lambda packet: packet.dport == port and packet.proto == proto
        case nft.InInterface():
            return _interface(given.name, given.invert)
        case nft.CtState():
            if not given.states or set(given.states) - _STATES.keys():
                raise invalid(f"unknown ct state {','.join(given.states)!r}")
            states = frozenset(_STATES[name] for name in given.states)
            return lambda packet: packet.ctinfo in states
        case nft.MarkBits():
            mask, value = given.mask, given.value
            return lambda packet: packet.mark & mask == value
        case nft.MarkSet():
            return _set_mark(given.operator, given.value)
        case _:
            raise invalid(f"unknown statement {type(given).__name__}")


def _protocol(name: str) -> int:
    if name not in PROTOCOLS:
        raise invalid(f"unknown protocol {name!r}")
    return PROTOCOLS[name]


def _interface(name: str, invert: bool) -> Test:
    if name.endswith("*"):
        begin = name[:-1]
        return lambda packet: packet.in_link.startswith(begin) is not invert
    return lambda packet: (packet.in_link == name) is not invert


def _set_mark(operator: str, value: int) -> Test:
    if operator not in ("|", "^") or not 0 <= value <= 0xFFFFFFFF:
        raise invalid(f"invalid mark {operator} {value:#x}")

    def either(packet: Packet) -> bool:
        packet.mark |= value
        return True

    def other(packet: Packet) -> bool:
        packet.mark ^= value
        return True

    return either if operator == "|" else other
