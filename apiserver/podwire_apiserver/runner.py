"""Drives the controllers over the server's state: one task at a time, its actions performed at once.

Rules it keeps: a controller always sees what was written before, its own writes included, and between a reconcile and its
writes nothing else runs, so they can't conflict with clients. One controller's exception is logged, counted and retried with
back-off, and ends nothing else. Requests are served between slices of tasks; a slice is one transaction of the store, since a
commit costs more than a write. A write that the server refuses (a terminating namespace …) makes the task come back later.

Order to read: Runner (the loop, a task), actions, events.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable

import trio

from podwire_apiserver.controllers.actions import Again, AnyAction, Bind, Create, Delete, Event, Patch, Update, UpdateStatus
from podwire_apiserver.controllers.common import micro_timestamp, short_hash, timestamp, uid_of
from podwire_apiserver.controllers.engine import Controller, Engine, Task
from podwire_apiserver.controllers.view import Change
from podwire_apiserver.resources import Resources
from podwire_apiserver.watchers import Committed
from podwire_core.errors import ApiError
from podwire_core.objects import Json, key_of

log = logging.getLogger(__name__)

FIRST_DELAY, LAST_DELAY = 0.05, 30.0
SLICE = 0.004  # seconds of controllers' work before requests are served again
YIELDS = 3  # turns of trio's loop that a waiting request needs: to be spawned, to run, to be answered
RESYNC = 300.0


class Runner:
    def __init__(self, resources: Resources, controllers: Iterable[Controller], clock: Callable[[], float]) -> None:
        self._resources, self._clock = resources, clock
        self.engine = Engine(resources.state.view, list(controllers))
        self.counters: Counter[str] = Counter()
        self._failures: Counter[tuple[str, str]] = Counter()
        self._wake = trio.Event()
        resources.state.listeners.append(self._changed)
        self._look_at_everything()

    def _look_at_everything(self) -> None:
        view = self.engine.view
        for kind in view.kinds():
            for key, obj in list(view.all(kind).items()):
                self._note(Change(kind, key, None, obj))

    def _changed(self, commit: Committed) -> None:
        self._note(Change(commit.kind, commit.key, commit.old, commit.new))
        self._wake.set()

    def _note(self, change: Change) -> None:
        try:
            self.engine.changed(change)
        except Exception:
            self.counters["controllers.wake_failures"] += 1
            log.exception("a controller failed on the change of %s %s", change.kind, change.key)

    # --- the loop --------------------------------

    async def run(self) -> None:
        while True:
            if not self.work():
                self.counters["controllers.lost_slices"] += 1
                await trio.sleep(1.0)
            at = self.engine.next_time()
            if at is not None and at <= self._clock():
                for _ in range(YIELDS):
                    await trio.lowlevel.checkpoint()
                continue
            self._wake = trio.Event()
            with trio.move_on_after(RESYNC if at is None else max(0.0, at - self._clock())):
                await self._wake.wait()

    def work(self) -> bool:
        """As much as is due and fits into a slice. False if it could not be stored; then everything will be looked at again."""
        deadline = time.monotonic() + SLICE
        try:
            with self._resources.state.transaction():
                while time.monotonic() < deadline and self.step():
                    pass
        except ApiError as error:
            log.error("controllers' writes were not stored: %s", error)
            self._look_at_everything()
            return False
        return True

    def step(self) -> bool:
        """One task; False if none is due."""
        task = self.engine.take(self._clock())
        if task is None:
            return False
        name = (task.controller.name, task.key)
        try:
            now = self._clock()
            for action in task.controller.reconcile(self.engine.view, task.key, now):
                self._perform(action, task, now)
            self._failures.pop(name, None)
        except ApiError as error:
            log.info("%s %s: %s", *name, error)
            self.counters["controllers.refused"] += 1
            self._later(task)
        except Exception:
            log.exception("controller %s failed on %s", *name)
            self.counters["controllers.failures"] += 1
            self.counters[f"controllers.failures.{task.controller.name}"] += 1
            self._later(task)
        return True

    def _later(self, task: Task) -> None:
        name = (task.controller.name, task.key)
        self._failures[name] += 1
        exponent = min(self._failures[name] - 1, math.ceil(math.log2(LAST_DELAY / FIRST_DELAY)))
        self.engine.again(task, self._clock() + min(LAST_DELAY, FIRST_DELAY * 2**exponent))

    # --- actions --------------------------------

    def _perform(self, action: AnyAction, task: Task, now: float) -> None:
        resources = self._resources
        match action:
            case Create(obj):
                self._create(obj)
            case Update(obj):
                self._write(obj, "")
            case UpdateStatus(obj):
                self._write(obj, "status")
            case Patch(kind, key, patch, subresource, uid):
                precondition = {"metadata": {**(patch.get("metadata") or {}), "uid": uid}} if uid else {}
                resources.patch(kind, *_split(key), {**patch, **precondition}, subresource)
            case Bind(key, uid, node):
                resources.bind(key, uid, node)
            case Delete(kind, key, uid, grace, propagation):
                name, namespace = _split(key)
                resources.delete(kind, name, namespace, grace, propagation, uid)
            case Event():
                self._event(action, now)
            case Again(at):
                self.engine.again(task, at)

    def _create(self, obj: Json) -> None:
        try:
            self._resources.create(obj)
        except ApiError as error:
            if error.reason != "AlreadyExists":  # that is an answer: the controller has seen, or will see, the other one
                raise

    def _write(self, obj: Json, subresource: str) -> None:
        """Nothing ran since the reconcile but its own writes, so the newest revision is the one it means."""
        info = self._resources.info_of(obj)
        current = self._resources.state.get(info, key_of(obj))
        if current is not None and uid_of(current) == uid_of(obj):
            version = current["metadata"]["resourceVersion"]
            self._resources.update({**obj, "metadata": {**obj["metadata"], "resourceVersion": version}}, subresource)

    # --- events --------------------------------

    def _event(self, event: Event, now: float) -> None:
        """A repetition counts up the Event that is there. An Event that can't be stored is not worth a retry."""
        about, meta = event.regarding, event.regarding["metadata"]
        namespace = meta.get("namespace") or "default"
        words = (about["kind"], uid_of(about), event.type, event.reason, event.message, event.source)
        name = f"{meta['name'][:200]}.{short_hash(*words)}"
        known = self._resources.state.view.get("Event", f"{namespace}/{name}")
        try:
            if known is not None:
                seen = {"count": known.get("count", 1) + 1, "lastTimestamp": timestamp(now)}
                self._resources.patch("Event", name, namespace, seen)
            else:
                self._resources.create(_new_event(event, name, namespace, now))
        except ApiError as error:
            self.counters["controllers.lost_events"] += 1
            log.info("event about %s %s is lost: %s", about["kind"], meta["name"], error)


def _split(key: str) -> tuple[str, str]:
    """ "namespace/name" → name, namespace."""
    namespace, _, name = key.rpartition("/")
    return name, namespace


def _new_event(event: Event, name: str, namespace: str, now: float) -> Json:
    about, meta = event.regarding, event.regarding["metadata"]
    fields = ("namespace", "name", "uid", "resourceVersion")
    reference = {"apiVersion": about["apiVersion"], "kind": about["kind"]} | {f: meta[f] for f in fields if f in meta}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": reference,
        "type": event.type,
        "reason": event.reason,
        "message": event.message,
        "source": {"component": event.source},
        "reportingComponent": event.source,
        "firstTimestamp": timestamp(now),
        "lastTimestamp": timestamp(now),
        "eventTime": micro_timestamp(now),
        "count": 1,
    }
