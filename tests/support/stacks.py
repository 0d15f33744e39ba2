"""Nodes joined in memory: real stacks, configured as the agents configure them, with pods that are a few lines of Python.

A pod answers ARP and pings, and keeps everything else in `inbox`. Frames travel by `Cluster.run`, in order, until none is left;
time passes only in `Cluster.wait`.
"""

from __future__ import annotations

from collections import deque
from random import Random

from support import packets
from support.packets import Seen, decode

from podwire_core import netfilter as nf
from podwire_core.netlink import (
    AddrAdd,
    FdbAdd,
    LinkAdd,
    NeighAdd,
    RouteAdd,
    SysctlSet,
    TablesReplace,
    UnderlaySet,
)
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.stack import Stack

GATEWAY = "02:00:a9:fe:01:01"
HOST = "02:00:00:00:00:99"


def pod_mac(address: str) -> str:
    return "02:00:" + packets.ip(address).hex(":")


class Pod:
    """The other end of a TAP."""

    def __init__(self, node: Node, name: str, address: str) -> None:
        self.node, self.name, self.address = node, name, address
        self.mac = pod_mac(address)
        self.inbox: list[Seen] = []
        self.frames: list[bytes] = []
        self.answers = True

    def send(self, packet: bytes, to: str = "", vnet: bytes = b"") -> None:
        """To the gateway, or to a MAC."""
        frame = packets.frame(to or self.node.bridge_mac, self.mac, packet)
        frame[:10] = vnet or bytes(10)
        self.node.cluster.push(self.node, self.name, frame)

    def receive(self, frame: bytes) -> None:
        seen = decode(frame)
        if seen.kind == 0x806:
            if seen.operation == 1 and seen.dst == self.address and self.answers:
                reply = packets.arp(2, self.mac, self.address, seen.src_mac, seen.src)
                self.node.cluster.push(self.node, self.name, packets.ethernet(seen.src_mac, self.mac, 0x806, reply))
            return
        if seen.dst_mac not in (self.mac, packets.BROADCAST):
            return
        self.inbox.append(seen)
        self.frames.append(frame)
        if seen.icmp == (8, 0) and self.answers:
            ident, seq = int.from_bytes(seen.rest[:2], "big"), int.from_bytes(seen.rest[2:], "big")
            self.send(packets.echo(self.address, seen.src, ident, seq, seen.payload, reply=True), seen.src_mac)

    def take(self) -> list[Seen]:
        taken, self.inbox = self.inbox, []
        return taken


class Host(Pod):
    """The node's host namespace: it sends with any of its addresses, and answers pings to them."""

    def __init__(self, node: Node) -> None:
        super().__init__(node, "host0", node.ip)
        self.mac = HOST

    def send(self, packet: bytes, to: str = "", vnet: bytes = b"") -> None:
        super().send(packet, GATEWAY, vnet)

    def receive(self, frame: bytes) -> None:
        seen = decode(frame)
        self.inbox.append(seen)
        if seen.icmp == (8, 0):
            rest = seen.rest
            self.send(packets.icmp(seen.dst, seen.src, 0, 0, rest, seen.payload))


class Node:
    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster, self.number = cluster, number
        self.name, self.ip = f"node{number}", f"192.168.1.{10 + number}"
        self.bridge_ip, self.vtep_ip = f"10.244.{number}.1", f"10.244.{number}.0"
        self.mac, self.bridge_mac, self.vtep_mac = (f"02:{kind}:00:00:00:{number:02x}" for kind in ("aa", "bb", "cc"))
        self.stack = Stack(self.name, RandomChooser(Random(number)))
        self.pods: dict[str, Pod] = {}
        self.apply(
            LinkAdd("eth0", "uplink", self.mac),
            AddrAdd("eth0", f"{self.ip}/24"),
            LinkAdd("cni0", "bridge", self.bridge_mac, mtu=1450),
            AddrAdd("cni0", f"{self.bridge_ip}/24"),
            LinkAdd("flannel.1", "vxlan", self.vtep_mac, mtu=1450, vni=1, local=self.ip),
            AddrAdd("flannel.1", f"{self.vtep_ip}/32"),
            LinkAdd("host0", "host", GATEWAY, peer_mac=HOST),
            RouteAdd("default", "eth0", "192.168.1.1"),
            SysctlSet("net.ipv4.ip_forward", "1"),
        )
        self.host = self.pods["host0"] = Host(self)

    def apply(self, *ops) -> None:
        self.stack.apply(ops, self.cluster.now)

    def add_pod(self, address: str, hairpin=True) -> Pod:
        name = f"veth{len(self.pods)}"
        self.apply(LinkAdd(name, "tap", mtu=1450, master="cni0", hairpin=hairpin, alias=f"pod default/{name}"))
        pod = self.pods[name] = Pod(self, name, address)
        return pod

    def know(self, other: Node) -> None:
        self.apply(
            RouteAdd(f"10.244.{other.number}.0/24", "flannel.1", other.vtep_ip, onlink=True),
            NeighAdd(other.vtep_ip, other.vtep_mac, "flannel.1"),
            FdbAdd(other.vtep_mac, "flannel.1", other.ip),
            UnderlaySet(other.ip, other.mac, "127.0.0.1", 8473),
        )


class Cluster:
    def __init__(self, size: int = 2) -> None:
        self.now = 1000.0
        self._queue: deque[tuple[Node, str, bytearray]] = deque()
        self.wire: list[tuple[str, str, Seen]] = []  # node, link, frame: whatever left a stack
        self.nodes = [Node(self, n + 1) for n in range(size)]
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    node.know(other)

    def push(self, node: Node, link: str, frame: bytearray) -> None:
        self._queue.append((node, link, frame))

    def run(self) -> None:
        """Until no frame is under way."""
        steps = 0
        while self._queue:
            steps += 1
            assert steps < 10_000, "frames go round and round"
            node, link, frame = self._queue.popleft()
            self.carry(node, node.stack.receive(node.stack.link_index(link), memoryview(frame), self.now))

    def carry(self, node: Node, emits) -> None:
        names = {link.index: link.name for link in node.stack.links}
        for index, buffer, tunnel in emits:
            name, frame = names[index], bytes(buffer)
            self.wire.append((node.name, name, decode(frame)))
            if tunnel is not None:
                for other in self.nodes:
                    if packets.ip(other.ip) == tunnel.remote:
                        self.push(other, "flannel.1", bytearray(frame))
            elif name == "eth0":
                for other in self.nodes:
                    if other is not node and (frame[10] & 1 or frame[10:16] == packets.mac(other.mac)):
                        self.push(other, "eth0", bytearray(frame))
            else:
                node.pods[name].receive(frame)

    def wait(self, seconds: float, step: float = 0.5) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += step
            for node in self.nodes:
                self.carry(node, node.stack.tick(self.now))
            self.run()

    def ping(self, pod: Pod, address: str, **header) -> list[Seen]:
        """What a ping from a pod brings back."""
        pod.take()
        pod.send(packets.echo(pod.address, address, **header))
        self.run()
        return [seen for seen in pod.take() if seen.icmp[0] != 8]


def service_rules(cluster_ip: str, port: int, backends: list[tuple[str, int]], *, reject=False) -> TablesReplace:
    """The rules that kube-proxy would make for one TCP and UDP Service, in short: a jump per Service, a masquerade mark for
    hairpins, a random backend; REJECT without any."""
    chains = []
    services = []
    for proto in ("tcp", "udp"):
        match = (nf.Destination(f"{cluster_ip}/32"), nf.Protocol(proto), nf.DestinationPort(proto, port, port))
        name = f"KUBE-SVC-{proto.upper()}"
        services.append(nf.Rule(match, nf.Jump(name), f"Service default/web:{proto}"))
        rules = []
        for i, (address, target) in enumerate(backends):
            sep = f"KUBE-SEP-{proto.upper()}{i}"
            left = len(backends) - i
            chance = (nf.Statistic(1 / left),) if left > 1 else ()
            rules.append(nf.Rule(chance, nf.Jump(sep)))
            mark = nf.Rule((nf.Source(f"{address}/32"),), nf.Jump("KUBE-MARK-MASQ"))
            dnat = nf.Rule((nf.Protocol(proto),), nf.Dnat(address, target), f"Service default/web:{proto}")
            chains.append(nf.Chain(sep, (mark, dnat)))
        chains.append(nf.Chain(name, tuple(rules)))
    chains += [
        nf.Chain("KUBE-SERVICES", tuple(services) if backends else ()),
        nf.Chain("KUBE-MARK-MASQ", (nf.Rule((), nf.SetMark(0x4000, 0x4000)),)),
        nf.Chain("PREROUTING", (nf.Rule((), nf.Jump("KUBE-SERVICES")),), "ACCEPT"),
        nf.Chain("OUTPUT", (nf.Rule((), nf.Jump("KUBE-SERVICES")),), "ACCEPT"),
        nf.Chain("POSTROUTING", (nf.Rule((nf.Mark(0x4000, 0x4000),), nf.Masquerade()),), "ACCEPT"),
    ]
    refused = tuple(
        nf.Rule(
            (nf.Destination(f"{cluster_ip}/32"), nf.Protocol(p), nf.DestinationPort(p, port, port), nf.ConntrackState(("NEW",))),
            nf.Reject(),
        )
        for p in ("tcp", "udp")
    )
    jump = (nf.Rule((), nf.Jump("KUBE-REJECT")),)
    established = nf.Rule((nf.ConntrackState(("RELATED", "ESTABLISHED")),), nf.Verdict("ACCEPT"))
    filters = [
        nf.Chain("KUBE-REJECT", refused if reject else ()),
        nf.Chain("FORWARD", (*jump, established), "ACCEPT"),
        nf.Chain("OUTPUT", jump, "ACCEPT"),
        nf.Chain("INPUT", (), "ACCEPT"),
    ]
    return TablesReplace((nf.Table("nat", 4, tuple(chains)), nf.Table("filter", 4, tuple(filters))))
