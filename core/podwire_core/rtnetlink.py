"""The real kernel's rtnetlink, as much as the emulation configures inside its own namespaces: links, addresses, routes,
neighbours. By direct system calls, since `ip` takes 8 ms a call and a node makes hundreds.

Rules it keeps:

- A `Rtnetlink` is one socket that belongs to one network namespace for good, whatever namespace the caller is in later.
- Every call is acknowledged by the kernel before it returns; a refusal is an `OSError` with its errno that names the object.
- With `replace` (the default) adding what is there already is no error, so that callers can state what they want again.
- Addresses and networks are text in both families, as in `netlink.py`.

Order to read: message building, Rtnetlink, reading dumps.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address, ip_interface, ip_network

from msgspec import Struct

# --- message building (linux/netlink.h, linux/rtnetlink.h) --------------------------------

NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 1, 4, 0x300, 0x100, 0x200, 0x400
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_GSO_MAX_SEGS = 1, 3, 4, 40
IFA_ADDRESS, IFA_LOCAL, IFA_F_NODAD = 1, 2, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTAX_MTU = 1, 4, 5, 6, 7, 8, 2
RTNH_F_ONLINK, RT_TABLE_MAIN, RT_SCOPE_LINK = 4, 254, 253
RTPROT_BOOT = 3  # what `ip route add` and CNI plugins write, and `ip route` does not print
RTN_UNICAST, RTN_LOCAL = 1, 2
NDA_DST, NDA_LLADDR, NUD_PERMANENT = 1, 2, 0x80
IFF_UP = 1

_HEADER = struct.Struct("=IHHII")
_IFINFO, _IFADDR = struct.Struct("=BxHiII"), struct.Struct("=BBBBI")
_RTMSG, _NDMSG = struct.Struct("=BBBBBBBBI"), struct.Struct("=BxxxiHBB")


class Route(Struct, frozen=True, omit_defaults=True):
    """One route of table main, as `ip route` prints it; `dst` "default" or a network."""

    dst: str
    dev: str = ""
    via: str = ""
    src: str = ""
    mtu: int = 0
    metric: int = 0
    onlink: bool = False


def attribute(kind: int, data: bytes) -> bytes:
    size = 4 + len(data)
    return struct.pack("=HH", size, kind) + data + bytes(-size % 4)


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _network(dst: str, like: str) -> IPv4Network | IPv6Network:
    if dst == "default":
        return ip_network("::/0" if ":" in like else "0.0.0.0/0")
    return ip_network(dst)


# --- the socket --------------------------------


class Rtnetlink:
    """Made in the calling thread's network namespace (see `netns.in_netns`), where it stays."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._sock.bind((0, 0))
        self._sock.settimeout(10)
        self._seq = 0

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Rtnetlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # links

    def index(self, dev: str) -> int:
        body = _IFINFO.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, dev.encode() + b"\0")
        for data in self._request(RTM_GETLINK, 0, body, f"link {dev}"):
            return int(_IFINFO.unpack_from(data)[2])
        raise OSError(errno.ENODEV, f"link {dev}: no such device")

    def set_link(self, dev: str, up: bool | None = None, mac: str = "", mtu: int = 0, gso_max_segs: int = 0) -> None:
        """`ip link set DEV …`; what is None, "" or 0 stays."""
        flags, change = (IFF_UP if up else 0), (0 if up is None else IFF_UP)
        body = _IFINFO.pack(0, 0, self.index(dev), flags, change)
        if mac:
            body += attribute(IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
        if mtu:
            body += attribute(IFLA_MTU, struct.pack("=I", mtu))
        if gso_max_segs:
            body += attribute(IFLA_GSO_MAX_SEGS, struct.pack("=I", gso_max_segs))
        self._request(RTM_NEWLINK, 0, body, f"link {dev}")

    def delete_link(self, dev: str) -> None:
        self._request(RTM_DELLINK, 0, _IFINFO.pack(0, 0, self.index(dev), 0, 0), f"link {dev}")

    # addresses

    def add_address(self, dev: str, address: str, replace: bool = True) -> None:
        """`ip addr add 10.244.1.5/24 dev eth0`; IPv6 without duplicate detection, since the emulation hands out addresses."""
        flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL)
        self._request(RTM_NEWADDR, flags, self._address(dev, address), f"address {address} dev {dev}")

    def delete_address(self, dev: str, address: str) -> None:
        self._request(RTM_DELADDR, 0, self._address(dev, address), f"address {address} dev {dev}")

    def addresses(self, dev: str) -> list[str]:
        found, index = [], self.index(dev)
        for data in self._request(RTM_GETADDR, NLM_F_DUMP, _IFADDR.pack(0, 0, 0, 0, 0), "addresses"):
            _, prefix, _, _, owner = _IFADDR.unpack_from(data)
            attributes = dict(_attributes(data[_IFADDR.size :]))
            if owner == index:
                found.append(f"{ip_address(attributes.get(IFA_LOCAL) or attributes[IFA_ADDRESS])}/{prefix}")
        return found

    def _address(self, dev: str, address: str) -> bytes:
        interface: IPv4Interface | IPv6Interface = ip_interface(address)
        flags = IFA_F_NODAD if interface.version == 6 else 0
        body = _IFADDR.pack(_family(interface.version), interface.network.prefixlen, flags, 0, self.index(dev))
        return body + attribute(IFA_LOCAL, interface.ip.packed) + attribute(IFA_ADDRESS, interface.ip.packed)

    # routes

    def add_route(self, route: Route, replace: bool = True) -> None:
        """`ip route replace DST [via VIA] dev DEV [src SRC] [mtu MTU] [metric N] [onlink]`."""
        flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL)
        self._request(RTM_NEWROUTE, flags, self._route(route), f"route {route.dst} dev {route.dev}")

    def delete_route(self, route: Route) -> None:
        self._request(RTM_DELROUTE, 0, self._route(route), f"route {route.dst} dev {route.dev}")

    def routes(self, dev: str) -> list[Route]:
        """Table main's unicast routes by `dev`, the connected ones (which the kernel makes for addresses) left out."""
        index = self.index(dev)
        dump = self._request(RTM_GETROUTE, NLM_F_DUMP, _RTMSG.pack(0, 0, 0, 0, 0, 0, 0, 0, 0), "routes")
        found = []
        for data in dump:
            family, length, _, _, table, proto, _, kind, flags = _RTMSG.unpack_from(data)
            attributes = dict(_attributes(data[_RTMSG.size :]))
            mine = struct.unpack("=I", attributes.get(RTA_OIF, bytes(4)))[0] == index
            if mine and table == RT_TABLE_MAIN and kind == RTN_UNICAST and proto != 2 and family in (2, 10):
                found.append(_decode_route(dev, length, flags, attributes))
        return found

    def _route(self, route: Route) -> bytes:
        network = _network(route.dst, route.via or route.src)
        scope = 0 if route.via or network.version == 6 else RT_SCOPE_LINK
        head = _RTMSG.pack(
            _family(network.version), network.prefixlen, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST,
            RTNH_F_ONLINK if route.onlink else 0,
        )  # fmt: skip
        body = head + attribute(RTA_DST, network.network_address.packed)
        if route.dev:
            body += attribute(RTA_OIF, struct.pack("=I", self.index(route.dev)))
        if route.via:
            body += attribute(RTA_GATEWAY, ip_address(route.via).packed)
        if route.src:
            body += attribute(RTA_PREFSRC, ip_address(route.src).packed)
        if route.metric:
            body += attribute(RTA_PRIORITY, struct.pack("=I", route.metric))
        if route.mtu:
            body += attribute(RTA_METRICS, attribute(RTAX_MTU, struct.pack("=I", route.mtu)))
        return body

    # neighbours

    def add_neighbour(self, dev: str, address: str, mac: str) -> None:
        """`ip neigh replace ADDRESS lladdr MAC dev DEV nud permanent`."""
        ip = ip_address(address)
        body = _NDMSG.pack(_family(ip.version), self.index(dev), NUD_PERMANENT, 0, 0)
        body += attribute(NDA_DST, ip.packed) + attribute(NDA_LLADDR, bytes.fromhex(mac.replace(":", "")))
        self._request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, f"neighbour {address} dev {dev}")

    # one exchange

    def _request(self, kind: int, flags: int, body: bytes, about: str) -> list[bytes]:
        """Payloads of the answers, until the kernel's acknowledgement or the end of the dump."""
        self._seq += 1
        flags |= NLM_F_REQUEST | NLM_F_ACK
        self._sock.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._seq, 0) + body)
        answers: list[bytes] = []
        while True:
            for answer_kind, seq, payload in _messages(self._sock.recv(1 << 16)):
                if seq != self._seq:
                    continue
                if answer_kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    if code:
                        raise OSError(code, f"{about}: {os.strerror(code)}")
                    return answers
                if answer_kind == NLMSG_DONE:
                    return answers
                answers.append(payload)


# --- reading dumps --------------------------------


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, _, seq, _ = _HEADER.unpack_from(data, at)
        yield kind, seq, data[at + _HEADER.size : at + size]
        at += (size + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        yield kind & 0x3FFF, data[at + 4 : at + size]
        at += (size + 3) & ~3


def _decode_route(dev: str, length: int, flags: int, attributes: dict[int, bytes]) -> Route:
    def text(kind: int) -> str:
        return str(ip_address(attributes[kind])) if kind in attributes else ""

    metrics = dict(_attributes(attributes.get(RTA_METRICS, b"")))
    return Route(
        dst=f"{text(RTA_DST)}/{length}" if length else "default",
        dev=dev,
        via=text(RTA_GATEWAY),
        src=text(RTA_PREFSRC),
        mtu=struct.unpack("=I", metrics.get(RTAX_MTU, bytes(4)))[0],
        metric=struct.unpack("=I", attributes.get(RTA_PRIORITY, bytes(4)))[0],
        onlink=bool(flags & RTNH_F_ONLINK),
    )
