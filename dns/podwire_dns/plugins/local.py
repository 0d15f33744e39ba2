"""The local plugin: localhost and its reverse names are answered here and never leave (RFC 6761, 6303).

localhost. and localhost.ANYTHING. are 127.0.0.1 and ::1; 127.in-addr.arpa, 0.in-addr.arpa and 255.in-addr.arpa are empty but for
1.0.0.127. Source: https://coredns.io/plugins/local/.
"""

from __future__ import annotations

from dnslib import QTYPE

from podwire_dns import message as m
from podwire_dns.corefile import Directive
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin, longest_zone

ZONES = ("localhost", "0.in-addr.arpa", "127.in-addr.arpa", "255.in-addr.arpa")
LOOPBACK = {QTYPE.A: "127.0.0.1", QTYPE.AAAA: "::1"}
TTL, SERIAL = 604800, 1


class Local(Plugin):
    name = "local"
    repeatable = False

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        self._counter = context.metrics.counter("coredns_local_localhost_requests", "Counter of localhost.<domain> requests.")

    async def serve(self, query: Query) -> Reply:
        zone = longest_zone(query.lower, ZONES)
        if zone is None and query.lower.startswith("localhost."):
            self._counter.inc()
            return self._loopback(query, query.lower.removeprefix("localhost."))
        if zone is None:
            return await self.next.serve(query)
        apex = f"{zone}."
        match query.qtype:
            case QTYPE.SOA if query.lower == apex:
                return Reply(answer=[m.soa(query.name, SERIAL, TTL)])
            case QTYPE.NS if query.lower == apex:
                return Reply(answer=[m.ns(query.name, "localhost.", TTL)])
        if zone == "localhost":
            return self._loopback(query, apex)
        if query.lower == "1.0.0.127.in-addr.arpa.":
            return (
                Reply(answer=[m.ptr(query.name, "localhost.", TTL)]) if query.qtype == QTYPE.PTR else m.nodata(apex, SERIAL, TTL)
            )
        return m.nodata(apex, SERIAL, TTL) if query.lower == apex else m.nxdomain(apex, SERIAL, TTL)

    @staticmethod
    def _loopback(query: Query, apex: str) -> Reply:
        ip = LOOPBACK.get(query.qtype)
        return Reply(answer=[m.address(query.name, ip, TTL)]) if ip else m.nodata(apex, SERIAL, TTL)
