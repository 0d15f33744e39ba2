"""The chaos plugin: who this server is, asked for in class CH.

    chaos [VERSION] [AUTHORS…]        version.bind, version.server; authors.bind; hostname.bind, id.server

Source: https://coredns.io/plugins/chaos/.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

from dnslib import QTYPE

from podwire_dns import message as m
from podwire_dns.corefile import Directive
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin

MAX_TEXT = 255


class Chaos(Plugin):
    name = "chaos"
    answers_chaos = True
    repeatable = False

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        directive.no_block()
        self._version = directive.args[0] if directive.args else f"podwire-{_version()}"
        self._authors = sorted(directive.args[1:]) or ["podwire"]

    async def serve(self, query: Query) -> Reply:
        if query.qclass != m.CHAOS:
            return await self.next.serve(query)
        match query.lower if query.qtype == QTYPE.TXT else "":
            case "version.bind." | "version.server.":
                texts = [self._version]
            case "authors.bind.":
                texts = self._authors
            case "hostname.bind." | "id.server.":
                texts = [os.uname().nodename]
            case _:
                return Reply(m.REFUSED, authoritative=False)
        return Reply(answer=[m.txt(query.name, text[:MAX_TEXT], 0, m.CHAOS) for text in texts])


def _version() -> str:
    try:
        return version("podwire")
    except PackageNotFoundError:
        return "unknown"
