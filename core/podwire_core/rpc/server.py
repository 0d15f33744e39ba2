"""Serving gRPC from trio. gRPC runs synchronously with a thread a call; each call's handler runs as a trio task.

    handlers = {"Dump": rpc.unary(DumpRequest, dump), "Exec": rpc.stream(EXEC_IN, execute)}
    await nursery.start(rpc.serve, "podwire.Agent", handlers, [address])

Rules it keeps: handlers run in trio's thread only, so a server's state needs no locks. A handler's ApiError goes to the
caller; any other exception is logged with its traceback, goes to the caller as code 500, and ends nothing else. A caller that
goes away cancels its handler. `send` waits while WRITE_AHEAD messages are unsent. Streams hold a thread each, so they are
capped below the pool's size and can't starve unary calls.

Order to read: kinds of handler, serve, _Bridge (one call from its thread to trio and back).
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import trio
from msgspec import Struct

from podwire_core.errors import ApiError
from podwire_core.rpc.channel import SERVER_OPTIONS, status_of
from podwire_core.rpc.messages import decode, encode

log = logging.getLogger(__name__)

MAX_STREAMS = 256
UNARY_THREADS = 16
WRITE_AHEAD = 16  # messages; a watch's message is a batch
UNIX_PATH_LIMIT = 107

Send = Callable[[Any], Awaitable[None]]
Unary = Callable[[Any], Awaitable[Any]]
Replies = Callable[[Any, Send], Awaitable[None]]
Bidirectional = Callable[[AsyncIterator[Any], Send], Awaitable[None]]


class ListenError(Exception):
    """An address that can't be served; the message is one line that says how to mend it."""


# --- kinds of handler --------------------------------


class Handler(Struct, frozen=True):
    shape: str  # unary, replies, stream
    request_type: Any
    run: Callable[..., Awaitable[Any]]


def unary(request_type: Any, run: Unary) -> Handler:
    return Handler("unary", request_type, run)


def replies(request_type: Any, run: Replies) -> Handler:
    """One request, many replies: `async def run(request, send)`."""
    return Handler("replies", request_type, run)


def stream(request_type: Any, run: Bidirectional) -> Handler:
    """Streams both ways: `async def run(requests, send)`."""
    return Handler("stream", request_type, run)


# --- the server --------------------------------


async def serve(
    service: str,
    handlers: dict[str, Handler],
    listen: Sequence[str],
    *,
    grace: float = 0.5,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. Starts with the addresses it listens on (a port 0 replaced). Raises ListenError."""
    server = grpc.server(ThreadPoolExecutor(MAX_STREAMS + UNARY_THREADS, service), options=SERVER_OPTIONS)
    bound = [_bind(server, address) for address in listen]  # before the nursery, so that a ListenError arrives bare
    async with trio.open_nursery() as nursery:
        bridge = _Bridge(trio.lowlevel.current_trio_token(), nursery)
        methods = {name: bridge.method(handler) for name, handler in handlers.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
        server.start()
        try:
            task_status.started(bound)
            await trio.sleep_forever()
        finally:
            stopped = server.stop(grace)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(stopped.wait)


def _bind(server: Any, address: str) -> str:
    path = address.removeprefix("unix:")
    if path != address:
        if len(os.fsencode(path)) > UNIX_PATH_LIMIT:
            raise ListenError(f"{address}: a unix socket's path has at most {UNIX_PATH_LIMIT} bytes; use a shorter directory")
        if _answers(path):
            raise ListenError(f"{address}: another server is listening there; stop it first")
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        raise ListenError(f"cannot listen on {address}: {_why(address)}") from None
    host, colon, number = address.rpartition(":")
    return f"{host}:{port}" if path == address and colon and number == "0" else address


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


def _why(address: str) -> str:
    """gRPC doesn't say why it could not bind, so ask the kernel."""
    host, _, port = address.rpartition(":")
    try:
        if address.startswith("unix:"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(address.removeprefix("unix:") + "~")
            os.unlink(address.removeprefix("unix:") + "~")
            return "the path is not a socket; remove it"
        host = host.strip("[]")
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, int(port)))
    except (OSError, ValueError, OverflowError) as error:
        text = getattr(error, "strerror", None) or str(error)
        return f"{text.lower()}; choose another address" + (" or stop the program that uses it" if "in use" in text else "")
    return "gRPC refused the address; it is unix:/PATH or HOST:PORT"


# --- one call --------------------------------


class _Call:
    """A call as both threads see it: `outbox` carries replies to the gRPC thread, then None or an exception."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.room = trio.Semaphore(WRITE_AHEAD)

    async def send(self, message: Any) -> None:
        await self.room.acquire()
        self.outbox.put(encode(message))


class _Bridge:
    def __init__(self, token: trio.lowlevel.TrioToken, nursery: trio.Nursery) -> None:
        self._token, self._nursery = token, nursery
        self._streams = threading.BoundedSemaphore(MAX_STREAMS)

    def method(self, handler: Handler) -> Any:
        if handler.shape == "unary":
            return grpc.unary_unary_rpc_method_handler(lambda data, context: self._unary(handler, data, context))
        if handler.shape == "replies":
            return grpc.unary_stream_rpc_method_handler(lambda data, context: self._stream(handler, data, context))
        return grpc.stream_stream_rpc_method_handler(lambda requests, context: self._stream(handler, requests, context))

    # In gRPC's threads:

    def _unary(self, handler: Handler, data: bytes, context: Any) -> bytes:
        try:
            call, request = _Call(), decode(handler.request_type, data)
            self._start(call, context, self._run_unary, handler, request, call)
        except ApiError as error:
            _abort(context, error)
        reply = call.outbox.get()
        if isinstance(reply, ApiError):
            _abort(context, reply)
        return bytes(reply)

    def _stream(self, handler: Handler, incoming: Any, context: Any) -> Iterator[bytes]:
        if not self._streams.acquire(blocking=False):
            _abort(context, ApiError(429, f"more than {MAX_STREAMS} streams are open; close some"))
        try:
            call = _Call()
            try:
                argument = decode(handler.request_type, incoming) if handler.shape == "replies" else _Requests()
                self._start(call, context, self._run_stream, handler, argument, call)
            except ApiError as error:
                _abort(context, error)
            if isinstance(argument, _Requests):
                name = "rpc requests"
                threading.Thread(
                    target=argument.feed, args=(incoming, handler.request_type, self._token), name=name, daemon=True
                ).start()
            while (item := call.outbox.get()) is not None:
                if isinstance(item, ApiError):
                    _abort(context, item)
                self._soon(call.room.release)
                yield item
        finally:
            self._streams.release()

    def _start(self, call: _Call, context: Any, run: Callable[..., Awaitable[None]], *args: Any) -> None:
        if not context.add_callback(lambda: self._soon(call.scope.cancel)):
            raise ApiError(499, "the caller has gone")
        try:
            self._token.run_sync_soon(self._spawn, call, run, args)
        except trio.RunFinishedError:
            raise ApiError(503, "the server is shutting down") from None

    def _soon(self, function: Callable[[], Any]) -> None:
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            pass  # trio has ended, and with it what should have been told

    # In trio's thread:

    def _spawn(self, call: _Call, run: Callable[..., Awaitable[None]], args: tuple[Any, ...]) -> None:
        try:
            self._nursery.start_soon(run, *args)
        except RuntimeError:  # the nursery is closed
            call.outbox.put(ApiError(503, "the server is shutting down"))

    async def _run_unary(self, handler: Handler, request: Any, call: _Call) -> None:
        answer: Any = ApiError(503, "the server is shutting down")
        try:
            with call.scope:
                answer = encode(await handler.run(request))
        except ApiError as error:
            answer = error
        except Exception as error:
            answer = _internal(handler, error)
        finally:
            call.outbox.put(answer)

    async def _run_stream(self, handler: Handler, argument: Any, call: _Call) -> None:
        end: Any = ApiError(503, "the server is shutting down")
        try:
            with call.scope:
                await handler.run(argument, call.send)
            end = None
        except ApiError as error:
            end = error
        except Exception as error:
            end = _internal(handler, error)
        finally:
            call.outbox.put(end)


class _Requests:
    """The requests of a stream as an async iterator, fed by a thread of its own (gRPC's iterator blocks)."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Any](float("inf"))
        self._room = threading.Semaphore(WRITE_AHEAD)

    def feed(self, incoming: Iterator[bytes], request_type: Any, token: trio.lowlevel.TrioToken) -> None:
        try:
            try:
                for data in incoming:
                    self._room.acquire()
                    token.run_sync_soon(self._send.send_nowait, decode(request_type, data))
            except ApiError as error:
                token.run_sync_soon(self._send.send_nowait, error)
            except Exception as error:  # gRPC raises a bare Exception when the call ends while it waits for a request
                log.debug("requests ended: %s", error)
            token.run_sync_soon(self._send.close)
        except trio.RunFinishedError:
            pass

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> Any:
        try:
            request = await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        self._room.release()
        if isinstance(request, ApiError):
            raise request
        return request


def _internal(handler: Handler, error: Exception) -> ApiError:
    log.error("%s failed", getattr(handler.run, "__qualname__", handler.run), exc_info=error)
    return ApiError(500, f"internal error: {type(error).__name__}: {error}")


def _abort(context: Any, error: ApiError) -> None:
    code, details, metadata = status_of(error)
    context.set_trailing_metadata(metadata)
    context.abort(code, details)  # raises
