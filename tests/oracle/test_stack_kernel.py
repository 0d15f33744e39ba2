"""The kernel judges what the stack sends: the same frames through a namespace that routes between two TAPs and through our stack,
and every byte that comes out compared (but the identification that a router chooses for its own packets)."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from support import packets
from support.packets import ACK, FIN, PSH, RST, SYN, decode, echo, frame, ipv4, tcp, udp

from podwire_core import netfilter as nf
from podwire_core import netns
from podwire_core.netlink import AddrAdd, LinkAdd, NeighAdd, RouteAdd, SysctlSet, TablesReplace
from podwire_nodeagent.datapath import checksum
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.stack import Stack

pytestmark = pytest.mark.root

LEFT, RIGHT = ("02:00:00:00:01:01", "02:00:00:00:01:02"), ("02:00:00:00:02:01", "02:00:00:00:02:02")  # router's, peer's
CLIENT, SERVER, ROUTER = "10.1.0.9", "10.2.0.9", "10.1.0.1"
KINDS = {
    81: "icmp-port-unreachable",
    82: "icmp-host-unreachable",
    83: "icmp-net-unreachable",
    84: "icmp-proto-unreachable",
    85: "icmp-host-prohibited",
    86: "icmp-admin-prohibited",
    87: "icmp-net-prohibited",
    88: "tcp-reset",
}
SYSCTLS = {
    "net.ipv4.ip_forward": "1",
    "net.ipv4.icmp_ratemask": "0",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
    "net.ipv4.conf.all.send_redirects": "0",
    "net.ipv4.conf.default.send_redirects": "0",
    "net.ipv6.conf.all.disable_ipv6": "1",
    "net.ipv6.conf.default.disable_ipv6": "1",
}
OPS = [
    LinkAdd("left", "tap", LEFT[0], mtu=1500),
    AddrAdd("left", "10.1.0.1/24"),
    LinkAdd("right", "tap", RIGHT[0], mtu=1400),
    AddrAdd("right", "10.2.0.1/24"),
    NeighAdd(CLIENT, LEFT[1], "left"),
    NeighAdd(SERVER, RIGHT[1], "right"),
    RouteAdd("10.3.0.0/24", "right", SERVER),
    RouteAdd("10.4.0.0/24", type="blackhole"),
    RouteAdd("10.5.0.0/24", type="unreachable"),
    RouteAdd("10.6.0.0/24", type="prohibit"),
]
SENTINEL = udp(CLIENT, SERVER, 65000, 65000, b"the end", ident=0xDEAD)


class Kernel:
    """A namespace that is a router."""

    def __init__(self, path: Path) -> None:
        self._path = path
        netns.create(path)
        self._fds: dict[str, int] = {}
        try:
            for name, value in SYSCTLS.items():
                netns.set_sysctl(path, name, value)
            for op in OPS:
                self._apply(op)
            self._run("iptables", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID")  # so that conntrack runs
            for port, kind in KINDS.items():
                for proto in ("tcp", "udp") if kind != "tcp-reset" else ("tcp",):
                    match = ["-p", proto, "--dport", str(port)]
                    self._run("iptables", "-A", "FORWARD", *match, "-j", "REJECT", "--reject-with", kind)
        except BaseException:
            self.close()
            raise

    def _run(self, *words: str) -> None:
        subprocess.run(["nsenter", f"--net={self._path}", *words], check=True, capture_output=True)

    def _apply(self, op) -> None:
        match op:
            case LinkAdd():
                self._fds[op.name] = netns.create_tap(self._path, op.name, op.mac, op.mtu)
                netns.set_up(self._path, op.name)
            case AddrAdd():
                netns.add_address(self._path, op.dev, op.address)
            case NeighAdd():
                netns.add_neighbour(self._path, op.dev, op.dst, op.lladdr)
            case RouteAdd() if op.type == "unicast":
                netns.add_route(self._path, op.dst, op.via, op.dev)
            case RouteAdd():
                self._run("ip", "route", "add", op.type, op.dst)

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        netns.delete(self._path)

    def send(self, data: bytes) -> list[tuple[str, bytes]]:
        """What comes out, up to the sentinel that is sent after it."""
        os.write(self._fds["left"], data)
        os.write(self._fds["left"], frame(*LEFT, SENTINEL))
        found: list[tuple[str, bytes]] = []
        deadline = time.monotonic() + 5
        ended = False
        while not ended and time.monotonic() < deadline:
            for name, fd in self._fds.items():
                while got := self._read(fd):
                    ended |= decode(got).ident == 0xDEAD and name == "right"
                    if decode(got).ident != 0xDEAD:
                        found.append((name, got))
        assert ended, "the kernel did not forward the sentinel"
        return sorted(found)

    @staticmethod
    def _read(fd: int) -> bytes:
        try:
            got = bytearray(os.read(fd, 70000))
        except BlockingIOError:
            return b""
        checksum.complete(got)
        return bytes(got)


class Ours:
    def __init__(self) -> None:
        import random

        self.stack = Stack("router", RandomChooser(random.Random(1)))
        rules = [
            nf.Rule((nf.Protocol(proto), nf.DestinationPort(proto, port, port)), nf.Reject(kind))
            for port, kind in KINDS.items()
            for proto in (("tcp", "udp") if kind != "tcp-reset" else ("tcp",))
        ]
        table = nf.Table("filter", 4, (nf.Chain("FORWARD", tuple(rules), "ACCEPT"),))
        own = [SysctlSet(name, value) for name, value in SYSCTLS.items() if name in self.stack.settings.values]
        self.stack.apply([*OPS, *own, TablesReplace((table,))], 0.0)

    def send(self, data: bytes) -> list[tuple[str, bytes]]:
        names = {link.index: link.name for link in self.stack.links}
        emits = self.stack.receive(self.stack.link_index("left"), bytearray(data), 0.0)
        return sorted((names[index], bytes(sent)) for index, sent, _ in emits)


def plain(found: list[tuple[str, bytes]], sent: bytes) -> list[tuple[str, str]]:
    """Frames as text to compare: without virtio headers; identification and checksum of packets that the router made masked."""
    out = []
    for name, data in found:
        made = bytearray(data[10:])
        assert decode(data).bad == []
        if name == "left":
            made[18:20] = made[24:26] = b"\0\0"
        out.append((name, made.hex()))
    return sorted(out)


BIG = bytes(i & 255 for i in range(3000))
NOP4 = b"\1\1\1\1"
STREAM = b"\x88\x04\0\1"
FRAMES = {
    "forwarded": udp(CLIENT, SERVER, 1, 2, b"data"),
    "forwarded with options": udp(CLIENT, SERVER, 1, 2, b"data", options=NOP4),
    "forwarded by a gateway": udp(CLIENT, "10.3.0.7", 1, 2, b"data"),
    "forwarded tos": udp(CLIENT, SERVER, 1, 2, b"data", tos=0xB8),
    "unknown protocol": ipv4(CLIENT, SERVER, 253, b"payload"),
    "ttl 2": udp(CLIENT, SERVER, 1, 2, b"data", ttl=2),
    "ttl 1 udp": udp(CLIENT, SERVER, 1, 2, b"data", ttl=1),
    "ttl 1 tos": udp(CLIENT, SERVER, 1, 2, b"data", ttl=1, tos=0xB9),
    "ttl 0": udp(CLIENT, SERVER, 1, 2, b"data", ttl=0),
    "ttl 1 tcp": tcp(CLIENT, SERVER, 1, 2, SYN, 1, 0, ttl=1),
    "ttl 1 echo": echo(CLIENT, SERVER, ttl=1),
    "ttl 1 large": udp(CLIENT, SERVER, 1, 2, BIG[:1200], ttl=1),
    "ttl 1 547": udp(CLIENT, SERVER, 1, 2, BIG[:519], ttl=1),
    "ttl 1 548": udp(CLIENT, SERVER, 1, 2, BIG[:520], ttl=1),
    "ttl 1 549": udp(CLIENT, SERVER, 1, 2, BIG[:521], ttl=1),
    "ttl 1 odd": udp(CLIENT, SERVER, 1, 2, b"x", ttl=1),
    "ttl 1 unknown protocol": ipv4(CLIENT, SERVER, 253, b"payload", ttl=1),
    "ttl 1 icmp error": packets.icmp(CLIENT, SERVER, 3, 3, bytes(4), udp(SERVER, CLIENT, 2, 1), ttl=1),
    "ttl 1 echo reply": echo(CLIENT, SERVER, reply=True, ttl=1),
    "ttl 1 first fragment": ipv4(CLIENT, SERVER, 253, BIG[:80], ttl=1, df=False, more=True),
    "ttl 1 later fragment": ipv4(CLIENT, SERVER, 253, BIG[:80], ttl=1, df=False, offset=800),
    "no route": udp(CLIENT, "8.8.8.8", 1, 2, b"data"),
    "blackhole": udp(CLIENT, "10.4.0.1", 1, 2, b"data"),
    "unreachable": udp(CLIENT, "10.5.0.1", 1, 2, b"data"),
    "prohibit": udp(CLIENT, "10.6.0.1", 1, 2, b"data"),
    "no route and ttl 1": udp(CLIENT, "8.8.8.8", 1, 2, b"data", ttl=1),
    "mtu exactly": udp(CLIENT, SERVER, 1, 2, BIG[:1372]),
    "mtu and one": udp(CLIENT, SERVER, 1, 2, BIG[:1373]),
    "too big": tcp(CLIENT, SERVER, 1, 2, ACK, 1, 1, BIG[:1460]),
    "too big and ttl 1": udp(CLIENT, SERVER, 1, 2, BIG[:1460], ttl=1),
    "fragmented": udp(CLIENT, SERVER, 1, 2, BIG[:1472], df=False, ident=77),
    "class E source": udp("240.0.0.1", SERVER, 1, 2),
    "class E source, ttl 1": udp("240.0.0.1", SERVER, 1, 2, ttl=1),
    "fragmented with an option for the first only": udp(
        CLIENT, SERVER, 1, 2, BIG[:1400], df=False, ident=79, options=STREAM + b"\x1e\4\0\0"
    ),
    "fragmented with options": udp(CLIENT, SERVER, 1, 2, BIG[:1400], df=False, ident=78, options=NOP4 + STREAM),
    "header checksum": udp(CLIENT, SERVER, 1, 2, b"data")[:10] + b"\x12\x34" + udp(CLIENT, SERVER, 1, 2, b"data")[12:],
    "length beyond frame": udp(CLIENT, SERVER, 1, 2, b"data")[:-3],
    "loopback source": udp("127.0.0.5", SERVER, 1, 2),
    "loopback destination": udp(CLIENT, "127.0.0.1", 1, 2),
    "own source": udp(ROUTER, SERVER, 1, 2),
    "zero source": udp("0.0.0.0", SERVER, 1, 2),
    "zero destination": udp(CLIENT, "0.0.0.0", 1, 2),
    "multicast source": udp("224.0.0.9", SERVER, 1, 2),
    "broadcast source": udp("255.255.255.255", SERVER, 1, 2),
    "multicast destination": udp(CLIENT, "224.0.0.9", 1, 2),
    "class E destination": udp(CLIENT, "240.0.0.1", 1, 2),
    "directed broadcast of the other link": udp(CLIENT, "10.2.0.255", 1, 2),
    "source route": udp(CLIENT, SERVER, 1, 2, options=b"\x83\x07\x04\x0a\x02\x00\x09\0"),
    "reject icmp echo": echo(CLIENT, SERVER),
    "reset for syn": tcp(CLIENT, SERVER, 1, 88, SYN, 0xFFFFFFFF, 0),
    "reset for syn with data": tcp(CLIENT, SERVER, 1, 88, SYN, 77, 0, b"hello"),
    "reset for ack": tcp(CLIENT, SERVER, 1, 88, ACK | PSH, 77, 99, b"hello"),
    "reset for fin": tcp(CLIENT, SERVER, 1, 88, FIN | ACK, 77, 99),
    "reset for fin without ack": tcp(CLIENT, SERVER, 1, 88, FIN, 77, 99, b"abc"),
    "no reset for reset": tcp(CLIENT, SERVER, 1, 88, RST, 77, 99),
}
for _port, _kind in KINDS.items():
    if _kind != "tcp-reset":
        FRAMES[f"reject udp {_kind}"] = udp(CLIENT, SERVER, 1, _port, BIG[:900])
        FRAMES[f"reject tcp {_kind}"] = tcp(CLIENT, SERVER, 1, _port, SYN, 5, 0)
FRAMES["reject with a bad checksum"] = udp(CLIENT, SERVER, 1, 81, b"data")[:-1] + b"!"
FRAMES["reset with a bad checksum"] = tcp(CLIENT, SERVER, 1, 88, ACK, 5, 5, b"data")[:-1] + b"!"


@pytest.fixture(scope="module")
def routers(tmp_path_factory):
    kernel = Kernel(tmp_path_factory.mktemp("st") / "st-router")
    yield kernel, Ours()
    kernel.close()


@pytest.mark.parametrize("name", FRAMES)
def test_the_same_bytes_come_out(routers, name):
    kernel, ours = routers
    sent = bytes(frame(*LEFT, FRAMES[name]))
    assert plain(ours.send(sent), sent) == plain(kernel.send(sent), sent)


@pytest.mark.parametrize(
    ("macs", "kind"),
    [
        (("02:00:00:00:09:09", LEFT[1]), 0x800),
        ((packets.BROADCAST, LEFT[1]), 0x800),
        (("01:00:5e:00:00:01", LEFT[1]), 0x800),
        (LEFT, 0x88B5),
    ],
    ids=["other host", "broadcast frame", "multicast frame", "unknown type"],
)
def test_frames_that_are_not_forwarded(routers, macs, kind):
    kernel, ours = routers
    sent = bytes(packets.ethernet(*macs, kind, udp(CLIENT, SERVER, 1, 2, b"data")))
    assert plain(ours.send(sent), sent) == plain(kernel.send(sent), sent) == []


ASKS = {
    "own address": packets.arp(1, LEFT[1], CLIENT, "00:00:00:00:00:00", ROUTER),
    "other link's address": packets.arp(1, LEFT[1], CLIENT, "00:00:00:00:00:00", "10.2.0.1"),
    "probe": packets.arp(1, LEFT[1], "0.0.0.0", "00:00:00:00:00:00", ROUTER),
    "somebody else's": packets.arp(1, LEFT[1], CLIENT, "00:00:00:00:00:00", "10.1.0.77"),
    "loopback": packets.arp(1, LEFT[1], CLIENT, "00:00:00:00:00:00", "127.0.0.1"),
    "reply": packets.arp(2, LEFT[1], CLIENT, LEFT[0], ROUTER),
    "reversed": packets.arp(3, LEFT[1], CLIENT, LEFT[0], ROUTER),
}


@pytest.mark.parametrize("name", ASKS)
def test_arp_answers(routers, name):
    kernel, ours = routers
    sent = bytes(packets.ethernet(packets.BROADCAST, LEFT[1], 0x806, ASKS[name]))
    mine, linux = ([(link, data[10:52].hex()) for link, data in side.send(sent)] for side in (ours, kernel))
    assert mine == linux
