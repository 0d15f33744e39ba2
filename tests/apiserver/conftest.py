"""An API server in this process (store in a file, a clock that is told the time), and one as a process of its own."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from podwire_apiserver.allocators import ServiceAllocator
from podwire_apiserver.bootstrap import bootstrap
from podwire_apiserver.resources import Resources
from podwire_apiserver.runner import Runner
from podwire_apiserver.server import Server
from podwire_apiserver.state import State
from podwire_apiserver.store.sqlite import open_store
from podwire_core import rpc
from podwire_core.errors import ApiError

START = 1_700_000_000.0


class World:
    def __init__(self, directory: Path, controllers=(), service_cidr: str = "10.96.0.0/12") -> None:
        self.directory, self.cidr, self.now = directory, service_cidr, START
        self.controllers = controllers
        self.open()

    def open(self) -> None:
        self.store = open_store(self.directory)
        self.state = State(self.store, ServiceAllocator([self.cidr]))
        self.api = Resources(self.state, lambda: self.now, random.Random(1))
        bootstrap(self.api, self.cidr)
        self.runner = Runner(self.api, self.controllers, lambda: self.now)
        self.server = Server(self.api, self.runner, lambda: self.now)

    def restart(self) -> None:
        self.store.close()
        self.open()

    def make(self, kind: str, name: str, namespace: str = "default", **fields):
        return self.api.create(self.obj(kind, name, namespace, **fields)).object

    def obj(self, kind: str, name: str, namespace: str = "default", metadata=None, **fields):
        info = self.api.info(kind)
        meta = {"name": name, **(metadata or {})} | ({"namespace": namespace} if info.namespaced else {})
        return {"apiVersion": info.api_version, "kind": info.kind, "metadata": meta, **fields}

    def refused(self, function, *args, **kwargs) -> ApiError:
        with pytest.raises(ApiError) as caught:
            function(*args, **kwargs)
        return caught.value


@pytest.fixture
def world(tmp_path) -> World:
    made = World(tmp_path / "data")
    yield made
    made.store.close()


@pytest.fixture
def make_world(tmp_path):
    made: list[World] = []

    def make(**options) -> World:
        made.append(World(tmp_path / f"data{len(made)}", **options))
        return made[-1]

    yield make
    for each in made:
        each.store.close()


class Process:
    """`python -m podwire_apiserver`, killed and started at will on the same data."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.address = f"unix:{directory}/api.sock"
        self.running: subprocess.Popen[str] | None = None

    def start(self, *options: str) -> rpc.SyncClient:
        command = [sys.executable, "-m", "podwire_apiserver", "--data", str(self.directory), "--listen", self.address, *options]
        with open(self.directory / "log", "a") as log:
            self.running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        line = self.running.stdout.readline()
        assert line.startswith("ready "), (line, (self.directory / "log").read_text())
        return rpc.SyncClient(self.address)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.running.send_signal(number)
        status = self.running.wait(10)
        self.running.stdout.close()
        self.running = None
        return status


@pytest.fixture
def process(tmp_path):
    made = Process(tmp_path)
    yield made
    if made.running is not None:
        made.stop(signal.SIGKILL)


@pytest.fixture
def until():
    def poll(holds, seconds: float = 10):
        deadline = time.monotonic() + seconds
        while not (value := holds()):
            assert time.monotonic() < deadline, "it did not come true in time"
            time.sleep(0.01)
        return value

    return poll
