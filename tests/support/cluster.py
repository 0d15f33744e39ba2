"""A real cluster as tests see it: `cluster("get", "pods")` runs the command and returns what it printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

ROOT = Path(__file__).parent.parent.parent
PODWIRE = [sys.executable, "-m", "podwire.cli.main"]
T = TypeVar("T")


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Cluster:
    """A running cluster, driven through the command as a user drives it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.environ = {**os.environ, "PODWIRE_CLUSTER": name, "PODWIRE_DEBUG": "1"}

    def run(self, *argv: str, stdin: str = "", timeout: float = 60) -> Done:
        done = subprocess.run([*PODWIRE, *argv], input=stdin, capture_output=True, text=True, timeout=timeout, env=self.environ)
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def __call__(self, *argv: str, stdin: str = "", timeout: float = 60) -> str:
        done = self.run(*argv, stdin=stdin, timeout=timeout)
        assert done.code == 0, f"podwire {' '.join(argv)}: exit status {done.code}\n{done.out}\n{done.err}"
        return done.out

    def fails(self, *argv: str, stdin: str = "") -> tuple[int, str]:
        done = self.run(*argv, stdin=stdin)
        assert done.code != 0, f"podwire {' '.join(argv)} succeeded: {done.out}"
        return done.code, done.err

    def json(self, *argv: str) -> Any:
        return json.loads(self(*argv, "-o", "json"))

    def popen(self, *argv: str, **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen([*PODWIRE, *argv], env=self.environ, text=True, **more)

    def pods(self, selector: str, namespace: str = "default") -> list[dict[str, Any]]:
        return list(self.json("get", "pods", "-n", namespace, "-l", selector)["items"])

    def processes(self, kind: str, node: str = "") -> list[int]:
        """PIDs, as this machine counts, of a kind of process: agent, datapath, apiserver, dns …"""
        done = self.run("status", "--cluster", self.name, "-o", "json")
        [found] = json.loads(done.out)
        return [each["pid"] for each in found["processes"] if each["kind"] == kind and node in ("", each["node"])]

    def up(self, *options: str) -> None:
        self("up", "--name", self.name, *options, timeout=120)

    def down(self) -> None:
        self("down", "--name", self.name)

    def logs(self) -> str:
        directory = Path(json.loads(self.run("status", "--cluster", self.name, "-o", "json").out)[0]["directory"])
        return "\n".join(f"==> {log}\n{log.read_text(errors='replace')[-4000:]}" for log in sorted(directory.rglob("*.log")))


def until(condition: Callable[[], T], what: str, seconds: float = 30.0) -> T:
    """Polls until it is true; the value."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"timed out: {what}"
        time.sleep(0.05)
    return found


def read_new(process: subprocess.Popen[str]) -> str:
    """What a running command has printed since the last call; never waits."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    os.set_blocking(fd, False)
    parts = []
    try:
        while data := os.read(fd, 65536):
            parts.append(data)
    except BlockingIOError:
        pass
    return b"".join(parts).decode()
