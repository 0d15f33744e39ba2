"""A live copy of some of the API server's objects: list, watch, and list again after 410 or when the revision is unknown.

    async with trio.open_nursery() as nursery:
        mirror = rpc.Mirror(api, [rpc.Selection("Service"), rpc.Selection("Pod", fields="spec.nodeName=node1")])
        nursery.start_soon(mirror.run)
        await mirror.synced()
        async for changes in mirror.changes(): ...

Rules it keeps: `run` ends only by cancellation; a lost server is retried with back-off, and meanwhile the copy stays as it
was. Every reader of `changes()` first gets all present objects, then each object's change since its last batch once, however
often it changed in between, so a slow reader costs nothing. One selection a kind. Order to read: Cache (pure), Mirror.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any
from weakref import WeakSet

import trio
from msgspec import Struct

from podwire_core.errors import ApiError
from podwire_core.rpc import messages as m
from podwire_core.rpc.client import Client

log = logging.getLogger(__name__)

Json = m.Json
Changed = list[tuple[str, str, Json | None]]  # kind, key, the object before
FIRST_DELAY, LAST_DELAY = 0.1, 1.0


class Change(Struct, frozen=True):
    """`old` None: new to the reader; `new` None: gone."""

    kind: str
    key: str
    old: Json | None
    new: Json | None


class Cache:
    """Objects by kind and key, and what has changed. Pure."""

    def __init__(self, kinds: list[str]) -> None:
        self.objects: dict[str, dict[str, Json]] = {kind: {} for kind in kinds}

    def replace(self, kind: str, items: list[Json]) -> Changed:
        """Take a new list; returns (kind, key, old) of all that differ."""
        before, after = self.objects[kind], {_key(item): item for item in items}
        changed: Changed = [(kind, key, old) for key, old in before.items() if key not in after]
        changed += [(kind, key, before.get(key)) for key, new in after.items() if _revision(before.get(key)) != _revision(new)]
        self.objects[kind] = after
        return changed

    def event(self, event: m.WatchEvent) -> Changed:
        if event.type == m.BOOKMARK:
            return []
        objects, key = self.objects[event.kind], _key(event.object)
        old = objects.get(key)
        if event.type == m.DELETED:
            objects.pop(key, None)
            return [(event.kind, key, old)] if old is not None else []
        objects[key] = event.object
        return [(event.kind, key, old)]


class Mirror:
    def __init__(self, api: Client, selections: list[m.Selection]) -> None:
        kinds = [selection.kind for selection in selections]
        if len(set(kinds)) != len(kinds):
            raise ValueError("a mirror takes one selection a kind")
        self._api, self._selections = api, selections
        self._cache = Cache(kinds)
        self._since: dict[str, int] = {}  # by kind; missing: must be listed
        self._synced = trio.Event()
        self._readers: WeakSet[_Reader] = WeakSet()

    @property
    def objects(self) -> dict[str, dict[str, Json]]:
        return self._cache.objects

    async def synced(self) -> None:
        """Returns once everything has been listed."""
        await self._synced.wait()

    async def run(self) -> None:
        delay = FIRST_DELAY
        while True:
            try:
                await self._list()
                self._synced.set()
                stream = self._api.watch([self._resume(selection) for selection in self._selections])
                async with stream:
                    async for events in stream:
                        delay = FIRST_DELAY
                        self._take(events)
            except ApiError as error:
                if error.code == 410:
                    self._since.clear()
                    continue
                log.info("watch lost, trying again: %s", error)
            await trio.sleep(delay)
            delay = min(delay * 2, LAST_DELAY)

    def changes(self) -> AsyncIterator[list[Change]]:
        reader = _Reader(self._cache)
        self._readers.add(reader)
        return reader

    async def _list(self) -> None:
        for s in self._selections:
            if s.kind not in self._since:
                listing = await self._api.list(s.kind, s.namespace, s.labels, s.fields)
                self._note(self._cache.replace(s.kind, listing.items))
                self._since[s.kind] = listing.revision

    def _resume(self, s: m.Selection) -> m.Selection:
        return m.Selection(s.kind, s.namespace, s.labels, s.fields, self._since[s.kind])

    def _take(self, events: m.Events) -> None:
        for event in events:
            self._note(self._cache.event(event))
            if event.type == m.BOOKMARK:
                self._since = dict.fromkeys(self._since, event.revision)
            else:
                self._since[event.kind] = event.revision

    def _note(self, changed: Changed) -> None:
        for reader in self._readers:
            reader.add(changed)


class _Reader:
    """One reader of `changes()`. Holds the object it last saw, by kind and key, of all that changed since."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._pending: dict[tuple[str, str], Json | None] = {}
        self._wake = trio.Event()
        self.add([(kind, key, None) for kind, objects in cache.objects.items() for key in objects])

    def add(self, changed: Changed) -> None:
        for kind, key, old in changed:
            self._pending.setdefault((kind, key), old)
        if changed:
            self._wake.set()

    def __aiter__(self) -> _Reader:
        return self

    async def __anext__(self) -> list[Change]:
        await trio.lowlevel.checkpoint()  # before anything is taken, so that a cancellation loses nothing
        while True:
            if not self._pending:
                self._wake = trio.Event()
                await self._wake.wait()
            pending, self._pending = self._pending, {}
            batch = [Change(kind, key, old, self._cache.objects[kind].get(key)) for (kind, key), old in pending.items()]
            batch = [change for change in batch if change.old is not change.new]
            if batch:
                return batch


def _key(obj: Json) -> str:
    meta = obj["metadata"]
    return f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else str(meta["name"])


def _revision(obj: Json | None) -> Any:
    return obj and obj["metadata"].get("resourceVersion")
