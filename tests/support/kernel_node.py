"""A Linux network namespace that is a node: links, addresses, routes and neighbours of a list of netlink operations, the rules
of a text, and probes sent through it. The judge of our own stack.

Every link is a TAP held here, so that frames go in and come out; locally delivered packets are seen by raw sockets, which get
their copy behind the INPUT hook.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from pathlib import Path

from support.probes import DROPPED, ICMP, IDENTS, TCP, UDP, Outcome, Probe, frame, packet, told_by

from podwire_core import netns
from podwire_core.netlink import AddrAdd, LinkAdd, NeighAdd, RouteAdd

SYSCTLS = {
    "net.ipv4.ip_forward": "1",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
    "net.ipv4.conf.all.route_localnet": "1",
    "net.ipv4.icmp_ratemask": "0",
    "net.ipv4.conf.all.send_redirects": "0",
    "net.ipv4.conf.default.send_redirects": "0",
    "net.ipv6.conf.all.disable_ipv6": "1",
    "net.ipv6.conf.default.disable_ipv6": "1",
}
SENTINEL = IDENTS[-1]


class KernelNode:
    """`macs`: the addresses of what is behind a link, as senders of frames."""

    def __init__(self, path: Path, ops) -> None:
        self._path = path
        netns.create(path)
        for name, value in SYSCTLS.items():
            netns.set_sysctl(path, name, value)
        self._fds: dict[str, int] = {}
        self._macs: dict[str, str] = {}
        self._sockets: list[socket.socket] = []
        try:
            self._configure(list(ops))
            with netns.in_netns(path):
                self._sockets = [socket.socket(socket.AF_INET, socket.SOCK_RAW, p) for p in (TCP, UDP, ICMP)]
                self._raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        for sock in (*self._sockets, *([self._raw] if hasattr(self, "_raw") else [])):
            sock.close()
        netns.delete(self._path)

    def fd(self, link: str) -> int:
        """Frames in and out, non-blocking, virtio header first."""
        return self._fds[link]

    def run(self, *argv: str, stdin: str = "") -> str:
        with netns.in_netns(self._path):
            done = subprocess.run(argv, input=stdin, text=True, capture_output=True)
        assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}\n{stdin}"
        return done.stdout

    def _configure(self, ops) -> None:
        lines = []
        for op in ops:
            match op:
                case LinkAdd(kind="bridge"):
                    self._macs[op.name] = op.mac
                    lines.append(f"link add {op.name} address {op.mac} type bridge")
                    lines.append(f"link set {op.name} up")
                case LinkAdd():
                    self._fds[op.name] = netns.create_tap(self._path, op.name, op.mac)
                    self._macs[op.name] = self._macs.get(op.master, op.mac)  # a port's packets go to its bridge
                    lines.append(f"link set {op.name} up" + (f" master {op.master}" if op.master else ""))
                    if op.hairpin:
                        lines.append(f"link set {op.name} type bridge_slave hairpin on")
                case AddrAdd():
                    lines.append(f"addr add {op.address} dev {op.dev}" + (" nodad" if ":" in op.address else ""))
                case NeighAdd():
                    lines.append(f"neigh add {op.dst} lladdr {op.lladdr} dev {op.dev} nud permanent")
                case RouteAdd():
                    via = f" via {op.via} dev {op.dev} onlink" if op.via else f" dev {op.dev}"
                    lines.append(f"route add {op.dst}{via}" + (f" src {op.src}" if op.src else ""))
        self.run("ip", "-batch", "-", stdin="".join(f"{line}\n" for line in lines))

    # --- rules

    def load(self, text: str, variant: str) -> None:
        """`variant`: legacy or nft; the other one's rules go, and all connections of earlier probes."""
        other = {"legacy": "nft", "nft": "legacy"}[variant]
        empty = "".join(f"*{table}\nCOMMIT\n" for table in ("nat", "filter", "mangle"))
        self.run(f"iptables-{other}-restore", "-w", "10", stdin=empty)
        self.run(f"iptables-{variant}-restore", "-w", "10", stdin=text)
        self.run("conntrack", "-F")

    def saved(self, variant: str) -> str:
        return self.run(f"iptables-{variant}-save")

    # --- probes

    def send(self, probes: list[Probe], sentinel: Probe, first_sport: int = 20000) -> list[Outcome]:
        """Each probe's outcome; the sentinel is a probe that is known to get through, behind all others."""
        found: dict[int, Outcome] = {}
        for number, probe in enumerate([*probes, sentinel]):
            ident = SENTINEL if probe is sentinel else IDENTS[number]
            data = packet(probe, ident, first_sport + number)
            if probe.link:
                os.write(self._fds[probe.link], frame(data, "02:00:00:00:00:99", self._macs[probe.link]))
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
            pass  # how a sender learns that OUTPUT dropped its packet, or rejected it: then an ICMP error follows

    def _wait(self) -> None:
        select.select([*self._fds.values(), *self._sockets], [], [], 0.1)

    def _collect(self, found: dict[int, Outcome]) -> None:
        """What left by links is read first and told last: an error for a datagram that nobody listens for leaves after its
        delivery, so the delivery is then known."""
        left = [(name, data) for name, fd in self._fds.items() for data in _all_of(lambda fd=fd: os.read(fd, 2048))]
        for sock in self._sockets:
            for data in _all_of(lambda sock=sock: sock.recv(2048, socket.MSG_DONTWAIT)):
                self._take(found, told_by(data, "", local=True))
        for name, data in left:
            if data[22:24] == b"\x08\0":
                self._take(found, told_by(data[24:], name, local=False))

    @staticmethod
    def _take(found: dict[int, Outcome], told: tuple[int, Outcome] | None) -> None:
        """The first word counts: a delivered datagram that nobody listens for is answered with an error too."""
        if told is not None:
            found.setdefault(*told)


def _all_of(read):
    while True:
        try:
            yield read()
        except BlockingIOError:
            return
