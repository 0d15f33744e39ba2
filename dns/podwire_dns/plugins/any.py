"""The any plugin: a question for ANY gets one HINFO record, as RFC 8482 has it, so that it amplifies nothing.
Source: https://coredns.io/plugins/any/."""

from __future__ import annotations

from dnslib import QTYPE

from podwire_dns import message as m
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Plugin

TTL = 8482


class Any(Plugin):
    name = "any"
    repeatable = False

    async def serve(self, query: Query) -> Reply:
        if query.qtype != QTYPE.ANY:
            return await self.next.serve(query)
        return Reply(answer=[m.hinfo(query.name, "ANY obsoleted", "See RFC 8482", TTL)])
