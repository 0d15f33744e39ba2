"""What health, ready and prometheus have in common: one path answered over HTTP beside the DNS server.

A port that is taken is logged and tried again every second, so that a reload with a wrong one doesn't end the server.
Order to read: HttpEndpoint.
"""

from __future__ import annotations

import h11
import trio

from podwire_dns.corefile import Directive, Option
from podwire_dns.plugin import Context, Plugin

REQUEST_SECONDS, RETRY_SECONDS = 10.0, 1.0


class HttpEndpoint(Plugin):
    """`answer()` is status and body."""

    path, host, port = "/", "", 0
    repeatable = False

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        host, _, port = directive.args[0].rpartition(":") if directive.args else (self.host, "", str(self.port))
        if len(directive.args) > 1 or not port.isdigit() or int(port) > 65535:
            raise directive.error("takes one address, such as :8080")
        self._host, self._port = host.strip("[]"), int(port)
        for option in directive.options:
            self.take(directive, option)

    def take(self, directive: Directive, option: Option) -> None:
        raise directive.unknown(option)

    def answer(self) -> tuple[int, bytes]:
        return 200, b"OK"

    async def run(self) -> None:
        while True:
            try:
                await trio.serve_tcp(self._converse, self._port, host=self._host or None)
            except OSError as error:
                self.context.warn(f"plugin/{self.name}: {self._host}:{self._port}: {error.strerror}")
                await trio.sleep(RETRY_SECONDS)

    async def _converse(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        with trio.move_on_after(REQUEST_SECONDS):
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
