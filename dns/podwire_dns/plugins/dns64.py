"""The dns64 plugin: AAAA records made of A records, for clients that have IPv6 alone (RFC 6147, RFC 6052).

    dns64 [PREFIX] { prefix PREFIX; translate_all; allow_ipv4 }        (64:ff9b::/96)

Only for clients that ask over IPv6, unless allow_ipv4; only where there is no AAAA record, unless translate_all. IPv4-mapped AAAA
records count as none. Reverse names are not translated. Source: https://coredns.io/plugins/dns64/.
"""

from __future__ import annotations

import ipaddress

from dnslib import QTYPE, RR

from podwire_dns import message as m
from podwire_dns.corefile import Directive, Option
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin

PREFIX = ipaddress.IPv6Network("64:ff9b::/96")
LENGTHS = (32, 40, 48, 56, 64, 96)
UNKNOWN_NEGATIVE_TTL = 600
MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


class Dns64(Plugin):
    name = "dns64"
    repeatable = False

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        self._prefix, self._all, self._ipv4 = PREFIX, False, False
        self._counter = context.metrics.counter(
            "coredns_dns64_requests_translated", "Counter of DNS requests translated by dns64.", "server"
        )
        if len(directive.args) > 1:
            raise directive.error("takes one prefix")
        if directive.args:
            self._prefix = _prefix(directive, directive.args[0])
        for option in directive.options:
            match (option.name, option.args):
                case ("prefix", (text,)):
                    self._prefix = _prefix(directive, text, option)
                case ("translate_all", ()):
                    self._all = True
                case ("allow_ipv4", ()):
                    self._ipv4 = True
                case _:
                    raise directive.unknown(option)

    async def serve(self, query: Query) -> Reply:
        if query.qtype != QTYPE.AAAA or not (self._ipv4 or ":" in query.client):
            return await self.next.serve(query)
        if self._all:
            reply, limit = Reply(), UNKNOWN_NEGATIVE_TTL
        else:
            reply = await self.next.serve(query.renamed(query.name))
            if reply.rcode == m.NXDOMAIN or any(_usable(record) for record in reply.answer):
                return reply
            limit = min((r.ttl for r in reply.authority if r.rtype == QTYPE.SOA), default=UNKNOWN_NEGATIVE_TTL)
        found = await self.next.serve(query.renamed(query.name, QTYPE.A))
        if found.rcode != m.NOERROR or not any(r.rtype == QTYPE.A for r in found.answer):
            return found if self._all and found.rcode != m.NOERROR else reply
        self._counter.inc(self.context.server)
        return found.with_answer([self._translated(record, limit) for record in found.answer])

    def _translated(self, record: RR, limit: int) -> RR:
        if record.rtype != QTYPE.A:
            return record
        return m.address(str(record.rname), embed(self._prefix, str(record.rdata)), min(record.ttl, limit))


def embed(prefix: ipaddress.IPv6Network, ip: str) -> str:
    """RFC 6052 section 2.2: the IPv4 address behind the prefix, around bits 64 to 71, which stay zero."""
    four = ipaddress.IPv4Address(ip).packed
    out = bytearray(prefix.network_address.packed)
    at = prefix.prefixlen // 8
    for byte in four:
        if at == 8:
            at += 1
        out[at] = byte
        at += 1
    return str(ipaddress.IPv6Address(bytes(out)))


def _usable(record: RR) -> bool:
    return record.rtype == QTYPE.AAAA and ipaddress.IPv6Address(str(record.rdata)) not in MAPPED


def _prefix(directive: Directive, text: str, option: Option | None = None) -> ipaddress.IPv6Network:
    try:
        prefix = ipaddress.IPv6Network(text)
    except ValueError as error:
        raise directive.error(f"prefix: {error}", option) from None
    if prefix.prefixlen not in LENGTHS:
        raise directive.error(f"prefix: the length of {text} is none of {', '.join(map(str, LENGTHS))}", option)
    return prefix
