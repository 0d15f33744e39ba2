"""The cache plugin: answers are kept for their TTL within bounds; negative ones too (RFC 2308).

    cache [TTL] [ZONES…] {
        success CAPACITY [TTL] [MINTTL]; denial CAPACITY [TTL] [MINTTL]; servfail DURATION; keepttl
        prefetch AMOUNT [DURATION [PERCENTAGE%]]; serve_stale [DURATION] [immediate|verify]; disable success|denial [ZONES…]
    }

Rules: an answer is kept for the least TTL of its records, at most TTL (3600, denials 1800) and at least MINTTL (5); SERVFAIL for
5 s; other errors never. All records of an answer carry what is left of that time (`keepttl`: what they came with). Names match
without case, and the answer has the question's. When the capacity (9984) is reached the entry goes that was stored longest ago.
Order to read: Store, Cache.serve, _refresh, _kept, options. Source: https://coredns.io/plugins/cache/.
"""

from __future__ import annotations

import copy
from collections import OrderedDict

from dnslib import QTYPE, RR
from msgspec import Struct

from podwire_dns import message as m
from podwire_dns.corefile import Directive, Option, seconds, zones_of
from podwire_dns.message import Query, Reply
from podwire_dns.metrics import Metrics
from podwire_dns.plugin import Context, Plugin, longest_zone

CAPACITY, LEAST_TTL = 9984, 5
LONGEST_TTL = {"success": 3600, "denial": 1800}
SERVFAIL_SECONDS, MAX_SERVFAIL_SECONDS = 5.0, 300.0
STALE_SECONDS = 3600.0
UNCACHED_TYPES = (QTYPE.ANY, 251, 252)
Key = tuple[str, int, bool]


class Entry(Struct):
    """`ttl` from `stored` on; `aged` is the reply as it is to be sent while `left` seconds are left."""

    reply: Reply
    name: str
    stored: float
    ttl: int
    left: int = -1
    aged: Reply | None = None
    hits: int = 0
    last_hit: float = 0.0
    refreshing: bool = False

    def age(self, now: float) -> float:
        return now - self.stored


class Store:
    """Entries by question, stored longest ago first."""

    def __init__(self, kind: str) -> None:
        self.kind, self.capacity, self.longest, self.least = kind, CAPACITY, LONGEST_TTL[kind], LEAST_TTL
        self.disabled: tuple[str, ...] | None = None  # zones
        self.entries: OrderedDict[Key, Entry] = OrderedDict()

    def put(self, key: Key, entry: Entry) -> bool:
        """Returns whether another entry had to go."""
        self.entries.pop(key, None)
        self.entries[key] = entry
        if len(self.entries) <= self.capacity:
            return False
        self.entries.popitem(last=False)
        return True


class Counters:
    """CoreDNS' metrics of a cache."""

    def __init__(self, metrics: Metrics) -> None:
        labels = ("server", "zones", "view")
        typed = ("server", "type", "zones", "view")
        self.requests = metrics.counter("coredns_cache_requests", "The count of cache requests.", *labels)
        self.misses = metrics.counter("coredns_cache_misses", "The count of cache misses.", *labels)
        self.hits = metrics.counter("coredns_cache_hits", "The count of cache hits.", *typed)
        self.evictions = metrics.counter("coredns_cache_evictions", "The count of cache evictions.", *typed)
        self.prefetch = metrics.counter(
            "coredns_cache_prefetch", "The number of times the cache has prefetched a cached item.", *labels
        )
        self.stale = metrics.counter(
            "coredns_cache_served_stale", "The number of requests served from stale cache entries.", *labels
        )
        self.entries = metrics.gauge("coredns_cache_entries", "The number of elements in the cache.", *typed)


class Cache(Plugin):
    name = "cache"
    repeatable = False

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        self._success, self._denial = Store("success"), Store("denial")
        args = list(directive.args)
        if args and args[0].isdigit():
            self._success.longest = self._denial.longest = int(args.pop(0))
            if not self._success.longest:
                raise directive.error("cache TTL can not be zero or negative: 0")
        self._zones = zones_of(directive, args, zones)
        self._servfail, self._keep_ttl = SERVFAIL_SECONDS, False
        self._prefetch, self._gap, self._percent = 0, 60.0, 10
        self._stale, self._verify = 0.0, False
        for option in directive.options:
            self._take(directive, option)
        self._counters = Counters(context.metrics)
        self._labels = (context.server, ",".join(f"{zone}." for zone in self._zones), "")
        self._requests = self._counters.requests.child(*self._labels)
        self._hits = {kind: self._counters.hits.child(context.server, kind, *self._labels[1:]) for kind in LONGEST_TTL}

    async def serve(self, query: Query) -> Reply:
        if longest_zone(query.lower, self._zones) is None or query.qtype in UNCACHED_TYPES or query.qclass != m.INTERNET:
            return await self.next.serve(query)
        key, now = (query.lower, query.qtype, query.do), self.context.clock()
        self._requests.inc()
        found = self._find(key, now)
        if found is None:
            self._counters.misses.inc(*self._labels)
            return await self._ask(query, key)
        entry, store = found
        if entry.age(now) >= entry.ttl:
            return await self._serve_stale(query, key, entry, now)
        self._hits[store.kind].inc()
        self._maybe_prefetch(query, key, entry, now)
        return self._reply(query, entry, entry.ttl - int(entry.age(now)))

    def _find(self, key: Key, now: float) -> tuple[Entry, Store] | None:
        for store in (self._success, self._denial):
            entry = store.entries.get(key)
            if entry is None:
                continue
            if entry.age(now) < entry.ttl + (self._stale if entry.reply.rcode != m.SERVFAIL else 0):
                return entry, store
            del store.entries[key]
        return None

    async def _ask(self, query: Query, key: Key) -> Reply:
        """From the plugins behind, and keep it."""
        name = query.name  # a plugin behind may change the query
        reply = await self.next.serve(query)
        if query.qtype != key[1] or query.lower != key[0]:
            return reply
        store = self._success if reply.answer else self._denial
        ttl = self._ttl_of(reply, store)
        if ttl <= 0 or (store.disabled is not None and longest_zone(key[0], store.disabled) is not None):
            return reply
        entry = Entry(reply, name, self.context.clock(), ttl)
        for other in (self._success, self._denial):
            if other is not store:
                other.entries.pop(key, None)
        if store.put(key, entry):
            self._counters.evictions.inc(self._labels[0], store.kind, *self._labels[1:])
        self._counters.entries.set(len(store.entries), self._labels[0], store.kind, *self._labels[1:])
        return self._reply(query, entry, ttl)

    def _ttl_of(self, reply: Reply, store: Store) -> int:
        """0: not to be kept."""
        if reply.drop:
            return 0
        if reply.rcode == m.SERVFAIL:
            return int(self._servfail)
        if reply.rcode not in (m.NOERROR, m.NXDOMAIN):
            return 0
        records = (*reply.answer, *reply.authority, *reply.additional)
        least = min((r.ttl for r in records), default=LEAST_TTL)
        return min(max(least, store.least), store.longest)

    def _reply(self, query: Query, entry: Entry, left: int) -> Reply:
        """The same object for all questions within a second, unless the case of the name differs."""
        if entry.aged is None or (left != entry.left and not self._keep_ttl):
            entry.left = left
            entry.aged = entry.reply if self._keep_ttl else _with(entry.reply, ttl=left)
        if query.name == entry.name:
            return entry.aged
        return _with(entry.aged, renamed=(entry.name, query.name))

    # --- before and after the end of an entry's time --------------------------------

    def _maybe_prefetch(self, query: Query, key: Key, entry: Entry, now: float) -> None:
        if not self._prefetch:
            return
        entry.hits = entry.hits + 1 if now - entry.last_hit < self._gap else 1
        entry.last_hit = now
        left = entry.ttl - entry.age(now)
        if entry.hits >= self._prefetch and left <= max(1.0, entry.ttl * self._percent / 100):
            self._counters.prefetch.inc(*self._labels)
            self._refresh(query, key, entry)

    async def _serve_stale(self, query: Query, key: Key, entry: Entry, now: float) -> Reply:
        if self._verify:
            reply = await self._fresh_or_none(query, key)
            if reply is not None:
                return reply
        else:
            self._refresh(query, key, entry)
        self._counters.stale.inc(*self._labels)
        return self._reply(query, entry, 0)

    def _refresh(self, query: Query, key: Key, entry: Entry) -> None:
        """Beside the answer, once at a time for an entry."""
        if entry.refreshing:
            return
        entry.refreshing = True
        asked = query.renamed(entry.name)

        async def refresh() -> None:
            try:
                await self._fresh_or_none(asked, key)
            finally:
                entry.refreshing = False

        self.context.spawn(refresh)

    async def _fresh_or_none(self, query: Query, key: Key) -> Reply | None:
        """A failing source leaves the entry as it is."""
        probe = await self.next.serve(query.renamed(query.name))
        if probe.rcode not in (m.NOERROR, m.NXDOMAIN) or probe.drop:
            return None
        store = self._success if probe.answer else self._denial
        other = self._denial if probe.answer else self._success
        ttl = self._ttl_of(probe, store)
        entry = Entry(probe, query.name, self.context.clock(), ttl)
        if ttl > 0:
            other.entries.pop(key, None)
            store.put(key, entry)
        return self._reply(query, entry, ttl)

    # --- options --------------------------------

    def _take(self, directive: Directive, option: Option) -> None:
        match (option.name, option.args):
            case ("success" | "denial" as kind, (capacity, *rest)) if len(rest) < 3 and all(
                n.isdigit() for n in (capacity, *rest)
            ):
                store = self._success if kind == "success" else self._denial
                store.capacity = int(capacity)
                store.longest = int(rest[0]) if rest else store.longest
                store.least = int(rest[1]) if len(rest) > 1 else store.least
            case ("disable", ("success" | "denial" as kind, *zones)):
                (self._success if kind == "success" else self._denial).disabled = zones_of(directive, zones, self._zones)
            case ("servfail", (duration,)):
                self._servfail = seconds(directive, duration, option)
                if self._servfail > MAX_SERVFAIL_SECONDS:
                    raise directive.error("caching SERVFAIL responses over 5 minutes is not permitted", option)
            case ("keepttl", ()):
                self._keep_ttl = True
            case ("serve_stale", words) if len(words) <= 2 and words[1:] in ((), ("immediate",), ("verify",), ("verified",)):
                self._stale = seconds(directive, words[0], option) if words else STALE_SECONDS
                self._verify = words[1:] in (("verify",), ("verified",))
            case ("prefetch", (amount, *rest)) if amount.isdigit() and len(rest) <= 2:
                self._prefetch = int(amount)
                self._gap = seconds(directive, rest[0], option) if rest else self._gap
                self._percent = _percentage(directive, option, rest[1]) if len(rest) > 1 else self._percent
            case _:
                raise directive.unknown(option)


def _percentage(directive: Directive, option: Option, text: str) -> int:
    if not text.endswith("%") or not text[:-1].isdigit() or not 10 <= int(text[:-1]) <= 90:
        raise directive.error(f"percentage should fall in range [10, 90]: {text}", option)
    return int(text[:-1])


def _with(reply: Reply, ttl: int | None = None, renamed: tuple[str, str] | None = None) -> Reply:
    """A copy with another TTL on all records, or with another case of the question's name."""
    changed = copy.copy(reply)
    for section in ("answer", "authority", "additional"):
        setattr(changed, section, [_record(record, ttl, renamed) for record in getattr(reply, section)])
    return changed


def _record(record: RR, ttl: int | None, renamed: tuple[str, str] | None) -> RR:
    changed = copy.copy(record)
    if ttl is not None:
        changed.ttl = ttl
    if renamed is not None and str(record.rname) == renamed[0]:
        changed.rname = m.label(renamed[1])
    return changed
