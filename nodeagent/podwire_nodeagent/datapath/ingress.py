"""The way in, in packet order: link → bridge (with br_netfilter) → ARP or IP (of either family).

Rules:
- A frame from the host link is the node's own packet; a frame on a bridge port belongs to the bridge; on any other link it
  must be addressed to the link's MAC or to a group.
- With bridge-nf-call-iptables=1 (IPv6: bridge-nf-call-ip6tables), as Kubernetes needs it, an IP frame on a bridge goes
  through PREROUTING when it comes in, and through FORWARD and POSTROUTING when the bridge forwards it, as if routed from bridge
  to bridge, but keeps its TTL. That is what translates the answers of a Service's backend that sits on the client's own bridge.
- A bridged packet that PREROUTING gave a new destination is bridged on, if that is on the same bridge and its MAC is known
  (the source MAC stays, as Linux' "bridged DNAT"); else it goes up and is routed.

Order to read: receive, up, bridge_receive, bridge_filtered, bridge_forward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from podwire_nodeagent.datapath import arp, egress, fragments, ip
from podwire_nodeagent.datapath.bridge import RESERVED_GROUP
from podwire_nodeagent.datapath.ebpf import programs
from podwire_nodeagent.datapath.ebpf.translate import leave
from podwire_nodeagent.datapath.neigh import USABLE
from podwire_nodeagent.datapath.packet import Packet
from podwire_nodeagent.datapath.walk import Walk
from podwire_nodeagent.datapath.wire import (
    ETH,
    ETHERNET,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    L3,
    VNET_SIZE,
    ZERO_MAC,
    mac_text,
)

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.links import Link
    from podwire_nodeagent.datapath.stack import Stack


def receive(stack: Stack, walk: Walk, link: Link) -> None:
    """A frame came in by a link."""
    frame = walk.frame
    if not link.up:
        link.rx_dropped += 1
        walk.drop("link_down", "link")
        return
    if len(frame) < L3:
        link.rx_dropped += 1
        walk.drop("frame_truncated", "link")
        return
    link.rx_packets += 1
    link.rx_bytes += len(frame) - VNET_SIZE
    walk.seen.append((link, False))
    if walk.steps is not None:
        walk.step("tunnel" if link.kind == "vxlan" else "link", "decapsulate" if link.kind == "vxlan" else "pass", link.name)
    if stack.lb.attached and not programs.arrive(stack, walk, link):
        return
    if link.kind == "host":
        host_receive(stack, walk, link)
    elif link.master is not None:
        bridge_receive(stack, walk, link, link.master)
    elif not frame[ETH] & 1 and bytes(frame[ETH : ETH + 6]) != link.mac:
        walk.drop("other_host", "link")
    else:
        up(stack, walk, link)


def host_receive(stack: Stack, walk: Walk, link: Link) -> None:
    """The node's own packet; ARP only for the host namespace's next hop, which is static there."""
    kind = ETHERNET.unpack_from(walk.frame, ETH)[2]
    if kind == ETHERTYPE_IPV4 or (kind == ETHERTYPE_IPV6 and stack.settings.ipv6):
        walk.dev = None
        ip.host_output(stack, walk)
    elif kind == ETHERTYPE_ARP:
        arp.receive(stack, walk, link)
    else:
        walk.drop("ipv6_not_enabled" if kind == ETHERTYPE_IPV6 else "ethertype_unknown", "link")


def up(stack: Stack, walk: Walk, dev: Link) -> None:
    """To the protocol that the frame carries."""
    kind = ETHERNET.unpack_from(walk.frame, ETH)[2]
    walk.dev = dev
    if kind == ETHERTYPE_IPV4 or (kind == ETHERTYPE_IPV6 and stack.settings.ipv6):
        ip.receive(stack, walk)
    elif kind == ETHERTYPE_ARP:
        arp.receive(stack, walk, dev)
    else:
        walk.drop("ipv6_not_enabled" if kind == ETHERTYPE_IPV6 else "ethertype_unknown", "link")


# --- bridge --------------------------------


def bridge_receive(stack: Stack, walk: Walk, port: Link, bridge: Link) -> None:
    """Learn, filter, then up or on."""
    dst, src, kind = ETHERNET.unpack_from(walk.frame, ETH)
    assert bridge.fdb is not None
    if not bridge.up:
        walk.drop("link_down", "bridge")
    elif src[0] & 1 or src == ZERO_MAC:
        walk.drop("bridge_source_mac", "bridge")
    elif dst[:5] == RESERVED_GROUP and dst[5] < 16:
        walk.drop("bridge_reserved_group", "bridge")
    elif kind == ETHERTYPE_IPV6 and not stack.settings.ipv6:
        walk.drop("ipv6_not_enabled", "bridge")
    else:
        if src != bridge.mac and bridge.fdb.learn(src, port, walk.now):
            stack.changed()
        walk.fdb_source = bridge.fdb.entries.get(src)
        walk.dev, walk.port = bridge, port
        if (kind == ETHERTYPE_IPV4 and stack.settings.bridge_nf) or (kind == ETHERTYPE_IPV6 and stack.settings.bridge_nf6):
            bridge_filtered(stack, walk, bridge, dst)
        else:
            bridge_forward(stack, walk, bridge, dst)


def bridge_filtered(stack: Stack, walk: Walk, bridge: Link, dst: bytes) -> None:
    """PREROUTING on a bridged packet, and what follows from a new destination."""
    before = bytes(walk.frame[L3 + 16 : L3 + 20] if walk.frame[L3 - 2] == 8 else walk.frame[L3 + 24 : L3 + 40])
    if not ip.enter(stack, walk):
        return
    packet = walk.packet
    if packet.dst == before or dst[0] & 1:
        bridge_forward(stack, walk, bridge, dst)
        return
    route = stack.fib.lookup(packet.dst)
    if route is not None and route.type == "unicast" and route.dev is bridge:
        nexthop = route.gateway or packet.dst
        entry = stack.neighbours.get(bridge, nexthop)
        if entry is not None and entry.state in USABLE:
            stack.neighbours.use(bridge, nexthop, walk.now)
            walk.neighbour = entry
            if entry.state == "REACHABLE":
                walk.expires = min(walk.expires, entry.deadline)
            walk.frame[ETH : ETH + 6] = entry.mac
            if walk.steps is not None:
                walk.step("bridge", "route", f"{route.text()} lladdr {mac_text(entry.mac)}: bridged")
            bridge_forward(stack, walk, bridge, entry.mac)
            return
    walk.frame[ETH : ETH + 6] = bridge.mac
    bridge_forward(stack, walk, bridge, bridge.mac)


def bridge_forward(stack: Stack, walk: Walk, bridge: Link, dst: bytes) -> None:
    """Up the stack, to a port, or to all."""
    if dst == bridge.mac:
        bridge_up(stack, walk, bridge)
        return
    ports = egress.bridge_ports(walk, bridge, dst, walk.port)
    if len(ports) == 1 and not dst[0] & 1:
        forward_to(stack, walk, bridge, ports[0])
        return
    sent = None
    for port in ports:
        own = copy_of(stack, walk)
        forward_to(stack, own, bridge, port)
        if own.verdict == "dropped":
            stack.lost(own.reason)
        else:
            sent = own
    if dst[0] & 1:
        bridge_up(stack, walk, bridge)
    walk.cacheable = False
    if sent is not None:
        walk.verdict, walk.reason, walk.out_link = "forwarded", "", sent.out_link
    elif not walk.verdict:
        walk.drop("bridge_no_port", "bridge")


def bridge_up(stack: Stack, walk: Walk, bridge: Link) -> None:
    bridge.rx_packets += 1
    bridge.rx_bytes += len(walk.frame) - VNET_SIZE
    walk.seen.append((bridge, False))
    up(stack, walk, bridge)


def copy_of(stack: Stack, walk: Walk) -> Walk:
    """One of the frames of a flood; hooks may rewrite each."""
    own = Walk(bytearray(walk.frame), walk.link, walk.now, walk.emits)
    own.dev, own.port, own.prerouted, own.untracked = walk.dev, walk.port, walk.prerouted, walk.untracked
    own.largest_fragment, own.cacheable = walk.largest_fragment, False
    own.steps, own.clock, own.lap = walk.steps, walk.clock, walk.lap
    if walk.prerouted:
        own.packet = clone(walk.packet, own.frame)
    return own


def clone(packet: Packet, frame: bytearray | memoryview) -> Packet:
    """The same packet in another buffer, of the same connection."""
    own = Packet()
    own.parse(frame)
    own.mark, own.ct, own.ctinfo, own.direction = packet.mark, packet.ct, packet.ctinfo, packet.direction
    own.in_link, own.bridged, own.volatile = packet.in_link, packet.bridged, True
    return own


def forward_to(stack: Stack, walk: Walk, bridge: Link, port: Link) -> None:
    """Through FORWARD and POSTROUTING if filtered, then out."""
    if walk.prerouted:
        packet = walk.packet
        packet.out_link = bridge.name
        if not ip.passes(stack, walk, stack.netfilter.forward(packet, walk.now, walk.steps)):
            return
        if not ip.passes(stack, walk, stack.netfilter.postrouting(packet, walk.now, walk.steps)):
            return
        if stack.lb.attached:
            leave(stack, walk)
        walk.mtu = min(walk.mtu, port.mtu)
        if walk.largest_fragment and packet.length > port.mtu:
            for piece in fragments.split(walk.frame, packet, min(port.mtu, walk.largest_fragment), stack.next_ident()):
                egress.transmit(stack, walk, port, piece)
            return
    egress.send_to_ports(stack, walk, (port,), walk.frame)
