"""A kubelet alone on a machine: real namespaces, shims and stand-ins; the API and the CNI plugin are values in this process.

The node's host namespace has nothing but `lo`, and the node's address is 127.0.0.1, so hostNetwork pods can be probed without a
network. Pods of their own get an address that is configured nowhere.
"""

from __future__ import annotations

import copy
import itertools
import os
import shutil
import signal
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from podwire_core import netns
from podwire_core.agentapi import ExecExit, ExecOutput, ExecStart, LogsRequest
from podwire_core.errors import ApiError
from podwire_nodeagent.kubelet.config import KubeletConfig
from podwire_nodeagent.kubelet.kubelet import Kubelet
from podwire_nodeagent.standin.client import StandinClient

_numbers = itertools.count(1)


class FakeApi:
    """Pods with revisions, optimistic locking and deletion in two steps."""

    def __init__(self):
        self.pods: dict[str, dict] = {}
        self.revision = 0
        self.writes = 0
        self.on_change = lambda: None

    def put(self, pod):
        key = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        self.revision += 1
        pod = copy.deepcopy(pod)
        pod["metadata"]["resourceVersion"] = str(self.revision)
        self.pods[key] = pod
        self.on_change()
        return pod

    async def get(self, kind, name, namespace=""):
        await trio.lowlevel.checkpoint()
        try:
            return self.pods[f"{namespace}/{name}"]
        except KeyError:
            raise ApiError(404, f'pods "{name}" not found') from None

    async def update(self, obj, subresource=""):
        assert subresource == "status"
        old = await self.get("Pod", obj["metadata"]["name"], obj["metadata"]["namespace"])
        if old["metadata"]["resourceVersion"] != obj["metadata"]["resourceVersion"]:
            raise ApiError(409, "the object has been modified")
        self.writes += 1
        return self.put({**old, "status": obj["status"]})

    async def delete(self, kind, name, namespace="", *, grace=None, uid=""):
        pod = await self.get(kind, name, namespace)
        if uid and pod["metadata"]["uid"] != uid:
            raise ApiError(409, "another uid")
        if grace == 0:
            del self.pods[f"{namespace}/{name}"]
            self.on_change()
            return
        seconds = pod["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
        meta = {**pod["metadata"], "deletionTimestamp": "now", "deletionGracePeriodSeconds": seconds}
        self.put({**pod, "metadata": meta})


class FakeCni:
    def __init__(self):
        self.attached: dict[str, str] = {}
        self.failures: list[Exception] = []
        self._addresses = (f"10.244.1.{n}" for n in itertools.count(2))

    async def add(self, container_id, netns, ifname, args):
        await trio.lowlevel.checkpoint()
        if self.failures:
            raise self.failures.pop(0)
        self.attached[container_id] = args["K8S_POD_NAME"]
        return [next(self._addresses)]

    async def delete(self, container_id, netns, ifname, args):
        await trio.lowlevel.checkpoint()
        self.attached.pop(container_id, None)


class World:
    """One node's surroundings; `running()` is an agent's life in it, and there may be several, one after another."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.api, self.cni = FakeApi(), FakeCni()
        self.events: list[tuple[str, str]] = []
        self.services: list[dict] = []
        self.objects: dict[tuple[str, str, str], dict] = {}
        self.kubelet: Kubelet
        (directory / "netns").mkdir()
        netns.create(directory / "netns" / "host")
        netns.set_sysctl(directory / "netns" / "host", "net.ipv4.ip_unprivileged_port_start", "0")
        self.standin_log = open(directory / "standin.log", "wb")  # noqa: SIM115

    @asynccontextmanager
    async def running(self, **config):
        directory = self.directory
        given = {"node_name": "node1", "run_dir": directory, "internal_ip": "127.0.0.1", "cgroup_root": None} | config
        settings = KubeletConfig(host_netns=str(directory / "netns" / "host"), **given)
        standins = StandinClient(
            str(directory / "standin.sock"), self.standin_log, on_restart=lambda: self.kubelet.standins_lost()
        )
        self.kubelet = Kubelet(settings, self.api, self.cni, standins, self._record)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.kubelet.run)
            self.api.on_change = self.sync
            self.sync()
            yield self
            self.api.on_change = lambda: None
            nursery.cancel_scope.cancel()

    def _record(self, obj, type_, reason, message, field_path=""):
        self.events.append((reason, message))

    def reasons(self) -> list[str]:
        return [reason for reason, _ in self.events]

    def sync(self) -> None:
        def getter(kind):
            return lambda namespace, name: self.objects.get((kind, namespace, name))

        self.kubelet.sync(self.api.pods, self.services, getter("ConfigMap"), getter("Secret"))

    def pod(self, name: str, *containers: dict, **spec) -> str:
        meta = {"name": name, "namespace": "default", "uid": f"kb-{os.getpid()}-{next(_numbers)}-{name}"}
        self.api.put({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": list(containers), **spec}})
        return f"default/{name}"

    def status(self, key: str) -> dict:
        return self.api.pods[key].get("status", {}) if key in self.api.pods else {}

    def container(self, key: str, index: int = 0) -> dict:
        return (self.status(key).get("containerStatuses") or [{}] * (index + 1))[index]

    async def until(self, holds, seconds: float = 15) -> None:
        """Polls; fails with the statuses and events there are."""
        with trio.move_on_after(seconds):
            while not holds():
                await trio.sleep(0.01)
            return
        statuses = {key: pod.get("status") for key, pod in self.api.pods.items()}
        pytest.fail(f"not within {seconds} s; statuses {statuses}; events {self.events}")

    async def until_ready(self, key: str, seconds: float = 15) -> None:
        await self.until(lambda: self.condition(key, "Ready") == "True", seconds)

    def condition(self, key: str, kind: str) -> str:
        return next((c["status"] for c in self.status(key).get("conditions", []) if c["type"] == kind), "")

    async def exec(self, pod: str, *argv: str, inputs=(), **start) -> tuple[int, bytes, bytes, str]:
        """(exit code, stdout, stderr, message)."""
        out, end = {1: b"", 2: b""}, []

        async def send(message):
            if isinstance(message, ExecOutput):
                out[message.stream] += message.data
            else:
                end.append(message)

        async def feed():
            for message in inputs:
                yield message
            await trio.sleep_forever()

        with trio.fail_after(20):
            await self.kubelet.exec(ExecStart(list(argv), pod, **start), feed(), send)
        assert isinstance(end[0], ExecExit)
        return end[0].code, out[1], out[2], end[0].message

    async def logs(self, pod: str, **request) -> str:
        text = bytearray()

        async def send(chunk):
            text.extend(chunk.data)

        await self.kubelet.logs(LogsRequest(pod, **request), send)
        return text.decode()

    async def until_logged(self, pod: str, text: str) -> None:
        await self.until(lambda: self.status(pod).get("phase") in ("Running", "Succeeded", "Failed"))
        with trio.fail_after(10):
            while text not in await self.logs(pod):
                await trio.sleep(0.01)

    def pid(self, key: str, name: str) -> int:
        """Of the container's program; 0 while it does not run."""
        for worker in self.kubelet._workers.values():
            if worker.record.pod["metadata"]["name"] == key.rpartition("/")[2] and name in worker.running:
                return worker.running[name].held.pid
        return 0

    def close(self) -> None:
        """Kills what was left, by the process IDs that we know."""
        import json

        for path in self.directory.glob("pods/*/containers/*/*/run.json"):
            run = json.loads(path.read_text())
            if f"{path.parent}/spec.json".encode() in _cmdline(run["shim"]):
                os.kill(run["shim"], signal.SIGKILL)
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            if str(self.directory / "standin.sock").encode() in _cmdline(pid):
                os.kill(pid, signal.SIGKILL)
        for path in (self.directory / "netns").iterdir():
            netns.delete(path)
        self.standin_log.close()


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@pytest.fixture
def world():
    directory = Path(tempfile.mkdtemp(prefix="kb-"))
    made = World(directory)
    yield made
    made.close()
    deadline = time.monotonic() + 5
    while directory.exists() and time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)
