"""Matches compiled to functions of a packet.

Each `Match` of a rule becomes one closure `(packet) -> bool` over constants, cheap to call; conditions that always
hold (comments) vanish. The conditions of the IP header come first, as in Linux, and the others in the rule's order,
since some have effects (`-m recent --set`) or draw random numbers. Conditions that need more than the packet get it
from a `Context`.

What is equal is compiled once and kept once: a large table has a million conditions, of which few are different ones.
Order to read: Context, Conditions, then a function for each kind.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from podwire_core import netfilter as nf
from podwire_core.ipset import TYPES
from podwire_core.netlink import NetlinkError
from podwire_nodeagent.datapath.chooser import Chooser
from podwire_nodeagent.datapath.netfilter.connection import DST_NAT, SRC_NAT
from podwire_nodeagent.datapath.netfilter.ipsets import LiveSet, compile_test
from podwire_nodeagent.datapath.netfilter.recent import RecentLists
from podwire_nodeagent.datapath.packet import ESTABLISHED, ICMP, ICMPV6, INVALID, NEW, RELATED, UNTRACKED, Packet
from podwire_nodeagent.datapath.wire import address_bytes

Test = Callable[[Packet], bool]
Matches = tuple[nf.AnyMatch, ...]

PROTOCOLS: Final = {
    "all": 0,
    "icmp": 1,
    "igmp": 2,
    "tcp": 6,
    "udp": 17,
    "dccp": 33,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": 58,
    "ipv6-icmp": 58,
    "sctp": 132,
    "udplite": 136,
}
_STATES: Final = {"ESTABLISHED": ESTABLISHED, "RELATED": RELATED, "NEW": NEW, "INVALID": INVALID, "UNTRACKED": UNTRACKED}
_HEADER: Final = (nf.Source, nf.Destination, nf.InInterface, nf.OutInterface, nf.Protocol)
_PORTS: Final = (nf.SourcePort, nf.DestinationPort)
_ASKING: Final = (nf.AddrType, nf.Statistic, nf.Recent, nf.Set)
_TYPES: Final = ("LOCAL", "UNICAST", "BROADCAST", "MULTICAST")


class Context:
    """What conditions ask besides the packet: the clock of this packet, randomness, the node's addresses, the `recent` lists."""

    __slots__ = ("chooser", "ipsets", "is_broadcast", "is_local", "now", "recent")

    def __init__(self, chooser: Chooser, is_local: Callable[[bytes], bool], is_broadcast: Callable[[bytes], bool]) -> None:
        self.chooser, self.is_local, self.is_broadcast = chooser, is_local, is_broadcast
        self.recent = RecentLists()
        self.ipsets: dict[str, LiveSet] = {}
        self.now = 0.0


def invalid(message: str) -> NetlinkError:
    return NetlinkError("EINVAL", message)


class Conditions:
    """Compiles the conditions of one family's rules while a transaction lasts; equal ones once. What looks at the packet alone is
    remembered for longer (`_plain`)."""

    def __init__(self, family: int, context: Context) -> None:
        self._family, self._context = family, context
        self._known: dict[nf.AnyMatch, tuple[nf.AnyMatch, Test | None]] = {}

    def compiled(self, matches: Matches) -> tuple[Matches, tuple[Test, ...]]:
        """An equal list to keep, and its conditions in the order in which they are tested. Raises NetlinkError."""
        kept: list[nf.AnyMatch] = []
        first: list[Test] = []
        later: list[Test] = []
        for match in matches:
            if isinstance(match, _PORTS):
                _check_port(match, matches)
            known, test = self._known.get(match) or self._add(match)
            kept.append(known)
            if test is not None:
                (first if isinstance(match, _HEADER) else later).append(test)
        return tuple(kept), (*first, *later)

    def _add(self, match: nf.AnyMatch) -> tuple[nf.AnyMatch, Test | None]:
        if isinstance(match, _ASKING):
            test: Test | None = _asking(match, self._family, self._context)
        else:
            match, test = _plain(match, self._family)
        found = self._known[match] = match, test
        return found


def _check_port(match: nf.SourcePort | nf.DestinationPort, matches: Matches) -> None:
    if match.proto not in protocols(matches):
        raise invalid(f"a {match.proto} port needs -p {match.proto}")
    if not 0 <= match.low <= match.high <= 65535:
        raise invalid(f"invalid port range {match.low}:{match.high}")


def protocols(matches: Matches) -> set[str]:
    """Of which one the packet must be."""
    return {match.name for match in matches if isinstance(match, nf.Protocol) and not match.invert}


def host_address(net: str) -> bytes | None:
    """Of a network of one address, as text that `network` took; None for others."""
    address, _, prefix = net.partition("/")
    return address_bytes(address) if prefix in ("", "128" if ":" in address else "32") else None


def network(text: str, family: int) -> IPv4Network | IPv6Network:
    try:
        parsed = ip_network(text)
    except ValueError as error:
        raise invalid(f"invalid network {text!r}: {error}") from None
    if parsed.version != family:
        raise invalid(f"{text!r} is not of IPv{family}")
    return parsed


def protocol_number(name: str) -> int:
    number = PROTOCOLS.get(name.lower(), -1)
    if number < 0:
        number = int(name) if name.isdecimal() else -1
    if not 0 <= number <= 255:
        raise invalid(f"unknown protocol {name!r}")
    return number


def _asking(match: nf.AnyMatch, family: int, context: Context) -> Test:
    """What asks more than the packet."""
    if isinstance(match, nf.AddrType):
        return _address_type(match, context)
    if isinstance(match, nf.Statistic):
        return _statistic(match.probability, context)
    if isinstance(match, nf.Recent):
        return _recent(match, context)
    assert isinstance(match, nf.Set)
    return _set(match, family, context)


@lru_cache(maxsize=4096)
def _plain(match: nf.AnyMatch, family: int) -> tuple[nf.AnyMatch, Test | None]:
    """What looks at the packet alone, with the match that others have too."""
    if isinstance(match, nf.Comment):
        return match, None
    if isinstance(match, nf.Source | nf.Destination):
        return match, _address(match, family)
    if isinstance(match, nf.InInterface | nf.OutInterface):
        return match, _link(match.name, isinstance(match, nf.InInterface), match.invert)
    if isinstance(match, nf.Protocol):
        return match, _protocol(protocol_number(match.name), match.invert)
    if isinstance(match, nf.SourcePort | nf.DestinationPort):
        return match, _port(protocol_number(match.proto), match.low, match.high, isinstance(match, nf.SourcePort), match.invert)
    if isinstance(match, nf.Mark):
        return match, _mark(match.value, match.mask, match.invert)
    if isinstance(match, nf.ConntrackState):
        return match, _state(match)
    if isinstance(match, nf.PhysDev):
        return match, (lambda packet: not packet.bridged) if match.invert else (lambda packet: packet.bridged)
    assert isinstance(match, nf.IcmpType)
    return match, _icmp(match, family)


def _address(match: nf.Source | nf.Destination, family: int) -> Test | None:
    source, invert = isinstance(match, nf.Source), match.invert
    try:
        raw = host_address(match.net)
    except ValueError:
        raw = None  # `network` says what is wrong
    if raw is None or len(raw) != (4 if family == 4 else 16):
        return _in_network(network(match.net, family), source, invert)
    if source:
        return (lambda packet: packet.src != raw) if invert else (lambda packet: packet.src == raw)
    return (lambda packet: packet.dst != raw) if invert else (lambda packet: packet.dst == raw)


def _in_network(net: IPv4Network | IPv6Network, source: bool, invert: bool) -> Test | None:
    width, prefix = net.max_prefixlen, net.prefixlen
    raw = net.network_address.packed
    if prefix == 0:
        return (lambda packet: False) if invert else None
    if prefix & 7 == 0:
        begin = raw[: prefix >> 3]
        if source:
            return (lambda packet: not packet.src.startswith(begin)) if invert else (lambda packet: packet.src.startswith(begin))
        return (lambda packet: not packet.dst.startswith(begin)) if invert else (lambda packet: packet.dst.startswith(begin))
    shift = width - prefix
    value, number = int(net.network_address) >> shift, int.from_bytes
    if source:
        return lambda packet: (number(packet.src, "big") >> shift == value) is not invert
    return lambda packet: (number(packet.dst, "big") >> shift == value) is not invert


def _link(name: str, arriving: bool, invert: bool) -> Test:
    if not name or len(name.removesuffix("+")) > 15 or any(c.isspace() or c == "/" for c in name):
        raise invalid(f"invalid interface name {name!r}")
    if name.endswith("+"):
        begin = name[:-1]
        if arriving:
            return lambda packet: packet.in_link.startswith(begin) is not invert
        return lambda packet: packet.out_link.startswith(begin) is not invert
    if arriving:
        return (lambda packet: packet.in_link != name) if invert else (lambda packet: packet.in_link == name)
    return (lambda packet: packet.out_link != name) if invert else (lambda packet: packet.out_link == name)


def _protocol(number: int, invert: bool) -> Test | None:
    if not number:
        return None
    return (lambda packet: packet.proto != number) if invert else (lambda packet: packet.proto == number)


def _port(proto: int, low: int, high: int, source: bool, invert: bool) -> Test:
    if source:
        return lambda packet: packet.proto == proto and (low <= packet.sport <= high) is not invert
    if low == high and not invert:
        return lambda packet: packet.dport == low and packet.proto == proto
    return lambda packet: packet.proto == proto and (low <= packet.dport <= high) is not invert


def _mark(value: int, mask: int, invert: bool) -> Test:
    if not (0 <= value <= 0xFFFFFFFF and 0 <= mask <= 0xFFFFFFFF):
        raise invalid(f"invalid mark {value:#x}/{mask:#x}")
    if invert:
        return lambda packet: packet.mark & mask != value
    return lambda packet: packet.mark & mask == value


def _state(match: nf.ConntrackState) -> Test:
    unknown = set(match.states) - _STATES.keys() - {"DNAT", "SNAT"}
    if unknown or not match.states:
        raise invalid(f"unknown ctstate {', '.join(sorted(unknown)) or '(none)'}")
    states = frozenset(_STATES[name] for name in match.states if name in _STATES)
    bits = (DST_NAT if "DNAT" in match.states else 0) | (SRC_NAT if "SNAT" in match.states else 0)
    invert = match.invert
    if not bits:
        return (lambda packet: packet.ctinfo not in states) if invert else (lambda packet: packet.ctinfo in states)

    def test(packet: Packet) -> bool:
        translated = packet.ct is not None and packet.ct.status & bits
        return (packet.ctinfo in states or bool(translated)) is not invert

    return test


def _address_type(match: nf.AddrType, context: Context) -> Test:
    sides = [(name, kind, invert) for name, kind, invert in _sides(match) if kind]
    if not sides:
        raise invalid("addrtype needs --src-type or --dst-type")
    for _, kind, _ in sides:
        if kind not in _TYPES:
            raise invalid(f"unknown address type {kind!r}")
    if sides == [("dst", "LOCAL", False)]:
        is_local = context.is_local
        return lambda packet: is_local(packet.dst)

    def test(packet: Packet) -> bool:
        return all(
            (address_type(packet.src if side == "src" else packet.dst, context) == kind) is not invert
            for side, kind, invert in sides
        )

    return test


def _sides(match: nf.AddrType) -> tuple[tuple[str, str, bool], ...]:
    return ("src", match.src_type, match.invert_src), ("dst", match.dst_type, match.invert_dst)


def address_type(address: bytes, context: Context) -> str:
    if context.is_local(address):
        return "LOCAL"
    if address[0] >> 4 == 14 if len(address) == 4 else address[0] == 255:
        return "MULTICAST"
    return "BROADCAST" if context.is_broadcast(address) else "UNICAST"


def _statistic(probability: float, context: Context) -> Test:
    if not 0 <= probability <= 1:
        raise invalid(f"invalid probability {probability}")
    chance = context.chooser.chance

    def test(packet: Packet) -> bool:
        packet.volatile = True
        return chance(probability)

    return test


def _recent(match: nf.Recent, context: Context) -> Test:
    if not match.name or len(match.name) > 199 or "/" in match.name or match.set == match.rcheck:
        raise invalid(f"recent {match.name!r}: one of --set and --rcheck, and a name")
    if match.reap and not match.seconds:
        raise invalid("recent: --reap needs --seconds")
    lists, name, seconds, reap = context.recent, match.name, match.seconds, match.reap

    def remember(packet: Packet) -> bool:
        packet.volatile = True
        lists.set(name, packet.src, context.now)
        return True

    def check(packet: Packet) -> bool:
        packet.volatile = True
        return lists.check(name, packet.src, seconds, reap, context.now)

    return remember if match.set else check


def _set(match: nf.Set, family: int, context: Context) -> Test:
    live = context.ipsets.get(match.name)
    if live is None:
        raise NetlinkError("ENOENT", f"Set {match.name} doesn't exist.")
    if len(match.flags) != len(TYPES[live.type]) or not set(match.flags) <= {"src", "dst"}:
        raise invalid(f"set {match.name} of type {live.type} cannot be matched by {','.join(match.flags)}")
    if live.family != family and not live.type.startswith("bitmap:"):
        raise invalid(f"set {match.name} is not of IPv{family}")
    return compile_test(live, match.flags, match.invert)


def _icmp(match: nf.IcmpType, family: int) -> Test:
    if match.v6 != (family == 6):
        raise invalid("icmp type of the other family")
    proto = ICMPV6 if match.v6 else ICMP
    kind, code = match.type, match.code
    if not 0 <= kind <= 255 or not (code is None or 0 <= code <= 255):
        raise invalid(f"invalid icmp type {kind}/{code}")
    if code is None:
        if kind == 255 and not match.v6:
            return lambda packet: packet.proto == proto
        return lambda packet: packet.proto == proto and packet.dport >> 8 == kind
    both = kind << 8 | code
    return lambda packet: packet.proto == proto and packet.dport == both
