"""The client for trio programs. gRPC has no trio support, so its synchronous API is joined to trio in two ways only:

* a unary call is a gRPC future, whose callback (on gRPC's own thread) wakes the task by `run_sync_soon`: no thread of ours;
* a stream is read by one thread, which hands each message over the same way and waits when READ_AHEAD of them are unread.

Rules it keeps: a cancelled task cancels its call at once; a stream that is dropped (`break`, an exception) cancels its call
and so ends its thread; threads may outlive trio and then give up quietly. Order to read: Stream, Channel, Client, connect.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

import grpc
import trio

from podwire_core.rpc import messages as m
from podwire_core.rpc.channel import error_of, open_channel

T = TypeVar("T")
Json = m.Json

READ_AHEAD = 64  # messages; a watch's message is a batch


class Stream(Generic[T]):
    """A stream of replies, and of requests where the method takes them. `async with` or dropping it ends the call."""

    def __init__(self, start: Callable[[Iterator[bytes]], Any], convert: Callable[[bytes], T], address: str) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._convert, self._address = convert, address
        self._inbox = _Inbox()
        self._call = start(iter(self._requests.get, None))
        threading.Thread(target=_read, args=(self._call, self._inbox), name="rpc stream", daemon=True).start()

    async def send(self, message: Any) -> None:
        self._requests.put(m.encode(message))
        await trio.lowlevel.checkpoint()

    async def close_send(self) -> None:
        """No more requests; replies may still come."""
        self._requests.put(None)
        await trio.lowlevel.checkpoint()

    def cancel(self) -> None:
        self._requests.put(None)
        self._inbox.closed = True
        self._inbox.room.release()
        self._call.cancel()

    def __aiter__(self) -> Stream[T]:
        return self

    async def __anext__(self) -> T:
        try:
            message = await self._inbox.take()
        except BaseException:
            self.cancel()
            raise
        if isinstance(message, bytes):
            return self._convert(message)
        if message is None:
            raise StopAsyncIteration
        raise error_of(message, self._address)

    async def __aenter__(self) -> Stream[T]:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cancel()

    def __del__(self) -> None:
        if hasattr(self, "_call"):
            self.cancel()


class _Inbox:
    """Messages on their way from the reading thread to a task. The last item is None or the failure."""

    def __init__(self) -> None:
        self.token = trio.lowlevel.current_trio_token()
        self.room = threading.Semaphore(READ_AHEAD)
        self.closed = False
        self._items: deque[Any] = deque()
        self._wake = trio.Event()

    def put(self, item: Any) -> None:
        """In the reading thread."""
        self.token.run_sync_soon(self._arrive, item)

    def _arrive(self, item: Any) -> None:
        self._items.append(item)
        self._wake.set()

    async def take(self) -> Any:
        if not self._items:
            self._wake = trio.Event()
            await self._wake.wait()
        else:
            await trio.lowlevel.checkpoint()
        item = self._items[0]
        if isinstance(item, bytes):  # the end stays, for whoever asks again
            self._items.popleft()
            self.room.release()
        return item


def _read(call: Any, inbox: _Inbox) -> None:
    """The reading thread."""
    end: Any = None
    try:
        for message in call:
            inbox.room.acquire()
            if inbox.closed:
                return
            inbox.put(message)
    except grpc.RpcError as failure:
        end = failure
    except trio.RunFinishedError:
        return
    try:
        inbox.put(end)
    except trio.RunFinishedError:
        pass  # nobody is left to be told


class Channel:
    """Calls of any of our services at one address."""

    def __init__(self, address: str, timeout: float | None = 30.0) -> None:
        self.address, self.timeout = address, timeout
        self._channel = open_channel(address)

    async def call(self, service: str, method: str, request: Any, reply_type: Any = Any, timeout: float | None = None) -> Any:
        """A unary call. Raises ApiError."""
        token, done = trio.lowlevel.current_trio_token(), trio.Event()

        def finished(_: Any) -> None:
            try:
                token.run_sync_soon(done.set)
            except trio.RunFinishedError:
                pass  # the caller was cancelled long ago

        future = self._channel.unary_unary(f"/{service}/{method}").future(m.encode(request), timeout=timeout or self.timeout)
        future.add_done_callback(finished)
        try:
            await done.wait()
        finally:
            future.cancel()
        if future.code() is not grpc.StatusCode.OK:
            raise error_of(future, self.address)
        return m.decode(reply_type, future.result())

    def stream(self, service: str, method: str, reply_type: Any = Any) -> Stream[Any]:
        """A call with streams both ways."""
        return Stream(self._channel.stream_stream(f"/{service}/{method}"), lambda data: m.decode(reply_type, data), self.address)

    def replies(self, service: str, method: str, request: Any, reply_type: Any = Any) -> Stream[Any]:
        """A call of one request and a stream of replies."""
        return self._replies(service, method, request, lambda data: m.decode(reply_type, data))

    def _replies(self, service: str, method: str, request: Any, convert: Callable[[bytes], T]) -> Stream[T]:
        data = m.encode(request)
        start = self._channel.unary_stream(f"/{service}/{method}")
        return Stream(lambda _: start(data), convert, self.address)

    def close(self) -> None:
        self._channel.close()


def _ignore(_: str) -> None:
    pass


class Client(Channel):
    """The API server. `on_warning` gets the server's warnings. All calls raise ApiError."""

    def __init__(self, address: str, timeout: float | None = 30.0, on_warning: Callable[[str], None] = _ignore) -> None:
        super().__init__(address, timeout)
        self.on_warning = on_warning

    async def get(self, kind: str, name: str, namespace: str = "") -> Json:
        return await self._object("Get", m.GetRequest(kind, name, namespace))

    async def list(self, kind: str, namespace: str = "", labels: str = "", fields: str = "", revision: int = 0) -> m.Listing:
        return m.listed(await self._api("List", m.ListRequest(kind, namespace, labels, fields, revision), m.ListReply))

    async def create(self, obj: Json, dry_run: bool = False) -> Json:
        return await self._object("Create", m.CreateRequest(obj, dry_run))

    async def update(self, obj: Json, subresource: str = "") -> Json:
        return await self._object("Update", m.UpdateRequest(obj, subresource))

    async def patch(self, kind: str, name: str, namespace: str, patch: Json, subresource: str = "") -> Json:
        return await self._object("Patch", m.PatchRequest(kind, name, namespace, patch, subresource))

    async def delete(
        self, kind: str, name: str, namespace: str = "", grace: int | None = None, propagation: str = "Background", uid: str = ""
    ) -> Json:
        return await self._object("Delete", m.DeleteRequest(kind, name, namespace, grace, propagation, uid))

    async def apply(self, obj: Json) -> tuple[Json, str]:
        [done] = await self.apply_many([obj])
        for warning in done.warnings:
            self.on_warning(warning)
        return done.object, done.what

    async def apply_many(self, objs: m.Objects, dry_run: bool = False) -> m.AppliedList:
        """All or nothing; every error of every object in one ApiError."""
        replies = await self._api("Apply", m.ApplyRequest(objs, dry_run), m.AppliedReplies, timeout=120.0)
        return [m.applied(reply) for reply in replies]

    async def resources(self) -> m.Resources:
        result: m.Resources = await self._api("Resources", m.Empty(), m.Resources)
        return result

    async def info(self) -> m.ServerInfo:
        result: m.ServerInfo = await self._api("Info", m.Empty(), m.ServerInfo)
        return result

    def watch(self, selections: m.Selections) -> Stream[m.Events]:
        """Batches of events. Ends with ApiError(410) when the revision is compacted, 503 when the server is lost."""
        return self._replies(m.API_SERVICE, "Watch", m.WatchRequest(selections), _events)

    async def _api(self, method: str, request: Any, reply_type: Any, timeout: float | None = None) -> Any:
        return await self.call(m.API_SERVICE, method, request, reply_type, timeout)

    async def _object(self, method: str, request: Any) -> Json:
        reply: m.ObjectReply = await self._api(method, request, m.ObjectReply)
        for warning in reply.warnings:
            self.on_warning(warning)
        return m.with_revision(reply.object, reply.revision)


def _events(data: bytes) -> m.Events:
    batch: m.Batch = m.decode(m.Batch, data)
    return [m.received(event) for event in batch.events]


@asynccontextmanager
async def connect(
    address: str, timeout: float | None = 30.0, on_warning: Callable[[str], None] = _ignore
) -> AsyncIterator[Client]:
    client = Client(address, timeout, on_warning)
    try:
        yield client
    finally:
        client.close()


@asynccontextmanager
async def connect_channel(address: str, timeout: float | None = 30.0) -> AsyncIterator[Channel]:
    """Calls of another service than the API server's, for example "podwire.Agent"."""
    channel = Channel(address, timeout)
    try:
        yield channel
    finally:
        channel.close()
