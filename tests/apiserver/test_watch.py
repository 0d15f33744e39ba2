"""Watches: what a watcher is told adds up to what is there, from wherever it resumes."""

from __future__ import annotations

import contextlib

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_apiserver import server as server_module
from podwire_apiserver import watchers
from podwire_core.errors import ApiError
from podwire_core.rpc.messages import BOOKMARK, Batch, Selection, WatchRequest, decode, encode, received


class Follower:
    """A client of the watch handler, without a network. `objects` is what it was told, by name."""

    def __init__(self, world, *selections: Selection) -> None:
        self.world, self.request = world, WatchRequest(list(selections))
        self.events, self.objects, self.revision = [], {}, 0
        self.batches = 0

    async def run(self) -> None:
        await self.world.server._watch(self.request, self.take)

    async def take(self, batch) -> None:
        self.batches += 1
        for event in decode(Batch, encode(batch)).events:
            received(event)
            self.events.append((event.type, event.object.get("metadata", {}).get("name", ""), event.revision))
            assert event.revision >= self.revision or event.type == BOOKMARK or not self.revision
            self.revision = max(self.revision, event.revision)
            if event.type == BOOKMARK:
                continue
            name = event.object["metadata"]["name"]
            assert (name in self.objects) == (event.type != "ADDED")
            if event.type == "DELETED":
                del self.objects[name]
            else:
                assert event.object["metadata"]["resourceVersion"] == str(event.revision)
                self.objects[name] = event.object
        await trio.lowlevel.checkpoint()

    def changes(self):
        return [(kind, name) for kind, name, _ in self.events if kind != BOOKMARK]


def following(world, test, *selections):
    async def main():
        follower = Follower(world, *selections)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follower.run)
            await trio.testing.wait_all_tasks_blocked()
            await test(follower)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        return follower

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def error_of_following(world, test, *selections):
    with pytest.RaisesGroup(ApiError) as caught:
        following(world, test, *selections)
    return caught.value.exceptions[0]


def test_present_objects_then_a_bookmark_then_changes(world):
    world.make("ConfigMap", "a")

    async def test(follower):
        assert follower.events == [("ADDED", "a", world.state.revision), (BOOKMARK, "", world.state.revision)]
        world.make("ConfigMap", "b", data={"v": "1"})
        world.api.patch("ConfigMap", "b", "default", {"data": {"v": "2"}})
        world.make("Secret", "not-of-interest")
        world.api.delete("ConfigMap", "b")

    follower = following(world, test, Selection("ConfigMap"))
    assert follower.changes() == [("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "b")]


def test_several_selections_in_one_stream(world):
    async def test(follower):
        world.make("ConfigMap", "a")
        world.make("Secret", "b")
        world.make("ConfigMap", "c", "kube-system")

    selections = Selection("cm", "default"), Selection("Secret")
    assert following(world, test, *selections).changes() == [("ADDED", "a"), ("ADDED", "b")]


def test_what_begins_or_ceases_to_match_is_added_or_deleted(world):
    async def test(follower):
        world.make("ConfigMap", "c")
        for labels in ({"app": "web"}, {"app": "web", "x": "y"}, {"app": "db"}, {"app": "web"}):
            world.api.patch("ConfigMap", "c", "default", {"metadata": {"labels": {"x": None, **labels}}})

    changes = following(world, test, Selection("ConfigMap", labels="app=web")).changes()
    assert [kind for kind, _ in changes] == ["ADDED", "MODIFIED", "DELETED", "ADDED"]


def test_a_resumed_watch_misses_nothing_and_repeats_nothing(world):
    world.make("ConfigMap", "a")
    since = world.state.revision
    world.make("ConfigMap", "b")
    world.api.delete("ConfigMap", "a")

    async def main():
        follower = Follower(world, Selection("ConfigMap", since=since))
        follower.objects = {"a": None}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follower.run)
            await trio.testing.wait_all_tasks_blocked()
            world.make("ConfigMap", "c")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        return follower

    assert trio.run(main).changes() == [("ADDED", "b"), ("DELETED", "a"), ("ADDED", "c")]


def test_a_compacted_or_unknown_revision_is_410(world):
    world.make("ConfigMap", "a")
    then = world.state.revision
    world.make("ConfigMap", "b")
    world.store.compact(world.state.revision)
    for since in (then, 1, world.state.revision + 5):
        assert error_of_following(world, None, Selection("ConfigMap", since=since)).code == 410


def test_silence_is_broken_by_bookmarks(world):
    async def test(follower):
        world.make("Secret", "s")  # moves the revision, but is not watched
        await trio.sleep(server_module.BOOKMARK_INTERVAL * 2.5)

    follower = following(world, test, Selection("ConfigMap"))
    assert [kind for kind, _, _ in follower.events] == [BOOKMARK] * 3
    assert follower.revision == world.state.revision


def test_a_watcher_that_is_too_slow_is_closed_with_410(world, monkeypatch):
    monkeypatch.setattr(watchers, "QUEUE_LIMIT", 5)

    async def test(follower):
        for number in range(20):
            world.make("ConfigMap", f"c{number}")

    assert error_of_following(world, test, Selection("ConfigMap")).code == 410
    assert world.state.hub.closed_slow == 1
    assert len(world.state.hub) == 0


def test_many_events_come_in_few_batches(world):
    async def test(follower):
        with world.state.transaction():
            for number in range(3000):
                world.make("ConfigMap", f"c{number}")

    follower = following(world, test, Selection("ConfigMap"))
    assert len(follower.objects) == 3000
    assert follower.batches <= 5


def test_an_ended_watch_leaves_nothing_behind(world):
    async def test(follower):
        assert len(world.state.hub) == 1

    following(world, test, Selection("ConfigMap"), Selection("Pod"))
    assert len(world.state.hub) == 0
    assert not any(world.state.hub._by_kind.values())


# --- against the model: any script of writes, any points of resumption --------------------------------

names = st.sampled_from(["a", "b", "c"])
writes = st.one_of(
    st.tuples(st.just("put"), names, st.sampled_from(["", "web", "db"])),
    st.tuples(st.just("delete"), names),
    st.tuples(st.just("compact")),
    st.tuples(st.just("resume")),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(writes, max_size=25), st.sampled_from(["", "app=web", "app!=web"]))
def test_what_a_follower_was_told_is_what_a_list_says(make_script_world, script, labels):
    world = make_script_world
    for leftover in world.api.select("ConfigMap"):
        world.api.delete("ConfigMap", leftover["metadata"]["name"])

    async def main():
        follower = Follower(world, Selection("ConfigMap", labels=labels))
        revision = 0
        async with trio.open_nursery() as nursery:
            scope = await start(nursery, follower)
            for what, *args in script:
                if what == "resume":  # the connection breaks and comes back
                    scope.cancel()
                    await trio.testing.wait_all_tasks_blocked()
                    follower.request = WatchRequest([Selection("ConfigMap", labels=labels, since=follower.revision)])
                    scope = await start(nursery, follower)
                else:
                    write(world, what, *args)
                    if what == "put" and args[1]:
                        await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        listed = {obj["metadata"]["name"]: obj for obj in world.api.select("ConfigMap", labels=labels)}
        assert follower.objects == listed
        return revision

    trio.run(main)


async def start(nursery, follower):
    scope = trio.CancelScope()

    async def run():
        with scope:
            await follower.run()

    nursery.start_soon(run)
    await trio.testing.wait_all_tasks_blocked()
    return scope


def write(world, what, name="", label=""):
    if what == "compact":  # only what a follower that is up to date doesn't need
        world.store.compact(world.state.revision - 30)
    elif what == "delete":
        with contextlib.suppress(ApiError):
            world.api.delete("ConfigMap", name)
    else:
        labels = {"labels": {"app": label}} if label else {}
        if world.state.view.get("ConfigMap", f"default/{name}") is None:
            world.make("ConfigMap", name, metadata=labels)
        else:
            world.api.update(world.obj("ConfigMap", name, metadata=labels))


@pytest.fixture(scope="module")
def make_script_world(tmp_path_factory):
    from tests.apiserver.conftest import World

    world = World(tmp_path_factory.mktemp("watch"))
    yield world
    world.store.close()
