"""A question and its answer, as plugins see them; dnslib does the wire format.

Rules: names are text with a trailing dot; `Query.name` keeps the case in which it was asked, `Query.lower` is for looking up.
Order to read: Query, Reply, soa, records, to_wire.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from functools import lru_cache

import dnslib
from dnslib import AAAA, CLASS, CNAME, NS, PTR, QTYPE, RCODE, RD, RR, SOA, SRV, TXT, A, DNSLabel
from msgspec import Struct, field

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
INTERNET, CHAOS, ANY_CLASS = 1, 3, 255
SOA_MINIMUM = 30


class Query(Struct):
    """One question. `client` is the address it came from, `size` the largest UDP answer the client takes (EDNS0); `do` and
    `options` (code, data) are EDNS0's too; `length` is the message's, in bytes;
    `hops` counts the CNAMEs that led here."""

    name: str
    qtype: int
    client: str = ""
    tcp: bool = False
    size: int = 512
    lower: str = ""
    qclass: int = INTERNET
    ident: int = 0
    rd: bool = True
    do: bool = False
    options: tuple[tuple[int, bytes], ...] = ()
    source_port: int = 0
    length: int = 0
    hops: int = 0

    def __post_init__(self) -> None:
        self.lower = self.name.lower()

    def renamed(self, name: str, qtype: int | None = None) -> Query:
        """The same client's question for another name."""
        asked = copy.copy(self)
        asked.name, asked.lower = name, name.lower()
        if qtype is not None:
            asked.qtype = qtype
        return asked


class Reply(Struct):
    """`authoritative` sets AA. An empty NOERROR with a SOA in `authority` is NODATA. `flags` overrides bits of the header:
    ("aa" | "ra" | "rd", value). With `drop` the question gets no answer at all. `error` is why a plugin failed, for the log."""

    rcode: int = NOERROR
    answer: list[RR] = field(default_factory=list)
    authority: list[RR] = field(default_factory=list)
    additional: list[RR] = field(default_factory=list)
    authoritative: bool = True
    flags: tuple[tuple[str, bool], ...] = ()
    drop: bool = False
    error: str = ""

    def with_answer(self, answer: list[RR]) -> Reply:
        """A copy with other answers: the reply itself may be the cache's."""
        changed = copy.copy(self)
        changed.answer = answer
        return changed


_ESCAPE = re.compile(rb"\\(25[0-5]|2[0-4]\d|[01]\d\d)")


@lru_cache(maxsize=4096)  # the same few names over and over
def label(name: str) -> DNSLabel:
    """A name from its text, in which bytes that are no text are \\DDD. Raises dnslib's DNSLabelError if it is too long."""
    labels = [each for each in name.encode("latin-1", "replace").split(b".") if each]
    return DNSLabel([_ESCAPE.sub(lambda m: bytes((int(m[1]),)), each) for each in labels])


def rr(name: str, kind: int, data: object, ttl: int) -> RR:
    """A resource record of class IN."""
    return RR(label(name), kind, CLASS.IN, ttl, data)


def address(name: str, ip: str, ttl: int) -> RR:
    """An A or AAAA record, by the address."""
    return rr(name, QTYPE.AAAA, AAAA(ip), ttl) if ":" in ip else rr(name, QTYPE.A, A(ip), ttl)


def cname(name: str, target: str, ttl: int) -> RR:
    return rr(name, QTYPE.CNAME, CNAME(label(target)), ttl)


def ptr(name: str, target: str, ttl: int) -> RR:
    return rr(name, QTYPE.PTR, PTR(label(target)), ttl)


def ns(name: str, target: str, ttl: int) -> RR:
    return rr(name, QTYPE.NS, NS(label(target)), ttl)


def txt(name: str, text: str, ttl: int, rclass: int = INTERNET) -> RR:
    return RR(label(name), QTYPE.TXT, rclass, ttl, TXT(text.encode()))


def hinfo(name: str, cpu: str, os: str, ttl: int) -> RR:
    """RFC 1035 section 3.3.2; dnslib has no class for it."""
    strings = (text.encode() for text in (cpu, os))
    return rr(name, QTYPE.HINFO, RD(b"".join(bytes([len(string)]) + string for string in strings)), ttl)


def srv(name: str, weight: int, port: int, target: str, ttl: int) -> RR:
    return rr(name, QTYPE.SRV, SRV(0, weight, port, label(target)), ttl)


def soa(zone: str, serial: int, ttl: int) -> RR:
    """The SOA that CoreDNS' kubernetes plugin makes for a zone; its TTL is the negative TTL too (RFC 2308)."""
    times = (serial, 7200, 1800, 86400, ttl)
    return rr(zone, QTYPE.SOA, SOA(f"ns.dns.{zone}".replace("..", "."), f"hostmaster.{zone}".replace("..", "."), times), ttl)


def nodata(zone: str, serial: int, ttl: int) -> Reply:
    """The name exists, the type does not."""
    return Reply(authority=[soa(zone, serial, ttl)])


def nxdomain(zone: str, serial: int, ttl: int) -> Reply:
    """The name does not exist."""
    return Reply(NXDOMAIN, authority=[soa(zone, serial, ttl)])


def to_wire(request: dnslib.DNSRecord, reply: Reply, size: int) -> bytes:
    """The bytes of a reply, at most `size`: beyond it records are left out and TC is set (RFC 2181 section 9)."""
    message = request.reply(ra=1, aa=int(reply.authoritative))
    message.header.rcode = reply.rcode
    for flag, value in reply.flags:
        setattr(message.header, flag, int(value))
    _fill(message, reply.answer, reply.authority, reply.additional)
    edns = [r for r in request.ar if r.rtype == QTYPE.OPT]
    if edns:
        message.add_ar(dnslib.EDNS0(udp_len=1232))
    data: bytes = message.pack()
    if len(data) > size and reply.additional:  # glue may be left out without a trace
        message.ar = [r for r in message.ar if r.rtype == QTYPE.OPT]
        data = message.pack()
    if len(data) > size:
        message.rr, message.auth = [], []
        message.header.tc = 1
        data = message.pack()
    return data


def _fill(message: dnslib.DNSRecord, answer: Sequence[RR], authority: Sequence[RR], additional: Sequence[RR]) -> None:
    message.add_answer(*answer)
    for record in authority:
        message.add_auth(record)
    for record in additional:
        message.add_ar(record)


def rcode_name(rcode: int) -> str:
    return str(RCODE.get(rcode))
