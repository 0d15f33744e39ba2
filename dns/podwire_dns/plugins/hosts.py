"""The hosts plugin: names from lines in the form of /etc/hosts.

    hosts [FILE [ZONES…]] { ADDRESS NAME…; ttl N; no_reverse; fallthrough [ZONES…] }

Order to read: Hosts.serve, _take_options. Source: https://coredns.io/plugins/hosts/.
"""

from __future__ import annotations

import ipaddress

from dnslib import QTYPE

from podwire_dns import message as m
from podwire_dns.corefile import Directive
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin, in_zone, longest_zone

TTL = 3600


class Hosts(Plugin):
    name = "hosts"

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        self._zones = tuple(a.rstrip(".").lower() for a in directive.args[1:]) or zones
        self._names: dict[str, list[str]] = {}
        self._reverse: dict[str, list[str]] = {}
        self._ttl, self._no_reverse = TTL, False
        self._fallthrough: tuple[str, ...] | None = None
        if directive.args:
            self._read(directive, directive.args[0])
        self._take_options(directive)

    async def serve(self, query: Query) -> Reply:
        if longest_zone(query.lower, self._zones) is None:
            return await self.next.serve(query)
        if query.qtype == QTYPE.PTR and query.lower in self._reverse and not self._no_reverse:
            return Reply(answer=[m.ptr(query.name, name, self._ttl) for name in self._reverse[query.lower]])
        family = {QTYPE.A: 4, QTYPE.AAAA: 6}.get(query.qtype)
        ips = [ip for ip in self._names.get(query.lower, []) if ipaddress.ip_address(ip).version == family]
        if ips:
            return Reply(answer=[m.address(query.name, ip, self._ttl) for ip in ips])
        if self._fallthrough is not None and any(in_zone(query.lower, z) for z in self._fallthrough or self._zones):
            return await self.next.serve(query)
        return Reply(m.NOERROR if query.lower in self._names else m.NXDOMAIN)

    def _add(self, ip: str, names: tuple[str, ...]) -> None:
        for name in names:
            full = name.rstrip(".").lower() + "."
            self._names.setdefault(full, []).append(ip)
            self._reverse.setdefault(ipaddress.ip_address(ip).reverse_pointer + ".", []).append(full)

    def _read(self, directive: Directive, path: str) -> None:
        try:
            with open(path, encoding="utf-8") as lines:
                entries = [line.partition("#")[0].split() for line in lines]
        except OSError as error:
            raise directive.error(f"{path}: {error.strerror}") from None
        for words in entries:
            if len(words) > 1:
                self._add(words[0], tuple(words[1:]))

    def _take_options(self, directive: Directive) -> None:
        for option in directive.options:
            match (option.name, option.args):
                case ("fallthrough", zones):
                    self._fallthrough = tuple(z.rstrip(".").lower() for z in zones)
                case ("ttl", (number,)) if number.isdigit():
                    self._ttl = int(number)
                case ("no_reverse", ()):
                    self._no_reverse = True
                case (address, (_, *_) as names):
                    try:
                        self._add(str(ipaddress.ip_address(address)), names)
                    except ValueError:
                        raise directive.error(f"{address!r} is neither an option nor an address", option) from None
                case _:
                    raise directive.error(f"unknown or wrong option: {option.name}", option)
