"""A unix socket that leads to the API server: what pods of the system (DNS) connect to.

A unix socket's path works from every network namespace, so a pod needs neither a route to the API server nor its address. The
relay copies bytes; it knows nothing of gRPC. A lost API server closes the connection, and the client's own reconnecting does
the rest. Order to read: serve, _relay.
"""

from __future__ import annotations

import os
import socket

import trio

CHUNK = 65536


async def serve(path: str, target: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Relay connections to unix socket `path` to the gRPC address `target` ("unix:/path" or "host:port"), until cancelled."""
    if os.path.exists(path):
        os.unlink(path)  # left by an agent that was killed; the supervisor runs one agent a directory
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    await listener.bind(path)
    os.chmod(path, 0o666)  # containers may run as any user
    listener.listen(64)
    async with trio.open_nursery() as nursery:
        task_status.started()
        while True:
            client, _ = await listener.accept()
            nursery.start_soon(_relay, trio.SocketStream(client), target)


async def _relay(client: trio.SocketStream, target: str) -> None:
    async with client:
        try:
            server = await _connect(target)
        except OSError:
            return  # no API server just now: the client sees the connection close and tries again
        async with server, trio.open_nursery() as nursery:
            nursery.start_soon(_copy, client, server, nursery.cancel_scope)
            nursery.start_soon(_copy, server, client, nursery.cancel_scope)


async def _connect(target: str) -> trio.SocketStream:
    if target.startswith("unix:"):
        return await trio.open_unix_socket(target.removeprefix("unix:").replace("//", "/", 1))
    host, _, port = target.rpartition(":")
    return await trio.open_tcp_stream(host.strip("[]"), int(port))


async def _copy(source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope) -> None:
    try:
        async for chunk in source:
            await sink.send_all(chunk)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # either side reset: the end all the same
    both.cancel()
