"""The blocking client. The command uses it, so it must import fast: no trio here.

Order to read: SyncChannel (any service), SyncStream, SyncClient (the API server's calls).
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

import grpc

from podwire_core.errors import ApiError
from podwire_core.rpc import messages as m
from podwire_core.rpc.channel import error_of, open_channel

T = TypeVar("T")
Json = m.Json


class SyncStream(Generic[T]):
    """A stream of replies, and of requests where the method takes them. Leaving the `with` block, or `cancel()`, ends the call.

    `send` and iteration may be in different threads."""

    def __init__(self, start: Callable[[Iterator[bytes]], Any], reply_type: Any, address: str) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._reply_type, self._address = reply_type, address
        self._call = start(iter(self._requests.get, None))

    def send(self, message: Any) -> None:
        self._requests.put(m.encode(message))

    def close_send(self) -> None:
        """No more requests; replies may still come."""
        self._requests.put(None)

    def cancel(self) -> None:
        self._requests.put(None)
        self._call.cancel()

    def __iter__(self) -> Iterator[T]:
        try:
            for data in self._call:
                yield m.decode(self._reply_type, data)
        except grpc.RpcError as failure:
            if failure.code() is not grpc.StatusCode.CANCELLED:  # our own cancel() just ends the iteration
                raise error_of(failure, self._address) from None

    def __enter__(self) -> SyncStream[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cancel()


class SyncChannel:
    """Calls of any of our services at one address."""

    def __init__(self, address: str, timeout: float | None = 30.0) -> None:
        self.address, self.timeout = address, timeout
        self._channel = open_channel(address)

    def call(self, service: str, method: str, request: Any, reply_type: Any = Any, timeout: float | None = None) -> Any:
        """A unary call. Raises ApiError."""
        try:
            data = self._channel.unary_unary(f"/{service}/{method}")(m.encode(request), timeout=timeout or self.timeout)
        except grpc.RpcError as failure:
            raise error_of(failure, self.address) from None
        return m.decode(reply_type, data)

    def stream(self, service: str, method: str, reply_type: Any = Any) -> SyncStream[Any]:
        """A call with streams both ways."""
        return SyncStream(self._channel.stream_stream(f"/{service}/{method}"), reply_type, self.address)

    def replies(self, service: str, method: str, request: Any, reply_type: Any = Any) -> SyncStream[Any]:
        """A call of one request and a stream of replies."""
        data = m.encode(request)
        start = self._channel.unary_stream(f"/{service}/{method}")
        return SyncStream(lambda _: start(data), reply_type, self.address)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _ignore(_: str) -> None:
    pass


class SyncClient(SyncChannel):
    """The API server, blocking. `on_warning` gets the server's warnings (a kind that nothing acts on …). All raise ApiError."""

    def __init__(self, address: str, timeout: float | None = 30.0, on_warning: Callable[[str], None] = _ignore) -> None:
        super().__init__(address, timeout)
        self.on_warning = on_warning

    def get(self, kind: str, name: str, namespace: str = "") -> Json:
        return self._object("Get", m.GetRequest(kind, name, namespace))

    def list(self, kind: str, namespace: str = "", labels: str = "", fields: str = "", revision: int = 0) -> m.Listing:
        return m.listed(self._api("List", m.ListRequest(kind, namespace, labels, fields, revision), m.ListReply))

    def create(self, obj: Json, dry_run: bool = False) -> Json:
        return self._object("Create", m.CreateRequest(obj, dry_run))

    def update(self, obj: Json, subresource: str = "") -> Json:
        return self._object("Update", m.UpdateRequest(obj, subresource))

    def patch(self, kind: str, name: str, namespace: str, patch: Json, subresource: str = "") -> Json:
        return self._object("Patch", m.PatchRequest(kind, name, namespace, patch, subresource))

    def delete(
        self, kind: str, name: str, namespace: str = "", grace: int | None = None, propagation: str = "Background", uid: str = ""
    ) -> Json:
        return self._object("Delete", m.DeleteRequest(kind, name, namespace, grace, propagation, uid))

    def apply(self, obj: Json) -> tuple[Json, str]:
        [done] = self.apply_many([obj])
        for warning in done.warnings:
            self.on_warning(warning)
        return done.object, done.what

    # `list` is a method of this class, so annotations after it need the builtin by another name
    def apply_many(self, objs: m.Objects, dry_run: bool = False) -> m.AppliedList:
        """All or nothing; every error of every object in one ApiError (its causes' fields begin with the document's index)."""
        replies = self._api("Apply", m.ApplyRequest(objs, dry_run), m.AppliedReplies, timeout=120.0)
        return [m.applied(reply) for reply in replies]

    def resources(self) -> m.Resources:
        result: m.Resources = self._api("Resources", m.Empty(), m.Resources)
        return result

    def info(self) -> m.ServerInfo:
        result: m.ServerInfo = self._api("Info", m.Empty(), m.ServerInfo)
        return result

    def watch(self, selections: m.Selections) -> Iterator[m.Events]:
        """Batches of events. Ends with ApiError(410) when the revision is compacted, 503 when the server is lost."""
        with self.replies(m.API_SERVICE, "Watch", m.WatchRequest(selections), m.Batch) as batches:
            for batch in batches:
                yield [m.received(event) for event in batch.events]

    def _api(self, method: str, request: Any, reply_type: Any, timeout: float | None = None) -> Any:
        return self.call(m.API_SERVICE, method, request, reply_type, timeout)

    def _object(self, method: str, request: Any) -> Json:
        reply: m.ObjectReply = self._api(method, request, m.ObjectReply)
        for warning in reply.warnings:
            self.on_warning(warning)
        return m.with_revision(reply.object, reply.revision)


__all__ = ["ApiError", "SyncChannel", "SyncClient", "SyncStream"]
