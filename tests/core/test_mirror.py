"""The cache behind a mirror against a naive one; and readers that are slow. The mirror itself, with a server: test_process.py."""

from __future__ import annotations

import trio
from hypothesis import given
from hypothesis import strategies as st

from podwire_core.rpc.messages import ADDED, BOOKMARK, DELETED, MODIFIED, WatchEvent
from podwire_core.rpc.mirror import Cache, _Reader


def obj(name: str, revision: int):
    return {"metadata": {"name": name, "namespace": "ns", "resourceVersion": str(revision)}}


steps = st.lists(
    st.one_of(
        st.tuples(st.just("event"), st.sampled_from("abc")),
        st.tuples(st.just("delete"), st.sampled_from("abc")),
        st.tuples(st.just("relist"), st.sets(st.sampled_from("abc"))),
        st.tuples(st.just("read")),
    ),
    max_size=30,
)


@given(steps)
def test_a_reader_can_follow_from_its_batches_alone(script):
    async def main():
        cache = Cache(["Pod"])
        reader, followed = _Reader(cache), {}

        async def read():
            with trio.move_on_after(0):
                await trio.lowlevel.checkpoint()
            if reader._pending:
                with trio.CancelScope(shield=True), trio.move_on_after(1):
                    for change in await anext_or_nothing(reader):
                        assert followed.get(change.key) == change.old
                        if change.new is None:
                            del followed[change.key]
                        else:
                            followed[change.key] = change.new
            assert followed == cache.objects["Pod"]

        for revision, (what, *args) in enumerate(script, 1):
            there = cache.objects["Pod"]
            if what == "event":
                type_ = MODIFIED if f"ns/{args[0]}" in there else ADDED
                reader.add(cache.event(WatchEvent(type_, "Pod", obj(args[0], revision), revision)))
            elif what == "delete":
                reader.add(cache.event(WatchEvent(DELETED, "Pod", obj(args[0], revision), revision)))
            elif what == "relist":
                reader.add(cache.replace("Pod", [obj(name, revision) for name in sorted(args[0])]))
            else:
                await read()
        await read()

    trio.run(main)


async def anext_or_nothing(reader):
    """A reader waits if all that was pending has cancelled itself out."""
    with trio.move_on_after(0.001):
        return await reader.__anext__()
    return []


def test_a_slow_reader_gets_one_change_an_object():
    async def main():
        cache = Cache(["Pod"])
        cache.replace("Pod", [obj("old", 1)])
        reader = _Reader(cache)
        [first] = await reader.__anext__()
        assert (first.key, first.old, first.new) == ("ns/old", None, obj("old", 1))
        for revision in range(2, 100):
            reader.add(cache.event(WatchEvent(MODIFIED, "Pod", obj("old", revision), revision)))
        reader.add(cache.event(WatchEvent(ADDED, "Pod", obj("brief", 100), 100)))
        reader.add(cache.event(WatchEvent(DELETED, "Pod", obj("brief", 101), 101)))
        reader.add(cache.event(WatchEvent(BOOKMARK, "Pod", {}, 102)))
        [change] = await reader.__anext__()
        assert (change.old, change.new) == (obj("old", 1), obj("old", 99))
        with trio.move_on_after(0) as nothing:
            await reader.__anext__()
        assert nothing.cancelled_caught

    trio.run(main)


def test_a_relist_tells_only_what_differs():
    cache = Cache(["Pod"])
    cache.replace("Pod", [obj("a", 1), obj("b", 2), obj("c", 3)])
    changed = cache.replace("Pod", [obj("a", 1), obj("b", 5), obj("d", 6)])
    assert sorted(key for _, key, _ in changed) == ["ns/b", "ns/c", "ns/d"]
