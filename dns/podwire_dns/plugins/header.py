"""The header plugin: bits of the messages' headers.

    header { [response] set|clear aa|ra|rd…; query set|clear rd }

Source: https://coredns.io/plugins/header/.
"""

from __future__ import annotations

import copy

from podwire_dns.corefile import Directive
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin

FLAGS = {"aa", "ra", "rd"}


class Header(Plugin):
    name = "header"
    merged = True

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        self._response: list[tuple[str, bool]] = []
        self._recursion: bool | None = None
        self.add(directive)

    def add(self, directive: Directive) -> None:
        for option in directive.options:
            words = [option.name, *option.args]
            side = words.pop(0) if words[0] in ("query", "response") else "response"
            match words:
                case ["set" | "clear" as action, *flags] if flags and set(flags) <= (FLAGS if side == "response" else {"rd"}):
                    if side == "query":
                        self._recursion = action == "set"
                    else:
                        self._response += [(flag, action == "set") for flag in flags]
                case _:
                    raise directive.unknown(option)

    async def serve(self, query: Query) -> Reply:
        if self._recursion is not None:
            query.rd = self._recursion
        reply = await self.next.serve(query)
        if not self._response:
            return reply
        changed = copy.copy(reply)
        changed.flags = (*reply.flags, *self._response)
        return changed
