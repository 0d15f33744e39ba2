"""`kernel_node.KernelNode`, `stack_node.StackNode` and their probes for IPv6, where a probe is known by its flow label, which
forwarding and NAT leave alone and which an ICMPv6 error quotes."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path

from support import packets6
from support.kernel_node import KernelNode, _all_of
from support.probes import DROPPED, IDENTS, TCP, UDP, Outcome, Probe
from support.stack_node import StackNode

from podwire_core import netns
from podwire_core.netlink import SysctlSet

ICMPV6 = 58
IPV6_FLOWINFO = 11  # a control message: class and label of what a raw socket receives
SYSCTLS = {
    "net.ipv6.conf.all.disable_ipv6": "0",
    "net.ipv6.conf.default.disable_ipv6": "0",
    "net.ipv6.conf.all.forwarding": "1",
    "net.ipv6.conf.default.forwarding": "1",
    "net.ipv6.icmp.ratelimit": "0",
    "net.ipv6.icmp.ratemask": "2",  # else the limit of all destinations together holds
    "net.ipv6.auto_flowlabels": "0",
    "net.ipv6.conf.all.accept_dad": "0",
    "net.ipv6.conf.default.accept_dad": "0",
    "net.ipv6.conf.default.dad_transmits": "0",
    "net.ipv6.conf.default.addr_gen_mode": "1",
}
SENTINEL = IDENTS[-1]


def packet(probe: Probe, label: int, sport: int) -> bytes:
    """A SYN, or a datagram of eight bytes."""
    if probe.proto == TCP:
        return packets6.tcp(probe.src, probe.dst, sport, probe.port, 2, 1000, 0, label=label)
    return packets6.udp(probe.src, probe.dst, sport, probe.port, b"podwire!", label=label)


def told_by(data: bytes, link: str, local: bool) -> tuple[int, Outcome] | None:
    """What a packet that left the node (or was delivered on it) says of which probe; None: nothing of any."""
    if len(data) < 48 or data[0] >> 4 != 6:
        return None
    seen = packets6.decode_ip(data, packets6.Seen6())
    if seen.proto == ICMPV6:
        quoted = struct.unpack_from("!I", data, 48)[0] & 0xFFFFF if len(data) >= 88 else 0
        return (quoted, Outcome("rejected", icmp=seen.icmp)) if quoted in IDENTS and seen.icmp[0] < 128 else None
    label = struct.unpack_from("!I", data)[0] & 0xFFFFF
    if label not in IDENTS or seen.proto not in (TCP, UDP):
        return None
    what = "delivered" if local else "forwarded"
    return label, Outcome(what, "" if local else link, seen.src, seen.dst, seen.dport)


class KernelNode6(KernelNode):
    def __init__(self, path: Path, ops) -> None:
        super().__init__(path, ())
        for sock in (*self._sockets, self._raw):
            sock.close()
        self._sockets = []
        try:
            for name, value in SYSCTLS.items():
                netns.set_sysctl(path, name, value)
            self._configure(list(ops))
            with netns.in_netns(path):
                self._sockets = [_receiver(protocol) for protocol in (TCP, UDP, ICMPV6)]
                self._raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
        except BaseException:
            self.close()
            raise

    def load(self, text: str, variant: str) -> None:
        other = {"legacy": "nft", "nft": "legacy"}[variant]
        empty = "".join(f"*{table}\nCOMMIT\n" for table in ("nat", "filter", "mangle"))
        self.run(f"ip6tables-{other}-restore", "-w", "10", stdin=empty)
        self.run(f"ip6tables-{variant}-restore", "-w", "10", stdin=text)
        self.run("conntrack", "-F", "-f", "ipv6")

    def saved(self, variant: str) -> str:
        return self.run(f"ip6tables-{variant}-save")

    def send(self, probes: list[Probe], sentinel: Probe, first_sport: int = 20000) -> list[Outcome]:
        found: dict[int, Outcome] = {}
        for number, probe in enumerate([*probes, sentinel]):
            data = packet(probe, SENTINEL if probe is sentinel else IDENTS[number], first_sport + number)
            if probe.link:
                os.write(self._fds[probe.link], packets6.frame(self._macs[probe.link], "02:00:00:00:00:99", data))
            else:
                self._send_locally(data, probe.dst)
            self._collect(found)
        deadline = time.monotonic() + 5
        while SENTINEL not in found:
            assert time.monotonic() < deadline, "the sentinel never came out"
            self._wait()
            self._collect(found)
        return [found.get(IDENTS[number], DROPPED) for number in range(len(probes))]

    def _send_locally(self, data: bytes, dst: str) -> None:
        try:
            self._raw.sendto(data, (dst, 0))
        except PermissionError:
            pass  # OUTPUT dropped or rejected it

    def _collect(self, found: dict[int, Outcome]) -> None:
        left = [(name, data) for name, fd in self._fds.items() for data in _all_of(lambda fd=fd: os.read(fd, 2048))]
        for sock in self._sockets:
            for data, control, _, source in _all_of(lambda sock=sock: sock.recvmsg(2048, 256, socket.MSG_DONTWAIT)):
                self._take(found, _told_by_error(data) if sock.proto == ICMPV6 else _delivered(data, control, source[0]))
        for name, data in left:
            if data[22:24] == b"\x86\xdd":
                self._take(found, told_by(data[24:], name, local=False))


def _receiver(protocol: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, protocol)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FLOWINFO, 1)
    return sock


def _told_by_error(data: bytes) -> tuple[int, Outcome] | None:
    """An error that the node has sent to itself."""
    label = struct.unpack_from("!I", data, 8)[0] & 0xFFFFF if len(data) >= 48 else 0
    return (label, Outcome("rejected", icmp=(data[0], data[1]))) if label in IDENTS and data[0] < 128 else None


def _delivered(data: bytes, control, source: str) -> tuple[int, Outcome] | None:
    """A raw socket gives no IPv6 header: label and destination come beside."""
    told = {kind: value for _, kind, value in control}
    label = struct.unpack("!I", told.get(IPV6_FLOWINFO, bytes(4)))[0] & 0xFFFFF
    dst = str(packets6.IPv6Address(told[socket.IPV6_PKTINFO][:16]))
    port = struct.unpack_from("!H", data, 2)[0]
    return (label, Outcome("delivered", "", source.partition("%")[0], dst, port)) if label in IDENTS else None


class StackNode6(StackNode):
    def __init__(self, ops, tables, chooser=None) -> None:
        super().__init__(ops, tables, chooser)
        self.stack.apply([SysctlSet("net.ipv6.conf.all.forwarding", "1")], 0.0)

    def send(self, probe: Probe, now: float | None = None) -> Outcome:
        self._sent += 1
        now = self._sent * 1e6 if now is None else now
        link = probe.link or "host0"
        source = "02:00:00:00:00:99" if probe.link else "02:00:a9:fe:01:02"
        data = packets6.frame(self._targets[link], source, packet(probe, 0x4000, 10000 + self._sent))
        for index, emitted, _ in self.stack.receive(self.stack.link_index(link), data, now):
            name = self._names[index]
            if bytes(emitted[22:24]) == b"\x86\xdd":
                told = told_by(bytes(emitted[24:]), name, local=name == "host0")
                if told is not None:
                    return told[1]
        return DROPPED
