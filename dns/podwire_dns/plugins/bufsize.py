"""The bufsize plugin: no UDP answer is larger than this, whatever the client takes, so that none is fragmented.

    bufsize [SIZE]        (1232; from 512 to 4096)

Source: https://coredns.io/plugins/bufsize/.
"""

from __future__ import annotations

from podwire_dns.corefile import Directive
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin

SIZE, LEAST, MOST = 1232, 512, 4096


class BufSize(Plugin):
    name = "bufsize"
    repeatable = False

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        directive.no_block()
        match directive.args:
            case ():
                self._size = SIZE
            case (number,) if number.isdigit() and LEAST <= int(number) <= MOST:
                self._size = int(number)
            case _:
                raise directive.error(f"takes a size from {LEAST} to {MOST}")

    async def serve(self, query: Query) -> Reply:
        if not query.tcp:
            query.size = min(query.size, self._size)
        return await self.next.serve(query)
