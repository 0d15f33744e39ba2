"""Plugins that listen for HTTP beside the DNS server: health, ready, prometheus.

Sources: https://coredns.io/plugins/health/ and so on. Order to read: HttpEndpoint, then each.
"""

from __future__ import annotations

import h11
import trio
from dnslib import QTYPE
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from podwire_dns import message as m
from podwire_dns.corefile import Directive
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin
from podwire_dns.plugins.small import seconds


class HttpEndpoint(Plugin):
    """One path on one port. `answer()` is status and body."""

    path, port = "/", 0

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        host, _, port = directive.args[0].rpartition(":") if directive.args else ("", "", str(self.port))
        if len(directive.args) > 1 or not port.isdigit():
            raise directive.error("takes one address, such as :8080")
        self._host, self._port = host, int(port)
        for option in directive.options:
            if option.name != "lameduck" or self.name != "health" or len(option.args) != 1:
                raise directive.error(f"unknown or wrong option: {' '.join((option.name, *option.args))}", option)
            context.lameduck = seconds(directive, option.args[0])

    def answer(self) -> tuple[int, bytes]:
        return 200, b"OK"

    async def run(self) -> None:
        await trio.serve_tcp(self._converse, self._port, host=self._host or None)

    async def _converse(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        with trio.move_on_after(10):
            try:
                while not isinstance(event := connection.next_event(), h11.Request):
                    if event is not h11.NEED_DATA:
                        return
                    connection.receive_data(bytes(await stream.receive_some()))
                await stream.send_all(self._response(connection, event.target.decode("latin-1")))
            except (h11.RemoteProtocolError, trio.BrokenResourceError):
                return

    def _response(self, connection: h11.Connection, target: str) -> bytes:
        status, body = self.answer() if target.partition("?")[0] == self.path else (404, b"404 page not found\n")
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), ("Connection", "close")]
        parts = [h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()]
        return b"".join(connection.send(part) or b"" for part in parts)


class Health(HttpEndpoint):
    """GET :8080/health is 200 while the process lives; `lameduck DURATION` is how long it lives after SIGTERM."""

    name, path, port = "health", "/health", 8080


class Ready(HttpEndpoint):
    """GET :8181/ready is 200 once the objects are listed."""

    name, path, port = "ready", "/ready", 8181

    def answer(self) -> tuple[int, bytes]:
        return (200, b"OK") if self.context.synced() else (503, b"kubernetes")


class Prometheus(HttpEndpoint):
    """GET :9153/metrics: questions, answers and their duration, under CoreDNS' names."""

    name, path, port = "prometheus", "/metrics", 9153

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        self._registry = CollectorRegistry()
        labels = ["server", "zone"]
        self._server = f"dns://{context.listen[0]}:{context.listen[1]}"
        self._zone = f"{zones[0]}."
        self._requests = Counter(
            "coredns_dns_requests", "Counter of DNS requests made per zone, protocol and family.", [*labels, "proto", "type"],
            registry=self._registry,
        )  # fmt: skip
        self._responses = Counter(
            "coredns_dns_responses", "Counter of response status codes.", [*labels, "rcode"], registry=self._registry
        )
        self._duration = Histogram(
            "coredns_dns_request_duration_seconds", "Histogram of the time (in seconds) each request took per zone.", labels,
            registry=self._registry,
        )  # fmt: skip

    async def serve(self, query: Query) -> Reply:
        started = self.context.clock()
        reply = await self.next.serve(query)
        self._requests.labels(self._server, self._zone, "tcp" if query.tcp else "udp", str(QTYPE.get(query.qtype))).inc()
        self._responses.labels(self._server, self._zone, m.rcode_name(reply.rcode)).inc()
        self._duration.labels(self._server, self._zone).observe(self.context.clock() - started)
        return reply

    def answer(self) -> tuple[int, bytes]:
        return 200, generate_latest(self._registry)
