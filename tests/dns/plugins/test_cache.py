"""The cache: TTLs, bounds, case, stale answers, prefetching. Its source counts what it is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from podwire_dns import message as m
from podwire_dns.corefile import CorefileError
from podwire_dns.message import Query, Reply
from tests.dns.conftest import InMemory


class Source:
    """The plugin behind the cache."""

    def __init__(self, dns: InMemory) -> None:
        self.asked, self.ttl, self.rcode, self.data = 0, 60, 0, "192.0.2.1"
        self.tasks: list[Callable[[], Awaitable[None]]] = []
        dns.context.plugins[-1].serve = self.serve
        dns.context.spawn = self.tasks.append

    async def serve(self, query: Query) -> Reply:
        self.asked += 1
        if self.rcode:
            return Reply(self.rcode, authority=[m.soa("org.", 1, self.ttl)] if self.rcode == m.NXDOMAIN else [])
        return Reply(answer=[m.address(query.name, self.data, self.ttl)], additional=[m.address("ns.org.", "192.0.2.9", 900)])

    def refresh(self) -> None:
        while self.tasks:
            trio.run(self.tasks.pop())


def cached(options: str = "", args: str = "") -> tuple[InMemory, Source]:
    dns = InMemory(f". {{\n cache {args} {{\n {options}\n }}\n whoami\n}}\n", [])
    return dns, Source(dns)


@pytest.mark.parametrize(
    ("args", "options", "ttl", "rcode", "kept"),
    [
        ("", "", 60, m.NOERROR, 60),
        ("30", "", 60, m.NOERROR, 30),
        ("", "", 7200, m.NOERROR, 900),  # the least TTL of all records
        ("", "success 100 20", 60, m.NOERROR, 20),
        ("", "success 100 3600 120", 60, m.NOERROR, 120),
        ("", "", 0, m.NOERROR, 5),
        ("", "", 60, m.NXDOMAIN, 60),
        ("", "denial 100 20", 60, m.NXDOMAIN, 20),
        ("", "", 7200, m.NXDOMAIN, 1800),
        ("", "", 60, m.SERVFAIL, 5),
        ("", "servfail 0", 60, m.SERVFAIL, 0),
        ("", "servfail 1m", 60, m.SERVFAIL, 60),
        ("", "", 60, m.REFUSED, 0),
        ("", "disable success", 60, m.NOERROR, 0),
        ("", "disable denial", 60, m.NOERROR, 60),
        ("", "disable denial org", 60, m.NXDOMAIN, 0),
        ("net", "", 60, m.NOERROR, 0),
    ],
)
def test_for_how_long_an_answer_is_kept(args, options, ttl, rcode, kept):
    dns, source = cached(options, args)
    source.ttl, source.rcode = ttl, rcode
    dns.ask("x.org.")
    dns.now = kept - 0.5
    dns.ask("x.org.")
    assert source.asked == (1 if kept else 2)
    dns.now = float(kept)
    dns.ask("x.org.")
    assert source.asked == (2 if kept else 3)


def test_all_records_carry_what_is_left():
    dns, _ = cached()
    first = dns.ask("x.org.").raw
    dns.now = 10.0
    second = dns.ask("x.org.").raw
    assert [{r.ttl for r in (*raw.rr, *(a for a in raw.ar if a.rtype != 41))} for raw in (first, second)] == [{60}, {50}]


def test_keepttl_keeps_it():
    dns, _ = cached("keepttl")
    dns.ask("x.org.")
    dns.now = 10.0
    assert dns.ask("x.org.").ttls == {60}


def test_names_match_without_case_and_the_answer_has_the_questions():
    dns, source = cached()
    dns.ask("x.org.")
    assert dns.ask("X.oRg.").answer == [("X.oRg.", "A", "192.0.2.1")]
    assert source.asked == 1


def test_types_are_apart_and_any_is_not_kept():
    dns, source = cached()
    for qtype in ("A", "AAAA", "A", "AAAA", "ANY", "ANY"):
        dns.ask("x.org.", qtype)
    assert source.asked == 4


def test_capacity_and_its_counters():
    dns, source = cached("success 2")
    for name in ("a.org.", "b.org.", "c.org.", "c.org.", "a.org."):
        dns.ask(name)
    assert source.asked == 4
    assert list(dns.metrics("coredns_cache_evictions_total").values()) == [2.0]
    assert sorted(dns.metrics("coredns_cache_hits_total").values()) == [0.0, 1.0]  # denial, success
    assert list(dns.metrics("coredns_cache_misses_total").values()) == [4.0]
    assert list(dns.metrics("coredns_cache_entries").values()) == [2.0]


def test_stale_answers_are_served_at_once_and_refreshed_beside():
    dns, source = cached("serve_stale 1h")
    dns.ask("x.org.")
    source.data, dns.now = "192.0.2.2", 100.0
    stale = dns.ask("x.org.")
    assert (stale.data, stale.ttls, len(source.tasks)) == (["192.0.2.1"], {0}, 1)
    dns.ask("x.org.")
    assert len(source.tasks) == 1, "once at a time"
    source.refresh()
    assert dns.ask("x.org.").data == ["192.0.2.2"]
    dns.now = 100.0 + 60 + 3600
    source.data = "192.0.2.3"
    assert dns.ask("x.org.").data == ["192.0.2.3"], "too old to be served"


def test_stale_answers_can_be_verified_first():
    dns, source = cached("serve_stale 1h verify")
    dns.ask("x.org.")
    source.data, dns.now = "192.0.2.2", 100.0
    assert dns.ask("x.org.").data == ["192.0.2.2"]
    source.rcode, dns.now = m.SERVFAIL, 200.0
    assert dns.ask("x.org.").data == ["192.0.2.2"]
    assert list(dns.metrics("coredns_cache_served_stale_total").values()) == [1.0]


def test_a_popular_answer_is_fetched_before_its_end():
    dns, source = cached("prefetch 2 1m 10%")
    for now in (0.0, 10.0, 20.0, 54.0, 54.5):
        dns.now = now
        dns.ask("x.org.")
    assert (source.asked, len(source.tasks)) == (1, 1)
    source.refresh()
    dns.now = 61.0
    assert (dns.ask("x.org.").ttls, source.asked) == ({60 - 6}, 2)


def test_an_unpopular_answer_is_not():
    dns, source = cached("prefetch 2 10s")
    for now in (0.0, 20.0, 55.0):
        dns.now = now
        dns.ask("x.org.")
    assert not source.tasks


@pytest.mark.parametrize(
    "option",
    ["success", "success x", "denial 1 2 3 4", "prefetch", "prefetch 2 1m 5%", "servfail 10m", "serve_stale 1h never", "x"],
)
def test_a_wrong_option_says_where(option):
    with pytest.raises(CorefileError, match=r"^Corefile:3: plugin cache: "):
        cached(option)
