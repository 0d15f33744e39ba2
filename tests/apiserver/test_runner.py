"""The runner: controllers that fail, are refused, want to be woken, and the Events they write."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from podwire_apiserver.controllers import Again, Bind, Create, Delete, Event, Patch, Update, UpdateStatus
from podwire_apiserver.store import StoreError

POD = {"containers": [{"name": "c", "image": "nginx"}]}


class Scripted:
    """Answers what it is told; wakes with the key of every change of its kinds."""

    def __init__(self, name, kinds, answer):
        self.name, self.kinds, self.answer = name, kinds, answer
        self.seen = []

    def wakes(self, view, change):
        return [change.key]

    def reconcile(self, view, key, now):
        self.seen.append((key, now))
        return self.answer(view, key)


def config_map(name, namespace="default", **fields):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, **fields}


def steps(world):
    while world.runner.step():
        pass


def test_one_controllers_failure_is_counted_retried_and_ends_nothing_else(make_world, caplog):
    broken = Scripted("broken", ["Node"], lambda view, key: 1 / 0)
    works = Scripted("works", ["Node"], lambda view, key: [Create(config_map(f"for-{key}"))])
    world = make_world(controllers=[broken, works])
    world.make("Node", "n")
    steps(world)
    assert world.api.get("ConfigMap", "for-n")
    assert "controller broken failed on n" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert world.runner.counters["controllers.failures"] == world.runner.counters["controllers.failures.broken"] == 1
    waits = []
    for _ in range(12):
        waits.append(world.runner.engine.next_time() - world.now)
        world.now += waits[-1]
        steps(world)
    assert waits[:4] == pytest.approx([0.05, 0.1, 0.2, 0.4])
    assert waits[-1] == pytest.approx(30)
    assert len(works.seen) == 1


def test_a_controller_that_fails_on_a_change_does_not_fail_the_write(make_world, caplog):
    broken = Scripted("broken", ["Node"], lambda view, key: [])
    broken.wakes = lambda view, change: change.nonsense
    world = make_world(controllers=[broken])
    assert world.make("Node", "n")
    assert world.runner.counters["controllers.wake_failures"] == 1
    assert "failed on the change of Node n" in caplog.text


def test_every_action(make_world):
    def act(view, key):
        pod, deployment = view.get("Pod", "default/p"), view.get("ConfigMap", "default/c")
        return [
            Create(config_map("new")),
            Create(config_map("c")),  # is there: no error, and what follows is done
            Update({**deployment, "data": {"a": "b"}}),
            Update({**deployment, "data": {"a": "c"}}),  # of the same revision: its own write came between
            UpdateStatus({**pod, "status": {"phase": "Running"}}),
            Patch("Pod", "default/p", {"metadata": {"labels": {"x": "y"}}}, uid=pod["metadata"]["uid"]),
            Bind("default/p", pod["metadata"]["uid"], "n"),
            Delete("Secret", "default/s"),
            Again(world.now + 7),
        ]

    scripted = Scripted("all", ["Node"], act)
    world = make_world(controllers=[scripted])
    world.make("Pod", "p", spec=POD)
    world.make("ConfigMap", "c")
    world.make("Secret", "s")
    world.make("Node", "n")
    steps(world)
    pod = world.api.get("Pod", "p")
    assert (pod["spec"]["nodeName"], pod["status"]["phase"], pod["metadata"]["labels"]) == ("n", "Running", {"x": "y"})
    assert world.api.get("ConfigMap", "c")["data"] == {"a": "c"}
    assert world.api.get("ConfigMap", "new")
    assert world.api.select("Secret") == []
    assert world.runner.counters == {}
    assert world.runner.engine.next_time() == world.now + 7


def test_what_the_server_refuses_is_tried_again(make_world):
    wanted = Scripted("w", ["Node"], lambda view, key: [Create(config_map("c", "later")), Create(config_map("after"))])
    world = make_world(controllers=[wanted])
    world.make("Node", "n")
    steps(world)
    assert world.runner.counters["controllers.refused"] == 1
    assert world.api.select("ConfigMap") == []  # the first refusal ends the rest
    world.make("Namespace", "later")
    world.now += 1
    steps(world)
    assert [obj["metadata"]["name"] for obj in world.api.select("ConfigMap")] == ["after", "c"]


def test_a_patch_or_delete_of_another_object_of_the_name_is_refused(make_world):
    actions = [Patch("ConfigMap", "default/c", {"data": {"a": "b"}}, uid="gone"), Delete("ConfigMap", "default/c", "gone")]
    for action in actions:
        world = make_world(controllers=[Scripted("w", ["Node"], lambda view, key, action=action: [action])])
        before = world.make("ConfigMap", "c")
        world.make("Node", "n")
        steps(world)
        assert world.api.get("ConfigMap", "c") == before
        assert world.runner.counters["controllers.refused"] == 1


def test_events_are_counted_not_repeated(make_world):
    def say(view, key):
        return [Event(view.get("Node", key), "Warning", "Tired", "it sleeps", "w")]

    world = make_world(controllers=[Scripted("w", ["Node"], say)])
    world.make("Node", "n")
    steps(world)
    for number in range(3):
        world.now += 60
        world.api.patch("Node", "n", "", {"metadata": {"labels": {"x": str(number)}}})
        steps(world)
    [event] = world.api.select("Event")
    assert (event["count"], event["reason"], event["involvedObject"]["name"]) == (4, "Tired", "n")
    assert event["firstTimestamp"] < event["lastTimestamp"]
    assert world.api.select("Event", "", "", "involvedObject.kind=Node,reason=Tired,type=Warning") == [event]
    world.now += 3500
    world.server.expire_events()
    assert world.api.select("Event") == [event]
    world.now += 101
    world.server.expire_events()
    assert world.api.select("Event") == []


def test_a_full_disk_loses_a_slice_and_everything_is_looked_at_again(make_world):
    big = Scripted("w", ["Node"], lambda view, key: [Create(config_map(f"for-{key}", extra="x" * 300_000))])
    world = make_world(controllers=[big])
    world.make("Node", "n")
    [pages] = world.store._db.execute("PRAGMA page_count").fetchone()
    world.store._db.execute(f"PRAGMA max_page_count = {pages}")
    assert not world.runner.work()
    assert world.api.select("ConfigMap") == []
    world.store._db.execute("PRAGMA max_page_count = 100000")
    world.now += 60
    assert world.runner.work()
    assert world.api.get("ConfigMap", "for-n")


def test_the_loop_sleeps_until_a_change_or_a_time(make_world):
    again = Scripted("w", ["Node"], lambda view, key: [Again(world.now + 100)] if len(again.seen) < 2 else [])
    world = make_world(controllers=[again])

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.runner.run)
            await trio.testing.wait_all_tasks_blocked()
            assert again.seen == []
            world.make("Node", "n")
            await trio.testing.wait_all_tasks_blocked()
            assert len(again.seen) == 1
            world.now += 100
            await trio.sleep(101)
            assert [key for key, _ in again.seen] == ["n", "n"]
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_everything_there_is_looked_at_after_a_start(make_world):
    seen = Scripted("w", ["Node"], lambda view, key: [])
    world = make_world(controllers=[seen])
    world.make("Node", "n")
    steps(world)
    world.restart()
    steps(world)
    assert [key for key, _ in seen.seen] == ["n", "n"]


def test_history_is_kept_for_a_while(make_world, monkeypatch):
    from podwire_apiserver import server

    monkeypatch.setattr(server, "KEEP_REVISIONS", 5)
    world = make_world()
    for number in range(50):
        world.make("ConfigMap", f"c{number}")
        if number % 10 == 0:
            world.server.compact()
    assert world.store.compacted == 0
    world.now += 400
    world.server.compact()
    assert world.store.compacted == world.state.revision - 9  # as far as it had come 300 s ago
    world.now += 400
    world.server.compact()
    assert world.store.compacted == world.state.revision - 5  # and these many revisions in any case


def test_upkeep_outlives_a_full_disk(make_world, monkeypatch, caplog):
    world = make_world()
    calls = []

    def refuse():
        calls.append("compact")
        raise StoreError("store.db: database or disk is full")

    monkeypatch.setattr(world.server, "compact", refuse)

    async def main():
        with trio.move_on_after(100):
            await world.server.upkeep()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(calls) == 3
    assert "upkeep has to wait: store.db: database or disk is full" in caplog.text
