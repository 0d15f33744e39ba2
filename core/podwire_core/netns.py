"""Network namespaces and TAP devices by direct system calls: what the agent, the kubelet and the CNI plugin make pods of.

Rules it keeps:

- A namespace is a path (bind-mounted, `create`) or an open fd of one. `in_netns` switches the calling thread only, and back on
  every way out; sockets and TAP fds made inside stay in that namespace.
- A TAP is persistent before anyone closes it (closing a TAP that is not costs 33 ms, serialised), so a dead datapath leaves the
  pod's device, addresses and routes, and `reattach_tap` gives a new fd to them. TAPs speak virtio-net headers with offloads on.
- Errors are `OSError` with one line that says what and, where a user can mend it, how.

Order to read: namespaces, TAPs, configuring a namespace.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from podwire_core.rtnetlink import Route, Rtnetlink

Netns = str | os.PathLike[str] | int

# --- namespaces --------------------------------

CLONE_NEWNET = 0x40000000
MS_BIND, MNT_DETACH = 0x1000, 2
_THREAD_NETNS = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, about: str, *args: object) -> None:
    if getattr(_libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{about}: {os.strerror(code)}")


@contextmanager
def in_netns(netns: Netns) -> Iterator[None]:
    """The calling thread is in that network namespace inside the block. Needs CAP_SYS_ADMIN over it."""
    home = os.open(_THREAD_NETNS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = netns if isinstance(netns, int) else os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", f"enter network namespace {netns}", target, CLONE_NEWNET)
        finally:
            if not isinstance(netns, int):
                os.close(target)
        try:
            yield
        finally:
            _call("setns", "return to the network namespace", home, CLONE_NEWNET)
    finally:
        os.close(home)


def create(path: str | os.PathLike[str]) -> None:
    """A new network namespace with `lo` up, kept by a bind mount on `path` (made, mode 0444, if it is missing)."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC, 0o444))
    home = os.open(_THREAD_NETNS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("unshare", "make a network namespace", CLONE_NEWNET)
        try:
            _call("mount", f"bind {path}", _THREAD_NETNS.encode(), os.fsencode(path), None, MS_BIND, None)
            with Rtnetlink() as net:
                net.set_link("lo", up=True)
        finally:
            _call("setns", "return to the network namespace", home, CLONE_NEWNET)
    except BaseException:
        delete(path)
        raise
    finally:
        os.close(home)


def delete(path: str | os.PathLike[str]) -> None:
    """Drops the name; the namespace itself goes with its last process, socket and fd. Missing is fine."""
    if _libc.umount2(os.fsencode(path), MNT_DETACH) != 0 and ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
        code = ctypes.get_errno()
        raise OSError(code, f"unmount {path}: {os.strerror(code)}")
    Path(path).unlink(missing_ok=True)


def is_mounted(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a namespace, not the empty file that a lost mount (a reboot) leaves."""
    try:
        with in_netns(path):
            return True
    except OSError:
        return False


# --- TAPs --------------------------------

TUNSETIFF, TUNSETPERSIST, TUNSETOFFLOAD = 0x400454CA, 0x400454CB, 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6 = 0x01, 0x02, 0x04, 0x20, 0x40
OFFLOADS = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6
OFFLOADS_USO = OFFLOADS | TUN_F_USO4 | TUN_F_USO6  # Linux 6.2; the two only together
TUNNEL_BYTES, TUNNEL_HEADERS = 65_000, 22  # a superframe cut into segments must fit one UDP_SEGMENT send: Ethernet and VXLAN


def create_tap(netns: Netns, name: str, mac: str = "", mtu: int = 1500) -> int:
    """A persistent TAP in that namespace, down; its non-blocking, close-on-exec fd. EEXIST if the name is taken."""
    with in_netns(netns), Rtnetlink() as net:
        try:
            net.index(name)
        except OSError:
            pass  # the name is free
        else:
            raise OSError(errno.EEXIST, f"link {name} in {netns}: exists")
        fd = _attach(name)
        try:
            net.set_link(name, mac=mac, mtu=mtu, gso_max_segs=TUNNEL_BYTES // (mtu + TUNNEL_HEADERS))
        except BaseException:
            fcntl.ioctl(fd, TUNSETPERSIST, 0)
            os.close(fd)
            raise
    return fd


def reattach_tap(netns: Netns, name: str) -> int:
    """A new fd of an existing TAP whose holder is gone. ENODEV if there is none, EBUSY while another fd holds it."""
    with in_netns(netns), Rtnetlink() as net:
        net.index(name)
        return _attach(name)


def _attach(name: str) -> int:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, f"open /dev/net/tun: {error.strerror} ({_TUN_HINTS.get(error.errno or 0, _HINT)})") from error
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        fcntl.ioctl(fd, TUNSETPERSIST, 1)
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD, OFFLOADS_USO)
        except OSError:
            fcntl.ioctl(fd, TUNSETOFFLOAD, OFFLOADS)
    except OSError as error:
        os.close(fd)
        raise OSError(error.errno, f"attach TAP {name}: {error.strerror}") from error
    return fd


_HINT = "is the tun module there?"
_TUN_HINTS = {
    errno.ENOENT: "modprobe tun, or give the container --device /dev/net/tun",
    errno.EACCES: "chmod 0666 /dev/net/tun, or be root",
    errno.EPERM: "give the container --device /dev/net/tun",
    errno.ENODEV: "modprobe tun",
}

# --- configuring a namespace --------------------------------


def configure(netns: Netns) -> Rtnetlink:
    """A configuration socket of that namespace: `with configure(path) as net: net.add_address("eth0", "10.244.1.5/24")`."""
    with in_netns(netns):
        return Rtnetlink()


def set_up(netns: Netns, dev: str) -> None:
    with configure(netns) as net:
        net.set_link(dev, up=True)


def add_address(netns: Netns, dev: str, address: str) -> None:
    with configure(netns) as net:
        net.add_address(dev, address)


def add_route(netns: Netns, dst: str, via: str = "", dev: str = "", src: str = "", mtu: int = 0, onlink: bool = False) -> None:
    with configure(netns) as net:
        net.add_route(Route(dst, dev=dev, via=via, src=src, mtu=mtu, onlink=onlink))


def add_neighbour(netns: Netns, dev: str, address: str, mac: str) -> None:
    with configure(netns) as net:
        net.add_neighbour(dev, address, mac)


def set_sysctl(netns: Netns, name: str, value: str) -> None:
    """`sysctl -w net.ipv4.ip_unprivileged_port_start=0` there; only names below `net.` belong to the namespace."""
    with in_netns(netns):
        Path("/proc/sys", *name.split(".")).write_text(value)
