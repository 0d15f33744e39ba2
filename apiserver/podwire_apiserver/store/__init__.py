"""The store: keys, values, one counter of revisions, and the history since the last compaction. Five calls, as etcd has them.

Rules it keeps: every write has the next revision; a write succeeds only against the revision its writer saw (compare and set),
so lost updates can't happen; `since` gives every event after a revision, in order, or Compacted; what a call has returned
survives kill -9. The caller is one thread, so writers never wait for each other; who watches is woken by the one writer
(watchers.py), never by polling.

Order to read: this file, sqlite.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from msgspec import Struct


class Record(Struct, frozen=True):
    key: str
    value: bytes
    revision: int


class StoreEvent(Struct, frozen=True):
    """`value` None: deleted; `old` None: created. `revision` is that of the write."""

    key: str
    revision: int
    value: bytes | None
    old: bytes | None


class Conflict(Exception):
    """A write against another revision than the current one (0: the key does not exist)."""

    def __init__(self, key: str, current: int) -> None:
        super().__init__(f"{key} is at revision {current}")
        self.key, self.current = key, current


class Compacted(Exception):
    """The history that was asked for is gone; it begins after `level`."""

    def __init__(self, level: int) -> None:
        super().__init__(f"compacted up to revision {level}")
        self.level = level


class StoreError(Exception):
    """The store can't be opened or written; the message says in one line what to do about it."""


class Store(Protocol):
    revision: int  # of the last write
    compacted: int

    def get(self, key: str) -> Record | None: ...

    def list(self, prefix: str, revision: int = 0) -> Sequence[Record]:
        """All keys under a prefix, sorted, now or as they were. Raises Compacted."""

    def compare_and_set(self, key: str, expected: int, value: bytes | None) -> StoreEvent:
        """Write if the key is at `expected` (0: absent); None deletes. Raises Conflict."""

    def since(self, revision: int) -> Sequence[StoreEvent]:
        """Every event after this revision. Raises Compacted."""

    def compact(self, revision: int) -> None:
        """Forget what is only needed to see the state before this revision."""

    def transaction(self) -> AbstractContextManager[None]:
        """All writes inside it, or, after an exception, none."""

    def close(self) -> None: ...
