"""A cluster in memory: performs controllers' actions on a View, as the server's runner does on the store.

It keeps what controllers rely on: uids, resourceVersions with 409s, generations that move with the spec, finalizers, grace
periods of bound pods (a kubelet ends them: `finish`), creation times. It knows no admission but the one it is given.

Order to read: Memory (objects), perform (actions), run (to a fixed point).
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Sequence

from podwire_core.objects import Json, key_of

from .actions import Again, AnyAction, Bind, Create, Delete, Event, Patch, Update, UpdateStatus
from .common import timestamp, uid_of, with_condition
from .engine import Controller, Engine, Task
from .view import View

Admit = Callable[[Json], Json]
_SPACE = uuid.UUID("5f0c9ef5-7d34-4a4e-9f43-6f1f6b1c9f0e")
STEPS = 200_000  # of controllers that never come to rest


class Refused(Exception):
    """A write that the server would answer with 404 or 409."""


class Memory:
    def __init__(self, controllers: Sequence[Controller], admit: Admit = lambda obj: obj) -> None:
        self.view = View()
        self.engine = Engine(self.view, controllers)
        self.events: list[Event] = []
        self.admit = admit
        self.revision = 0
        self.watchers: list[Callable[[], None]] = []  # called after every write: where tests look for broken invariants

    # --- objects --------------------------------

    def create(self, obj: Json, now: float) -> Json:
        obj = self.admit(copy.deepcopy(obj))
        kind, key = obj["kind"], key_of(obj)
        if self.view.get(kind, key) is not None:
            raise Refused(f"{kind} {key} already exists")
        meta = obj["metadata"]
        meta.setdefault("uid", str(uuid.uuid5(_SPACE, f"{kind}/{key}/{self.revision}")))
        meta.setdefault("creationTimestamp", timestamp(now))
        meta.setdefault("generation", 1)
        return self._store(obj)

    def update(self, obj: Json) -> Json:
        """`obj` replaces what is there, but for its status; refused if it was made of an older one."""
        there = self._current(obj)
        new = {**obj, **({"status": there["status"]} if "status" in there else {})}
        if new.get("spec") != there.get("spec"):
            new = _meta(new, generation=(there["metadata"].get("generation") or 0) + 1)
        return self._store(new)

    def update_status(self, obj: Json) -> Json:
        return self._store({**self._current(obj), "status": obj.get("status") or {}})

    def delete(self, kind: str, key: str, now: float, grace: int | None = None, propagation: str = "Background") -> None:
        obj = self.view.get(kind, key)
        if obj is None:
            raise Refused(f"{kind} {key} does not exist")
        meta, more = obj["metadata"], {"Foreground": ["foregroundDeletion"], "Orphan": ["orphan"]}.get(propagation, [])
        finalizers = list(dict.fromkeys([*(meta.get("finalizers") or ()), *more]))
        period = _grace(obj) if grace is None else grace
        if not finalizers and not period and not (obj.get("spec") or {}).get("finalizers"):
            self._remove(kind, key)
        elif not meta.get("deletionTimestamp"):
            marks = {"deletionTimestamp": timestamp(now + period), "deletionGracePeriodSeconds": period}
            self._store(_meta(obj, **marks, finalizers=finalizers or None))

    def finish(self, key: str) -> None:
        """The kubelet's last word on a pod that is being deleted."""
        self._remove("Pod", key)

    def _current(self, obj: Json) -> Json:
        there = self.view.get(obj["kind"], key_of(obj))
        if there is None:
            raise Refused(f"{obj['kind']} {key_of(obj)} does not exist")
        if obj["metadata"].get("resourceVersion") != there["metadata"].get("resourceVersion"):
            raise Refused(f"{obj['kind']} {key_of(obj)} has changed")
        return there

    def _store(self, obj: Json) -> Json:
        self.revision += 1
        obj = _meta(obj, resourceVersion=str(self.revision))
        meta, kind, key = obj["metadata"], obj["kind"], key_of(obj)
        held = meta.get("finalizers") or (obj.get("spec") or {}).get("finalizers")
        ended = meta.get("deletionTimestamp") and not held and not _grace(obj)
        self.engine.changed(self.view.apply(kind, key, None if ended else obj))
        for watcher in self.watchers:
            watcher()
        return obj

    def _remove(self, kind: str, key: str) -> None:
        self.revision += 1
        self.engine.changed(self.view.apply(kind, key, None))
        for watcher in self.watchers:
            watcher()

    # --- actions --------------------------------

    def perform(self, action: AnyAction, now: float, task: Task | None = None) -> None:
        match action:
            case Create(obj):
                self.create(obj, now)
            case Update(obj):
                current = self.view.get(obj["kind"], key_of(obj))
                if current is not None and uid_of(current) == uid_of(obj):  # this reconcile may have written its status
                    self.update(_meta(obj, resourceVersion=current["metadata"].get("resourceVersion")))
            case UpdateStatus(obj):
                current = self.view.get(obj["kind"], key_of(obj))
                if current is not None and uid_of(current) == uid_of(obj):
                    self.update_status(_meta(obj, resourceVersion=current["metadata"].get("resourceVersion")))
            case Patch(kind, key, patch, subresource, uid):
                self._patch(self._known(kind, key, uid), patch, subresource)
            case Bind(key, uid, node):
                self._bind(self._known("Pod", key, uid), node, now)
            case Delete(kind, key, uid, grace, propagation):
                self._known(kind, key, uid)
                self.delete(kind, key, now, grace, propagation)
            case Event():
                self.events.append(action)
            case Again(at):
                assert task is not None, "Again is an answer to a task"
                self.engine.again(task, at)

    def _known(self, kind: str, key: str, uid: str) -> Json:
        obj = self.view.get(kind, key)
        if obj is None or (uid and uid_of(obj) != uid):
            raise Refused(f"{kind} {key} does not exist")
        return obj

    def _patch(self, obj: Json, patch: Json, subresource: str) -> None:
        new = merge_patch(obj, patch)
        self.update_status(new) if subresource == "status" else self.update(new)

    def _bind(self, pod: Json, node: str, now: float) -> None:
        if pod["spec"].get("nodeName"):
            raise Refused(f"Pod {key_of(pod)} is bound")
        status = pod.get("status") or {}
        conditions = with_condition(status.get("conditions"), "PodScheduled", "True", "", "", now)
        self._store({**pod, "spec": {**pod["spec"], "nodeName": node}, "status": {**status, "conditions": conditions}})

    # --- running --------------------------------

    def step(self, now: float) -> bool:
        """One task; False if none is due."""
        task = self.engine.take(now)
        if task is None:
            return False
        try:
            for action in task.controller.reconcile(self.view, task.key, now):
                self.perform(action, now, task)
        except Refused:
            self.engine.again(task, now)
        return True

    def run(self, now: float) -> int:
        """All that can be done at this time; how many steps it took. RuntimeError if it never ends."""
        for done in range(STEPS):
            if not self.step(now):
                return done
        raise RuntimeError(f"controllers did not come to rest in {STEPS} steps")

    def pods(self) -> list[Json]:
        return [pod for _, pod in sorted(self.view.all("Pod").items())]


def _meta(obj: Json, **fields: object) -> Json:
    """The object with these fields of its metadata; None removes one."""
    metadata = {**obj["metadata"], **fields}
    return {**obj, "metadata": {key: value for key, value in metadata.items() if value is not None}}


def _grace(obj: Json) -> int:
    """Only pods on a node have a grace period: somebody must be there to end them."""
    if obj["kind"] != "Pod" or not obj["spec"].get("nodeName"):
        return 0
    period = obj["spec"].get("terminationGracePeriodSeconds")
    return 30 if period is None else int(period)


def merge_patch(target: object, patch: object) -> Json:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch  # type: ignore[return-value]
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged
