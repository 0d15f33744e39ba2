"""Who watches what: every commit is offered to the watchers of its kind, and each is sent what its selections match.

Rules it keeps: events arrive in the order of revisions, none is lost and none comes twice. An object that begins to match is
ADDED, one that ceases to match is DELETED. An event is encoded once, however many watch it. A watcher that lets QUEUE_LIMIT
events pile up is closed with 410, so that it lists again, instead of growing without bound.

Order to read: Committed, Watcher, Hub.
"""

from __future__ import annotations

from collections.abc import Iterable

import trio
from msgspec import Raw, Struct

from podwire_apiserver.selections import Filter
from podwire_core.errors import ApiError
from podwire_core.objects import Json
from podwire_core.rpc.messages import ADDED, BOOKMARK, DELETED, EMPTY_OBJECT, MODIFIED, RawEvent, encode

QUEUE_LIMIT = 20_000
BATCH_LIMIT = 1_000


class Committed(Struct):
    """One write. `kind` is the canonical name; `value` the stored bytes of `new`, or of `old` if it was deleted."""

    kind: str
    key: str
    old: Json | None
    new: Json | None
    revision: int
    value: bytes
    encoded: dict[tuple[str, str], Raw] = {}

    def event(self, type_: str, as_kind: str) -> Raw:
        if (type_, as_kind) not in self.encoded:
            self.encoded[type_, as_kind] = Raw(encode(RawEvent(type_, as_kind, Raw(self.value), self.revision)))
        return self.encoded[type_, as_kind]


class Want(Struct, frozen=True):
    """One selection: `kind` canonical, `as_kind` as the watcher wrote it."""

    kind: str
    as_kind: str
    filter: Filter

    def event(self, commit: Committed) -> Raw | None:
        before = commit.old is not None and self.filter.matches(commit.old)
        after = commit.new is not None and self.filter.matches(commit.new)
        if not before and not after:
            return None
        return commit.event(DELETED if not after else MODIFIED if before else ADDED, self.as_kind)


def bookmark(as_kind: str, revision: int) -> Raw:
    return Raw(encode(RawEvent(BOOKMARK, as_kind, EMPTY_OBJECT, revision)))


class Watcher:
    def __init__(self, wants: list[Want]) -> None:
        self.wants = wants
        self._queue: list[Raw] = []
        self._wake = trio.Event()
        self._overflow = False

    def offer(self, event: Raw) -> bool:
        """False if this was one too many."""
        if len(self._queue) >= QUEUE_LIMIT:
            self._overflow = True
        else:
            self._queue.append(event)
        self._wake.set()
        return not self._overflow

    async def take(self) -> list[Raw]:
        """The next events, at least one. Raises ApiError(410) if the watcher was too slow."""
        if not self._queue and not self._overflow:
            self._wake = trio.Event()
            await self._wake.wait()
        if self._overflow:
            raise ApiError(410, f"the watcher let {QUEUE_LIMIT} events pile up; list again")
        taken, self._queue = self._queue[:BATCH_LIMIT], self._queue[BATCH_LIMIT:]
        return taken


class Hub:
    def __init__(self) -> None:
        self._by_kind: dict[str, list[tuple[Watcher, Want]]] = {}
        self._watchers: set[Watcher] = set()
        self.sent = self.closed_slow = 0

    def __len__(self) -> int:
        return len(self._watchers)

    def add(self, watcher: Watcher) -> None:
        self._watchers.add(watcher)
        for want in watcher.wants:
            self._by_kind.setdefault(want.kind, []).append((watcher, want))

    def remove(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)
        for want in watcher.wants:
            pairs = self._by_kind.get(want.kind, [])
            self._by_kind[want.kind] = [pair for pair in pairs if pair[0] is not watcher]

    def publish(self, commits: Iterable[Committed]) -> None:
        for commit in commits:
            for watcher, want in tuple(self._by_kind.get(commit.kind, ())):
                event = want.event(commit)
                if event is None:
                    continue
                self.sent += 1
                if not watcher.offer(event):
                    self.closed_slow += 1
                    self.remove(watcher)
