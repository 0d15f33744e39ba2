"""What the kubelet remembers of a pod and its containers, and the file that carries it over the agent's death.

Rules it keeps: a record is the truth about a container between two looks at the world; only the pod's worker changes it,
and it is written (atomically, run_dir/pods/<uid>/state.json) before the worker tells anyone. Times are Unix seconds. Exit
codes of signals are 128+n. What a running container left behind is in its own directory, written by its shim (see shim/main.py).

Order to read: Ended, Record, Sandbox, PodRecord, load and save.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from podwire_core.objects import Json

INIT, SIDECAR, MAIN = "init", "sidecar", "main"
WAITING, RUNNING, ENDED = "waiting", "running", "ended"


class Ended(Struct):
    """How a run of a container ended."""

    code: int
    reason: str  # Completed, Error, OOMKilled, ContainerStatusUnknown, StartError, DeadlineExceeded
    started: float
    finished: float
    message: str = ""
    id: str = ""
    signal: int = 0


class Record(Struct):
    """One container of a pod. `ended` is the end of the latest run while state is ENDED, or WAITING to be restarted;
    `last` the end of the run before the current one."""

    name: str
    kind: str = MAIN
    state: str = WAITING
    reason: str = "PodInitializing"  # of waiting
    message: str = ""
    id: str = ""
    attempt: int = 0  # counts runs; names their directories and logs
    restarts: int = 0
    started_at: float = 0.0
    started: bool = False  # the startup probe has passed, postStart is done
    ready: bool = False
    standin: bool = False
    ended: Ended | None = None
    last: Ended | None = None
    delay: float = 0.0  # back-off before the next start
    delayed_at: float = 0.0  # when `delay` was last changed
    image_tries: int = 0


class Sandbox(Struct):
    """The pod's network: `netns` "" until it is made."""

    netns: str = ""
    id: str = ""
    ips: list[str] = []


class PodRecord(Struct):
    """All of a pod. `pod` is the object as last seen, so that an agent without API server can go on."""

    uid: str
    pod: Json
    sandbox: Sandbox = msgspec.field(default_factory=Sandbox)
    containers: dict[str, Record] = {}
    started_at: float = 0.0  # status.startTime
    failed: str = ""  # status.reason of a pod that was failed as a whole: DeadlineExceeded
    failed_message: str = ""
    killing_since: float = 0.0  # the grace period runs from here


def load(path: Path) -> PodRecord | None:
    """None if there is no readable record: a directory that a crash left before its first save."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=PodRecord)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def save(path: Path, record: PodRecord) -> None:
    """Atomic; no fsync, since nothing of it outlives a reboot anyway."""
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.encode(record))
    os.replace(temporary, path)


def load_all(pods_dir: Path) -> Iterator[tuple[Path, PodRecord | None]]:
    """(a pod's directory, its record) for all there are."""
    if pods_dir.is_dir():
        for directory in sorted(pods_dir.iterdir()):
            yield directory, load(directory / "state.json")


def timestamp(at: float) -> str:
    """As Kubernetes writes times: 2024-05-01T10:00:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
