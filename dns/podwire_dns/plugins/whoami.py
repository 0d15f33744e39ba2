"""The whoami plugin: tells the client its own address, port and transport, in the additional section, whatever it asks.
Source: https://coredns.io/plugins/whoami/."""

from __future__ import annotations

from podwire_dns import message as m
from podwire_dns.corefile import Directive
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin

MAX_NAME = 254


class Whoami(Plugin):
    name = "whoami"
    repeatable = False

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        if directive.args:
            raise directive.error("takes no arguments")
        directive.no_block()

    async def serve(self, query: Query) -> Reply:
        transport = "tcp" if query.tcp else "udp"
        name = f"_{transport}.{query.name}".replace("..", ".")
        where = [m.srv(name, 0, query.source_port, ".", 0)] if len(name) < MAX_NAME else []
        return Reply(additional=[m.address(query.name, query.client, 0), *where])
