"""The cancel plugin: a question that takes longer than this ends in SERVFAIL.

    cancel [TIMEOUT]        (5001ms)

Source: https://coredns.io/plugins/cancel/.
"""

from __future__ import annotations

import trio

from podwire_dns import message as m
from podwire_dns.corefile import Directive, seconds
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin

TIMEOUT = 5.001


class Cancel(Plugin):
    name = "cancel"
    repeatable = False

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        directive.no_block()
        if len(directive.args) > 1:
            raise directive.error("takes one duration")
        self._timeout = seconds(directive, directive.args[0]) if directive.args else TIMEOUT
        if self._timeout <= 0:
            raise directive.error("the timeout is more than nothing")

    async def serve(self, query: Query) -> Reply:
        with trio.move_on_after(self._timeout):
            return await self.next.serve(query)
        return Reply(m.SERVFAIL, authoritative=False, error="context deadline exceeded")
