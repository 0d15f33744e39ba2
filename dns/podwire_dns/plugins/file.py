"""The file plugin: zones from RFC 1035 files.

    file DBFILE [ZONES…] { reload DURATION; fallthrough [ZONES…]; upstream }

The file is read again when it has changed (reload, 1m; 0: never); a wrong one is logged and the zone stays as it was. A CNAME
that leaves the zone is resolved by the whole server. `upstream` is accepted and does nothing, as in CoreDNS. DNSSEC records are
not made, zone transfers are refused. Format: zonefile.py; answers: zone.py. Source: https://coredns.io/plugins/file/.
"""

from __future__ import annotations

from dnslib import QTYPE

from podwire_dns import message as m
from podwire_dns.corefile import Directive, seconds, zones_of
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin, falls_through, longest_zone
from podwire_dns.watching import changes
from podwire_dns.zone import Zone
from podwire_dns.zonefile import parse

RELOAD_SECONDS = 60.0
TRANSFERS = (251, 252)  # IXFR, AXFR
MAX_HOPS = 8


class File(Plugin):
    name = "file"

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        if not directive.args:
            raise directive.error("needs the name of a zone file")
        self._path = directive.args[0]
        self._origins = zones_of(directive, directive.args[1:], zones)
        self._reload = RELOAD_SECONDS
        self._fallthrough: tuple[str, ...] | None = None
        for option in directive.options:
            match (option.name, option.args):
                case ("reload", (duration,)):
                    self._reload = seconds(directive, duration, option)
                case ("fallthrough", names):
                    self._fallthrough = zones_of(directive, names, self._origins)
                case ("upstream", _):
                    pass
                case _:
                    raise directive.unknown(option)
        try:
            with open(self._path, encoding="utf-8") as file:
                self._zones = self._parsed(file.read())
        except OSError as error:
            raise directive.error(f"{self._path}: {error.strerror}") from None
        except ValueError as error:
            raise directive.error(str(error)) from None

    def _parsed(self, text: str) -> dict[str, Zone]:
        """Raises ValueError."""
        zones = {}
        for origin in self._origins:
            try:
                zones[origin] = Zone(origin, parse(text, origin, self._path))
            except ValueError as error:
                raise ValueError(str(error) if str(error).startswith(self._path) else f"{self._path}: {error}") from None
        return zones

    async def serve(self, query: Query) -> Reply:
        origin = longest_zone(query.lower, self._origins)
        if origin is None:
            return await self.next.serve(query)
        if query.qtype in TRANSFERS:
            return Reply(m.REFUSED, authoritative=False)
        found = self._zones[origin].lookup(query.name, query.qtype)
        if found.reply.rcode == m.NXDOMAIN and not found.reply.answer and falls_through(self._fallthrough, query.lower):
            return await self.next.serve(query)
        if found.outside and query.qtype != QTYPE.CNAME and query.hops < MAX_HOPS:
            behind = query.renamed(found.outside)
            behind.hops += 1
            reply = await self.context.lookup(behind)
            found.reply.answer += reply.answer if reply.rcode == m.NOERROR else []
        return found.reply

    async def run(self) -> None:
        if not self._reload:
            return
        async for content in changes(self._path, self._reload):
            try:
                self._zones = self._parsed(content.decode())
            except ValueError as error:
                self.context.warn(f"plugin/file: {error}; the zone stays as it was")
