"""The hosts plugin: names from lines in the form of /etc/hosts.

    hosts [FILE [ZONES…]] { ADDRESS NAME…; ttl SECONDS; no_reverse; reload DURATION; fallthrough [ZONES…] }

FILE is /etc/hosts if not given, and is read again when it has changed (reload, 5s; 0: never). Lines without a valid address are
skipped. A name in the zones that no line has is SERVFAIL, as in CoreDNS, because there is no SOA for an NXDOMAIN; use
fallthrough. Reverse names that no line has are always the next plugin's. Order to read: Table, Hosts.serve, options. Source:
https://coredns.io/plugins/hosts/.
"""

from __future__ import annotations

import ipaddress
import os

from dnslib import QTYPE

from podwire_dns import message as m
from podwire_dns.corefile import Directive, Option, seconds, zones_of
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin, falls_through, longest_zone
from podwire_dns.plugins.kubenames import address_of_reverse, version
from podwire_dns.watching import changes

FILE, TTL, RELOAD_SECONDS = "/etc/hosts", 3600, 5.0
FAMILIES = {QTYPE.A: 4, QTYPE.AAAA: 6}


class Table:
    """Addresses by name and names by address."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.names: dict[str, list[str]] = {}

    def add(self, ip: str, names: tuple[str, ...], zones: tuple[str, ...]) -> None:
        """Names outside the zones are left out. Raises ValueError for what is no address."""
        address = str(ipaddress.ip_address(ip.partition("%")[0]))
        for name in names:
            full = name.rstrip(".").lower() + "."
            if longest_zone(full, zones) is not None:
                self.addresses.setdefault(full, []).append(address)
                self.names.setdefault(address, []).append(full)

    @staticmethod
    def parse(text: str, zones: tuple[str, ...]) -> Table:
        """A file's lines; those that are wrong are skipped, as the C library does."""
        table = Table()
        for line in text.splitlines():
            words = line.partition("#")[0].split()
            try:
                table.add(words[0], tuple(words[1:]), zones)
            except (IndexError, ValueError):
                continue
        return table


class Hosts(Plugin):
    name = "hosts"

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        self._path = os.path.expanduser(directive.args[0]) if directive.args else FILE
        self._zones = zones_of(directive, directive.args[1:], zones)
        self._ttl, self._no_reverse, self._reload = TTL, False, RELOAD_SECONDS
        self._fallthrough: tuple[str, ...] | None = None
        self._inline = Table()
        self._entries = context.metrics.gauge("coredns_hosts_entries", "The combined number of entries in hosts and Corefile.")
        self._table = Table.parse(self._first_read(directive), self._zones)
        for option in directive.options:
            self._take(directive, option)
        self._count()

    def _first_read(self, directive: Directive) -> str:
        try:
            with open(self._path, encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            self.context.warn(f"plugin/hosts: File does not exist: {self._path}")
            return ""
        except OSError as error:
            raise directive.error(f"{self._path}: {error.strerror}") from None

    async def serve(self, query: Query) -> Reply:
        if query.qtype == QTYPE.PTR:
            names = self._reverse(query.lower)
            if names:
                return Reply(answer=[m.ptr(query.name, name, self._ttl) for name in names])
            return await self.next.serve(query)
        if longest_zone(query.lower, self._zones) is None:
            return await self.next.serve(query)
        known = [*self._table.addresses.get(query.lower, ()), *self._inline.addresses.get(query.lower, ())]
        ips = dict.fromkeys(ip for ip in known if version(ip) == FAMILIES.get(query.qtype))
        if ips or known:
            return Reply(answer=[m.address(query.name, ip, self._ttl) for ip in ips])
        if falls_through(self._fallthrough, query.lower):
            return await self.next.serve(query)
        return Reply(m.SERVFAIL, authoritative=False, error="plugin/hosts: no such name, and no fallthrough")

    def _reverse(self, name: str) -> dict[str, None]:
        ip = None if self._no_reverse else address_of_reverse(name)
        return dict.fromkeys([*self._table.names.get(ip, ()), *self._inline.names.get(ip, ())]) if ip else {}

    async def run(self) -> None:
        if self._reload:
            async for content in changes(self._path, self._reload):
                self._table = Table.parse(content.decode(errors="replace"), self._zones)
                self._count()

    def _count(self) -> None:
        self._entries.set(sum(len(ips) for table in (self._table, self._inline) for ips in table.addresses.values()))

    def _take(self, directive: Directive, option: Option) -> None:
        match (option.name, option.args):
            case ("fallthrough", zones):
                self._fallthrough = zones_of(directive, zones, self._zones)
            case ("ttl", (number,)) if number.isdigit() and 0 < int(number) <= 65535:
                self._ttl = int(number)
            case ("no_reverse", ()):
                self._no_reverse = True
            case ("reload", (duration,)):
                self._reload = seconds(directive, duration, option)
            case (address, (_, *_) as names):
                try:
                    self._inline.add(address, names, self._zones)
                except ValueError:
                    raise directive.error(f"{address!r} is neither an option nor an address", option) from None
            case _:
                raise directive.unknown(option)
