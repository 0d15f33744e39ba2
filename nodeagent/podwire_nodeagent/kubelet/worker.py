"""One pod: the loop that makes the world what the plan says, from the pod's binding to its end.

Theory of operation. `run` looks, acts, and sleeps until something wakes it: a container ended, a probe changed its mind,
the object changed, or time came (back-off, deadline). Each look (`_step`) is level-triggered: it needs no memory of why it
was woken. What is remembered is in the PodRecord, saved before anybody is told. When the pod is to go (deletionTimestamp,
or it vanished from the API) the looking is cancelled wherever it is and `_shut_down` takes over. Cancelling `run` from
outside stops nothing but this worker.

Order to read: run, step, endings, stopping, shutting down, what the kubelet tells. (What a former
agent left: adoption.py.)
"""

from __future__ import annotations

import logging
import shutil
import time

import trio
from msgspec import Struct, field

from podwire_cni.protocol import CniError
from podwire_core import objects
from podwire_core.errors import ApiError
from podwire_core.objects import Json, PodSpec
from podwire_nodeagent.kubelet import adoption, hooks, parts, plan, records, runtime, sandbox, starter, volumes, watching
from podwire_nodeagent.kubelet.env import ConfigError
from podwire_nodeagent.kubelet.node import Node
from podwire_nodeagent.kubelet.records import ENDED, INIT, RUNNING, SIDECAR, WAITING, Ended, PodRecord, Record
from podwire_nodeagent.kubelet.runtime import Held
from podwire_nodeagent.standin.client import StandinError

log = logging.getLogger(__name__)
RETRY_FIRST, RETRY_MOST = 0.5, 10.0


class Running(Struct):
    """A container that runs. `held` None: a stand-in. Cancelling `scope` ends its watch and probes."""

    held: Held | None
    spec: runtime.Spec | None = None
    cgroups: list[str] = []
    exited: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class PodWorker:
    def __init__(self, node: Node, record: PodRecord) -> None:
        self.node, self.record = node, record
        self.files = parts.PodFiles(node.config.pods_dir, record.uid)
        self.spec: PodSpec = objects.decode(objects.Pod, record.pod).spec
        self.containers = plan.containers(self.spec)
        self.running: dict[str, Running] = {}
        self.removed = False  # the API has it no more
        self.finished = trio.Event()  # nothing is left of the pod
        self.not_before: dict[str, float] = {}  # containers that could not be started, and when to try again
        self.volumes: volumes.Volumes | None = None
        self.nursery: trio.Nursery
        self._wake = trio.Event()
        self._looking = trio.CancelScope()
        self._graceful = trio.CancelScope()
        self._retry = RETRY_FIRST

    @classmethod
    def fresh(cls, node: Node, pod: Json) -> PodWorker:
        record = PodRecord(pod["metadata"]["uid"], pod, started_at=time.time())
        worker = cls(node, record)
        inits = bool(worker.spec.init_containers)
        for name, kind in plan.kinds(worker.spec).items():
            record.containers[name] = Record(
                name, kind, reason="PodInitializing" if inits and kind != INIT else "ContainerCreating"
            )
        worker.files.root.mkdir(parents=True, exist_ok=True)
        return worker

    # --- run --------------------------------

    async def run(self, adopted_standins: frozenset[str] = frozenset()) -> None:
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            try:
                adoption.adopt(self, adopted_standins)
                self.note()
                while not self.leaving:
                    with trio.CancelScope() as self._looking:
                        await self._look()
                await self._shut_down()
                self.finished.set()
            finally:
                for running in self.running.values():
                    if running.held is not None:
                        runtime.release(running.held)
                nursery.cancel_scope.cancel()

    @property
    def leaving(self) -> bool:
        return self.removed or bool(self.record.pod["metadata"].get("deletionTimestamp"))

    async def _look(self) -> None:
        while not self.leaving:
            self._wake = trio.Event()
            again = await self._step()
            with trio.move_on_after(max(0.0, again - time.time()) if again is not None else float("inf")):
                await self._wake.wait()

    def wake(self) -> None:
        self._wake.set()

    def note(self) -> None:
        """Save the record, and have the status written."""
        records.save(self.files.state, self.record)
        self.node.changed(self.record.uid)

    def event(self, type_: str, reason: str, message: str, container: str = "") -> None:
        path = ""
        if container:
            kind = "initContainers" if self.record.containers[container].kind in (INIT, SIDECAR) else "containers"
            path = f"spec.{kind}{{{container}}}"
        self.node.record_event(self.record.pod, type_, reason, message, path)

    # --- step --------------------------------

    async def _step(self) -> float | None:
        """One look. Returns when to look again if nothing happens before."""
        now = time.time()
        if self.record.failed:
            await self._stop_all(0)  # whom an agent that died could not stop any more
            return await self._settle()
        deadline = self._deadline()
        if deadline is not None and deadline <= now:
            return await self._fail("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
        todo = plan.plan(self.spec, self.record.containers, now)
        if todo.finished:
            return await self._settle()
        if not self.record.sandbox.netns and not await self._make_sandbox():
            return time.time() + self._next_retry()
        for name, reason in todo.waiting.items():
            self._wait(name, reason)
        for name in todo.stop:
            await self.stop(name, f"Stopping container {name}")
        again = await self._start_all(todo)
        moments = [moment for moment in (again, todo.look_again, deadline) if moment is not None]
        return min(moments, default=None)

    async def _start_all(self, todo: plan.Plan) -> float | None:
        again: list[float] = []
        for name in todo.start:
            due = self.not_before.get(name, 0.0)
            if due > time.time():
                again.append(due)
                continue
            if await starter.start(self, name):
                self.not_before.pop(name, None)
                self.wake()  # what starts next may depend on it
            elif name in self.not_before:
                again.append(self.not_before[name])
            else:
                self.wake()
            self.note()
        return min(again, default=None)

    def _deadline(self) -> float | None:
        seconds = self.spec.active_deadline_seconds
        return self.record.started_at + seconds if seconds is not None else None

    def _next_retry(self) -> float:
        delay, self._retry = self._retry, min(self._retry * 2, RETRY_MOST)
        return delay

    async def _make_sandbox(self) -> bool:
        node, pod = self.node, self.record.pod
        try:
            async with node.starts:
                self.record.sandbox = await sandbox.make(node.config, node.cni, pod, self.spec.host_network)
            for warning in parts.write_etc(node, self.files, self.record, self.spec):
                self.event("Warning", "DNSConfigForming", warning)
        except (CniError, OSError, ValueError) as error:
            self.event("Warning", "FailedCreatePodSandBox", f"Failed to create pod sandbox: {error}")
            return False
        self._retry = RETRY_FIRST
        return True

    def _wait(self, name: str, reason: str) -> None:
        record = self.record.containers[name]
        if record.state == WAITING and record.reason == reason:
            return
        record.state, record.reason = WAITING, reason
        meta = self.record.pod["metadata"]
        where = f"container={name} pod={meta['name']}_{meta.get('namespace')}({meta['uid']})"
        record.message = f"back-off {record.delay:.0f}s restarting failed {where}"
        text = f"Back-off restarting failed container {name} in pod {meta['name']}_{meta.get('namespace')}({meta['uid']})"
        self.event("Warning", "BackOff", text, name)
        self.note()

    async def _fail(self, reason: str, message: str) -> float | None:
        """The pod as a whole has failed: stop everything."""
        self.record.failed, self.record.failed_message = reason, message
        self.event("Normal" if reason == "DeadlineExceeded" else "Warning", reason, message)
        await self._stop_all(self.spec.termination_grace_period_seconds)
        self.note()
        return await self._settle()

    async def _settle(self) -> float | None:
        """Nothing runs any more; the network goes back, the logs stay until the pod is deleted."""
        ips = self.record.sandbox.ips
        if not self.record.sandbox.netns:
            return None
        if not await self._remove_sandbox():
            return time.time() + self._next_retry()
        self.record.sandbox = records.Sandbox(ips=ips)
        self.note()
        return None

    async def _remove_sandbox(self) -> bool:
        try:
            async with self.node.starts:
                await sandbox.remove(self.node.config, self.node.cni, self.record.pod, self.record.sandbox)
        except (CniError, OSError) as error:
            self.event("Warning", "FailedKillPod", f"error killing pod: failed to remove the sandbox: {error}")
            return False
        return True

    # --- endings --------------------------------

    def begun(self, name: str, running: Running) -> None:
        """A container runs (again): watch and probe it."""
        self.running[name] = running
        if running.held is not None:
            self.nursery.start_soon(self._watch, name, running, running.held)
        self.nursery.start_soon(watching.probe_container, self, name, running)

    async def _watch(self, name: str, running: Running, held: Held) -> None:
        await runtime.wait(held)
        record = self.record.containers[name]
        left = runtime.ending(self.files.container(name, record.attempt))
        code, finished = left if left is not None else (137, time.time())
        self.ended(name, code, finished)

    def ended(self, name: str, code: int, finished: float, reason: str = "") -> None:
        record = self.record.containers[name]
        running = self.running.pop(name, None)
        oom = code == 137 and self.node.cgroups.killed_by_oom(self.record.uid, name)
        reason = reason or ("OOMKilled" if oom else "Completed" if code == 0 else "Error")
        message = starter.termination_message(self, name, code)
        number = code - 128 if 128 < code <= 192 else 0
        record.ended = Ended(code, reason, record.started_at, finished, message, record.id, number)
        record.state, record.ready, record.started = ENDED, False, False
        if running is not None:
            running.scope.cancel()
            running.exited.set()
            if running.cgroups:
                self.node.cgroups.remove(self.record.uid, name)
        self.note()
        self.wake()

    def standins_lost(self, which: set[str] | None = None) -> None:
        """The process of the stand-ins died, and they with it: all, or those with these IDs."""
        for name, record in self.record.containers.items():
            if record.standin and record.state == RUNNING and (which is None or record.id in which):
                self.ended(name, 137, time.time())

    # --- stopping --------------------------------

    async def stop(self, name: str, message: str, grace: float | None = None) -> None:
        """One container, with its grace; returns when it has ended."""
        self.event("Normal", "Killing", message, name)
        with trio.move_on_after(self.spec.termination_grace_period_seconds if grace is None else grace):
            await self._stop_gently(name)
        await self._kill(name)

    async def _stop_gently(self, name: str) -> None:
        running = self.running.get(name)
        if running is None:
            return
        handler = self.containers[name].lifecycle
        if handler is not None and handler.pre_stop is not None:
            failure = await hooks.run(self, name, handler.pre_stop)
            if failure:
                self.event("Warning", "FailedPreStopHook", failure, name)
        if running.held is None:
            await self._stop_standin(name, running, 0)
            return
        runtime.send_signal(running.held, 15)
        await running.exited.wait()

    async def _kill(self, name: str) -> None:
        running = self.running.get(name)
        if running is None:
            return
        if running.held is None:
            await self._stop_standin(name, running, 137)
            return
        runtime.send_signal(running.held, 9)
        await running.exited.wait()

    async def _stop_standin(self, name: str, running: Running, code: int) -> None:
        try:
            await self.node.standins.stop(self.record.containers[name].id)
        except (StandinError, OSError) as error:
            log.warning("stand-in %s of pod %s: %s", name, self.record.uid, error)  # its process is gone, and it with it
        if not running.exited.is_set():
            self.ended(name, code, time.time())

    async def _stop_all(self, grace: float) -> None:
        """Main and init containers together, then the sidecars, last started first; all within one grace period."""
        sidecars = [name for name in self.containers if self.record.containers[name].kind == SIDECAR]
        for name in self.running:
            self.event("Normal", "Killing", f"Stopping container {name}", name)
        with trio.CancelScope(deadline=trio.current_time() + grace) as self._graceful:
            async with trio.open_nursery() as nursery:
                for name in list(self.running):
                    if name not in sidecars:
                        nursery.start_soon(self._stop_gently, name)
            for name in reversed(sidecars):
                await self._stop_gently(name)
        for name in list(self.running):
            await self._kill(name)

    # --- shutting down --------------------------------

    async def _shut_down(self) -> None:
        """Stop, say so, clean up, and have the object removed."""
        self.record.killing_since = self.record.killing_since or time.time()
        records.save(self.files.state, self.record)
        await self._stop_all(self._grace_left())
        self.note()
        while self.record.sandbox.netns and not await self._remove_sandbox():
            await trio.sleep(self._next_retry())
        self.node.cgroups.remove(self.record.uid)
        if not self.removed:
            await self._delete_object()
        shutil.rmtree(self.files.root, ignore_errors=True)

    def _grace_left(self) -> float:
        if self.removed:
            return 0.0
        meta = self.record.pod["metadata"]
        grace = meta.get("deletionGracePeriodSeconds")
        seconds = self.spec.termination_grace_period_seconds if grace is None else int(grace)
        return max(0.0, self.record.killing_since + seconds - time.time())

    async def _delete_object(self) -> None:
        meta = self.record.pod["metadata"]
        delay = RETRY_FIRST
        while not self.removed:
            try:
                await self.node.write_status(self.record, self.spec)
                await self.node.api.delete("Pod", meta["name"], meta.get("namespace", "default"), grace=0, uid=meta["uid"])
                return
            except ApiError as error:
                if error.code in (404, 409):
                    return  # it is gone, or another has its name
                log.warning("pod %s/%s cannot be deleted yet: %s", meta.get("namespace"), meta["name"], error)
            await trio.sleep(delay)
            delay = min(delay * 2, RETRY_MOST)

    # --- what the kubelet tells --------------------------------

    def update(self, pod: Json) -> None:
        """The object has changed."""
        self.record.pod = newer(self.record.pod, pod)
        self.node.changed(self.record.uid)
        if self.leaving:
            self._looking.cancel()
            if self.record.killing_since:
                self._graceful.deadline = min(self._graceful.deadline, trio.current_time() + self._grace_left())
        elif self.not_before:
            self.try_again()

    def remove(self) -> None:
        """The API has the pod no more: it goes at once."""
        self.removed = True
        self._looking.cancel()
        self._graceful.deadline = min(self._graceful.deadline, trio.current_time())

    def try_again(self) -> None:
        """What was missing may be there now."""
        for name in [name for name in self.not_before if not self.record.containers[name].image_tries]:
            del self.not_before[name]
        self.wake()

    def refresh_volumes(self) -> None:
        """ConfigMaps or Secrets have changed: so do the files made of them."""
        if self.volumes is None or not self.running:
            return
        try:
            self.volumes = volumes.prepare(self.files.volumes, parts.context(self.node, self.record, self.spec))
        except (ConfigError, OSError) as error:
            self.event("Warning", "FailedMount", str(error))


def newer(ours: Json, theirs: Json) -> Json:
    """Of two states of one object, the later: what we wrote comes back through the watch after a while."""
    try:
        behind = int(theirs["metadata"].get("resourceVersion", 0)) < int(ours["metadata"].get("resourceVersion", 0))
    except ValueError:
        return theirs
    return ours if behind else theirs
