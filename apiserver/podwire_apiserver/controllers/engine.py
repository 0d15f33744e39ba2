"""The controllers' work queue: which controller has to look at which key, and when. No I/O, no clock, no threads.

Rules it keeps (level-triggered, as client-go's work queues): a key is queued once however often it is woken; a reconcile
sees the View of that moment, never the change that woke it; keys are taken in the order in which they were first woken.
Whoever drives the engine performs the actions of one reconcile and applies their results to the View before it takes the
next key: so a controller sees its own writes, and needs no "expectations".

To drive it: `engine.changed(view.apply(…))` for every change; while there is a `task = engine.take(now)`, perform
`task.controller.reconcile(view, task.key, now)`; `engine.again(task, at)` for an Again or a refused write; then sleep until
`engine.next_time()`.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from msgspec import Struct

from .actions import AnyAction
from .view import Change, View


class Controller(Protocol):
    """`kinds`: of which kinds changes are of interest ("*": all). `wakes` must be cheap; `reconcile` is pure."""

    name: str

    @property
    def kinds(self) -> Collection[str]: ...

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        """The keys that this change concerns; the View has the change already."""

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        """What is to be done so that the key's object gets nearer to what it asks for; nothing if it is there."""


class Task(Struct, frozen=True):
    controller: Controller
    key: str


class Engine:
    def __init__(self, view: View, controllers: Sequence[Controller]) -> None:
        self.view = view
        self._by_kind: dict[str, list[Controller]] = {}
        self._all = [controller for controller in controllers if "*" in controller.kinds]
        for controller in controllers:
            for kind in controller.kinds:
                self._by_kind.setdefault(kind, []).append(controller)
        self._ready: dict[tuple[str, str], Task] = {}
        self._timers: list[tuple[float, int, Task]] = []
        self._due: dict[tuple[str, str], float] = {}  # the earliest timer of a task; later entries of the heap are stale
        self._order = itertools.count()

    def changed(self, change: Change) -> None:
        for controller in (*self._by_kind.get(change.kind, ()), *self._all):
            for key in controller.wakes(self.view, change):
                self._ready.setdefault((controller.name, key), Task(controller, key))

    def again(self, task: Task, at: float) -> None:
        name = (task.controller.name, task.key)
        if at < self._due.get(name, float("inf")):
            self._due[name] = at
            heapq.heappush(self._timers, (at, next(self._order), task))

    def take(self, now: float) -> Task | None:
        """The next task that is due, None if there is none."""
        while self._timers and self._timers[0][0] <= now:
            at, _, task = heapq.heappop(self._timers)
            name = (task.controller.name, task.key)
            if self._due.get(name) == at:
                del self._due[name]
                self._ready.setdefault(name, task)
        if not self._ready:
            return None
        name = next(iter(self._ready))
        return self._ready.pop(name)

    def next_time(self) -> float | None:
        """When the next timer is due (a time that has passed: at once); None: only a change can make work."""
        if self._ready:
            return 0.0
        return self._timers[0][0] if self._timers else None
