"""The store in SQLite, with kine's schema: one append-only table whose row number is the revision.

Rules it keeps:
* `UNIQUE (name, prev_revision)` is the optimistic lock: two rows can't follow the same one.
* A deletion is a row with `deleted = 1`; its `old_value`, like every row's, tells a watcher with a selector what was there.
* Compaction keeps the newest row of every key and remembers its level in the row "compact_rev_key", as kine does.
* WAL with synchronous=NORMAL: a commit is in the operating system's cache when the call returns, which survives the death of the
  process by any signal. Only a power cut can take the last moments with it (never consistency), and a cluster
  that runs on this machine dies with it anyway; in return a write costs 50 µs and not an fsync.
* A lock file beside the database keeps a second server out for as long as the first lives.

Order to read: open_store, SqliteStore, its errors.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import Compacted, Conflict, Record, StoreError, StoreEvent

_SCHEMA = """
CREATE TABLE IF NOT EXISTS kine (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT,
    created INTEGER,
    deleted INTEGER,
    create_revision INTEGER,
    prev_revision INTEGER,
    lease INTEGER,
    value BLOB,
    old_value BLOB
);
CREATE UNIQUE INDEX IF NOT EXISTS kine_name_prev_revision_uindex ON kine (name, prev_revision);
CREATE INDEX IF NOT EXISTS kine_name_id_index ON kine (name, id);
"""
_LEVEL = "compact_rev_key"
_INSERT = (
    "INSERT INTO kine (name, created, deleted, create_revision, prev_revision, lease, value, old_value)"
    " VALUES (?, ?, ?, ?, ?, 0, ?, ?)"
)


def open_store(directory: Path) -> SqliteStore:
    """The store in this directory, which is made if need be. Raises StoreError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / "store.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreError(f"{directory}: another API server uses this store; stop it or choose another --data") from None
    except OSError as error:
        raise StoreError(f"{directory}: {(error.strerror or str(error)).lower()}; {_remedy(error.errno)}") from None
    path = directory / "store.db"
    try:
        return SqliteStore(path, lock)
    except sqlite3.Error as error:
        os.close(lock)
        raise _explained(error, path) from None


class SqliteStore:
    def __init__(self, path: Path | str, lock: int = -1) -> None:
        self._path, self._lock = path, lock
        # Autocommit: every statement is its own transaction unless `transaction` opened one.
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "cache_size=-8192", "temp_store=MEMORY"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.executescript(_SCHEMA)
        if self._latest(_LEVEL) is None:
            self._db.execute("INSERT INTO kine VALUES (0, ?, 1, 0, 0, 0, 0, x'', x'')", (_LEVEL,))
        self._read_counters()

    def _read_counters(self) -> None:
        self.compacted: int = self._one("SELECT prev_revision FROM kine WHERE name = ?", _LEVEL)
        # The sequence, not MAX(id): compaction may have removed the newest row if it was a deletion.
        self.revision: int = self._one("SELECT COALESCE(MAX(seq), 0) FROM sqlite_sequence WHERE name = ?", "kine")

    def _one(self, sql: str, *args: object) -> int:
        return int(self._db.execute(sql, args).fetchone()[0])

    # --- the five calls --------------------------------

    def get(self, key: str) -> Record | None:
        row = self._latest(key)
        return None if row is None or row[1] else Record(key, row[3], row[0])

    def list(self, prefix: str, revision: int = 0) -> Sequence[Record]:
        revision = revision or self.revision
        self._check(revision)
        rows = self._db.execute(
            "SELECT name, value, id FROM kine JOIN (SELECT MAX(id) AS newest FROM kine"
            " WHERE name >= ? AND name < ? AND id <= ? GROUP BY name) ON id = newest WHERE deleted = 0 ORDER BY name",
            (prefix, _after(prefix), revision),
        )
        return [Record(*row) for row in rows]

    def compare_and_set(self, key: str, expected: int, value: bytes | None) -> StoreEvent:
        row = self._latest(key)
        current = 0 if row is None or row[1] else row[0]
        if current != expected or (value is None and not current):
            raise Conflict(key, current)
        before, created_at = (row[0], row[2]) if row else (0, 0)
        old = row[3] if row and current else None
        try:
            row_values = (
                key,
                not current,
                value is None,
                created_at if current else 0,
                before,
                old if value is None else value,
                old,
            )
            cursor = self._db.execute(_INSERT, row_values)
        except sqlite3.IntegrityError:
            raise Conflict(key, current) from None  # another program writes this file; the constraint held
        except sqlite3.Error as error:
            raise _explained(error, self._path) from None
        self.revision = int(cursor.lastrowid or 0)
        return StoreEvent(key, self.revision, value, old)

    def since(self, revision: int) -> Sequence[StoreEvent]:
        self._check(revision)
        rows = self._db.execute(
            "SELECT name, id, deleted, created, value, old_value FROM kine WHERE id > ? ORDER BY id", (revision,)
        )
        return [StoreEvent(name, id_, None if gone else value, None if new else old) for name, id_, gone, new, value, old in rows]

    def compact(self, revision: int) -> None:
        """Rows up to `revision` that a later row up to `revision` follows, and deletions up to it."""
        revision = min(revision, self.revision)
        if revision <= self.compacted:
            return
        with self.transaction():
            self._db.execute(
                "DELETE FROM kine WHERE id > 0 AND id <= ?1 AND (deleted = 1 OR EXISTS"
                " (SELECT 1 FROM kine AS later WHERE later.name = kine.name AND later.id > kine.id AND later.id <= ?1))",
                (revision,),
            )
            self._db.execute("UPDATE kine SET prev_revision = ? WHERE name = ?", (revision, _LEVEL))
        self.compacted = revision

    # --- transactions, end --------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        if self._db.in_transaction:  # the outer one decides
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._read_counters()
            if isinstance(error, sqlite3.Error):
                raise _explained(error, self._path) from None
            raise

    def close(self) -> None:
        self._db.close()
        if self._lock >= 0:
            os.close(self._lock)

    def _latest(self, key: str) -> tuple[int, int, int, bytes] | None:
        """Revision, deleted, first revision, value."""
        row: tuple[int, int, int, bytes] | None = self._db.execute(
            "SELECT id, deleted, CASE created WHEN 1 THEN id ELSE create_revision END, value"
            " FROM kine WHERE name = ? ORDER BY id DESC LIMIT 1",
            (key,),
        ).fetchone()
        return row

    def _check(self, revision: int) -> None:
        if revision < self.compacted or revision > self.revision:
            raise Compacted(self.compacted)


def _after(prefix: str) -> str:
    """The first string after all that begin with the prefix."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else "\U0010ffff"


# --- errors --------------------------------


def _explained(error: sqlite3.Error, path: Path | str) -> StoreError:
    text = str(error)
    if "full" in text or "disk I/O" in text:
        return StoreError(f"{path}: {text}; free some space, nothing that was stored is lost")
    if "not a database" in text or "malformed" in text:
        return StoreError(f"{path}: {text}; move it away to begin with an empty cluster")
    if "locked" in text:
        return StoreError(f"{path}: {text}; another program has it open")
    if "readonly" in text or "unable to open" in text:
        return StoreError(f"{path}: {text}; check the permissions of the directory")
    return StoreError(f"{path}: {text}")


def _remedy(number: int | None) -> str:
    if number == errno.ENOSPC:
        return "free some space"
    return "choose another --data" if number in (errno.EROFS, errno.ENOTDIR) else "check the permissions of the directory"
