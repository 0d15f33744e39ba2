"""A very small HTTP server: for kube-proxy's health checks, and for the outside's web server.

Rules it keeps: the answer is a function of the request's path and the two addresses; one request a connection; whoever is slow
or speaks no HTTP is hung up on. Sockets are opened in the network namespace that is named, where they stay.

Order to read: Answer, listen, serve.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from http import HTTPStatus

import h11
import trio
from msgspec import Struct

from podwire_core import netns

PATIENCE = 5.0  # seconds for a whole request
Address = tuple[str, int]


class Request(Struct, frozen=True):
    path: str
    client: Address
    server: Address


class Answer(Struct, frozen=True):
    status: int
    body: str
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Request], Answer]


def listen(namespace: netns.Netns, port: int, backlog: int = 128) -> trio.SocketListener:
    """On all addresses of that namespace. Raises OSError."""
    with netns.in_netns(namespace):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", port))
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def serve(listener: trio.SocketListener, handler: Handler) -> None:
    """Until cancelled."""

    async def connection(stream: trio.SocketStream) -> None:
        with trio.move_on_after(PATIENCE):
            async with stream:
                try:
                    await _converse(stream, handler)
                except (trio.BrokenResourceError, h11.RemoteProtocolError):
                    pass  # the other side's doing, and its loss

    await trio.serve_listeners(connection, [listener])


async def _converse(stream: trio.SocketStream, handler: Handler) -> None:
    http = h11.Connection(h11.SERVER)
    request: h11.Request | None = None
    while request is None or http.their_state is h11.SEND_BODY:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await stream.receive_some(65536))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.ConnectionClosed):
            return
    client, server = stream.socket.getpeername()[:2], stream.socket.getsockname()[:2]
    answer = handler(Request(request.target.decode("latin-1"), client, server))
    body = answer.body.encode()
    headers = [("Content-Type", answer.content_type), ("Content-Length", str(len(body))), ("Connection", "close")]
    reply = h11.Response(status_code=answer.status, headers=[*headers, *answer.headers], reason=HTTPStatus(answer.status).phrase)
    data = (http.send(reply) or b"") + (b"" if request.method == b"HEAD" else http.send(h11.Data(body)) or b"")
    await stream.send_all(data)
