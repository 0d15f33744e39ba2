"""What joins simulated nodes: the cable, the tunnels, and the world outside, which answers for everything that is nobody's.

Rules it keeps: nodes are made when a packet first needs them; frames are delivered in the order in which they were sent; time
stands still, except while somebody waits for a neighbour that does not answer. Of what arrives only packets that open a flow
count: answers (ARP, RST, ICMP errors) are the stacks' affair.

Order to read: Arrival, Fabric.send_*, _run and the ways a frame can go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from podwire.simulation import packets
from podwire.simulation.node import OUTSIDE, PodEnd, SimulatedNode
from podwire_cni.macs import mac_of
from podwire_core.trace import Hop
from podwire_nodeagent.datapath.wire import (
    ARP_REPLY,
    ARP_REQUEST,
    BROADCAST_MAC,
    ETH,
    ZERO_MAC,
    Buffer,
    Emit,
    address_text,
    mac_bytes,
)

OUTSIDE_MAC = mac_bytes(mac_of(OUTSIDE))
FRAMES = 10_000  # more than any packet makes of itself: a loop
WAITS = (1.0, 1.0, 1.0, 1.0, 1.0)  # seconds after which a stack has given up a neighbour that does not answer


class Arrival(NamedTuple):
    """Where a packet ended: at a pod, at a node, or outside (both empty)."""

    seen: packets.Seen
    pod: str = ""
    node: str = ""


class Frame(NamedTuple):
    node: SimulatedNode
    link: int
    data: bytearray
    remote: str  # of a tunnel
    vni: int


class Fabric:
    """`make` builds a node's simulation by its name; `owners` tells which node an address belongs to ("" nobody's)."""

    def __init__(self, make: Callable[[str], SimulatedNode], owners: dict[str, str]) -> None:
        self._make, self._owners = make, owners
        first = {name: address for address, name in reversed(owners.items())}  # an uplink's MAC is made of it
        self._macs = {mac_bytes(mac_of(address)): name for name, address in first.items()}
        self._nodes: dict[str, SimulatedNode] = {}
        self._frames: deque[Frame] = deque()
        self._protocol = ""
        self.now = 0.0
        self.hops: list[Hop] = []
        self.arrivals: list[Arrival] = []

    def node(self, name: str) -> SimulatedNode:
        if name not in self._nodes:
            self._nodes[name] = self._make(name)
        return self._nodes[name]

    def begin(self, protocol: str) -> None:
        """A new packet: no connection is known, nothing has been seen."""
        self._protocol = protocol
        self.hops, self.arrivals = [], []
        for node in self._nodes.values():
            node.forget_flows(self.now)

    # --- sending --------------------------------

    def send_from_pod(self, node: SimulatedNode, end: PodEnd, packet: bytes, destination: str) -> bool:
        """False if the pod's kernel finds no next hop: nobody has that address."""
        home = end.homes.get(6 if ":" in destination else 4)
        if home is None:
            return False
        hop = home.next_hop(destination)
        if hop == home.address:
            self.arrivals.append(Arrival(packets.seen(end.mac, packet), end.pod, node.name))
            return True
        if (end.link, hop) not in node.neighbours:
            self._receive(node, end.link, packets.arp_frame(ARP_REQUEST, end.mac, home.address, ZERO_MAC, hop))
            self._run()
        mac = node.neighbours.get((end.link, hop))
        if mac is None:
            return False
        self._receive(node, end.link, packets.ip_frame(mac, end.mac, packet))
        self._settle()
        return True

    def send_from_host(self, node: SimulatedNode, packet: bytes) -> None:
        """By the node's own socket layer."""
        self._receive(node, node.host, packets.ip_frame(BROADCAST_MAC, ZERO_MAC, packet))
        self._settle()

    def send_from_outside(self, node: SimulatedNode, packet: bytes) -> None:
        self._receive(node, node.uplink, packets.ip_frame(node.uplink_mac, OUTSIDE_MAC, packet))
        self._settle()

    # --- delivering --------------------------------

    def _settle(self) -> None:
        """Until the packet has ended somewhere, or those who wait for a neighbour have given up."""
        self._run()
        for wait in WAITS:
            if self.arrivals or any(hop.verdict in ("dropped", "rejected") for hop in self.flow_hops()):
                return
            self.now += wait
            for node in list(self._nodes.values()):
                self._collect(node, node.stack.tick(self.now))
            self._run()

    def flow_hops(self) -> list[Hop]:
        """The hops of the packet itself."""
        wanted = self._protocol.lower()
        return [hop for hop in self.hops if hop.entered.proto == wanted and "R" not in hop.entered.flags]

    def _receive(self, node: SimulatedNode, link: int, frame: bytearray) -> None:
        self._collect(node, node.stack.receive(link, frame, self.now))

    def _collect(self, node: SimulatedNode, emits: Iterable[Emit]) -> None:
        for link, frame, tunnel in emits:
            remote = address_text(tunnel.remote) if tunnel else ""
            self._frames.append(Frame(node, link, bytearray(frame), remote, tunnel.vni if tunnel else 0))
        self.hops += node.stack.traced
        node.stack.traced.clear()

    def _run(self) -> None:
        for _ in range(FRAMES):
            if not self._frames:
                return
            self._deliver(self._frames.popleft())
        raise RuntimeError(f"one packet became more than {FRAMES} frames")

    def _deliver(self, frame: Frame) -> None:
        node, link = frame.node, frame.link
        if frame.remote:
            self._tunnelled(frame)
        elif link in node.pods:
            self._to_pod(node, node.pods[link], frame.data)
        elif link == node.host:
            self._arrived(frame.data, node=node.name)
        else:
            self._cable(node, frame.data)

    def _tunnelled(self, frame: Frame) -> None:
        owner = self._owners.get(frame.remote)
        if owner is not None:
            peer = self.node(owner)
            self._receive(peer, peer.stack.vxlan_index(frame.vni, bytes(frame.data[ETH : ETH + 6])), frame.data)

    def _to_pod(self, node: SimulatedNode, end: PodEnd, data: bytearray) -> None:
        reply = node.answer(end, data)
        if reply is not None:
            self._receive(node, end.link, reply)
            return
        seen = packets.read_ip(data)
        if seen is not None and seen.mac == end.mac and end.owns(seen.destination):  # not one that was flooded
            self._arrived(data, end.pod, node.name)

    def _arrived(self, data: Buffer, pod: str = "", node: str = "") -> None:
        seen = packets.read_ip(data)
        if seen is not None and packets.opens_a_flow(seen, self._protocol):
            self.arrivals.append(Arrival(seen, pod, node))

    def _cable(self, sender: SimulatedNode, data: bytearray) -> None:
        """To the node whose MAC it is; ARP to whom it asks for; the rest goes outside."""
        arp = packets.read_arp(data)
        if arp is not None:
            self._cable_arp(sender, data, arp)
            return
        seen = packets.read_ip(data)
        if seen is None:
            return
        if seen.mac in self._macs:
            peer = self.node(self._macs[seen.mac])
            self._receive(peer, peer.uplink, data)
        elif (owner := self._owners.get(seen.destination)) is None:
            self._arrived(data)
        else:  # a router outside knows where nodes are
            peer = self.node(owner)
            self._receive(peer, peer.uplink, packets.redirected(data, peer.uplink_mac, OUTSIDE_MAC))

    def _cable_arp(self, sender: SimulatedNode, data: bytearray, arp: packets.Arp) -> None:
        owner = self._owners.get(arp.target)
        if owner is not None and owner != sender.name:
            peer = self.node(owner)
            self._receive(peer, peer.uplink, data)
        elif owner is None and arp.operation == ARP_REQUEST:
            reply = packets.arp_frame(ARP_REPLY, OUTSIDE_MAC, arp.target, arp.sender_mac, arp.sender)
            self._receive(sender, sender.uplink, reply)
