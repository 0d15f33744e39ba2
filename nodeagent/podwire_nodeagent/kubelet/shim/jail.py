"""A container's private root: the machine's file system as lowest layer, writes in memory, podwire's own files on top.

Theory of operation. The new root is a tmpfs. Every top-level directory of the machine appears in it as an overlay (lower: the
machine's, upper: the tmpfs), so programs find all they know and change nothing outside. Directories that cannot be a layer (in a
user namespace: those with other mounts below; old kernels: all) are bound read-only instead. One overlay a directory and not one
over `/`, because the kernel refuses the latter to an ordinary user. /proc, /sys, /dev, /run, /dev/shm are the container's own.

Volumes and the managed files are bound after pivot_root, while the old root still hangs at OLD: then a symbolic link in a target
(`/var/run`) cannot lead out of the new root. Their sources were opened before (O_PATH), so no path is resolved twice.
Everything lives in the container's mount namespace and is gone with its last process: nothing to clean up.
Order to read: build, layers, system file systems, binds.
"""

from __future__ import annotations

import os
import re
from typing import Any

from podwire_nodeagent.kubelet.shim import system
from podwire_nodeagent.kubelet.shim.system import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC

OLD = ".podwire-old"
OWN = ("proc", "sys", "dev", "run", "lost+found", OLD)  # not taken from the machine
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LAYERABLE = ("ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "overlay", "f2fs", "zfs", "virtiofs", "9p")
UNWANTED = re.compile(r"/var/lib/(docker|containers|containerd|kubelet)(/|$)|/snap/")


def build(scratch_at: str, mounts: list[dict[str, Any]], hostname: str) -> list[str]:
    """Make this process's root the container's. `scratch_at` is an empty directory; returns the directories that are read-only
    because they could not be layered."""
    system.unshare(system.CLONE_NEWNS | system.CLONE_NEWUTS | system.CLONE_NEWIPC)
    system.mount("none", "/", "", MS_REC | MS_PRIVATE)
    system.sethostname(hostname)
    sources = [os.open(mount["source"], os.O_PATH | os.O_CLOEXEC) for mount in mounts]
    machine_mounts = _machine_mounts()
    scratch, root = scratch_at, f"{scratch_at}/root"
    system.mount("tmpfs", scratch, "tmpfs", MS_NOSUID, "mode=755")
    for directory in (root, f"{scratch}/upper", f"{scratch}/work"):
        os.mkdir(directory)
    system.mount(root, root, "", MS_BIND)  # pivot_root wants a mount point
    plain = _layer_machine(scratch, root, machine_mounts)
    _own_file_systems(root)
    os.mkdir(f"{root}/{OLD}")
    system.pivot_root(root, f"{root}/{OLD}")
    os.chdir("/")
    for mount, source in zip(mounts, sources, strict=True):
        _bind(f"/{OLD}/proc/self/fd/{source}", mount["target"], mount.get("ro", False))
        os.close(source)
    system.unmount(f"/{OLD}")
    os.rmdir(f"/{OLD}")
    return plain


# --- layers --------------------------------


def _layer_machine(scratch: str, root: str, machine_mounts: list[str]) -> list[str]:
    plain: list[str] = []
    for name in os.listdir("/"):
        path = f"/{name}"
        if name in OWN:
            continue
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path):
            os.mkdir(root + path)
            if not _overlay(path, root + path, scratch, name):
                plain.append(path)
                _bind_read_only(path, root + path)
    for number, path in enumerate(machine_mounts):
        covered = any(path.startswith(f"{top}/") for top in plain)
        if not covered and os.path.isdir(root + path) and not _overlay(path, root + path, scratch, f"@{number}"):
            _bind_read_only(path, root + path)
    return plain


def _machine_mounts() -> list[str]:
    """Mounts below the top level that hold files a program may need, parents first."""
    found = []
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields, _, rest = line.partition(" - ")
            path = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields.split()[4])
            top = path.split("/")[1]
            if rest.split()[0] in LAYERABLE and path.count("/") > 1 and top not in OWN and not UNWANTED.match(path):
                found.append(path)
    return found


def _overlay(lower: str, target: str, scratch: str, name: str) -> bool:
    upper, work = f"{scratch}/upper/{name}", f"{scratch}/work/{name}"
    status = os.stat(lower)
    os.mkdir(upper)
    os.mkdir(work)
    os.chmod(upper, status.st_mode & 0o7777)
    try:
        os.chown(upper, status.st_uid, status.st_gid)
    except OSError:
        pass  # an owner that this user namespace does not know
    options = f"lowerdir={_escape(lower)},upperdir={_escape(upper)},workdir={_escape(work)}"
    for extra in (",userxattr", ""):
        try:
            system.mount("overlay", target, "overlay", MS_NODEV, options + extra)
            return True
        except OSError:
            continue
    return False


def _escape(path: str) -> str:
    return re.sub(r"([\\,:])", r"\\\1", path)


def _bind_read_only(source: str, target: str) -> None:
    system.mount(source, target, "", MS_BIND | MS_REC)
    _remount_read_only(target)


def _remount_read_only(target: str) -> None:
    flags = os.statvfs(target).f_flag  # ST_NOSUID, ST_NODEV and ST_NOEXEC are the same bits as MS_…; locked ones must stay
    kept = flags & (MS_NOSUID | MS_NODEV | MS_NOEXEC | 0xC00) | (system.MS_RELATIME if flags & 0x1000 else 0)
    system.mount("none", target, "", MS_BIND | system.MS_REMOUNT | MS_RDONLY | kept)


# --- /proc, /sys, /dev, /run --------------------------------


def _own_file_systems(root: str) -> None:
    for name in ("proc", "sys", "dev", "run"):
        os.mkdir(f"{root}/{name}")
    _mount_or_bind("proc", f"{root}/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount_or_bind("sysfs", f"{root}/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY)
    system.mount("tmpfs", f"{root}/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    dev = f"{root}/dev"
    system.mount("tmpfs", dev, "tmpfs", MS_NOSUID, "mode=755")
    for name in DEVICES:
        _touch(f"{dev}/{name}")
        system.mount(f"/dev/{name}", f"{dev}/{name}", "", MS_BIND)
    os.mkdir(f"{dev}/pts")
    system.mount("devpts", f"{dev}/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    os.mkdir(f"{dev}/shm")
    system.mount("tmpfs", f"{dev}/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    links = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1"}
    for name, target in (links | {"stderr": "/proc/self/fd/2"}).items():
        os.symlink(target, f"{dev}/{name}")


def _mount_or_bind(kind: str, target: str, flags: int) -> None:
    """A fresh one; where a container around us forbids that, the machine's."""
    try:
        system.mount(kind, target, kind, flags)
    except OSError:
        system.mount("/proc" if kind == "proc" else "/sys", target, "", MS_BIND | MS_REC)


# --- binds --------------------------------


def _bind(source: str, target: str, read_only: bool) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target):
            _touch(os.path.realpath(target))
    try:
        system.mount(source, target, "", MS_BIND)
    except OSError:
        system.mount(source, target, "", MS_BIND | MS_REC)  # mounts below that this user namespace may not uncover
    if read_only:
        _remount_read_only(target)


def _touch(path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
