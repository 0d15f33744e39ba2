"""What travels on the API server's gRPC service, and the codec of all our services: msgpack of msgspec Structs.

Rules it keeps: an object travels as the bytes that the store holds, so on the wire `object` is raw msgpack on the sending
side and a plain dict on the receiving side; its revision travels beside it and becomes `metadata.resourceVersion` on
arrival (`with_revision`). Errors are a `Status` in the trailing metadata. Nothing here imports grpc or trio.

Order to read: values of the public interface, requests, replies, codec.
"""

from __future__ import annotations

import gc
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from podwire_core.errors import ApiError, Cause
from podwire_core.kinds import ResourceInfo as ResourceInfo

Json = dict[str, Any]

API_SERVICE = "podwire.Api"

ADDED, MODIFIED, DELETED, BOOKMARK = "ADDED", "MODIFIED", "DELETED", "BOOKMARK"
CREATED, CONFIGURED, UNCHANGED = "created", "configured", "unchanged"

# --- values of the public interface --------------------------------


class Selection(Struct, omit_defaults=True):
    """What to watch. `since`: the revision of the list it continues; 0: first the present objects as ADDED, then a BOOKMARK."""

    kind: str
    namespace: str = ""
    labels: str = ""
    fields: str = ""
    since: int = 0


class WatchEvent(Struct):
    """`kind` is as the Selection wrote it. An object that begins to match is ADDED, one that ceases to match is DELETED.
    A BOOKMARK has an empty object and says: everything up to `revision` has been sent."""

    type: str
    kind: str
    object: Json
    revision: int


class Listing(Struct):
    items: list[Json]
    revision: int


class Applied(Struct):
    """`what`: created, configured, unchanged."""

    object: Json
    what: str
    warnings: list[str] = []


class ServerInfo(Struct):
    """`counters`: events sent, slow watchers closed, controller failures …, by name."""

    version: str
    revision: int
    compacted: int
    watchers: int
    counters: dict[str, int] = {}


# --- requests --------------------------------


class GetRequest(Struct, omit_defaults=True):
    kind: str
    name: str
    namespace: str = ""


class ListRequest(Struct, omit_defaults=True):
    """`revision` 0: now; otherwise the state as it was (410 if it is compacted)."""

    kind: str
    namespace: str = ""
    labels: str = ""
    fields: str = ""
    revision: int = 0


class CreateRequest(Struct, omit_defaults=True):
    object: Json
    dry_run: bool = False


class UpdateRequest(Struct, omit_defaults=True):
    object: Json
    subresource: str = ""


class PatchRequest(Struct, omit_defaults=True):
    kind: str
    name: str
    namespace: str
    patch: Json
    subresource: str = ""


class DeleteRequest(Struct, omit_defaults=True):
    kind: str
    name: str
    namespace: str = ""
    grace: int | None = None
    propagation: str = "Background"
    uid: str = ""


class ApplyRequest(Struct, omit_defaults=True):
    """All of them or none."""

    objects: list[Json]
    dry_run: bool = False


class WatchRequest(Struct):
    selections: list[Selection]


class Empty(Struct):
    pass


# --- replies, as sent (objects raw) and as received --------------------------------


class RawObject(Struct):
    object: Raw
    revision: int
    warnings: list[str] = []


class ObjectReply(Struct):
    object: Json
    revision: int
    warnings: list[str] = []


class RawListing(Struct):
    items: list[Raw]
    revisions: list[int]
    revision: int


class ListReply(Struct):
    items: list[Json]
    revisions: list[int]
    revision: int


class RawApplied(Struct):
    object: Raw
    revision: int
    what: str
    warnings: list[str] = []


class AppliedReply(Struct):
    object: Json
    revision: int
    what: str
    warnings: list[str] = []


class RawEvent(Struct):
    type: str
    kind: str
    object: Raw
    revision: int


class RawBatch(Struct):
    events: list[Raw]


class Batch(Struct):
    events: list[WatchEvent]


class Status(Struct):
    """An ApiError on the wire."""

    code: int
    reason: str
    message: str
    causes: list[Cause] = []


# Names for clients, whose method `list` hides the builtin in their annotations.
Objects = list[Json]
Selections = list[Selection]
Events = list[WatchEvent]
Resources = list[ResourceInfo]
AppliedList = list[Applied]
AppliedReplies = list[AppliedReply]


# --- codec --------------------------------

T = TypeVar("T")

LARGE = 100_000  # bytes
_encoder = msgspec.msgpack.Encoder()
EMPTY_OBJECT = Raw(_encoder.encode({}))


@lru_cache(maxsize=256)
def _decoder(shape: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(shape)


def encode(message: Any) -> bytes:
    return _encoder.encode(message)


def decode(shape: Any, data: bytes) -> Any:
    """Raises ApiError(400) if the bytes are not of this shape: the peer is a different version, or not podwire."""
    pause = len(data) > LARGE and gc.isenabled()
    if pause:  # else the collector runs a hundred times over what is being made, and takes three quarters of the time
        gc.disable()
    try:
        return _decoder(shape).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"malformed message: {error}") from None
    finally:
        if pause:
            gc.enable()


def with_revision(obj: Json, revision: int) -> Json:
    """Put the revision, which the stored bytes don't hold, into the object, in place."""
    if revision:
        obj.setdefault("metadata", {})["resourceVersion"] = str(revision)
    return obj


def received(event: WatchEvent) -> WatchEvent:
    if event.type != BOOKMARK:
        with_revision(event.object, event.revision)
    return event


def applied(reply: AppliedReply) -> Applied:
    return Applied(with_revision(reply.object, reply.revision), reply.what, reply.warnings)


def listed(reply: ListReply) -> Listing:
    for item, revision in zip(reply.items, reply.revisions, strict=True):
        with_revision(item, revision)
    return Listing(reply.items, reply.revision)
