"""What a cluster needs from this machine, checked before anything is started.

Every check either passes or raises a ClusterError whose one line says what is missing and how to mend it. Order: the TUN
device, namespaces, disk, loopback addresses and ports.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from podwire import userns
from podwire.paths import ClusterError
from podwire.supervisor import EDGE, underlay
from podwire_core.constants import CABLE_PORT, VXLAN_PORT

TUN = Path("/dev/net/tun")
NEEDED_BYTES = 32 << 20
SLOTS = range(255)


def check_machine(home: Path) -> None:
    """Raises ClusterError for the first thing that is missing."""
    check_tun()
    check_namespaces()
    check_disk(home)


def check_tun(device: Path = TUN) -> None:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise ClusterError(f"cannot open {device}: {error.strerror}: {_mend_tun(device, error.errno or 0)}") from None


def _mend_tun(device: Path, code: int) -> str:
    if code == errno.EACCES:
        return f"`sudo chmod 666 {device}` opens it to ordinary users"
    if code == errno.EPERM:
        return "start the container with --device /dev/net/tun"
    return "`sudo modprobe tun` loads it (in a container: --device /dev/net/tun)"


def check_namespaces() -> None:
    if reason := userns.why_not():
        if os.geteuid() == 0:
            mend = "a container needs the capabilities NET_ADMIN and SYS_ADMIN (and no AppArmor profile that forbids mount)"
        else:
            mend = "run as root, or allow user namespaces: `sudo sysctl kernel.unprivileged_userns_clone=1 "
            mend += "kernel.apparmor_restrict_unprivileged_userns=0` (whichever of them this kernel has)"
        raise ClusterError(f"cannot make namespaces: {reason}: {mend}")


def check_disk(home: Path) -> None:
    """The store, logs and caches of a cluster take a few MB; a full disk shows as odd errors much later."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o755)
        disk = os.statvfs(home)
    except OSError as error:
        raise ClusterError(f"cannot use {home}: {error.strerror}: set PODWIRE_HOME to a directory you can write") from None
    if disk.f_bavail * disk.f_frsize < NEEDED_BYTES:
        free = disk.f_bavail * disk.f_frsize >> 20
        raise ClusterError(f"{home} has {free} MB free, {NEEDED_BYTES >> 20} are needed: free some, or set PODWIRE_HOME")
    if not os.access(home, os.W_OK):
        raise ClusterError(f"cannot write {home}: set PODWIRE_HOME to a directory you can write")


def free_slot(nodes: int, taken: set[int]) -> int:
    """The first slot whose loopback addresses nobody uses. `taken`: the slots of this user's other clusters."""
    for slot in SLOTS:
        if slot not in taken and not any(_busy(underlay(slot, n), port) for n in (EDGE, *range(1, nodes + 1)) for port in PORTS):
            return slot
    raise ClusterError(
        f"UDP port {VXLAN_PORT} or {CABLE_PORT} is in use on every loopback address: `ss -lunp 'sport = {VXLAN_PORT}'` says by "
        f"whom (nobody: a vxlan device of this machine, `ip -d link show type vxlan`)"
    )


PORTS = (VXLAN_PORT, CABLE_PORT)


def _busy(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                return True
            raise
    return False
