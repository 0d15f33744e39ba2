"""IP sets in the datapath: what `-m set` looks up, a dict by the parts of an element.

A dimension of networks is looked up once for each prefix length that occurs in the set, longest first not being needed: any match
is one. Elements are keyed as tests build them from a packet: addresses as bytes, a protocol and port as one number, networks
as (bits, prefix length).

Order to read: LiveSet, then `compile_test`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from podwire_core.ipset import TYPES, IpSet, parse
from podwire_core.ipset import text as element_text
from podwire_nodeagent.datapath.packet import SCTP, TCP, UDP, Packet

_WITH_PORTS: Final = frozenset((TCP, UDP, SCTP, 136))
_NUMBERED: Final = frozenset((TCP, UDP))  # whose ports a bitmap:port knows
Key = tuple[Any, ...]
Elements = dict[Key, str]


class LiveSet:
    """One set. `elements` keeps each element's text; `lengths` counts the prefix lengths of a set with networks. Rules hold on to
    the object, so its identity stays while its content is replaced."""

    __slots__ = ("elements", "family", "hashsize", "lengths", "maxelem", "name", "type")

    def __init__(self, given: IpSet) -> None:
        self.name, self.type, self.family = given.name, given.type, given.family
        self.maxelem, self.hashsize = given.maxelem, given.hashsize
        self.elements: Elements = {}
        self.lengths: dict[int, int] = {}

    def key(self, element: str) -> tuple[Key, str]:
        """How an element is found, and its canonical text. Raises ValueError."""
        parts = parse(self.type, self.family, element)
        return tuple(map(_key_part, TYPES[self.type], parts)), element_text(self.type, parts)

    def value(self) -> IpSet:
        return IpSet(self.name, self.type, self.family, tuple(self.elements.values()), self.maxelem, self.hashsize)


def _key_part(what: str, part: Any) -> Any:
    if what == "port":
        return part[0] << 16 | part[1]
    if what == "net":
        address, length = part
        return int.from_bytes(address, "big") >> 8 * len(address) - length, length
    return part


def lengths_of(live: LiveSet, elements: Elements) -> dict[int, int]:
    """How often each prefix length occurs; nothing for sets without networks."""
    found: dict[int, int] = {}
    if TYPES[live.type][-1] == "net":
        for key in elements:
            found[key[-1][1]] = found.get(key[-1][1], 0) + 1
    return found


# --- matching --------------------------------


def compile_test(live: LiveSet, flags: tuple[str, ...], invert: bool) -> Callable[[Packet], bool]:
    """`flags` has one word for each dimension; what has no such part (a port of ICMP) is in no set."""
    shape = TYPES[live.type]
    if shape == ("ip", "port") and flags == ("dst", "dst"):  # nearly all of kube-proxy's

        def test(packet: Packet) -> bool:
            there = packet.proto in _WITH_PORTS and (packet.dst, packet.proto << 16 | packet.dport) in live.elements
            return there is not invert

        return test
    parts = [_extractor(what, flag) for what, flag in zip(shape, flags, strict=True)]
    if shape[-1] != "net":
        return lambda packet: (tuple(part(packet) for part in parts) in live.elements) is not invert
    *firsts, last = parts

    def test_networks(packet: Packet) -> bool:
        head = tuple(part(packet) for part in firsts)
        address = last(packet)
        number, bits = int.from_bytes(address, "big"), 8 * len(address)
        there = any((*head, (number >> bits - length, length)) in live.elements for length in live.lengths)
        return there is not invert

    return test_networks


def _extractor(what: str, flag: str) -> Callable[[Packet], Any]:
    source = flag == "src"
    if what in ("ip", "net"):
        return (lambda packet: packet.src) if source else (lambda packet: packet.dst)
    known = _NUMBERED if what == "number" else _WITH_PORTS
    shift = 0 if what == "number" else 16

    def port(packet: Packet) -> int:
        if packet.proto not in known:
            return -1
        number = packet.sport if source else packet.dport
        return packet.proto << 16 | number if shift else number

    return port
