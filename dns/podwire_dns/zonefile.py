"""Zone files (RFC 1035 section 5): text to records.

Pure. Known: $ORIGIN, $TTL (RFC 2308), parentheses, quotes, comments, escapes, TTLs such as 1h30m, a blank owner for the one
before, @ for the origin; types A AAAA CAA CNAME DNAME HINFO MX NS PTR SOA SRV TXT and any other as TYPE123 \\# LENGTH HEX (RFC
3597). $INCLUDE and $GENERATE are refused. Every error is one line with file and line number. Order to read: parse, _lines,
_Record.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

import dnslib
from dnslib import QTYPE, RD, RR
from msgspec import Struct

from podwire_dns import message as m

DEFAULT_TTL = 3600
MAX_TTL = 2**31 - 1
MAX_NAME = 255
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_TTL = re.compile(r"(?:\d+[smhdw]?)+", re.IGNORECASE)
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|((?:[^\s;()"\\]|\\.)+)|([()])|;.*')
_CLASSES = ("IN", "CH", "HS", "CS")


class ZoneError(ValueError):
    """`FILE:LINE: what is wrong`."""


class _Line(Struct):
    """A logical line: `blank` if it begins with white space."""

    number: int
    blank: bool
    words: list[str]


def parse(text: str, origin: str, file: str = "zone") -> list[RR]:
    """The records of a zone file; `origin` is what relative names end in until an $ORIGIN. Raises ZoneError."""
    reader = _Records(origin.rstrip(".").lower() + "." if origin.strip(".") else ".", file)
    for line in _lines(text, file):
        reader.take(line)
    return reader.records


def _lines(text: str, file: str) -> Iterator[_Line]:
    """Lines joined within parentheses."""
    line: _Line | None = None
    depth = 0
    for number, raw in enumerate(text.splitlines(), 1):
        if line is None:
            line = _Line(number, raw[:1].isspace(), [])
        position = 0
        while position < len(raw):
            if raw[position].isspace():
                position += 1
                continue
            token = _TOKEN.match(raw, position)
            if token is None:
                raise ZoneError(f"{file}:{number}: cannot read {raw[position : position + 20]!r}")
            position = token.end()
            if token[3]:
                depth += 1 if token[3] == "(" else -1
                if depth < 0:
                    raise ZoneError(f"{file}:{number}: ) without (")
            elif token[1] is not None or token[2] is not None:
                line.words.append(token[1] if token[1] is not None else token[2])
        if depth == 0:
            if line.words:
                yield line
            line = None
    if depth:
        raise ZoneError(f"{file}:{line.number if line else 1}: ( is not closed")


class _Records:
    """What has been read so far, and what later lines inherit."""

    def __init__(self, origin: str, file: str) -> None:
        self.records: list[RR] = []
        self._origin, self._file = origin, file
        self._owner = ""
        self._default: int | None = None
        self._last: int | None = None

    def take(self, line: _Line) -> None:
        try:
            if line.words[0].startswith("$") and not line.blank:
                self._directive(line.words)
            else:
                self._record(line)
        except (ValueError, IndexError, dnslib.DNSError) as error:
            problem = "too few fields" if isinstance(error, IndexError) else str(error)
            raise ZoneError(f"{self._file}:{line.number}: {problem}") from None

    def _directive(self, words: list[str]) -> None:
        match [words[0].upper(), *words[1:]]:
            case ["$ORIGIN", name]:
                self._origin = self._name(name)
            case ["$TTL", ttl]:
                self._default = seconds(ttl)
            case _:
                raise ValueError(f"{' '.join(words)}: only $ORIGIN NAME and $TTL SECONDS are known")

    def _record(self, line: _Line) -> None:
        words = list(line.words)
        if not line.blank:
            self._owner = self._name(words.pop(0))
        if not self._owner:
            raise ValueError("the first record has no owner")
        ttl: int | None = None
        while True:  # TTL and class, in either order
            if _TTL.fullmatch(words[0]) and ttl is None:
                ttl = seconds(words.pop(0))
            elif words[0].upper() in _CLASSES:
                if words.pop(0).upper() != "IN":
                    raise ValueError("only class IN is served")
            else:
                break
        kind, fields = words[0].upper(), words[1:]
        rtype, data = self._data(kind, fields)
        self._last = ttl if ttl is not None else self._last
        chosen = next((t for t in (ttl, self._default, self._last) if t is not None), None)
        if chosen is None:
            chosen = min(data.times[4], MAX_TTL) if rtype == QTYPE.SOA else DEFAULT_TTL
        self.records.append(RR(self._owner, rtype, dnslib.CLASS.IN, chosen, data))

    def _data(self, kind: str, fields: list[str]) -> tuple[int, RD]:
        if fields[:1] == ["\\#"]:
            return _type(kind), _unknown(fields)
        if kind not in _MAKERS:
            raise ValueError(f"type {kind} is not known; write it as TYPEn \\# LENGTH HEX")
        least, most, make = _MAKERS[kind]
        if not least <= len(fields) <= most:
            raise ValueError(f"{kind} takes {least if least == most else f'at least {least}'} fields, not {len(fields)}")
        return _type(kind), make(fields, self._name)

    def _name(self, text: str) -> str:
        if text == "@":
            return self._origin
        absolute = text.endswith(".") and not text.endswith("\\.")
        name = text if absolute else f"{text}.{self._origin.removeprefix('.')}"
        if name != "." and (len(name) > MAX_NAME or any(not 0 < len(label) < 64 for label in name[:-1].split("."))):
            raise ValueError(f"{text!r} is not a domain name")
        return name


Namer = Callable[[str], str]


def _soa(fields: list[str], name: Namer) -> RD:
    times = (_number(fields[2], 32), *(seconds(field) for field in fields[3:]))
    return dnslib.SOA(name(fields[0]), name(fields[1]), times)


_MAKERS: dict[str, tuple[int, int, Callable[[list[str], Namer], RD]]] = {
    "A": (1, 1, lambda f, name: dnslib.A(_address(f[0], 4))),
    "AAAA": (1, 1, lambda f, name: dnslib.AAAA(_address(f[0], 6))),
    "CAA": (3, 3, lambda f, name: dnslib.CAA(_number(f[0], 8), f[1], f[2])),
    "CNAME": (1, 1, lambda f, name: dnslib.CNAME(name(f[0]))),
    "DNAME": (1, 1, lambda f, name: dnslib.DNAME(name(f[0]))),
    "HINFO": (2, 2, lambda f, name: m.hinfo(".", f[0], f[1], 0).rdata),
    "MX": (2, 2, lambda f, name: dnslib.MX(name(f[1]), _number(f[0], 16))),
    "NS": (1, 1, lambda f, name: dnslib.NS(name(f[0]))),
    "PTR": (1, 1, lambda f, name: dnslib.PTR(name(f[0]))),
    "SOA": (7, 7, _soa),
    "SRV": (4, 4, lambda f, name: dnslib.SRV(_number(f[0], 16), _number(f[1], 16), _number(f[2], 16), name(f[3]))),
    "TXT": (1, 255, lambda f, name: dnslib.TXT([_string(field) for field in f])),
}


def _type(kind: str) -> int:
    if kind.startswith("TYPE") and kind[4:].isdigit() and 0 < int(kind[4:]) < 65536:
        return int(kind[4:])
    try:
        return int(QTYPE.reverse[kind])
    except KeyError:
        raise ValueError(f"type {kind} is not known") from None


def _unknown(fields: list[str]) -> RD:
    data = bytes.fromhex("".join(fields[2:]))
    if len(data) != _number(fields[1], 16):
        raise ValueError(f"\\# {fields[1]}: {len(data)} bytes follow")
    return RD(data)


def _string(text: str) -> bytes:
    data = re.sub(r"\\(\d{3}|.)", lambda e: chr(int(e[1]) & 255) if len(e[1]) == 3 else e[1], text).encode("latin-1", "replace")
    if len(data) > 255:
        raise ValueError("a string is at most 255 bytes long")
    return data


def _address(text: str, version: int) -> str:
    address = ipaddress.IPv4Address(text) if version == 4 else ipaddress.IPv6Address(text)
    return str(address)


def _number(text: str, bits: int) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) >= 1 << bits:
        raise ValueError(f"{text!r} is not a number of {bits} bits")
    return int(text)


def seconds(text: str) -> int:
    """1h30m → 5400. Raises ValueError."""
    if not text.isascii() or not _TTL.fullmatch(text):
        raise ValueError(f"{text!r} is not a time in seconds")
    total = sum(int(number) * _UNITS[unit.lower()] for number, unit in re.findall(r"(\d+)([smhdwSMHDW]?)", text))
    if total > MAX_TTL:
        raise ValueError(f"{text!r} is more than {MAX_TTL} seconds")
    return total
