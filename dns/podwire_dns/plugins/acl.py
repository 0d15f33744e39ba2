"""The acl plugin: who may ask what.

    acl [ZONES…] { allow|block|filter|drop [type QTYPE…] [net SOURCE…] }

The first rule that fits decides: block is REFUSED, filter an empty NOERROR, drop no answer at all; what fits none is allowed.
`*` or nothing stands for all types and all sources. Source: https://coredns.io/plugins/acl/.
"""

from __future__ import annotations

import ipaddress

from dnslib import QTYPE
from msgspec import Struct

from podwire_dns import message as m
from podwire_dns.corefile import Directive, Option, zones_of
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin, longest_zone

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
ACTIONS = ("allow", "block", "filter", "drop")
COUNTED = {"allow": "allowed", "block": "blocked", "filter": "filtered", "drop": "dropped"}


class _Rule(Struct):
    action: str
    zones: tuple[str, ...]
    types: frozenset[int]
    networks: tuple[Network, ...]

    def fits(self, query: Query, client: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        if self.types and query.qtype not in self.types:
            return False
        return not self.networks or any(client in network for network in self.networks)


class Acl(Plugin):
    name = "acl"
    merged = True

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        self._zones, self._rules = zones, list[_Rule]()
        self._counters = {
            action: context.metrics.counter(
                f"coredns_acl_{word}_requests", f"Counter of DNS requests being {word}.", "server", "zone", "view"
            )
            for action, word in COUNTED.items()
        }
        self.add(directive)

    def add(self, directive: Directive) -> None:
        zones = zones_of(directive, directive.args, self._zones)
        self._rules += [_rule(directive, option, zones) for option in directive.options]

    async def serve(self, query: Query) -> Reply:
        client = ipaddress.ip_address(query.client or "0.0.0.0")
        for rule in self._rules:
            zone = longest_zone(query.lower, rule.zones)
            if zone is None or not rule.fits(query, client):
                continue
            self._counters[rule.action].inc(self.context.server, f"{zone}.", "")
            match rule.action:
                case "block":
                    return Reply(m.REFUSED, authoritative=False)
                case "filter":
                    return Reply(authoritative=False)
                case "drop":
                    return Reply(drop=True)
            break
        return await self.next.serve(query)


def _rule(directive: Directive, option: Option, zones: tuple[str, ...]) -> _Rule:
    if option.name not in ACTIONS:
        raise directive.unknown(option)
    words: dict[str, list[str]] = {"type": [], "net": []}
    current: list[str] | None = None
    for word in option.args:
        if word in words:
            current = words[word]
        elif current is None:
            raise directive.error(f"{option.text}: expected type or net before {word!r}", option)
        else:
            current.append(word)
    try:
        types = frozenset(QTYPE.reverse[word.upper()] for word in words["type"] if word != "*")
        networks = tuple(ipaddress.ip_network(word, strict=False) for word in words["net"] if word != "*")
    except (KeyError, ValueError) as error:
        raise directive.error(f"{option.text}: {error}", option) from None
    return _Rule(option.name, zones, types, () if "*" in words["net"] else networks)
