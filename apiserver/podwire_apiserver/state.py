"""The cluster's objects: the store on disk, the View in memory, and what is derived from them, always in step.

Rules it keeps: one thread. A write goes to the store first (compare and set), then to the View and everything derived (kinds
of CustomResourceDefinitions, held addresses), then to the listeners, all before `write` returns; inside a transaction the
listeners wait for its end, and if it fails the View goes back, too. Stored bytes are the object without its resourceVersion;
objects in the View have it, and are replaced, never changed.

Order to read: keys, State.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from podwire_apiserver.allocators import ServiceAllocator
from podwire_apiserver.controllers.view import View
from podwire_apiserver.store import Compacted, Conflict, Record, Store, StoreError, StoreEvent
from podwire_apiserver.watchers import Committed, Hub
from podwire_core.errors import ApiError
from podwire_core.kinds import Catalogue, ResourceInfo, custom
from podwire_core.objects import Json, key_of
from podwire_core.rpc.messages import with_revision

PREFIX = "/registry/"
CRD = "CustomResourceDefinition"

# --- keys --------------------------------


def prefix_of(info: ResourceInfo, namespace: str = "") -> str:
    return f"{PREFIX}{info.group or 'core'}/{info.plural}/" + (f"{namespace}/" if namespace else "")


def store_key(info: ResourceInfo, key: str) -> str:
    """`key` is "namespace/name" or "name"."""
    return prefix_of(info) + key


def object_key(namespace: str, name: str) -> str:
    return f"{namespace}/{name}" if namespace else name


def revision_of(obj: Json) -> int:
    return int(obj["metadata"]["resourceVersion"])


def _encode(obj: Json) -> bytes:
    meta = {field: value for field, value in obj["metadata"].items() if field != "resourceVersion"}
    return msgspec.msgpack.encode({**obj, "metadata": meta})


class State:
    def __init__(self, store: Store, allocator: ServiceAllocator) -> None:
        self.store, self.allocator = store, allocator
        self.catalogue, self.view, self.hub = Catalogue(), View(), Hub()
        self.listeners: list[Callable[[Committed], None]] = []
        self._pending: list[Committed] | None = None  # in a transaction
        self._broken: StoreError | None = None  # in a transaction: SQLite may have rolled back on its own (a full disk)
        self._load()

    def _load(self) -> None:
        crds = self.catalogue.find(CRD)
        assert crds is not None
        for record in self.store.list(prefix_of(crds)):
            self._take(CRD, None, self._decode(record))
        for record in self.store.list(PREFIX):
            info = self._info_of(record.key)
            if info is not None and info.kind != CRD:
                self._take(self.catalogue.name(info), None, self._decode(record))

    @staticmethod
    def _decode(record: Record) -> Json:
        return with_revision(msgspec.msgpack.decode(record.value), record.revision)

    def _info_of(self, key: str) -> ResourceInfo | None:
        group, plural = key.removeprefix(PREFIX).split("/", 2)[:2]
        return self.catalogue.find(f"{plural}.{'' if group == 'core' else group}".rstrip("."))

    # --- reading --------------------------------

    @property
    def revision(self) -> int:
        return self.store.revision

    def get(self, info: ResourceInfo, key: str) -> Json | None:
        return self.view.get(self.catalogue.name(info), key)

    def all_of(self, info: ResourceInfo, namespace: str = "") -> Sequence[Json]:
        """Sorted by key."""
        kind = self.catalogue.name(info)
        if namespace:
            return self.view.in_namespace(kind, namespace)
        objects = self.view.all(kind)
        return [objects[key] for key in sorted(objects)]

    def all_at(self, info: ResourceInfo, namespace: str, revision: int) -> list[Json]:
        """As it was. Raises ApiError(410)."""
        try:
            return [self._decode(record) for record in self.store.list(prefix_of(info, namespace), revision)]
        except Compacted as error:
            raise _gone(error, revision) from None

    def history(self, revision: int) -> Iterator[Committed]:
        """All writes after a revision. Raises ApiError(410)."""
        try:
            events = self.store.since(revision)
        except Compacted as error:
            raise _gone(error, revision) from None
        for event in events:
            commit = self._commit_of(event)
            if commit is not None:
                yield commit

    def _commit_of(self, event: StoreEvent) -> Committed | None:
        info = self._info_of(event.key)
        if info is None:  # of a CustomResourceDefinition that is gone
            return None
        old = None if event.old is None else msgspec.msgpack.decode(event.old)
        new = None if event.value is None else with_revision(msgspec.msgpack.decode(event.value), event.revision)
        key = event.key.removeprefix(prefix_of(info))
        return Committed(self.catalogue.name(info), key, old, new, event.revision, event.value or event.old or b"")

    # --- writing --------------------------------

    def write(self, info: ResourceInfo, old: Json | None, new: Json | None) -> Json:
        """Replace `old` (None: create) by `new` (None: delete). Returns the object with its new revision. Raises ApiError."""
        kept = new if new is not None else old
        assert kept is not None
        value = _encode(kept)
        key = key_of(kept)
        if self._broken is not None:
            raise ApiError(500, str(self._broken))
        try:
            expected = revision_of(old) if old is not None else 0
            event = self.store.compare_and_set(store_key(info, key), expected, None if new is None else value)
        except Conflict:
            raise ApiError(409, f'{info.plural} "{kept["metadata"]["name"]}" was changed meanwhile') from None
        except StoreError as error:
            self._broken = error if self._pending is not None else None
            raise ApiError(500, str(error)) from None
        with_revision(kept := {**kept, "metadata": dict(kept["metadata"])}, event.revision)
        kind = self.catalogue.name(info)
        self._take(kind, old, None if new is None else kept)
        commit = Committed(kind, key, old, None if new is None else kept, event.revision, value, {})
        if self._pending is not None:
            self._pending.append(commit)
        else:
            self._announce([commit])
        return kept

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside it, or, after an exception, none."""
        if self._pending is not None:
            raise RuntimeError("transactions don't nest")
        self._pending = []
        try:
            with self.store.transaction():
                yield
                if self._broken is not None:
                    raise self._broken
            done = self._pending
        except BaseException as error:
            for commit in reversed(self._pending):
                self._take(commit.kind, commit.new, commit.old, commit.key)
            if isinstance(error, StoreError):
                raise ApiError(500, str(error)) from None
            raise
        finally:
            self._pending = self._broken = None
        self._announce(done)

    def _announce(self, commits: list[Committed]) -> None:
        self.hub.publish(commits)
        for commit in commits:
            for listener in self.listeners:
                listener(commit)

    def _take(self, kind: str, old: Json | None, new: Json | None, key: str = "") -> None:
        """Bring the View and what is derived from it up to date."""
        either = new if new is not None else old
        assert either is not None
        self.view.apply(kind, key or key_of(either), new)
        if kind == "Service":
            if old is not None:
                self.allocator.release(old)
            if new is not None:
                self.allocator.hold(new)
        elif kind == CRD:
            if new is None:
                self.catalogue.forget(either["metadata"]["name"])
            else:
                self.catalogue.define(new["metadata"]["name"], *custom(new))


def _gone(error: Compacted, revision: int) -> ApiError:
    return ApiError(410, f"revision {revision} is compacted or unknown (history begins after {error.level}); list again")
