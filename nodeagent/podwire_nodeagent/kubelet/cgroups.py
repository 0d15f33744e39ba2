"""CPU and memory limits by control groups, version 1 or 2, where this machine lets us write one; otherwise nothing, and
the kubelet says so in an event.

A container's groups are podwire/<node's run dir>/<pod uid>/<container> below each controller (v1) or the one tree (v2). Order to
read: find, Cgroups.
"""

from __future__ import annotations

from pathlib import Path

from podwire_core import quantity
from podwire_core.objects import ResourceRequirements

PERIOD = 100_000  # µs


class Cgroups:
    """The groups of one node's containers. `kind` "v1", "v2", or "" where there is nothing to write to."""

    def __init__(self, root: Path | None, node: str) -> None:
        self._parents: dict[str, Path] = {}
        self.kind = ""
        if root is not None:
            self._find(root, node)

    def _find(self, root: Path, node: str) -> None:
        if (root / "cgroup.controllers").exists():
            if _usable(root / "podwire") and _delegate(root, root / "podwire"):
                self.kind, self._parents = "v2", {"all": root / "podwire" / node}
            return
        parents = {name: root / name / "podwire" for name in ("memory", "cpu") if (root / name / "tasks").exists()}
        if parents and all(_usable(path) for path in parents.values()):
            self.kind, self._parents = "v1", {name: path / node for name, path in parents.items()}

    def create(self, uid: str, container: str, resources: ResourceRequirements | None) -> list[str]:
        """Groups with the container's limits: the directories its first process joins. [] without limits or groups."""
        limits = (resources.limits if resources is not None else None) or {}
        cpu, memory = limits.get("cpu"), limits.get("memory")
        if not self.kind or (cpu is None and memory is None):
            return []
        groups = {name: parent / uid / container for name, parent in self._parents.items()}
        for group in groups.values():
            group.mkdir(parents=True, exist_ok=True)
            if self.kind == "v2":
                _delegate(group.parent.parent, group.parent)
        quota = max(1000, quantity.milli(cpu) * PERIOD // 1000) if cpu is not None else None
        amount = quantity.value(memory) if memory is not None else None
        if self.kind == "v2":
            if quota is not None:
                _write(groups["all"] / "cpu.max", f"{quota} {PERIOD}")
            if amount is not None:
                _write(groups["all"] / "memory.max", str(amount))
        else:
            if quota is not None and "cpu" in groups:
                _write(groups["cpu"] / "cpu.cfs_period_us", str(PERIOD))
                _write(groups["cpu"] / "cpu.cfs_quota_us", str(quota))
            if amount is not None and "memory" in groups:
                _write(groups["memory"] / "memory.limit_in_bytes", str(amount))
        return [str(group) for group in groups.values()]

    def killed_by_oom(self, uid: str, container: str) -> bool:
        """Whether the kernel has killed a process of the container for its memory limit."""
        parent = self._parents.get("all") or self._parents.get("memory")
        if parent is None:
            return False
        file = parent / uid / container / ("memory.events" if self.kind == "v2" else "memory.oom_control")
        if not file.exists():
            return False
        return any(line.startswith("oom_kill ") and line.split()[1] != "0" for line in file.read_text().splitlines())

    def remove(self, uid: str, container: str = "") -> None:
        """The groups of a container, or of a pod with all its containers; those still in use stay for the next call."""
        for parent in self._parents.values():
            pod = parent / uid
            for group in [pod / container] if container else [*_children(pod), pod, parent]:
                _remove(group)


def purge(root: Path, cluster: str) -> None:
    """Removes what the agents of a cluster (by its run directory's name) left; for when all its processes are gone."""
    for parent in (root / "podwire", root / "memory" / "podwire", root / "cpu" / "podwire"):
        for node in parent.glob(f"{cluster}-*"):
            for group in sorted((path for path in node.rglob("*") if path.is_dir()), reverse=True):
                _remove(group)
            _remove(node)


def _remove(group: Path) -> None:
    try:
        group.rmdir()
    except OSError:
        pass  # never made, still in use, or its last process has not been reaped yet


def _usable(path: Path) -> bool:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return True


def _delegate(*groups: Path) -> bool:
    """Version 2: a group's children have only the controllers that it hands down."""
    try:
        for group in groups:
            _write(group / "cgroup.subtree_control", "+cpu +memory")
    except OSError:
        return False
    return True


def _children(pod: Path) -> list[Path]:
    return [path for path in pod.iterdir() if path.is_dir()] if pod.is_dir() else []


def _write(path: Path, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
