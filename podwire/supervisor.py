"""PID 1 of a cluster: starts the API server and the agents, and starts them again when they end.

`python -m podwire.supervisor --dir RUNDIR` enters the cluster's namespaces (userns.py), forks the process that is PID 1 in
them, notes it in `supervisor.json`, and returns. Rules it keeps:

- Everything in the cluster descends from it. Orphans (a datapath whose agent was killed) become its children and are
  reaped; when it ends, the kernel kills all that is left.
- A service that ends is started again: at once the first time, then after 0.1 s, doubled up to 5 s; one that ran for 10 s
  starts over at once. What it sees it writes to `services.json`, which `podwire up` and `status` read.
- SIGTERM: every service gets SIGTERM, then all ends after at most a second.

Order to read: Service (one process and its restarts), Supervisor (the loop), main.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from podwire import userns
from podwire.paths import Config, ProcessId, process_start
from podwire_core.constants import POD_CIDR, POD_CIDR6, SERVICE_CIDR, SERVICE_CIDR6

SERVICE_CIDRS, POD_CIDRS = {4: SERVICE_CIDR, 6: SERVICE_CIDR6}, {4: POD_CIDR, 6: POD_CIDR6}
FIRST_DELAY, LONGEST_DELAY, GOOD_RUN, GRACE = 0.1, 5.0, 10.0, 1.0


class ServiceState(Struct):
    """One entry of services.json. `pid` counts in the cluster's PID namespace, 0 while it waits for its restart; `exit` is the
    last exit status (-9: by SIGKILL)."""

    name: str
    argv: list[str]
    log: str
    pid: int = 0
    restarts: int = 0
    exit: int | None = None


class Service:
    """One process that is to run, and when it may be started again."""

    def __init__(self, name: str, argv: list[str], log: Path) -> None:
        self.state = ServiceState(name, argv, str(log))
        self.started = 0.0
        self.delay = 0.0
        self.due: float | None = 0.0  # None: it runs

    def start(self, now: float, environ: dict[str, str]) -> None:
        """posix_spawn rather than fork: the supervisor blocks signals, its children must not."""
        self.started = now  # also when it fails below: a start that is refused is no good run
        log = os.open(self.state.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self.state.pid = os.posix_spawn(
                self.state.argv[0],
                self.state.argv,
                environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
                setsid=True,
                setsigmask=[],
            )
        finally:
            os.close(log)
        self.due = None

    def ended(self, status: int, now: float) -> None:
        """The process is gone: decide when it starts again."""
        if now - self.started >= GOOD_RUN:
            self.delay = 0.0
        self.due = now + self.delay
        self.delay = min(max(self.delay * 2, FIRST_DELAY), LONGEST_DELAY)
        self.state.pid, self.state.exit = 0, status
        self.state.restarts += 1


class Supervisor:
    """The loop. `clock` is monotonic time."""

    def __init__(self, directory: Path, services: list[Service], clock: Callable[[], float] = time.monotonic) -> None:
        self.directory, self.services, self.clock = directory, services, clock
        self.environ = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        self.environ["PYTHONUNBUFFERED"] = "1"

    def run(self) -> None:
        watched = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        while True:
            if not self.directory.exists():
                return  # the cluster was removed behind our back; what is left ends with this process
            if self.start_due():
                self.write_state()
            caught = signal.sigtimedwait(watched, self.until_next())
            if caught is not None and caught.si_signo in (signal.SIGTERM, signal.SIGINT):
                self.stop()
                return
            if self.reap():
                self.write_state()

    def start_due(self) -> bool:
        now = self.clock()
        due = [service for service in self.services if service.due is not None and service.due <= now]
        for service in due:
            try:
                service.start(now, self.environ)
            except OSError as error:  # no memory, no processes left, disk full: what back-off is for
                print(f"{service.state.name}: cannot start: {error}", flush=True)
                service.ended(-(error.errno or errno.EIO), now)
        return bool(due)

    def until_next(self) -> float:
        waits = [service.due - self.clock() for service in self.services if service.due is not None]
        return max(0.0, min(waits, default=3600.0))

    def reap(self) -> bool:
        """Collects what has ended; orphans are collected too, and forgotten."""
        changed = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return changed
            if pid == 0:
                return changed
            for service in self.services:
                if service.state.pid == pid:
                    code = os.waitstatus_to_exitcode(status)
                    print(f"{service.state.name}: ended with {code}, restart {service.state.restarts + 1}", flush=True)
                    service.ended(code, self.clock())
                    changed = True

    def write_state(self) -> None:
        target = self.directory / "services.json"
        try:
            target.with_suffix(".new").write_bytes(msgspec.json.encode([service.state for service in self.services]))
            target.with_suffix(".new").replace(target)
        except OSError as error:  # a full disk must not end the cluster
            print(f"cannot write {target}: {error}", flush=True)

    def stop(self) -> None:
        """Ask, wait a little. What is still there ends with this process, by the kernel."""
        running = [service for service in self.services if service.state.pid]
        for service in running:
            os.kill(service.state.pid, signal.SIGTERM)
        end = self.clock() + GRACE
        while (left := end - self.clock()) > 0 and any(service.state.pid for service in running):
            signal.sigtimedwait({signal.SIGCHLD}, left)
            self.reap()


def services_of(config: Config, directory: Path) -> list[Service]:
    """The command lines of a cluster's processes."""
    logs = directory / "log"
    api = f"unix:{directory / 'api.sock'}"
    server = [sys.executable, "-m", "podwire_apiserver", "--data", str(directory / "apiserver"), "--listen", api]
    if config.ip_family != "ipv4":
        for option, given in (("--service-cidr", SERVICE_CIDRS), ("--cluster-cidr", POD_CIDRS)):
            server += [option, ",".join(given[family] for family in config.families)]
    found = [Service("apiserver", server, logs / "apiserver.log")]
    edge = underlay(config.slot, EDGE)
    for number, node in enumerate(config.node_names(), 1):
        addresses = ",".join(node_ip(number, family) for family in config.families)
        agent = [
            *(sys.executable, "-m", "podwire_nodeagent", "--node", node, "--api", api, "--dir", str(directory / node)),
            *("--internal-ip", addresses, "--underlay", underlay(config.slot, number)),
            *("--cni", config.cni, "--proxy", config.proxy),
            *(("--edge-underlay", edge) if config.edge else ()),
        ]
        found.append(Service(node, agent, logs / f"{node}.log"))
    if config.edge:
        router = [sys.executable, "-m", "podwire_nodeagent.edge", "--api", api, "--dir", str(directory / "edge")]
        found.append(Service("edge", [*router, "--underlay", edge], logs / "edge.log"))
    return found


def node_ip(number: int, family: int) -> str:
    """The InternalIP of node `number`."""
    return f"192.168.1.{10 + number}" if family == 4 else f"fd00:192:168:1::{10 + number}"


EDGE = -9  # the edge's number, whose address is 127.SLOT.0.1


def underlay(slot: int, number: int) -> str:
    """The loopback address that stands for the network card of node `number`."""
    return f"127.{slot}.0.{10 + number}"


def become_init(directory: Path, config: Config) -> None:
    """The life of PID 1 of the cluster."""
    userns.mount_proc()
    userns.set_process_name("podwire-init")
    Supervisor(directory, services_of(config, directory)).run()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="podwire.supervisor")
    parser.add_argument("--dir", type=Path, required=True)
    directory: Path = parser.parse_args(argv).dir
    config = msgspec.json.decode((directory / "cluster.json").read_bytes(), type=Config)
    try:
        userns.isolate()
        wait, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(go)
            os.read(wait, 1)  # it will mount another /proc, in which its parent could not look it up
            become_init(directory, config)
            return 0
    except OSError as error:
        print(f"cannot isolate the cluster: {error.strerror}", flush=True)
        return 1
    started = process_start(child)
    os.close(go)
    if started is None:
        print("the cluster's first process ended at once", flush=True)
        return 1
    (directory / "supervisor.json").write_bytes(msgspec.json.encode(ProcessId(child, started)))
    return 0


def spawn(directory: Path) -> None:
    """Starts a cluster's supervisor, which outlives the caller. Raises OSError."""
    with open(directory / "log" / "supervisor.log", "ab") as log:
        subprocess.run(
            [sys.executable, "-m", "podwire.supervisor", "--dir", str(directory)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
            check=False,
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
