"""The processes of a cluster as this machine sees them: read from /proc, never remembered.

Everything in a cluster descends from its supervisor, so the answer is a walk down the process tree.
"""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct

from podwire.paths import ProcessId, process_stat, supervisor_of

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
# which process a command line is: the module that Python runs → its kind
MODULES = {
    "podwire.supervisor": "supervisor",
    "podwire_apiserver": "apiserver",
    "podwire_nodeagent": "agent",
    "podwire_nodeagent.datapath": "datapath",
    "podwire_nodeagent.edge": "edge",
    "podwire_nodeagent.standin": "standin",
    "podwire_dns": "dns",
}


class Process(Struct):
    """`kind` is one of MODULES' or "pod" (a program of a container). `node` is "" if the command line doesn't say it."""

    pid: int
    kind: str
    node: str
    command: str
    rss: int  # bytes
    cpu: float  # seconds used so far


def below(pid: int) -> list[ProcessId]:
    """`pid` and all its descendants that live now."""
    children: dict[int, list[ProcessId]] = {}
    top: list[ProcessId] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        fields = process_stat(int(entry.name))
        if fields is None or fields[0] in "ZX":
            continue
        found = ProcessId(int(entry.name), int(fields[19]))
        children.setdefault(int(fields[1]), []).append(found)
        if found.pid == pid:
            top = [found]
    result, queue = [], top
    while queue:
        current = queue.pop()
        result.append(current)
        queue += children.get(current.pid, [])
    return result


def of_cluster(name: str) -> list[Process]:
    """All processes of cluster `name`; empty if it doesn't run."""
    supervisor = supervisor_of(name)
    if supervisor is None:
        return []
    return [process for found in below(supervisor.pid) if (process := _describe(found.pid)) is not None]


def _describe(pid: int) -> Process | None:
    fields = process_stat(pid)
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields is None or not argv:
        return None
    module = _after(argv, "-m")
    cpu = (int(fields[11]) + int(fields[12])) / TICKS
    kind = MODULES.get(module, "pod")
    return Process(pid, kind, "edge" if kind == "edge" else _node(argv), " ".join(argv), int(fields[21]) * PAGE, cpu)


def _node(argv: list[str]) -> str:
    """The node that a command line belongs to: as it says, or by a path below the node's directory."""
    if found := _after(argv, "--node"):
        return found
    for word in argv:
        for part in word.split("/")[:-1]:
            if part.startswith("node") and part[4:].isdigit():
                return part
    return ""


def _after(argv: list[str], option: str) -> str:
    return argv[argv.index(option) + 1] if option in argv[:-1] else ""
