"""The store against a naive model of the same five calls, and what only a store on disk has: locks, kill -9, full disks."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_apiserver.store import Compacted, Conflict, Record, StoreError, StoreEvent
from podwire_apiserver.store.sqlite import SqliteStore, open_store


class Naive:
    """Every write ever made, in a list."""

    def __init__(self) -> None:
        self.events: list[StoreEvent] = []
        self.compacted = 0

    @property
    def revision(self) -> int:
        return len(self.events)

    def list(self, prefix, revision=0):
        self._check(revision or self.revision)
        found: dict[str, Record] = {}
        for event in self.events[: revision or self.revision]:
            found.pop(event.key, None)
            if event.value is not None:
                found[event.key] = Record(event.key, event.value, event.revision)
        return [found[key] for key in sorted(found) if key.startswith(prefix)]

    def get(self, key):
        return next((record for record in self.list(key, self.revision) if record.key == key), None)

    def compare_and_set(self, key, expected, value):
        record = self.get(key)
        current = record.revision if record else 0
        if current != expected or (value is None and not record):
            raise Conflict(key, current)
        self.events.append(StoreEvent(key, self.revision + 1, value, record.value if record else None))
        return self.events[-1]

    def since(self, revision):
        self._check(revision)
        return self.events[revision:]

    def compact(self, revision):
        self.compacted = max(self.compacted, min(revision, self.revision))

    def _check(self, revision):
        if revision < self.compacted or revision > self.revision:
            raise Compacted(self.compacted)


def outcome(function, *args):
    try:
        result = function(*args)
    except (Conflict, Compacted) as error:
        return type(error), str(error)
    return list(result) if isinstance(result, list) else result


keys = st.sampled_from(["/a/x", "/a/y", "/a/y/z", "/ab", "/b/x"])
values = st.one_of(st.none(), st.binary(max_size=4))
back = st.integers(0, 12)
steps = st.one_of(
    st.tuples(st.just("set"), keys, st.one_of(st.just("current"), back), values),
    st.tuples(st.just("list"), st.sampled_from(["/a/", "/", "/b/"]), back),
    st.tuples(st.just("since"), back),
    st.tuples(st.just("compact"), back),
    st.tuples(st.just("restart")),
    st.tuples(st.just("undo"), st.lists(st.tuples(keys, values), max_size=3)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=30))
def test_it_does_what_the_naive_model_does(tmp_path_factory, script):
    path = tmp_path_factory.mktemp("store") / "store.db"
    model, store = Naive(), SqliteStore(path)
    for what, *args in script:
        if what == "set":
            key, expected, value = args
            record = model.get(key)
            expected = (record.revision if record else 0) if expected == "current" else max(0, model.revision - expected)
            assert outcome(store.compare_and_set, key, expected, value) == outcome(model.compare_and_set, key, expected, value)
        elif what == "list":
            revision = max(0, model.revision - args[1] + 1)
            assert outcome(store.list, args[0], revision) == outcome(model.list, args[0], revision)
        elif what == "since":
            revision = max(0, model.revision - args[0] + 1)
            assert outcome(store.since, revision) == outcome(model.since, revision)
        elif what == "compact":
            store.compact(max(0, model.revision - args[0]))
            model.compact(max(0, model.revision - args[0]))
        elif what == "restart":
            store.close()
            store = SqliteStore(path)
        else:
            with contextlib.suppress(ZeroDivisionError), store.transaction():
                for key, value in args[0]:
                    record = store.get(key)
                    if record or value is not None:
                        store.compare_and_set(key, record.revision if record else 0, value)
                raise ZeroDivisionError
        assert (store.revision, store.compacted) == (model.revision, model.compacted)
        for key in ("/a/x", "/a/y", "/ab"):
            assert store.get(key) == model.get(key)
    store.close()


def test_compaction_frees_rows_and_keeps_what_is_there(tmp_path):
    store = SqliteStore(tmp_path / "s.db")
    revision = 0
    for number in range(100):
        revision = store.compare_and_set("/a", revision, str(number).encode()).revision
    store.compare_and_set("/b", 0, b"b")
    store.compare_and_set("/b", store.revision, None)
    store.compact(store.revision)
    [rows] = store._db.execute("SELECT COUNT(*) FROM kine WHERE id > 0").fetchone()
    assert rows == 1
    assert store.get("/a") == Record("/a", b"99", 100)
    assert store.compare_and_set("/b", 0, b"again").revision == 103


def test_the_schema_is_kines(tmp_path):
    store = SqliteStore(tmp_path / "s.db")
    first = store.compare_and_set("/a", 0, b"1").revision
    second = store.compare_and_set("/a", first, b"2").revision
    store.compare_and_set("/a", second, None)
    columns = "id, name, created, deleted, create_revision, prev_revision, value, old_value"
    assert store._db.execute(f"SELECT {columns} FROM kine WHERE id > 0 ORDER BY id").fetchall() == [
        (1, "/a", 1, 0, 0, 0, b"1", None),
        (2, "/a", 0, 0, 1, 1, b"2", b"1"),
        (3, "/a", 0, 1, 1, 2, b"2", b"2"),
    ]
    with pytest.raises(sqlite3.IntegrityError, match=r"UNIQUE.*name, kine.prev_revision"):
        store._db.execute("INSERT INTO kine (name, prev_revision) VALUES ('/a', 1)")


def test_only_one_server_has_a_store(tmp_path):
    first = open_store(tmp_path)
    with pytest.raises(StoreError, match="another API server uses this store; stop it or choose another --data"):
        open_store(tmp_path)
    first.close()
    open_store(tmp_path).close()


def test_a_directory_that_cannot_be_used_says_why(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="not a directory; choose another --data"):
        open_store(tmp_path / "file" / "data")
    (tmp_path / "store.db").write_bytes(b"not SQLite at all" * 100)
    with pytest.raises(StoreError, match="not a database; move it away to begin with an empty cluster"):
        open_store(tmp_path)


def test_a_full_disk_refuses_the_write_and_loses_nothing(tmp_path):
    store = open_store(tmp_path)
    store.compare_and_set("/a", 0, b"kept")
    [pages] = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")  # what SQLite calls a full disk
    with pytest.raises(StoreError, match="database or disk is full; free some space"):
        store.compare_and_set("/b", 0, bytes(1_000_000))
    assert store.get("/a") == Record("/a", b"kept", 1)
    assert store.get("/b") is None
    store._db.execute("PRAGMA max_page_count = 100000")
    assert store.compare_and_set("/b", 0, b"now").revision == 2
    store.close()


WRITER = """
import sys
from pathlib import Path
from podwire_apiserver.store.sqlite import open_store
store = open_store(Path(sys.argv[1]))
while True:
    store.compare_and_set(f"/key/{store.revision:06}", 0, bytes(500))
    print(store.revision, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path):
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        acknowledged = 0
        for line in writer.stdout:
            acknowledged = int(line)
            if acknowledged % 200 == 0:
                os.kill(writer.pid, signal.SIGKILL)
                break
        rest = writer.stdout.read().split()
        writer.wait()
        writer.stdout.close()
        acknowledged = int(rest[-1]) if rest and rest[-1].isdigit() and len(rest[-1]) >= len(str(acknowledged)) else acknowledged
        store = open_store(tmp_path)
        assert store.revision >= acknowledged
        assert len(store.list("/key/")) == store.revision
        assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        store.close()
