"""The loop plugin: asks itself for a random name once; seeing that question again and again means that an upstream leads back
here, and the server halts. Source: https://coredns.io/plugins/loop/."""

from __future__ import annotations

import socket

import dnslib
import trio
from dnslib import QTYPE

from podwire_dns.corefile import Directive
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin

LOOPS = 2  # sightings of the own probe that are still explained by retries


class Loop(Plugin):
    name = "loop"
    repeatable = False

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        if directive.args:
            raise directive.error("takes no arguments")
        directive.no_block()
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
