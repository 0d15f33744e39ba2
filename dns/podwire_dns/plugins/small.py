"""Plugins of a few lines each: errors, log, loadbalance, and the HTTP end points health and ready.

Sources: https://coredns.io/plugins/errors/ and so on. Order to read: as you like.
"""

from __future__ import annotations

import copy
import logging

import h11
import trio
from dnslib import QTYPE

from podwire_dns import message as m
from podwire_dns.corefile import Directive
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin

log = logging.getLogger("podwire_dns")
ADDRESSES = (QTYPE.A, QTYPE.AAAA)


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


class HttpEndpoint(Plugin):
    """A small HTTP server beside the DNS server: one path, 200 or 503."""

    path, port = "/", 0

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        host, _, port = directive.args[0].rpartition(":") if directive.args else ("", "", str(self.port))
        if len(directive.args) > 1 or not port.isdigit():
            raise directive.error("takes one address, such as :8080")
        self._host, self._port = host, int(port)

    def good(self) -> bool:
        """Is the answer 200?"""
        return True

    async def run(self) -> None:
        await trio.serve_tcp(self._converse, self._port, host=self._host or None)

    async def _converse(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        with trio.move_on_after(10):
            try:
                while not isinstance(event := connection.next_event(), h11.Request):
                    if event is h11.NEED_DATA:
                        connection.receive_data(bytes(await stream.receive_some()))
                    else:
                        return
                await stream.send_all(self._response(connection, event.target.decode("latin-1")))
            except (h11.RemoteProtocolError, trio.BrokenResourceError):
                return

    def _response(self, connection: h11.Connection, target: str) -> bytes:
        found = target.partition("?")[0] == self.path
        status, body = (404, b"not found\n") if not found else (200, b"OK") if self.good() else (503, b"not ready\n")
        headers = [("Content-Length", str(len(body))), ("Connection", "close")]
        parts = [h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()]
        return b"".join(connection.send(part) or b"" for part in parts)


class Health(HttpEndpoint):
    """GET :8080/health is 200 while the process lives. `lameduck DURATION` is how long it answers on after SIGTERM."""

    name, path, port = "health", "/health", 8080


class Ready(HttpEndpoint):
    """GET :8181/ready is 200 once the objects are listed."""

    name, path, port = "ready", "/ready", 8181

    def good(self) -> bool:
        return self.context.synced()
