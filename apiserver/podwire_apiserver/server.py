"""The API server's gRPC service: requests to verbs, commits to watch streams; and the upkeep of the history.

Rules it keeps: handlers run one at a time in trio's thread and don't wait within a request, so every request sees and leaves a
consistent state. A watch is one stream for all its selections; events are batched as they come. A silent stream gets a bookmark
every BOOKMARK_INTERVAL seconds, so that its next start is not from a compacted revision.

Order to read: Server (unary calls, watch, upkeep).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

import trio
from msgspec import Raw

from podwire_apiserver.apply import apply_all
from podwire_apiserver.controllers.common import seconds
from podwire_apiserver.resources import Resources, Stored
from podwire_apiserver.runner import Runner
from podwire_apiserver.selections import compile_filter
from podwire_apiserver.state import State, revision_of
from podwire_apiserver.store import StoreError
from podwire_apiserver.watchers import BATCH_LIMIT, Committed, Want, Watcher, bookmark
from podwire_core.errors import ApiError
from podwire_core.kinds import ResourceInfo
from podwire_core.objects import Json
from podwire_core.rpc import messages as m
from podwire_core.rpc.server import Handler, Send, replies, unary

log = logging.getLogger(__name__)

VERSION = "podwire 0.1"
BOOKMARK_INTERVAL = 10.0
UPKEEP_INTERVAL = 30.0
KEEP_REVISIONS, KEEP_SECONDS = 10_000, 300.0  # of history; whichever is more
EVENT_LIFETIME = 3600.0


class Server:
    def __init__(self, resources: Resources, runner: Runner, clock: Callable[[], float]) -> None:
        self._resources, self._runner, self._clock = resources, runner, clock
        self._state: State = resources.state
        self._marks: deque[tuple[float, int]] = deque()  # when which revision was reached

    def handlers(self) -> dict[str, Handler]:
        return {
            "Get": unary(m.GetRequest, self._get),
            "List": unary(m.ListRequest, self._list),
            "Create": unary(m.CreateRequest, self._create),
            "Update": unary(m.UpdateRequest, self._update),
            "Patch": unary(m.PatchRequest, self._patch),
            "Delete": unary(m.DeleteRequest, self._delete),
            "Apply": unary(m.ApplyRequest, self._apply),
            "Resources": unary(m.Empty, self._list_kinds),
            "Info": unary(m.Empty, self._info),
            "Watch": replies(m.WatchRequest, self._watch),
        }

    # --- unary calls --------------------------------

    async def _get(self, request: m.GetRequest) -> m.RawObject:
        return _reply(self._resources.get(request.kind, request.name, request.namespace))

    async def _list(self, request: m.ListRequest) -> m.RawListing:
        items = self._resources.select(request.kind, request.namespace, request.labels, request.fields, request.revision)
        return m.RawListing(
            [_raw(item) for item in items], [revision_of(i) for i in items], request.revision or self._state.revision
        )

    async def _create(self, request: m.CreateRequest) -> m.RawObject:
        if request.dry_run:
            [done] = apply_all(self._resources, [request.object], dry_run=True)
            return _reply(done.object, done.warnings)
        return _stored(self._resources.create(request.object))

    async def _update(self, request: m.UpdateRequest) -> m.RawObject:
        return _stored(self._resources.update(request.object, request.subresource))

    async def _patch(self, request: m.PatchRequest) -> m.RawObject:
        name, namespace = request.name, request.namespace
        return _stored(self._resources.patch(request.kind, name, namespace, request.patch, request.subresource))

    async def _delete(self, request: m.DeleteRequest) -> m.RawObject:
        r = request
        return _reply(self._resources.delete(r.kind, r.name, r.namespace, r.grace, r.propagation, r.uid))

    async def _apply(self, request: m.ApplyRequest) -> list[m.RawApplied]:
        outcomes = apply_all(self._resources, request.objects, request.dry_run)
        return [m.RawApplied(_raw(done.object), revision_of(done.object), done.what, done.warnings) for done in outcomes]

    async def _list_kinds(self, request: m.Empty) -> list[ResourceInfo]:
        return self._state.catalogue.infos()

    async def _info(self, request: m.Empty) -> m.ServerInfo:
        hub, store = self._state.hub, self._state.store
        counters = {"events.sent": hub.sent, "watchers.closed_slow": hub.closed_slow, **self._runner.counters}
        return m.ServerInfo(VERSION, store.revision, store.compacted, len(hub), counters)

    # --- watch --------------------------------

    async def _watch(self, request: m.WatchRequest, send: Send) -> None:
        wants = [self._want(selection) for selection in request.selections]
        if not wants:
            raise ApiError(400, "a watch needs at least one selection")
        first = self._missed(request.selections, wants)
        revision, watcher = self._state.revision, Watcher(wants)
        self._state.hub.add(watcher)
        try:
            first += [bookmark(want.as_kind, revision) for want in wants]
            for start in range(0, len(first), BATCH_LIMIT):
                await send(m.RawBatch(first[start : start + BATCH_LIMIT]))
            while True:
                events: list[Raw] = []
                with trio.move_on_after(BOOKMARK_INTERVAL):
                    events = await watcher.take()
                await send(m.RawBatch(events or [bookmark(want.as_kind, self._state.revision) for want in wants]))
        finally:
            self._state.hub.remove(watcher)

    def _want(self, selection: m.Selection) -> Want:
        info = self._resources.info(selection.kind)
        wanted = compile_filter(info, selection.namespace, selection.labels, selection.fields)
        return Want(self._state.catalogue.name(info), selection.kind, wanted)

    def _missed(self, selections: Sequence[m.Selection], wants: Sequence[Want]) -> list[Raw]:
        """What happened after each selection's revision; without one, what is there."""
        events: list[Raw] = []
        resumed = [(s.since, want) for s, want in zip(selections, wants, strict=True) if s.since]
        for selection, want in zip(selections, wants, strict=True):
            if not selection.since:
                events += self._present(want)
        if resumed:
            for commit in self._state.history(min(since for since, _ in resumed)):
                for since, want in resumed:
                    if commit.revision > since and want.kind == commit.kind and (event := want.event(commit)) is not None:
                        events.append(event)
        return events

    def _present(self, want: Want) -> list[Raw]:
        objects = self._state.view.all(want.kind)
        matching = [(key, objects[key]) for key in sorted(objects) if want.filter.matches(objects[key])]
        return [
            Committed(want.kind, key, None, obj, revision_of(obj), m.encode(obj)).event(m.ADDED, want.as_kind)
            for key, obj in matching
        ]

    # --- upkeep --------------------------------

    async def upkeep(self) -> None:
        """Compaction, and the end of old Events."""
        while True:
            await trio.sleep(UPKEEP_INTERVAL)
            try:
                self.compact()
                self.expire_events()
            except (StoreError, ApiError) as error:  # a full disk must not end the server: reading still works
                log.error("upkeep has to wait: %s", error)

    def compact(self) -> None:
        now, store = self._clock(), self._state.store
        self._marks.append((now, store.revision))
        level = 0
        while self._marks and self._marks[0][0] <= now - KEEP_SECONDS:
            level = self._marks.popleft()[1]
        level = min(level, store.revision - KEEP_REVISIONS)
        if level > store.compacted:
            store.compact(level)

    def expire_events(self) -> None:
        deadline = self._clock() - EVENT_LIFETIME
        for event in list(self._state.view.all("Event").values()):
            last = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp")
            if seconds(last) < deadline:
                meta = event["metadata"]
                self._resources.delete("Event", meta["name"], meta["namespace"])


def _raw(obj: Json) -> Raw:
    return Raw(m.encode(obj))


def _reply(obj: Json, warnings: list[str] | None = None) -> m.RawObject:
    return m.RawObject(_raw(obj), revision_of(obj), warnings or [])


def _stored(stored: Stored) -> m.RawObject:
    return _reply(stored.object, stored.warnings)
