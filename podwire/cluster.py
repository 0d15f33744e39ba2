"""Starting and stopping whole clusters on this machine.

`up` prepares the run directory, starts the supervisor (which starts everything else), and then only watches through the API
until the cluster does what it promises; it never touches a node itself. Rules: what fails is a ClusterError of one line,
with the tail of the log of the process that failed in `details`; a cluster that did not come up is torn down again; `down`
leaves nothing behind, whatever state it finds.

Order to read: up, its stages, down, status.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from podwire import kubesystem, paths, preflight, processes, userns
from podwire.paths import ClusterError, Config, run_dir
from podwire.supervisor import ServiceState, spawn
from podwire_core.errors import ApiError

if TYPE_CHECKING:
    from podwire_core.rpc.sync import SyncClient

CNIS = ("flannel",)
POLL = 0.03
HOPELESS_RESTARTS = 3

Report = Callable[[str, str], None]  # (stage, how far it is); "" ends a stage


# --- up --------------------------------


def up(config: Config, report: Report, timeout: float = 60.0) -> Config:
    """Starts a cluster and returns when DNS answers in it. Raises ClusterError."""
    directory = run_dir(config.name)
    if paths.supervisor_of(config.name) is not None:
        raise ClusterError(f"cluster {config.name!r} is already running (`podwire down --name {config.name}` stops it)")
    preflight.check_machine(paths.home())
    if directory.exists():
        down(config.name)  # what a crash has left
    with _locked():
        taken = {other.slot for name in paths.clusters() if (other := paths.read_config(name))}
        config = msgspec.structs.replace(config, slot=preflight.free_slot(config.nodes, taken), created=time.time())
        _make_run_dir(directory, config)
    try:
        spawn(directory)
        _wait_for_all(Starting(config, time.monotonic() + timeout), report)
    except BaseException:
        down(config.name)
        raise
    return config


def _make_run_dir(directory: Path, config: Config) -> None:
    try:
        names = ("log", "apiserver", "edge", *config.node_names())
        for path in (directory, *(directory / name for name in names)):
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        (directory / "cluster.json").write_bytes(msgspec.json.encode(config))
    except OSError as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise ClusterError(f"cannot write {directory}: {error.strerror}: set PODWIRE_HOME to a directory you can write") from None


@contextmanager
def _locked() -> Iterator[None]:
    """Two `up` at once must not choose the same slot."""
    with open(paths.home() / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Starting:
    """A cluster on its way up: what it is doing, and whether there is still hope."""

    def __init__(self, config: Config, deadline: float) -> None:
        self.config, self.deadline = config, deadline
        self.directory = run_dir(config.name)

    def poll(self, what: str) -> None:
        """Between two looks. Raises ClusterError when the wait for `what` is in vain."""
        if paths.supervisor_of(self.config.name) is None:
            raise ClusterError("the supervisor has ended", details=tail(self.directory / "log" / "supervisor.log"))
        for service in read_services(self.config.name):
            if service.restarts >= HOPELESS_RESTARTS:
                raise ClusterError(
                    f"{service.name} ended {service.restarts} times (exit status {service.exit}); the end of its log follows",
                    details=tail(Path(service.log)),
                )
        if time.monotonic() > self.deadline:
            raise ClusterError(f"gave up waiting for {what}; the ends of the logs follow", details=self.all_tails())
        time.sleep(POLL)

    def all_tails(self) -> str:
        logs = sorted((self.directory / "log").glob("*.log"))
        return "\n".join(f"==> {log} <==\n{tail(log, 8)}" for log in logs)


def _wait_for_all(starting: Starting, report: Report) -> None:
    """Each stage is over when its effect is there; they run at the same time, so the order is only that of the report."""
    with _connect_when_serving(starting, report) as api:
        settle(api, starting.config.nodes, starting.poll, report, starting.config.families)


def _connect_when_serving(starting: Starting, report: Report) -> SyncClient:
    from podwire_core.rpc.sync import SyncClient  # grpc takes a while to import; the processes start meanwhile

    report("API server", "starting")
    while not (starting.directory / "api.sock").exists():
        starting.poll("the API server")
    client = SyncClient(paths.api_address(starting.config.name))
    wait_until_serving(client, starting.poll, report)
    return client


Poll = Callable[[str], None]  # between two looks: sleeps; raises ClusterError when there is no hope for what is named


def wait_until_serving(api: SyncClient, poll: Poll, report: Report) -> None:
    while True:
        try:
            api.info()
        except ApiError as error:
            if error.code != 503:
                raise
            poll("the API server")
        else:
            report("API server", "")
            return


def settle(api: SyncClient, nodes: int, poll: Poll, report: Report, families: tuple[int, ...] = (4,)) -> None:
    """Gives a cluster its kube-system, and waits for its nodes and for DNS."""
    api.apply_many(kubesystem.before_nodes(families))
    _wait_for_nodes(api, nodes, poll, report)
    api.apply_many(kubesystem.after_nodes())
    _wait_for_dns(api, poll, report)


def _wait_for_nodes(api: SyncClient, wanted: int, poll: Poll, report: Report) -> None:
    while True:
        ready = sum(1 for node in api.list("Node").items if _condition(node, "Ready"))
        report("nodes", f"{ready}/{wanted}")
        if ready >= wanted:
            report("nodes", "")
            return
        poll(f"the nodes ({ready} of {wanted} Ready)")


def _wait_for_dns(api: SyncClient, poll: Poll, report: Report) -> None:
    while True:
        [deployment] = api.list("Deployment", kubesystem.NAMESPACE, fields="metadata.name=coredns").items
        ready, wanted = deployment.get("status", {}).get("readyReplicas", 0), deployment["spec"]["replicas"]
        endpoints = sum(
            1
            for piece in api.list("EndpointSlice", kubesystem.NAMESPACE, labels="kubernetes.io/service-name=kube-dns").items
            for endpoint in piece.get("endpoints") or []
            if endpoint.get("conditions", {}).get("ready")
        )
        report("kube-system", f"coredns {ready}/{wanted}")
        if ready >= wanted and endpoints >= wanted:
            report("kube-system", "")
            return
        try:
            poll(f"kube-system (coredns: {ready} of {wanted} Ready)")
        except ClusterError as error:
            error.details = "\n".join(filter(None, (error.details, *_warnings(api))))
            raise


def _warnings(api: SyncClient) -> list[str]:
    """What went wrong with the pods of kube-system, as far as somebody has noticed."""
    events = [event for event in api.list("Event", kubesystem.NAMESPACE).items if event.get("type") == "Warning"]
    return [
        f"{event['involvedObject'].get('name', '')}: {event.get('reason', '')}: {event.get('message', '')}" for event in events
    ]


def _condition(obj: dict[str, object], kind: str) -> bool:
    status = obj.get("status")
    conditions = status.get("conditions") if isinstance(status, dict) else None
    return any(c.get("type") == kind and c.get("status") == "True" for c in conditions or [])


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log, for an error message."""
    try:
        text = log.read_bytes()[-16_384:].decode(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(empty)"


def read_services(name: str) -> list[ServiceState]:
    """What the supervisor last wrote about its services."""
    try:
        return msgspec.json.decode((run_dir(name) / "services.json").read_bytes(), type=list[ServiceState])
    except (FileNotFoundError, msgspec.MsgspecError):
        return []


# --- down --------------------------------


def down(name: str, timeout: float = 10.0) -> bool:
    """Stops cluster `name` and removes all traces of it. False if there was none."""
    directory = run_dir(name)
    if not directory.exists():
        return False
    supervisor = paths.supervisor_of(name)
    if supervisor is not None:
        members = processes.below(supervisor.pid)
        _end(supervisor, timeout)
        _wait_until_gone(members, timeout)
    _unmount_below(directory)
    _remove_cgroups(name)
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ClusterError(f"cannot remove {directory}: {error.strerror}: {error.filename}") from None
    return True


def _end(supervisor: paths.ProcessId, timeout: float) -> None:
    """SIGTERM, then SIGKILL: with PID 1 of its namespace the kernel ends all the others."""
    for number, patience in ((signal.SIGTERM, 3.0), (signal.SIGKILL, timeout)):
        try:
            os.kill(supervisor.pid, number)
        except ProcessLookupError:
            return
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if not supervisor.alive():
                return
            time.sleep(0.01)
    raise ClusterError(f"process {supervisor.pid} does not end (it waits in the kernel: `cat /proc/{supervisor.pid}/stack`)")


def _wait_until_gone(members: list[paths.ProcessId], timeout: float) -> None:
    """The kernel kills the members of a namespace asynchronously; their sockets must be free when `down` returns."""
    end = time.monotonic() + timeout
    while (alive := [member for member in members if member.alive()]) and time.monotonic() < end:
        time.sleep(0.01)
    if alive:
        raise ClusterError(f"processes do not end: {', '.join(str(member.pid) for member in alive)}")


def _unmount_below(directory: Path) -> None:
    """A cluster's mounts are in its own mount namespace; these are of processes that somebody started by hand."""
    prefix = f"{directory}/"
    mounts = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed([mount for mount in mounts if mount.startswith(prefix)]):
        userns.unmount(Path(mount))


def _remove_cgroups(name: str) -> None:
    """Kubelets that can limit CPU and memory put their pods below cgroup podwire/NAME; all of it is empty now."""
    for pattern in (f"podwire/{name}", f"*/podwire/{name}"):  # cgroup v2, v1
        for root in Path("/sys/fs/cgroup").glob(pattern):
            for directory in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
                directory.rmdir()
            root.rmdir()
