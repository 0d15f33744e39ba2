"""The forward plugin: questions of a zone go to upstream servers.

    forward FROM TO… {
        except ZONES…; policy random|round_robin|sequential; force_tcp; prefer_udp; expire DURATION; max_fails N; max_idle_conns N
        health_check DURATION [no_rec] [domain NAME]; max_concurrent N; max_connect_attempts N; failover RCODES…; next RCODES…
        next_on_nodata; failfast_all_unhealthy_upstreams
    }

TO is an address, address:port, dns://address, or a resolv.conf file; at most 15. tls://, https:// and host names are refused.
Upstreams are asked in the policy's order, those that are down or did not answer last time behind the others, so that a dead one
costs its time limit (2 s) once; the next is asked for as long as five seconds are not over. If all are down one is asked at
random. Order to read: Forward.serve, _try_all, _order, options. Source: https://coredns.io/plugins/forward/.
"""

from __future__ import annotations

import ipaddress
import os

import trio

from podwire_dns import message as m
from podwire_dns.corefile import Directive, Option, seconds, zones_of
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin, in_zone
from podwire_dns.plugins.upstream import FAILURES, Policy, Upstream

PORT, MAX_UPSTREAMS = 53, 15
TOTAL_SECONDS = 5.0
POLICIES = ("random", "round_robin", "sequential")
RCODES = {
    "NOERROR": 0,
    "FORMERR": 1,
    "SERVFAIL": 2,
    "NXDOMAIN": 3,
    "NOTIMP": 4,
    "NOTIMPL": 4,
    "REFUSED": 5,
    "YXDOMAIN": 6,
    "NOTAUTH": 9,
}


class Forward(Plugin):
    name = "forward"

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        if len(directive.args) < 2:
            raise directive.error("needs FROM and at least one TO: forward . 192.0.2.1")
        self._from = zones_of(directive, directive.args[:1], ("",))[0]
        self._except: tuple[str, ...] = ()
        self._policy, self._turn = "random", 0
        self._limit = self._busy = self._attempts = 0
        self._failover: set[int] = set()
        self._next: set[int] = set()
        self._next_on_nodata = self._failfast = False
        self._how = Policy()
        addresses = [address for to in directive.args[1:] for address in _addresses(directive, to)]
        if len(addresses) > MAX_UPSTREAMS:
            raise directive.error(f"more than {MAX_UPSTREAMS} TOs configured: {len(addresses)}")
        self._upstreams = [Upstream(ip, port, self._how, context.metrics, context.clock) for ip, port in addresses]
        self._rejects = context.metrics.counter(
            "coredns_forward_max_concurrent_rejects",
            "Counter of the number of queries rejected because the concurrent queries were at maximum.",
        )
        self._broken = context.metrics.counter(
            "coredns_forward_healthcheck_broken", "Counter of the number of complete failures of the healthchecks."
        )
        for option in directive.options:
            self._take(directive, option)

    async def serve(self, query: Query) -> Reply:
        if not in_zone(query.lower, self._from) or any(in_zone(query.lower, zone) for zone in self._except):
            return await self.next.serve(query)
        if query.qclass == m.CHAOS:
            return Reply(m.REFUSED, authoritative=False)
        if self._limit and self._busy >= self._limit:
            self._rejects.inc()
            return Reply(m.REFUSED, authoritative=False)
        self._busy += 1
        try:
            reply = await self._try_all(query)
        finally:
            self._busy -= 1
        nodata = self._next_on_nodata and reply.rcode == m.NOERROR and not reply.answer
        if (nodata or reply.rcode in self._next) and isinstance(self.next, Forward):
            return await self.next.serve(query)
        return reply

    async def _try_all(self, query: Query) -> Reply:
        last, error = None, "no healthy proxies"
        deadline = self.context.clock() + TOTAL_SECONDS
        for number, upstream in enumerate(self._order()):
            if self.context.clock() >= deadline or (self._attempts and number >= self._attempts):
                break
            try:
                last = await upstream.ask(query, self.context.rng.getrandbits(16))
            except FAILURES as failure:
                error = "i/o timeout" if isinstance(failure, trio.TooSlowError) else (str(failure) or type(failure).__name__)
                error = f"{upstream.label}: {error}"
                if self._how.max_fails:
                    self.context.spawn(upstream.check)
                continue
            if last.rcode not in self._failover:
                return last
        return last or Reply(m.SERVFAIL, authoritative=False, error=f"plugin/forward: {error}")

    def _order(self) -> list[Upstream]:
        """Those to try, first to last."""
        upstreams = list(self._upstreams)
        alive = [upstream for upstream in upstreams if not upstream.down()]
        if not alive:
            self._broken.inc()
            return [] if self._failfast else [self.context.rng.choice(upstreams)] if upstreams else []
        if self._policy == "random":
            self.context.rng.shuffle(alive)
        elif self._policy == "round_robin":
            self._turn += 1
            turn = self._turn % len(alive)
            alive = alive[turn:] + alive[:turn]
        return sorted(alive, key=lambda upstream: upstream.suspect)

    async def run(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            for upstream in self._upstreams:
                upstream.close()

    # --- options --------------------------------

    def _take(self, directive: Directive, option: Option) -> None:
        match (option.name, option.args):
            case ("max_concurrent", (number,)) if number.isdigit():
                self._limit = int(number)
            case ("max_connect_attempts", (number,)) if number.isdigit():
                self._attempts = int(number)
            case ("policy", (policy,)) if policy in POLICIES:
                self._policy = policy
            case ("except", (_, *_) as zones):
                self._except += zones_of(directive, zones, ())
            case ("failover", (_, *_) as names) if "NOERROR" not in names:
                self._failover |= {_rcode(directive, option, name) for name in names}
            case ("next", (_, *_) as names):
                self._next |= {_rcode(directive, option, name) for name in names}
            case ("next_on_nodata", ()):
                self._next_on_nodata = True
            case ("failfast_all_unhealthy_upstreams", ()):
                self._failfast = True
            case ("tls" | "tls_servername" | "doh_method" | "resolver" as name, _):
                raise directive.error(f"{name}: upstreams are asked by address over plain DNS alone", option)
            case _:
                self._take_connection(directive, option)

    def _take_connection(self, directive: Directive, option: Option) -> None:
        match (option.name, option.args):
            case ("force_tcp", ()):
                self._how.force_tcp = True
            case ("prefer_udp", ()):
                self._how.prefer_udp = True
            case ("expire", (duration,)):
                self._how.expire = seconds(directive, duration, option)
            case ("max_idle_conns", (number,)) if number.isdigit():
                self._how.max_idle = int(number)
            case ("max_fails", (number,)) if number.isdigit():
                self._how.max_fails = int(number)
            case ("health_check", (duration, *words)):
                self._how.interval = seconds(directive, duration, option)
                while words:
                    match words:
                        case ["no_rec", *words]:
                            self._how.recursive = False
                        case ["domain", name, *words]:
                            self._how.domain = name
                        case _:
                            raise directive.unknown(option)
            case _:
                raise directive.unknown(option)


def _rcode(directive: Directive, option: Option, name: str) -> int:
    if name.upper() not in RCODES:
        raise directive.error(f"{option.name}: {name!r} is not a response code", option)
    return RCODES[name.upper()]


def _addresses(directive: Directive, to: str) -> list[tuple[str, int]]:
    if to.startswith("/"):
        return [(ip, PORT) for ip in _nameservers(directive, to)]
    scheme, separator, text = to.partition("://")
    if separator and scheme != "dns":
        raise directive.error(f"{scheme}:// is not spoken, only dns://")
    host = text = text if separator else to
    port = PORT
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = _port(directive, rest.removeprefix(":")) if rest else PORT
    elif text.count(":") == 1:
        host, _, number = text.partition(":")
        port = _port(directive, number)
    try:
        return [(str(ipaddress.ip_address(host)), port)]
    except ValueError:
        raise directive.error(f"{to!r} is not an address, address:port or file") from None


def _port(directive: Directive, text: str) -> int:
    if not (text.isdigit() and 0 < int(text) < 65536):
        raise directive.error(f"{text!r} is not a port")
    return int(text)


def _nameservers(directive: Directive, path: str) -> list[str]:
    if not os.path.exists(path):
        raise directive.error(f"no file {path}")
    with open(path, encoding="utf-8", errors="replace") as lines:
        words = [line.split() for line in lines]
    return [w[1] for w in words if len(w) > 1 and w[0] == "nameserver" and _is_address(w[1])]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
