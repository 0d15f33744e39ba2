"""The kernel judges what the stack does with IPv6: the same frames through a namespace that routes between two TAPs and through
our stack, and every byte that comes out compared (but the identification of fragments that a router makes anew)."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import pytest
from support import packets, packets6
from support.packets import ACK, FIN, RST, SYN
from support.packets6 import decode, echo, frame, icmp, ipv6, solicitation, tcp, udp

from podwire_core import netfilter as nf
from podwire_core import netns
from podwire_core.netlink import AddrAdd, LinkAdd, NeighAdd, RouteAdd, SysctlSet, TablesReplace
from podwire_nodeagent.datapath import checksum
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.stack import Stack

pytestmark = pytest.mark.root

LEFT, RIGHT = ("02:00:00:00:01:01", "02:00:00:00:01:02"), ("02:00:00:00:02:01", "02:00:00:00:02:02")  # router's, peer's
CLIENT, SERVER, ROUTER = "fd00:1::9", "fd00:2::9", "fd00:1::1"
LOCAL = "fe80::1"
KINDS = {
    81: "icmp6-port-unreachable",
    82: "icmp6-addr-unreachable",
    83: "icmp6-no-route",
    84: "icmp6-adm-prohibited",
    88: "tcp-reset",
}
SYSCTLS = {
    "net.ipv6.conf.all.forwarding": "1",
    "net.ipv6.conf.default.forwarding": "1",
    "net.ipv6.icmp.ratelimit": "0",
    "net.ipv6.icmp.ratemask": "2",  # else the limit of all destinations together holds
    "net.ipv6.auto_flowlabels": "0",
    "net.ipv6.conf.all.accept_dad": "0",
    "net.ipv6.conf.default.accept_dad": "0",
    "net.ipv6.conf.default.dad_transmits": "0",
    "net.ipv6.conf.default.addr_gen_mode": "1",
    "net.ipv6.conf.default.router_solicitations": "0",
}
OPS = [
    LinkAdd("left", "tap", LEFT[0], mtu=1500),
    AddrAdd("left", "fd00:1::1/64"),
    AddrAdd("left", f"{LOCAL}/64"),
    LinkAdd("right", "tap", RIGHT[0], mtu=1400),
    AddrAdd("right", "fd00:2::1/64"),
    NeighAdd(CLIENT, LEFT[1], "left"),
    NeighAdd("fe80::9", LEFT[1], "left"),
    NeighAdd(SERVER, RIGHT[1], "right"),
    RouteAdd("fd00:3::/64", "right", SERVER),
    RouteAdd("fd00:4::/64", type="blackhole"),
    RouteAdd("fd00:5::/64", type="unreachable"),
    RouteAdd("fd00:6::/64", type="prohibit"),
]
SENTINEL = udp(CLIENT, SERVER, 65000, 65000, b"the end")


class Kernel:
    """A namespace that is a router."""

    def __init__(self, path: Path) -> None:
        self.path = path
        netns.create(path)
        self._fds: dict[str, int] = {}
        try:
            for name, value in SYSCTLS.items():
                netns.set_sysctl(path, name, value)
            for op in OPS:
                self._apply(op)
            self.run("ip6tables", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID")  # so that conntrack runs
            for port, kind in KINDS.items():
                for proto in ("tcp", "udp") if kind != "tcp-reset" else ("tcp",):
                    match = ["-p", proto, "--dport", str(port)]
                    self.run("ip6tables", "-A", "FORWARD", *match, "-j", "REJECT", "--reject-with", kind)
        except BaseException:
            self.close()
            raise

    def run(self, *words: str) -> str:
        return subprocess.run(["nsenter", f"--net={self.path}", *words], check=True, capture_output=True, text=True).stdout

    def _apply(self, op) -> None:
        match op:
            case LinkAdd():
                self._fds[op.name] = netns.create_tap(self.path, op.name, op.mac, op.mtu)
                netns.set_up(self.path, op.name)
            case AddrAdd():
                self.run("ip", "-6", "addr", "add", op.address, "dev", op.dev, "nodad")
            case NeighAdd():
                netns.add_neighbour(self.path, op.dev, op.dst, op.lladdr)
            case RouteAdd() if op.type == "unicast":
                netns.add_route(self.path, op.dst, op.via, op.dev)
            case RouteAdd():
                self.run("ip", "-6", "route", "add", op.type, op.dst)

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        netns.delete(self.path)

    def send(self, *frames: bytes) -> list[tuple[str, bytes]]:
        """What comes out, up to the sentinel that is sent after it."""
        for data in frames:
            os.write(self._fds["left"], data)
        os.write(self._fds["left"], bytes(frame(*LEFT, SENTINEL)))
        found: list[tuple[str, bytes]] = []
        deadline = time.monotonic() + 5
        ended = False
        while not ended and time.monotonic() < deadline:
            for name, fd in self._fds.items():
                while got := self._read(fd):
                    seen = decode(got)
                    last = seen.dport == 65000
                    ended |= last and name == "right"
                    if not last and not noise(seen):
                        found.append((name, got))
        assert ended, "the kernel did not forward the sentinel"
        return found

    @staticmethod
    def _read(fd: int) -> bytes:
        try:
            got = bytearray(os.read(fd, 70000))
        except BlockingIOError:
            return b""
        checksum.complete(got)
        return bytes(got)


def noise(seen) -> bool:
    """Multicast listener reports, which the kernel sends by itself."""
    return seen.icmp[0] in (131, 132, 143) or (seen.icmp[0] in (133, 134))


class Ours:
    def __init__(self) -> None:
        self.stack = Stack("router", RandomChooser(random.Random(1)))
        rules = [
            nf.Rule((nf.Protocol(proto), nf.DestinationPort(proto, port, port)), nf.Reject(kind))
            for port, kind in KINDS.items()
            for proto in (("tcp", "udp") if kind != "tcp-reset" else ("tcp",))
        ]
        table = nf.Table("filter", 6, (nf.Chain("FORWARD", tuple(rules), "ACCEPT"),))
        own = [SysctlSet(name, value) for name, value in SYSCTLS.items() if name in self.stack.settings.values]
        self.stack.apply([*OPS, *own, TablesReplace((table,))], 0.0)

    def send(self, *frames: bytes) -> list[tuple[str, bytes]]:
        names = {link.index: link.name for link in self.stack.links}
        left = self.stack.link_index("left")
        emits = [emit for data in frames for emit in self.stack.receive(left, bytearray(data), 0.0)]
        return [(names[index], bytes(sent)) for index, sent, _ in emits]


def plain(found: list[tuple[str, bytes]]) -> list[tuple[str, str]]:
    """Frames as text to compare: without virtio headers; the identification of fragments masked."""
    out = []
    for name, data in found:
        seen = decode(data)
        assert seen.bad == []
        made = bytearray(data[10:])
        if seen.offset >= 0:
            at = made.index(seen.payload) if seen.payload else len(made)
            made[at - 4 : at] = bytes(4)
        out.append((name, made.hex()))
    return sorted(out)


BIG = bytes(i & 255 for i in range(3000))
HOP, ROUTING, DESTINATION = (0, bytes((1, 4, 0, 0, 0, 0))), (43, bytes((4, 0, 0, 0, 0, 0))), (60, bytes((1, 4, 0, 0, 0, 0)))
FRAMES = {
    "forwarded": udp(CLIENT, SERVER, 1, 2, b"data"),
    "forwarded by a gateway": udp(CLIENT, "fd00:3::7", 1, 2, b"data"),
    "traffic class and label": udp(CLIENT, SERVER, 1, 2, b"data", tos=0xB8, label=0x12345),
    "hop-by-hop options": udp(CLIENT, SERVER, 1, 2, b"data", extensions=(HOP,)),
    "all extension headers": udp(CLIENT, SERVER, 1, 2, b"data", extensions=(HOP, DESTINATION, ROUTING, DESTINATION)),
    "no next header": ipv6(CLIENT, SERVER, 59, b""),
    "unknown protocol": ipv6(CLIENT, SERVER, 253, b"payload"),
    "hops 2": udp(CLIENT, SERVER, 1, 2, b"data", hops=2),
    "hops 1 udp": udp(CLIENT, SERVER, 1, 2, b"data", hops=1),
    "hops 1 traffic class": udp(CLIENT, SERVER, 1, 2, b"data", hops=1, tos=0xB9, label=77),
    "hops 0": udp(CLIENT, SERVER, 1, 2, b"data", hops=0),
    "hops 1 tcp": tcp(CLIENT, SERVER, 1, 2, SYN, 1, 0, hops=1),
    "hops 1 echo": echo(CLIENT, SERVER, hops=1),
    "hops 1 extension headers": udp(CLIENT, SERVER, 1, 2, b"data", hops=1, extensions=(HOP, DESTINATION)),
    "hops 1 quote full": udp(CLIENT, SERVER, 1, 2, BIG[:1184], hops=1),
    "hops 1 quote cut": udp(CLIENT, SERVER, 1, 2, BIG[:1185], hops=1),
    "hops 1 icmp error": icmp(CLIENT, SERVER, 1, 4, bytes(4), udp(SERVER, CLIENT, 2, 1), hops=1),
    "hops 1 unknown icmp error": icmp(CLIENT, SERVER, 100, 4, bytes(4), b"data", hops=1),
    "hops 1 echo reply": echo(CLIENT, SERVER, reply=True, hops=1),
    "no route": udp(CLIENT, "2001:db8::8", 1, 2, b"data"),
    "no route and hops 1": udp(CLIENT, "2001:db8::8", 1, 2, b"data", hops=1),
    "blackhole": udp(CLIENT, "fd00:4::1", 1, 2, b"data"),
    "unreachable": udp(CLIENT, "fd00:5::1", 1, 2, b"data"),
    "prohibit": udp(CLIENT, "fd00:6::1", 1, 2, b"data"),
    "mtu exactly": udp(CLIENT, SERVER, 1, 2, BIG[:1352]),
    "mtu and one": udp(CLIENT, SERVER, 1, 2, BIG[:1353]),
    "too big tcp": tcp(CLIENT, SERVER, 1, 2, SYN, 1, 0, BIG[:1440]),
    "too big and hops 1": udp(CLIENT, SERVER, 1, 2, BIG[:1452], hops=1),
    "link-local source": udp("fe80::9", SERVER, 1, 2, b"data"),
    "link-local source too big": udp("fe80::9", SERVER, 1, 2, BIG[:1400]),
    "unspecified source": udp("::", SERVER, 1, 2, b"data"),
    "loopback source": udp("::1", SERVER, 1, 2, b"data"),
    "loopback destination": udp(CLIENT, "::1", 1, 2, b"data"),
    "multicast source": udp("ff02::9", SERVER, 1, 2, b"data"),
    "multicast destination": udp(CLIENT, "ff0e::9", 1, 2, b"data"),
    "own source": udp(ROUTER, SERVER, 1, 2, b"data"),
    "length beyond frame": udp(CLIENT, SERVER, 1, 2, b"data")[:-3],
    "extension beyond packet": ipv6(CLIENT, SERVER, 0, bytes((17, 9, 1, 4, 0, 0, 0, 0))),
    "reset for syn": tcp(CLIENT, SERVER, 1, 88, SYN, 0xFFFFFFFF, 0),
    "reset for syn with data": tcp(CLIENT, SERVER, 1, 88, SYN, 77, 0, b"hello"),
    "reset for ack": tcp(CLIENT, SERVER, 2, 88, ACK, 77, 99, b"hello"),
    "reset for fin": tcp(CLIENT, SERVER, 3, 88, FIN | ACK, 77, 99),
    "no reset for reset": tcp(CLIENT, SERVER, 1, 88, RST, 77, 99),
    "reset behind extension headers": tcp(CLIENT, SERVER, 4, 88, SYN, 77, 0, extensions=(DESTINATION,)),
}
for _port, _kind in KINDS.items():
    if _kind != "tcp-reset":
        FRAMES[f"reject udp {_kind}"] = udp(CLIENT, SERVER, 1, _port, BIG[:1300])
        FRAMES[f"reject tcp {_kind}"] = tcp(CLIENT, SERVER, 1, _port, SYN, 5, 0, tos=0x20)
FRAMES["reject with a bad checksum"] = udp(CLIENT, SERVER, 1, 81, b"data")[:-1] + b"!"
FRAMES["reset with a bad checksum"] = tcp(CLIENT, SERVER, 1, 88, ACK, 5, 5, b"data")[:-1] + b"!"


@pytest.fixture(scope="module")
def routers(tmp_path_factory):
    kernel = Kernel(tmp_path_factory.mktemp("v6") / "v6-router")
    yield kernel, Ours()
    kernel.close()


@pytest.mark.parametrize("name", FRAMES)
def test_the_same_bytes_come_out(routers, name):
    kernel, ours = routers
    sent = bytes(frame(*LEFT, FRAMES[name]))
    assert plain(ours.send(sent)) == plain(kernel.send(sent))


WHOLE = udp(CLIENT, SERVER, 5, 6, BIG[:2500])
FRAGMENTED = {
    "sent on in the size they came": packets6.fragments(WHOLE, 1024, 1),
    "out of order": packets6.fragments(WHOLE, 512, 2)[::-1],
    "small ones": packets6.fragments(udp(CLIENT, SERVER, 5, 6, BIG[:300]), 104, 3),
    "too big ones": packets6.fragments(WHOLE, 1440, 4),
    "an atomic one": packets6.fragments(udp(CLIENT, SERVER, 5, 6, BIG[:300]), 1024, 5),
    "one missing": packets6.fragments(WHOLE, 1024, 6)[:-1],
    "twice": [p for p in packets6.fragments(WHOLE, 1024, 7) for _ in (0, 1)],
    "rejected": packets6.fragments(udp(CLIENT, SERVER, 5, 81, BIG[:2000]), 1024, 8),
}


@pytest.mark.parametrize("name", FRAGMENTED)
def test_fragments(routers, name):
    kernel, ours = routers
    sent = [bytes(frame(*LEFT, piece)) for piece in FRAGMENTED[name]]
    assert plain(ours.send(*sent)) == plain(kernel.send(*sent))


@pytest.mark.parametrize(
    ("macs", "kind"),
    [(("02:00:00:00:09:09", LEFT[1]), 0x86DD), ((packets.BROADCAST, LEFT[1]), 0x86DD), (LEFT, 0x800)],
    ids=["other host", "broadcast frame", "IPv4's type"],
)
def test_frames_that_are_not_forwarded(routers, macs, kind):
    kernel, ours = routers
    sent = bytes(packets.ethernet(*macs, kind, udp(CLIENT, SERVER, 1, 2, b"data")))
    assert plain(ours.send(sent)) == plain(kernel.send(sent)) == []


GROUP = packets6.solicited_node(ROUTER)
ASKS = {
    "own address": solicitation(CLIENT, GROUP, ROUTER, LEFT[1]),
    "own address, unicast": solicitation(CLIENT, ROUTER, ROUTER, LEFT[1]),
    "own address, unicast, without option": solicitation(CLIENT, ROUTER, ROUTER),
    "own link-local address": solicitation("fe80::9", packets6.solicited_node(LOCAL), LOCAL, LEFT[1]),
    "other link's address": solicitation(CLIENT, packets6.solicited_node("fd00:2::1"), "fd00:2::1", LEFT[1]),
    "probe": solicitation("::", GROUP, ROUTER),
    "probe with option": solicitation("::", GROUP, ROUTER, LEFT[1]),
    "somebody else's": solicitation(CLIENT, packets6.solicited_node("fd00:1::77"), "fd00:1::77", LEFT[1]),
    "from afar": solicitation(CLIENT, GROUP, ROUTER, LEFT[1], hops=64),
    "group as target": solicitation(CLIENT, GROUP, "ff02::1", LEFT[1]),
    "option cut off": icmp(CLIENT, GROUP, 135, 0, bytes(4), packets6.ip(ROUTER) + b"\1\1\2\2", hops=255),
    "option of no length": icmp(CLIENT, GROUP, 135, 0, bytes(4), packets6.ip(ROUTER) + bytes(8), hops=255),
    "code": icmp(CLIENT, GROUP, 135, 1, bytes(4), packets6.ip(ROUTER), hops=255),
    "checksum": solicitation(CLIENT, GROUP, ROUTER, LEFT[1])[:-1] + b"\7",
}


@pytest.mark.parametrize("name", ASKS)
def test_neighbour_advertisements(routers, name):
    kernel, ours = routers
    to = decode(frame(LEFT[0], LEFT[1], ASKS[name])).dst
    sent = bytes(frame(packets6.group_mac(to) if to.startswith("ff") else LEFT[0], LEFT[1], ASKS[name]))
    assert plain(ours.send(sent)) == plain(kernel.send(sent))


def test_route_get(routers):
    kernel, ours = routers
    for dst in (CLIENT, SERVER, "fd00:3::1", ROUTER, "fd00:1::abcd"):
        words = kernel.run("ip", "-6", "route", "get", dst).split()
        route, source = ours.stack.route_get(dst)
        assert route is not None
        assert route.dev is not None
        assert words[words.index("src") + 1] == packets6.IPv6Address(source).compressed
        if route.type == "unicast":
            assert words[words.index("dev") + 1] == route.dev.name
            assert ("via" in words) == bool(route.via)
