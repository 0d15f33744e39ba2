"""Namespaces for a whole cluster, by direct system calls.

`isolate()` gives the calling process a mount namespace of its own and its next child a PID namespace: when that child (the
supervisor, PID 1 of the cluster) ends, the kernel ends every process below it and drops every mount, however it ended. That
is what makes `podwire down` complete. An ordinary user gets a user namespace around both, in which he is root, and a network
namespace that belongs to it: no thread may return to one of the machine's after it has entered a pod's.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

from podwire_core.rtnetlink import Rtnetlink

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 1 << 18
MNT_DETACH = 2
PR_SET_NAME = 15

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def isolate() -> None:
    """Raises OSError (EPERM, EACCES, ENOSPC …) where the machine does not allow it."""
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWNS | CLONE_NEWPID
    if os.geteuid() != 0:
        flags |= CLONE_NEWUSER | CLONE_NEWNET
    _check(_libc.unshare(flags), "unshare")
    if flags & CLONE_NEWUSER:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    _check(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "make / a private mount")
    if flags & CLONE_NEWNET:
        with Rtnetlink() as net:
            net.set_link("lo", up=True)  # the wire between the nodes


def mount_proc() -> None:
    """A /proc that shows this PID namespace: called by its PID 1."""
    _check(_libc.mount(b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None), "mount /proc")


def set_process_name(name: str) -> None:
    """What `ps -o comm` and `top` show."""
    _libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def unmount(path: Path) -> None:
    """`umount -l`; a path that is no mount point is fine."""
    if _libc.umount2(os.fsencode(path), MNT_DETACH) != 0 and ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT, errno.EPERM):
        _check(-1, f"umount {path}")


def why_not() -> str:
    """Why `isolate` would fail here, or "". Tried in a process of its own: there is no way back out of a namespace, and a fork
    of a process that uses gRPC aborts."""
    trial = [sys.executable, "-m", "podwire.userns"]
    return subprocess.run(trial, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False).stdout.decode()


def _try_all() -> str:
    """What `why_not` executes: its own namespaces are gone with it."""
    reading, writing = os.pipe()
    try:
        isolate()
        if os.fork() == 0:
            try:
                mount_proc()
            except OSError as error:
                os.write(writing, str(error.strerror).encode())
            os._exit(0)
        os.wait()
    except OSError as error:
        return str(error.strerror)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read().decode()


if __name__ == "__main__":
    print(_try_all(), end="")
