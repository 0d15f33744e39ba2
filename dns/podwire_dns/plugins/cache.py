"""The cache plugin: answers are kept for their TTL, at most the given time; negative ones too (RFC 2308).

    cache [TTL] [ZONES…] { success CAPACITY [TTL]; denial CAPACITY [TTL] }

TTLs count down while an answer is kept. When the capacity is reached the oldest entry goes. Order to read: Cache.serve, _Store.
Source: https://coredns.io/plugins/cache/.
"""

from __future__ import annotations

import copy
from collections import OrderedDict

from msgspec import Struct

from podwire_dns import message as m
from podwire_dns.corefile import Directive
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin, longest_zone

CAPACITY, SUCCESS_TTL, DENIAL_TTL = 9984, 3600, 1800


class _Entry(Struct):
    reply: Reply
    stored: float
    ttl: int


class _Store:
    """Entries by question, oldest first."""

    def __init__(self, capacity: int, ttl: int) -> None:
        self.capacity, self.ttl = capacity, ttl
        self._entries: OrderedDict[tuple[str, int], _Entry] = OrderedDict()

    def get(self, key: tuple[str, int], now: float) -> tuple[Reply, int] | None:
        """The reply and its age in seconds, if it is not too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        age = int(now - entry.stored)
        if age >= entry.ttl:
            del self._entries[key]
            return None
        return entry.reply, age

    def put(self, key: tuple[str, int], reply: Reply, ttl: int, now: float) -> None:
        self._entries.pop(key, None)
        self._entries[key] = _Entry(reply, now, min(ttl, self.ttl))
        if len(self._entries) > self.capacity:
            self._entries.popitem(last=False)


class Cache(Plugin):
    name = "cache"

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        args = list(directive.args)
        ttl = int(args.pop(0)) if args and args[0].isdigit() else None
        self._zones = tuple(a.rstrip(".").lower() for a in args) or zones
        self._success = _Store(CAPACITY, SUCCESS_TTL if ttl is None else ttl)
        self._denial = _Store(CAPACITY, DENIAL_TTL if ttl is None else ttl)
        for option in directive.options:
            match (option.name, option.args):
                case ("success" | "denial" as which, (capacity, *rest)) if all(n.isdigit() for n in (capacity, *rest)):
                    store = self._success if which == "success" else self._denial
                    store.capacity, store.ttl = int(capacity), int(rest[0]) if rest else store.ttl
                case ("disable", ("success" | "denial" as which, *_)):
                    (self._success if which == "success" else self._denial).ttl = 0
                case _:
                    raise directive.error(f"unknown or wrong option: {' '.join((option.name, *option.args))}", option)

    async def serve(self, query: Query) -> Reply:
        if longest_zone(query.lower, self._zones) is None:
            return await self.next.serve(query)
        key, now = (query.name, query.qtype), self.context.clock()  # the case of the name is part of the answer
        for store in (self._success, self._denial):
            if hit := store.get(key, now):
                return _aged(*hit)
        reply = await self.next.serve(query)
        ttl = min((r.ttl for r in (*reply.answer, *reply.authority)), default=0)
        if ttl and reply.rcode in (m.NOERROR, m.NXDOMAIN):
            (self._success if reply.answer else self._denial).put(key, reply, ttl, now)
        return reply


def _aged(reply: Reply, age: int) -> Reply:
    if not age:
        return reply
    aged = copy.copy(reply)
    for section in ("answer", "authority", "additional"):
        records = [copy.copy(r) for r in getattr(reply, section)]
        for record in records:
            record.ttl = max(0, record.ttl - age)
        setattr(aged, section, records)
    return aged
