"""Plugins of a few lines each: errors, log, loadbalance, loop, reload.

Sources: https://coredns.io/plugins/errors/ and so on. Order to read: as you like.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import socket

import dnslib
import trio
from dnslib import QTYPE

from podwire_dns import message as m
from podwire_dns.corefile import Directive
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin

log = logging.getLogger("podwire_dns")
ADDRESSES = (QTYPE.A, QTYPE.AAAA)
LOOPS = 2  # sightings of the own probe that are still explained by retries


class Errors(Plugin):
    """Logs every question that ended in SERVFAIL."""

    name = "errors"

    async def serve(self, query: Query) -> Reply:
        reply = await self.next.serve(query)
        if reply.rcode == m.SERVFAIL:
            log.error("%s %s from %s: SERVFAIL", query.name, QTYPE.get(query.qtype), query.client)
        return reply


class Log(Plugin):
    """Logs every question with its answer's code."""

    name = "log"

    async def serve(self, query: Query) -> Reply:
        reply = await self.next.serve(query)
        kind, code = QTYPE.get(query.qtype), m.rcode_name(reply.rcode)
        log.info("%s - %s %s %s %d", query.client, kind, query.name, code, len(reply.answer))
        return reply


class LoadBalance(Plugin):
    """Shuffles the addresses of an answer; CNAMEs stay in front of the records they lead to."""

    name = "loadbalance"

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        if directive.args not in ((), ("round_robin",)) or directive.options:
            raise directive.error("the only policy is round_robin")

    async def serve(self, query: Query) -> Reply:
        reply = await self.next.serve(query)
        addresses = [r for r in reply.answer if r.rtype in ADDRESSES]
        if len(addresses) < 2:
            return reply
        self.context.rng.shuffle(addresses)
        shuffled = copy.copy(reply)  # the reply itself may be the cache's
        shuffled.answer = [r for r in reply.answer if r.rtype not in ADDRESSES] + addresses
        return shuffled


class Loop(Plugin):
    """Asks itself for a random name once; seeing that question again and again means that an upstream leads back here."""

    name = "loop"

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        first, second = context.rng.getrandbits(63), context.rng.getrandbits(63)
        self._zone = zones[0]
        self._probe = f"{first}.{second}." + (f"{zones[0]}." if zones[0] else "")
        self._seen = 0

    async def serve(self, query: Query) -> Reply:
        if query.qtype == QTYPE.HINFO and query.lower == self._probe:
            self._seen += 1
            if self._seen > LOOPS:
                where = f"{self._zone or '.'}: a question for {self._probe} came back {self._seen} times"
                self.context.halt(f"loop detected for zone {where}; see https://coredns.io/plugins/loop#troubleshooting")
        return await self.next.serve(query)

    async def run(self) -> None:
        host, port = self.context.listen
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with trio.socket.socket(family, socket.SOCK_DGRAM) as sock:
            await sock.sendto(dnslib.DNSRecord.question(self._probe, "HINFO").pack(), (host, port))


class Reload(Plugin):
    """Reads the Corefile again when its content has changed. `reload [INTERVAL] [JITTER]`, 30s and 15s."""

    name = "reload"

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        times = [seconds(directive, text) for text in directive.args]
        self._interval, self._jitter = (times + [30.0, 15.0][len(times) :])[:2]
        if len(times) > 2 or self._interval < 2:
            raise directive.error("takes an interval of at least 2s and a jitter")

    async def run(self) -> None:
        before = self._digest()
        while True:
            await trio.sleep(self._interval + self.context.rng.uniform(0, min(self._jitter, self._interval / 2)))
            now = self._digest()
            if now and now != before:
                before = now
                self.context.reload()

    def _digest(self) -> bytes:
        try:
            with open(self.context.corefile, "rb") as file:
                return hashlib.sha256(file.read()).digest()
        except OSError as error:
            log.error("reload: %s: %s", self.context.corefile, error.strerror)
            return b""


def seconds(directive: Directive, text: str) -> float:
    """A Go duration of one unit: 500ms, 30s, 5m, 1h."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    number = text.rstrip("msh")
    unit = text[len(number) :]
    if not number.replace(".", "", 1).isdigit() or unit not in units:
        raise directive.error(f"{text!r} is not a duration such as 30s")
    return float(number) * units[unit]
