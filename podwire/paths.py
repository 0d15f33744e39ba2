"""Where clusters live on this machine, and which of them a command means.

A cluster is a directory `HOME/NAME` (its run directory): `cluster.json` says what was asked for, `supervisor.json` which
process keeps it running, everything else belongs to the processes of the cluster. Rules: this module only reads; a process
is named by its PID *and* its start time, since PIDs are given out again.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec
from msgspec import Struct

DEFAULT_NAME = "podwire"
NAME_PATTERN = re.compile(r"[a-z0-9]([-a-z0-9]{0,28}[a-z0-9])?")
# struct sockaddr_un: sun_path has 108 bytes; the longest of ours is NAME/nodeNN/standin.sock
LONGEST_SOCKET = "/node99/datapath.sock"


class ClusterError(Exception):
    """Something outside podwire is missing or wrong: one line that says what, and how to mend it. `code` is the exit status."""

    def __init__(self, message: str, code: int = 1, details: str = "") -> None:
        super().__init__(message)
        self.code, self.details = code, details


IP_FAMILIES = {"ipv4": (4,), "ipv6": (6,), "dual": (4, 6)}


class Config(Struct):
    """cluster.json. `slot` picks the loopback addresses 127.SLOT.0.x that carry the cluster's wire."""

    name: str
    nodes: int = 3
    cni: str = "flannel"
    proxy: str = "iptables"
    slot: int = 0
    created: float = 0.0
    version: str = ""
    edge: bool = True
    ip_family: str = "ipv4"

    @property
    def families(self) -> tuple[int, ...]:
        """The cluster's IP families, the preferred one first."""
        return IP_FAMILIES[self.ip_family]

    def node_names(self) -> list[str]:
        return [f"node{n}" for n in range(1, self.nodes + 1)]


class ProcessId(Struct):
    """A process on this machine. `started` is field 22 of /proc/PID/stat (clock ticks since boot)."""

    pid: int
    started: int

    def alive(self) -> bool:
        found = process_start(self.pid)
        return found is not None and found == self.started


def home() -> Path:
    """$PODWIRE_HOME, else /run/podwire for root, else the user's runtime directory."""
    if given := os.environ.get("PODWIRE_HOME"):
        return Path(given).absolute()
    if os.geteuid() == 0:
        return Path("/run/podwire")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "podwire"
    return Path.home() / ".podwire"


def run_dir(name: str) -> Path:
    """The directory of cluster `name`, which need not exist. Raises ClusterError for a name that cannot be one."""
    if not NAME_PATTERN.fullmatch(name):
        raise ClusterError(f"cluster name {name!r}: lower case letters, digits and '-', at most 30, is what it may be made of", 2)
    directory = home() / name
    if len(os.fsencode(directory)) + len(LONGEST_SOCKET) > 107:
        raise ClusterError(f"{directory} is too long for unix sockets (107 bytes): set PODWIRE_HOME to a shorter path", 2)
    return directory


def read_config(name: str) -> Config | None:
    """What cluster `name` was started with; None if there is no such cluster."""
    try:
        return msgspec.json.decode((run_dir(name) / "cluster.json").read_bytes(), type=Config)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.MsgspecError as error:
        raise ClusterError(
            f"{run_dir(name) / 'cluster.json'} is damaged ({error}): `podwire down --name {name}` removes it"
        ) from None


def supervisor_of(name: str) -> ProcessId | None:
    """The supervisor of cluster `name` if it runs."""
    try:
        found = msgspec.json.decode((run_dir(name) / "supervisor.json").read_bytes(), type=ProcessId)
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
        return None
    return found if found.alive() else None


def process_start(pid: int) -> int | None:
    """When a living process started, in clock ticks since boot; None if there is none, or only a zombie."""
    fields = process_stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def process_stat(pid: int) -> list[str] | None:
    """/proc/PID/stat from field 3 (state) on."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


def clusters() -> list[str]:
    """The names of all clusters of this user, running or not."""
    try:
        entries = sorted(home().iterdir())
    except FileNotFoundError:
        return []
    return [entry.name for entry in entries if NAME_PATTERN.fullmatch(entry.name) and (entry / "cluster.json").exists()]


def chosen(name: str | None) -> str:
    """The cluster a command means: as named (--cluster, PODWIRE_CLUSTER), else "podwire", else the only one that runs."""
    wanted = name or os.environ.get("PODWIRE_CLUSTER", "")
    if wanted:
        if supervisor_of(wanted) is None:
            raise ClusterError(f"cluster {wanted!r} is not running: `podwire up --name {wanted}` starts it")
        return wanted
    running = [found for found in clusters() if supervisor_of(found) is not None]
    if DEFAULT_NAME in running:
        return DEFAULT_NAME
    if len(running) == 1:
        return running[0]
    if running:
        raise ClusterError(f"several clusters are running ({', '.join(running)}): say which with --cluster", 2)
    raise ClusterError("no cluster is running: `podwire up` starts one")


def api_address(name: str) -> str:
    """The gRPC target of a cluster's API server. PODWIRE_API names one that this machine does not run (compose)."""
    return f"unix:{run_dir(name) / 'api.sock'}"
