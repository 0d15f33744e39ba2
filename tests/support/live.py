"""Real datapath processes on this machine, configured as an agent configures them: nodes with pods, without a cluster.

`with Nodes("lp") as nodes:` removes everything again. Namespaces are /run/netns/<prefix>-<pod> (so that `ip netns exec` works).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from podwire_core import netns
from podwire_core.netlink import AddrAdd, FdbAdd, LinkAdd, NeighAdd, RouteAdd, SysctlSet, UnderlaySet
from podwire_core.netlink_client import Netlink

MTU = 1450


def mac_of(ip: str) -> str:
    return "02:00:" + ":".join(f"{int(part):02x}" for part in ip.split("."))


def netns_path(name: str) -> str:
    return f"/run/netns/{name}"


def inside(name: str, *command: str) -> list[str]:
    """The command line that runs `command` in that namespace."""
    return ["nsenter", f"--net={netns_path(name)}", *command]


class Node:
    """One datapath process: cni0, flannel.1 and eth0 as in a cluster. `underlay` is its socket address, in namespace `space`."""

    def __init__(self, nodes: Nodes, number: int, underlay: str = "", space: str = "") -> None:
        self.nodes, self.number, self.space = nodes, number, space
        self.ip, self.vtep = f"192.168.1.{10 + number}", f"10.244.{number}.0"
        self.underlay = underlay or f"127.0.{nodes.slot}.{10 + number}"
        self.socket = f"{nodes.directory}/{number}.sock"
        self.pods: dict[str, str] = {}
        self.start()
        self.configure()

    def start(self) -> None:
        command = [sys.executable, "-m", "podwire_nodeagent.datapath", "--node", f"node{self.number}", "--socket", self.socket]
        command += ["--underlay", self.underlay]
        if self.space:
            command = inside(self.space, *command)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.netlink = Netlink(self.socket)

    def configure(self) -> None:
        self.netlink.apply(
            [
                SysctlSet("net.ipv4.ip_forward", "1"),
                LinkAdd("eth0", "uplink", mac=mac_of(self.ip)),
                AddrAdd("eth0", f"{self.ip}/24"),
                LinkAdd("cni0", "bridge", mac=mac_of(f"10.244.{self.number}.1"), mtu=MTU),
                AddrAdd("cni0", f"10.244.{self.number}.1/24"),
                LinkAdd("flannel.1", "vxlan", mac=mac_of(self.vtep), mtu=MTU, vni=1, local=self.ip),
                AddrAdd("flannel.1", f"{self.vtep}/32"),
            ]
        )

    def peer(self, number: int, ip: str, host: str, mac: str) -> None:
        """Another node: how its pods are reached."""
        vtep = f"10.244.{number}.0"
        self.netlink.apply(
            [
                UnderlaySet(ip, mac_of(ip), host, 8473),
                RouteAdd(f"{vtep}/24", dev="flannel.1", via=vtep, onlink=True, replace=True),
                NeighAdd(vtep, mac, "flannel.1", replace=True),
                FdbAdd(mac, "flannel.1", dst=ip, replace=True),
            ]
        )

    def pod(self, name: str) -> str:
        """A pod in a new namespace <prefix>-<name>; returns its address."""
        space = f"{self.nodes.prefix}-{name}"
        ip = f"10.244.{self.number}.{2 + len(self.pods)}"
        self.nodes.namespace(space)
        fd = netns.create_tap(netns_path(space), "eth0", mac_of(ip), MTU)
        with netns.configure(netns_path(space)) as net:
            net.set_link("eth0", up=True)
            net.add_address("eth0", f"{ip}/24")
        netns.add_route(netns_path(space), "default", via=f"10.244.{self.number}.1", dev="eth0")
        self.pods[name] = ip
        self.attach(name, fd)
        return ip

    def attach(self, name: str, fd: int) -> None:
        """Give the datapath a pod's TAP (again)."""
        self.netlink.apply([LinkAdd(f"veth{name}", "tap", mtu=MTU, master="cni0", hairpin=True, fd=True, replace=True)], fds=[fd])
        os.close(fd)

    def counters(self) -> dict[str, int]:
        return self.netlink.dump("counters")

    def close(self) -> None:
        self.netlink.close()
        self.process.terminate()
        self.process.wait()


class Nodes:
    """The nodes of one test or benchmark, and what is to be removed after it."""

    def __init__(self, prefix: str, slot: int = 77) -> None:
        self.prefix, self.slot = prefix, slot
        self._temporary = tempfile.TemporaryDirectory()
        self.directory = self._temporary.name
        self.nodes: list[Node] = []
        self._spaces: list[str] = []

    def namespace(self, name: str) -> str:
        path = netns_path(name)
        if Path(path).exists():
            netns.delete(path)  # of a run that was killed
        netns.create(path)
        self._spaces.append(path)
        return path

    def add(self, count: int = 1, underlay: str = "", space: str = "") -> list[Node]:
        """New nodes, each a peer of all."""
        for _ in range(count):
            new = Node(self, len(self.nodes) + 1, underlay, space)
            for old in self.nodes:
                old.peer(new.number, new.ip, new.underlay, mac_of(new.vtep))
                new.peer(old.number, old.ip, old.underlay, mac_of(old.vtep))
            self.nodes.append(new)
        return self.nodes

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.close()
        for path in self._spaces:
            netns.delete(path)
        self._temporary.cleanup()


# --- traffic whose content is compared --------------------------------

SERVER = """
import hashlib, socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind((sys.argv[1], 7000)); s.listen()
print("ready", flush=True)
while True:
    c, a = s.accept()
    h = hashlib.sha256(); n = int.from_bytes(c.recv(8, socket.MSG_WAITALL), "big")
    while n:
        d = c.recv(min(n, 1 << 20)); h.update(d); n -= len(d)
        if not d: break
    c.sendall(h.hexdigest().encode()); c.close()
"""
CLIENT = """
import hashlib, random, socket, sys
s = socket.create_connection((sys.argv[1], 7000), 10); n = int(sys.argv[2])
block = random.Random(5).randbytes(1 << 20); h = hashlib.sha256()
s.sendall(n.to_bytes(8, "big"))
while n:
    d = block[:n]; s.sendall(d); h.update(d); n -= len(d)
got = s.recv(64, socket.MSG_WAITALL).decode(); assert got == h.hexdigest(), (got, h.hexdigest()); print("same")
"""


def transfer(source: str, target: str, address: str, size: int) -> None:
    """`size` bytes from one namespace to another, their content compared by hash."""
    server = subprocess.Popen(inside(target, sys.executable, "-c", SERVER, address), stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        command = inside(source, sys.executable, "-c", CLIENT, address, str(size))
        client = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert client.stdout == "same\n", client.stderr
    finally:
        server.kill()
        server.wait()
