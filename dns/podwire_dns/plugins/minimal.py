"""The minimal plugin: answers without authority and additional records, but for referrals and negative answers, which are nothing
without them. Source: https://coredns.io/plugins/minimal/."""

from __future__ import annotations

import copy

from podwire_dns import message as m
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Plugin


class Minimal(Plugin):
    name = "minimal"
    repeatable = False

    async def serve(self, query: Query) -> Reply:
        reply = await self.next.serve(query)
        if reply.rcode != m.NOERROR or not reply.answer or not (reply.authority or reply.additional):
            return reply
        smaller = copy.copy(reply)
        smaller.authority, smaller.additional = [], []
        return smaller
