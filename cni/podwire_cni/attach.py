"""A pod's interface: a TAP device in its network namespace, and the datapath's link that holds the other end.

Rules it keeps: a `Port` says all there is to know, and can be made again from a configuration and the container's names, so that
a restarted datapath gets its ports back (`reattach`) without touching the pods. Making and removing are idempotent where the
protocol wants it; what fails halfway is undone.

Order to read: Port, connect, disconnect, reattach, problems.
"""

from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path
from typing import NamedTuple, TypeVar

from podwire_cni.macs import mac_of
from podwire_cni.protocol import CHECK_FAILED, DATAPLANE, INVALID_CONFIG, CniError, Json
from podwire_core import netns
from podwire_core.netlink import LinkAdd, LinkDel, LinkInfo, NetlinkError
from podwire_core.netlink_client import Netlink
from podwire_core.rtnetlink import Route

T = TypeVar("T")
MIN_MTU, MAX_MTU = 68, 65521  # RFC 791; the largest that a TAP takes


class Port(NamedTuple):
    """`dataplane`: the datapath's netlink socket."""

    dataplane: str
    netns: str
    ifname: str
    link: str  # the datapath's end, named like a veth
    bridge: str
    mtu: int
    hairpin: bool
    alias: str

    @classmethod
    def of(cls, conf: Json, container_id: str, netns: str, ifname: str, args: dict[str, str]) -> Port:
        """From the plugin's configuration and CNI_ARGS. CniError if the configuration is wrong."""
        mtu = _field(conf, "mtu", int, 1500)
        if not MIN_MTU <= mtu <= MAX_MTU:
            raise CniError(INVALID_CONFIG, f"mtu: expected {MIN_MTU} to {MAX_MTU}, got {mtu}")
        pod = "/".join(args[key] for key in ("K8S_POD_NAMESPACE", "K8S_POD_NAME") if key in args)
        return cls(
            _field(conf, "dataplane", str, ""),
            netns,
            ifname,
            link_name(container_id, ifname),
            _field(conf, "bridge", str, "cni0"),
            mtu,
            _field(conf, "hairpinMode", bool, False),
            f"pod {pod}" if pod else f"container {container_id}",
        )

    def operation(self) -> LinkAdd:
        """The link; its fd goes beside it."""
        return LinkAdd(
            self.link, "tap", mtu=self.mtu, master=self.bridge, hairpin=self.hairpin, alias=self.alias, fd=True, replace=True
        )


def _field(conf: Json, name: str, kind: type[T], default: T) -> T:
    value = conf.get(name, default)
    if type(value) is not kind or value == "":
        raise CniError(INVALID_CONFIG, f"{name}: expected {kind.__name__}, got {value!r}")
    return value


def link_name(container_id: str, ifname: str) -> str:
    """Of the datapath's end: "veth" and eight hexadecimal digits."""
    return f"veth{zlib.crc32(f'{container_id}/{ifname}'.encode()):08x}"


# --- making and removing --------------------------------


def connect(port: Port, addresses: list[str], routes: list[Route]) -> str:
    """Makes the interface with its addresses and routes, and links it to the datapath; returns its MAC."""
    mac = mac_of(addresses[0].partition("/")[0])
    try:
        fd = netns.create_tap(port.netns, port.ifname, mac, port.mtu)
    except OSError as error:
        raise CniError(DATAPLANE, f"make {port.ifname} in {port.netns}", str(error)) from None
    try:
        with netns.configure(port.netns) as net:
            net.set_link(port.ifname, up=True)
            for address in addresses:
                net.add_address(port.ifname, address)
            for route in routes:
                net.add_route(route)
        with Netlink(port.dataplane) as datapath:
            datapath.apply([port.operation()], [fd])
    except BaseException as error:
        disconnect(port)
        if not isinstance(error, OSError | NetlinkError):
            raise
        raise CniError(DATAPLANE, f"connect {port.ifname} to the datapath at {port.dataplane}", str(error)) from None
    finally:
        os.close(fd)
    return mac


def disconnect(port: Port) -> None:
    """Removes both ends. What is already gone, the namespace and the datapath included, is fine."""
    try:
        with Netlink(port.dataplane) as datapath:
            datapath.apply([LinkDel(port.link, missing_ok=True)])
    except (FileNotFoundError, ConnectionRefusedError):
        pass  # no datapath, no link
    except (OSError, NetlinkError) as error:
        raise CniError(DATAPLANE, f"remove {port.link} from the datapath at {port.dataplane}", str(error)) from None
    if not port.netns or not netns.is_mounted(port.netns):
        return
    try:
        with netns.configure(port.netns) as net:
            net.delete_link(port.ifname)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise CniError(DATAPLANE, f"remove {port.ifname} from {port.netns}", str(error)) from None


def reattach(port: Port, datapath: Netlink) -> None:
    """Gives a datapath that lost its file descriptors the port again. OSError if the device is gone or still held."""
    fd = netns.reattach_tap(port.netns, port.ifname)
    try:
        datapath.apply([port.operation()], [fd])
    finally:
        os.close(fd)


# --- checking --------------------------------


def check(port: Port, addresses: list[str], routes: list[str]) -> None:
    """CniError if the interface, its addresses and routes (destinations) or the datapath's link are not as they were made."""
    try:
        with netns.configure(port.netns) as net:
            _expect(set(addresses) <= set(net.addresses(port.ifname)), f"{port.ifname} has not {', '.join(addresses)}")
            present = {route.dst for route in net.routes(port.ifname)}
            _expect(set(routes) <= present, f"no route to {', '.join(sorted(set(routes) - present))}")
        with Netlink(port.dataplane) as datapath:
            links: list[LinkInfo] = datapath.dump("links")
    except (OSError, NetlinkError) as error:
        raise CniError(CHECK_FAILED, f"cannot see {port.ifname} of {port.netns}", str(error)) from None
    link = next((each for each in links if each.name == port.link), None)
    _expect(link is not None, f"the datapath has no link {port.link}")
    if link is not None:
        _expect(link.attached and link.up and link.master == port.bridge, f"{port.link} is down or not a port of {port.bridge}")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CniError(CHECK_FAILED, otherwise)


def reachable(socket: str) -> bool:
    """Whether the datapath answers."""
    if not Path(socket).exists():
        return False
    try:
        with Netlink(socket, timeout=5) as datapath:
            datapath.dump("info")
    except (OSError, NetlinkError):
        return False
    return True
