"""Containers that are programs: starting them through a shim, finding them again, signalling them, hearing of their end.

Rules it keeps: what the shim leaves in the container's directory (run.json, exit.json) is the truth; the agent holds
pidfds, never bare process IDs, so it cannot signal a stranger. A shim is started by fork and exec in C (subprocess), never
by a fork that runs Python: the agent has gRPC's threads.

Order to read: Spec, launch, Held, start, adopt, ended, control lines.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import trio
from msgspec import Struct

import podwire_nodeagent
from podwire_core.objects import Json
from podwire_nodeagent.kubelet.volumes import Mount

_PACKAGES = str(Path(podwire_nodeagent.__file__).parent.parent)
_LAUNCH = f"import sys;sys.path.insert(0,{_PACKAGES!r});from podwire_nodeagent.kubelet.shim.main import main;main()"
START_SECONDS = 30.0


class Spec(Struct, omit_defaults=True):
    """What a shim is told (see shim/main.py). Fields that a mode does not use are left out."""

    mode: str  # container, join, transient, host
    argv: list[str]
    env: dict[str, str]
    control: int = -1
    netns: str = ""
    hostname: str = ""
    root: str = ""
    mounts: list[Mount] = []
    cwd: str = ""
    uid: int | None = None
    gid: int | None = None
    groups: list[int] | None = None
    capabilities: list[int] | None = None
    in_userns: bool = False
    cgroups: list[str] = []
    join: int = 0
    tty: bool = False
    stdin: bool = False
    rows: int = 24
    columns: int = 80
    terminal: int = -1
    log: str = ""
    run_file: str = ""
    exit_file: str = ""


class StartError(Exception):
    """The program could not be started: `code` 126 or 127 (it cannot be executed, or is not there), 128 otherwise."""

    def __init__(self, message: str, code: int = 128) -> None:
        super().__init__(message)
        self.code = code


class Held(Struct):
    """A container of which we hold the shim. `pidfd` of the program is -1 if it had ended before we could look."""

    pid: int
    shim_pidfd: int
    pidfd: int
    process: Any = None  # our Popen, unless adopted
    plain: list[str] = []  # directories that are read-only, for lack of overlays


def launch(python: str, spec_path: str, fds: list[int], **stdio: Any) -> subprocess.Popen[bytes]:
    """A shim in a session of its own. Only `fds` are inherited."""
    argv = [python, "-I", "-S", "-c", _LAUNCH, spec_path]
    return subprocess.Popen(argv, pass_fds=fds, start_new_session=True, cwd="/", **stdio)


async def start(python: str, spec: Spec, directory: Path) -> Held:
    """Raises StartError or OSError."""
    spec.run_file, spec.exit_file = str(directory / "run.json"), str(directory / "exit.json")
    spec.root = str(directory / "root")
    os.makedirs(spec.root, exist_ok=True)
    read, write = os.pipe()
    async with trio.lowlevel.FdStream(read) as control:
        try:
            spec.control = write
            path = directory / "spec.json"
            path.touch(0o600)
            path.write_text(json.dumps(as_json(spec)))
            quiet = subprocess.DEVNULL
            with open(directory / "shim.log", "wb") as complaints:
                process = launch(python, str(path), [write], stdin=quiet, stdout=complaints, stderr=complaints)
        finally:
            os.close(write)
        said: Json | None = None
        try:
            with trio.move_on_after(START_SECONDS):
                said = await read_line(control)
        finally:
            if said is None:
                process.kill()  # late, or cancelled: nobody would know of it
        if said is not None:
            if "pid" in said:
                held = _hold(process.pid, said["pid"])
                held.process, held.plain = process, said.get("plain", [])
                return held
            await _gone(process)
            complaint = (directory / "shim.log").read_text(errors="replace").strip().splitlines()
            raise StartError(said.get("error", complaint[-1] if complaint else "the shim died"), said.get("code", 128))
    raise StartError(f"the shim did not answer in {START_SECONDS:.0f} s")


def as_json(spec: Spec) -> Json:
    """Without the fields that are as a shim takes them to be."""
    value: Json = msgspec.to_builtins(spec)
    return {"mounts": [], "cgroups": [], "hostname": "", **value}


def _hold(shim: int, pid: int) -> Held:
    shim_pidfd = os.pidfd_open(shim)
    try:
        return Held(pid, shim_pidfd, os.pidfd_open(pid))
    except ProcessLookupError:
        return Held(pid, shim_pidfd, -1)


async def _gone(process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        await trio.sleep(0.002)


def adopt(directory: Path) -> Held | None:
    """The running container of that directory, held again; None if it has ended or never started."""
    try:
        run = json.loads((directory / "run.json").read_bytes())
        held = _hold(run["shim"], run["pid"])
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return None
    if _ticks(run["shim"]) == run["ticks"] and not (directory / "exit.json").exists():
        return held
    release(held)
    return None


def read_spec(directory: Path) -> Spec | None:
    """What the container of that directory was started with."""
    try:
        return msgspec.json.decode((directory / "spec.json").read_bytes(), type=Spec)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _ticks(pid: int) -> int:
    """When the process started; distinguishes it from a later one with the same number."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return -1


def send_signal(held: Held, number: int) -> None:
    if held.pidfd >= 0:
        try:
            signal.pidfd_send_signal(held.pidfd, number)
        except ProcessLookupError:
            pass  # it has just ended


async def wait(held: Held) -> None:
    """Until the shim has gone, and with it the container."""
    await trio.lowlevel.wait_readable(held.shim_pidfd)
    if held.process is not None:
        held.process.wait()
    release(held)


def release(held: Held) -> None:
    for fd in (held.shim_pidfd, held.pidfd):
        if fd >= 0:
            os.close(fd)
    held.shim_pidfd = held.pidfd = -1


def ending(directory: Path) -> tuple[int, float] | None:
    """(exit code, time) of a container that has ended; None if its shim was killed, and it with it."""
    try:
        left = json.loads((directory / "exit.json").read_bytes())
        return int(left["code"]), float(left["finished"])
    except (FileNotFoundError, ValueError):
        return None


# --- control lines --------------------------------


async def read_line(stream: trio.lowlevel.FdStream | trio.SocketStream) -> Json:
    """The next JSON line of a shim; {} at the end."""
    data = bytearray()
    while not data.endswith(b"\n"):
        chunk = await stream.receive_some(1)  # a few dozen bytes, once a container
        if not chunk:
            return {}
        data += chunk
    value: Json = json.loads(data)
    return value
