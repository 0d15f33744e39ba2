"""IP sets as values: named sets of addresses and ports, which rules match by `-m set --match-set NAME dst,dst`.

Rules the file keeps: types and the spelling of elements are those of ipset(8): "10.96.0.10,udp:53" in a hash:ip,port, "30080" in
a bitmap:port. `parse` gives an element's parts, whatever executes them; nothing here looks at packets.

Order to read: TYPES, IpSet, parse, then the text forms (`save_lines`).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from zlib import crc32

from msgspec import Struct

# what an element of a type is made of: each dimension takes one word of a match's flags ("dst,dst,src")
TYPES: dict[str, tuple[str, ...]] = {
    "hash:ip": ("ip",),
    "hash:net": ("net",),
    "hash:ip,port": ("ip", "port"),
    "hash:ip,port,ip": ("ip", "port", "ip"),
    "hash:ip,port,net": ("ip", "port", "net"),
    "bitmap:port": ("number",),
}
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "udplite": 136}
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
_MAX_NAME = 31

# one part of an element: an address, (protocol, port), a network (address, prefix length), a port number
Part = bytes | tuple[int, int] | tuple[bytes, int] | int


class IpSet(Struct, frozen=True):
    """A whole set. `elements` as ipset(8) writes them, in no particular order."""

    name: str
    type: str
    family: int = 4  # bitmap:port has none
    elements: tuple[str, ...] = ()
    maxelem: int = 65536
    hashsize: int = 1024


def check(given: IpSet) -> None:
    """Raises ValueError for what cannot be a set (its elements aside)."""
    if not given.name or len(given.name) > _MAX_NAME or any(c.isspace() for c in given.name):
        raise ValueError(f"invalid set name {given.name!r} (1 to {_MAX_NAME} characters)")
    if given.type not in TYPES:
        raise ValueError(f"set {given.name}: unknown type {given.type!r}")
    if given.family not in (4, 6) or given.maxelem < 1:
        raise ValueError(f"set {given.name}: family {given.family}, maxelem {given.maxelem}")


def parse(kind: str, family: int, element: str) -> tuple[Part, ...]:
    """The parts of an element of that type. Raises ValueError."""
    words = element.split(",")
    shape = TYPES[kind]
    if len(words) != len(shape):
        raise ValueError(f"element {element!r} is not of type {kind}")
    return tuple(_part(what, word, family) for what, word in zip(shape, words, strict=True))


def _part(what: str, word: str, family: int) -> Part:
    if what == "ip":
        if family == 4 and word.count(".") == 3:  # not through ipaddress, which would double the time of a full load
            numbers = [int(n) for n in word.split(".") if n.isascii() and n.isdigit()]
            if len(numbers) == 4 and max(numbers) < 256:
                return bytes(numbers)
        address = ip_address(word)
        if address.version != family:
            raise ValueError(f"{word!r} is not of IPv{family}")
        return address.packed
    if what == "net":
        net = ip_network(word)
        if net.version != family:
            raise ValueError(f"{word!r} is not of IPv{family}")
        return net.network_address.packed, net.prefixlen
    if what == "port":
        name, colon, number = word.partition(":")
        if not colon:
            name, number = "tcp", name
        return PROTOCOLS.get(name) or _number(name, 255), _number(number, 65535)
    return _number(word, 65535)


def _number(word: str, high: int) -> int:
    if not (word.isascii() and word.isdigit()) or int(word) > high:
        raise ValueError(f"{word!r} is not a number of at most {high}")
    return int(word)


def text(kind: str, parts: Iterable[Part]) -> str:
    """The element as ipset prints it."""
    return ",".join(_word(what, part) for what, part in zip(TYPES[kind], parts, strict=True))


def _word(what: str, part: Part) -> str:
    if isinstance(part, int):
        return str(part)
    if isinstance(part, bytes):
        return str(ip_address(part))
    first, second = part
    if isinstance(first, bytes):
        return str(ip_address(first)) + ("" if second == 8 * len(first) else f"/{second}")
    return f"{_PROTOCOL_NAMES.get(first, first)}:{second}"


# --- as ipset prints sets --------------------------------


def header(given: IpSet) -> str:
    """What `create NAME TYPE` is followed by, and `Header:` of a list (ipset 7.17)."""
    if given.type.startswith("bitmap:"):
        return "range 0-65535"
    family = "inet6" if given.family == 6 else "inet"
    seed = crc32(given.name.encode())  # the kernel's is random, and means nothing to a reader
    return f"family {family} hashsize {given.hashsize} maxelem {given.maxelem} bucketsize 12 initval {seed:#010x}"


def save_lines(given: IpSet) -> list[str]:
    """As `ipset save`, elements in order."""
    lines = [f"create {given.name} {given.type} {header(given)}"]
    return lines + [f"add {given.name} {element}" for element in in_order(given)]


def in_order(given: IpSet) -> list[str]:
    """The elements by address and port; the kernel's order is its hash's."""
    return sorted(given.elements, key=lambda element: parse(given.type, given.family, element))
