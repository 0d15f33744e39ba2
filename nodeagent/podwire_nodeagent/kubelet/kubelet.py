"""All pods of the node: the class the agent uses.

Theory of operation. `sync` notes what the API wants; `run` compares that with the workers there are (one a pod, by uid), starts
and tells them. Workers call `changed`, and their status is written by one task a pod at a time, few at once, so that a burst of
changes becomes few writes. A worker that fails by a bug is logged and started again from its record; the others don't notice.

Order to read: run, sync, statuses, stand-ins, exec, logs.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from podwire_core import objects
from podwire_core.agentapi import EXEC_IN, EXEC_OUT, ExecStart, LogsChunk, LogsRequest
from podwire_core.errors import ApiError
from podwire_core.objects import Json
from podwire_nodeagent.kubelet import exec as execution
from podwire_nodeagent.kubelet import logs, parts, records, volumes
from podwire_nodeagent.kubelet.config import Api, Cni, Getter, KubeletConfig, RecordEvent, Standins
from podwire_nodeagent.kubelet.env import ConfigError
from podwire_nodeagent.kubelet.images import Program
from podwire_nodeagent.kubelet.node import Node
from podwire_nodeagent.kubelet.records import ENDED, RUNNING, WAITING
from podwire_nodeagent.kubelet.runtime import Spec
from podwire_nodeagent.kubelet.worker import PodWorker
from podwire_nodeagent.standin.client import StandinError

log = logging.getLogger(__name__)
STATUS_WRITES = 8  # at the same time
STATUS_RETRY = 1.0
STANDIN_LOOK = 1.0  # seconds between looks whether the stand-ins still live
WORKER_RETRY = 5.0
DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"


class Kubelet:
    """`async with trio.open_nursery() as nursery: nursery.start_soon(kubelet.run)`; then `sync` on every change of the mirror."""

    def __init__(self, config: KubeletConfig, api: Api, cni: Cni, standins: Standins, record_event: RecordEvent) -> None:
        self._node = Node(config, api, cni, standins, record_event)
        self._node.changed = self._changed
        self._workers: dict[str, PodWorker] = {}
        self._seen: dict[str, Json] = {}  # by uid, the object last told to its worker
        self._over: set[str] = set()  # uids whose pods are finished but may still be in the API
        self._pods: dict[str, Json] | None = None
        self._synced = trio.Event()
        self._sources: dict[str, tuple[str, ...]] = {}  # by uid, versions of what its volumes are made of
        self._dirty: set[str] = set()
        self._writing: set[str] = set()
        self._writes = trio.CapacityLimiter(STATUS_WRITES)
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Adopts what a former agent left, then works until cancelled. Cancelling stops nothing that runs in a pod."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._adopt(nursery)
            nursery.start_soon(self._look_after_standins)
            while True:
                if self._pods is not None:
                    self._reconcile(nursery, self._pods)
                await self._synced.wait()
                self._synced = trio.Event()

    async def _adopt(self, nursery: trio.Nursery) -> None:
        left = list(records.load_all(self._node.config.pods_dir))
        alive = frozenset(await self._running_standins()) if left else frozenset[str]()
        for directory, record in left:
            if record is None:
                shutil.rmtree(directory, ignore_errors=True)
                continue
            self._workers[record.uid] = worker = PodWorker(self._node, record)
            nursery.start_soon(self._keep, worker, alive)

    async def _keep(self, worker: PodWorker, alive: frozenset[str]) -> None:
        """A pod's worker, until nothing is left of the pod."""
        uid = worker.record.uid
        while not worker.finished.is_set():
            try:
                await worker.run(alive)
            except Exception:
                log.exception("the worker of pod %s failed, starting it again", objects.key_of(worker.record.pod))
                await trio.sleep(WORKER_RETRY)
                alive = frozenset(await self._running_standins())
                removed, worker = worker.removed, PodWorker(self._node, worker.record)
                worker.removed = removed
                self._workers[uid] = worker
        del self._workers[uid]
        self._over.add(uid)
        self._seen.pop(uid, None)
        self._sources.pop(uid, None)

    # --- sync --------------------------------

    def sync(self, pods: dict[str, Json], services: list[Json], config_map: Getter, secret: Getter) -> None:
        """The pods bound to this node (by key) as the API has them now, and what their environments are made of. Cheap;
        call it on every change. The first call ends adoption: pods that it does not name are removed."""
        self._node.services, self._node.config_map, self._node.secret = services, config_map, secret
        self._pods = dict(pods)
        self._synced.set()

    def _reconcile(self, nursery: trio.Nursery, pods: dict[str, Json]) -> None:
        by_uid = {pod["metadata"]["uid"]: pod for pod in pods.values()}
        self._over &= by_uid.keys()
        for uid, worker in list(self._workers.items()):
            if uid not in by_uid and not worker.removed:
                worker.remove()
        for uid, pod in by_uid.items():
            if uid in self._workers:
                self._tell(self._workers[uid], pod)
            elif uid not in self._over and self._seen.get(uid) is not pod:
                self._seen[uid] = pod
                self._begin(nursery, uid, pod)
        for uid in self._seen.keys() - by_uid.keys() - self._workers.keys():
            del self._seen[uid]

    def _begin(self, nursery: trio.Nursery, uid: str, pod: Json) -> None:
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed") and not pod["metadata"].get("deletionTimestamp"):
            return  # it ran its course before this agent's time
        try:
            worker = PodWorker.fresh(self._node, pod)
        except objects.DecodeError as error:
            self._node.record_event(pod, "Warning", "FailedSync", f"the pod cannot be understood: {error}")
            return
        self._workers[uid] = worker
        nursery.start_soon(self._keep, worker, frozenset())

    def _tell(self, worker: PodWorker, pod: Json) -> None:
        uid = worker.record.uid
        if self._seen.get(uid) is not pod:
            self._seen[uid] = pod
            worker.update(pod)
        elif worker.not_before:
            worker.try_again()
        if worker.spec.volumes:
            namespace = pod["metadata"].get("namespace", "")
            versions = volumes.versions(worker.spec, namespace, self._node.config_map, self._node.secret)
            if self._sources.setdefault(uid, versions) != versions:
                self._sources[uid] = versions
                worker.refresh_volumes()

    # --- statuses --------------------------------

    def _changed(self, uid: str) -> None:
        self._dirty.add(uid)
        if uid not in self._writing and self._nursery is not None:
            self._writing.add(uid)
            self._nursery.start_soon(self._write, uid)

    async def _write(self, uid: str) -> None:
        try:
            while uid in self._dirty and uid in self._workers:
                async with self._writes:
                    worker = self._workers.get(uid)
                    self._dirty.discard(uid)
                    if worker is None:
                        return
                    try:
                        await self._node.write_status(worker.record, worker.spec)
                        continue
                    except ApiError as error:
                        log.warning("status of pod %s: %s", objects.key_of(worker.record.pod), error)
                        self._dirty.add(uid)
                await trio.sleep(STATUS_RETRY)
        finally:
            self._writing.discard(uid)

    # --- stand-ins --------------------------------

    def standins_lost(self) -> None:
        """The stand-in process died: its containers have ended and are restarted. (For `StandinClient(on_restart=…)`.)"""
        for worker in self._workers.values():
            worker.standins_lost()

    async def _look_after_standins(self) -> None:
        while True:
            await trio.sleep(STANDIN_LOOK)
            every = (record for worker in self._workers.values() for record in worker.record.containers.values())
            expected = {record.id for record in every if record.standin and record.state == RUNNING}
            if not expected:
                continue
            lost = expected - set(await self._running_standins())
            for worker in self._workers.values():
                worker.standins_lost(lost)

    async def _running_standins(self) -> list[str]:
        try:
            return await self._node.standins.running()
        except (StandinError, OSError) as error:
            log.warning("the stand-ins cannot be asked: %s", error)
            return []

    # --- exec --------------------------------

    async def exec(self, start: ExecStart, inputs: AsyncIterator[EXEC_IN], send: Callable[[EXEC_OUT], Awaitable[None]]) -> None:
        """One exec stream; the last message sent is ExecExit. Cancelling kills the command. ApiError as kubectl has them."""
        if not start.argv:
            raise ApiError(400, "you must specify at least one command for the container")
        spec = self._exec_spec(start) if start.pod else parts.host_spec(self._node, start.argv)
        spec.env = spec.env | ({"TERM": "xterm"} if start.tty else {}) | start.env
        await execution.interact(self._node.config.python, spec, start, inputs, send)

    def _exec_spec(self, start: ExecStart) -> Spec:
        worker = self._worker(start.pod)
        name = self._container(worker, start.container)
        running = worker.running.get(name)
        if running is None:
            raise ApiError(400, f"container {name} of pod {start.pod} is not running: {_state(worker, name)}")
        if running.held is not None and running.spec is not None:
            return parts.join_spec(running.spec, running.held.pid, start.argv, running.cgroups)
        container, vols = worker.containers[name], worker.volumes or volumes.Volumes({}, [])
        try:
            spec = parts.container_spec(
                self._node, worker.files, worker.record, worker.spec, container, Program([]), vols, "transient"
            )
        except ConfigError as error:
            raise ApiError(400, str(error)) from None
        spec.argv = start.argv
        return spec

    def _worker(self, key: str) -> PodWorker:
        for worker in reversed(list(self._workers.values())):
            if objects.key_of(worker.record.pod) == key:
                return worker
        raise ApiError(404, f'pods "{key.rpartition("/")[2]}" not found')

    def _container(self, worker: PodWorker, name: str) -> str:
        """As kubectl chooses: the named one, the annotated one, the first."""
        meta = worker.record.pod["metadata"]
        name = name or (meta.get("annotations") or {}).get(DEFAULT_CONTAINER, "") or worker.spec.containers[0].name
        if name not in worker.containers:
            raise ApiError(400, f"container {name} is not valid for pod {meta['name']}")
        return str(name)

    # --- logs --------------------------------

    async def logs(self, request: LogsRequest, send: Callable[[LogsChunk], Awaitable[None]]) -> None:
        """Raises ApiError(404) for an unknown pod, ApiError(400) for an unknown container or one that has no log yet."""
        worker = self._worker(request.pod)
        name = self._container(worker, request.container)
        record = worker.record.containers[name]
        attempt = record.attempt - 1 if request.previous else record.attempt
        if request.previous and attempt < 1:
            raise ApiError(400, f'previous terminated container "{name}" in pod "{request.pod.rpartition("/")[2]}" not found')
        if record.attempt == 0:
            waiting = f'container "{name}" in pod "{request.pod.rpartition("/")[2]}" is waiting to start: {record.reason}'
            raise ApiError(400, waiting)

        def running() -> bool:
            return record.attempt == attempt and record.ended is None

        async def send_chunk(data: bytes) -> None:
            await send(LogsChunk(data))

        follow = request.follow and not request.previous
        await logs.stream(worker.files.log(name, attempt), request.tail, request.timestamps, follow, running, send_chunk)


def _state(worker: PodWorker, name: str) -> str:
    record = worker.record.containers[name]
    if record.state == WAITING:
        return f"waiting ({record.reason})"
    return f"terminated ({record.ended.reason})" if record.state == ENDED and record.ended is not None else record.state
