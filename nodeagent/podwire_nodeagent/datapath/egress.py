"""The way out, in packet order: neighbour → link → bridge port or tunnel.

Rules: a frame given to `transmit` has its Ethernet header; what cannot be sent is dropped with a reason and counted at the link;
a packet that waits for its neighbour is a copy. A bridge that transmits a frame of the node itself (not a bridged one) does not
run netfilter again: POSTROUTING has been.

Order to read: to_neighbour, transmit, bridge_transmit, tunnel, arp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from zlib import crc32

from podwire_nodeagent.datapath import icmp6
from podwire_nodeagent.datapath.bridge import AGEING, flood_ports, may_leave
from podwire_nodeagent.datapath.neigh import USABLE, Neighbour
from podwire_nodeagent.datapath.walk import Waiting, Walk
from podwire_nodeagent.datapath.wire import (
    ARP,
    ARP_END,
    ARP_PREFIX,
    ARP_REQUEST,
    BROADCAST_MAC,
    ETH,
    ETHERNET,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    L3,
    VNET_SIZE,
    ZERO_MAC,
    Buffer,
    Tunnel,
    address_text,
    mac_text,
)

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.links import Link
    from podwire_nodeagent.datapath.stack import Stack


def to_neighbour(stack: Stack, walk: Walk, dev: Link, nexthop: bytes, frame: Buffer) -> None:
    """Find the next hop's MAC and send, or keep a copy until it is found."""
    mac = group_mac(stack, walk, dev, nexthop)
    if not mac:
        entry, ask = stack.neighbours.use(dev, nexthop, walk.now)
        if entry.state not in USABLE:
            wait(stack, walk, entry, ask, frame)
            return
        mac = entry.mac
        walk.neighbour = entry
        if entry.state == "REACHABLE":
            walk.expires = min(walk.expires, entry.deadline)
    if walk.steps is not None:
        walk.step("neighbour", "resolve", f"{address_text(nexthop)} lladdr {mac_text(mac)} dev {dev.name}")
    ETHERNET.pack_into(frame, ETH, mac, dev.mac, ETHERTYPE_IPV4 if len(nexthop) == 4 else ETHERTYPE_IPV6)
    transmit(stack, walk, dev, frame)


def group_mac(stack: Stack, walk: Walk, dev: Link, nexthop: bytes) -> bytes:
    """The MAC that needs no asking: broadcast, multicast, and links without neighbours; else b""."""
    if dev.kind == "host":
        return dev.peer_mac or BROADCAST_MAC
    if len(nexthop) == 16:
        return icmp6.group_mac(nexthop) if nexthop[0] == 0xFF else b""
    if nexthop[0] & 0xF0 == 0xE0:
        return b"\x01\x00\x5e" + bytes((nexthop[1] & 0x7F,)) + nexthop[2:]
    return BROADCAST_MAC if stack.fib.address_type(nexthop) == "BROADCAST" else b""


def wait(stack: Stack, walk: Walk, entry: Neighbour, ask: bool, frame: Buffer) -> None:
    """Queue a copy of the packet, and ask for the MAC if nobody has."""
    waiting = Waiting(bytearray(frame), walk.packet, walk)
    if stack.neighbours.enqueue(entry, waiting) is not None:
        stack.lost("neighbour_queue_full")
    if walk.steps is not None:
        walk.step("neighbour", "resolve", f"{address_text(entry.ip)} dev {entry.link.name} INCOMPLETE: queued")
    walk.consume("neighbour_incomplete")
    if ask:
        solicit(stack, walk, entry)


def transmit(stack: Stack, walk: Walk, dev: Link, frame: Buffer) -> None:
    """Hand a complete frame to a link."""
    if not dev.up:
        dev.tx_dropped += 1
        walk.drop("link_down", "link")
        return
    dev.tx_packets += 1
    dev.tx_bytes += len(frame) - VNET_SIZE
    walk.seen.append((dev, True))
    if dev.kind == "bridge":
        bridge_transmit(stack, walk, dev, frame)
    elif dev.kind == "vxlan":
        tunnel(stack, walk, dev, frame)
    elif dev.kind in ("dummy", "loopback"):
        walk.drop("dummy_link", "link")
    else:
        if walk.steps is not None:
            walk.step("link", "transmit", f"dev {dev.name}")
        walk.sent(dev, frame, None, "forwarded" if dev.kind == "uplink" else "delivered")


def bridge_transmit(stack: Stack, walk: Walk, bridge: Link, frame: Buffer) -> None:
    """A frame of the node itself leaves by a bridge: to the port that has its MAC, or to all."""
    ports = bridge_ports(walk, bridge, bytes(frame[ETH : ETH + 6]), None)
    if not ports:
        walk.drop("bridge_no_port", "bridge")
        return
    send_to_ports(stack, walk, ports, frame)


def bridge_ports(walk: Walk, bridge: Link, mac: bytes, came_from: Link | None) -> Sequence[Link]:
    """The ports a frame for `mac` leaves by; `came_from` is the port of a bridged frame."""
    assert bridge.fdb is not None
    if not mac[0] & 1:
        entry = bridge.fdb.lookup(mac, walk.now)
        if entry is not None:
            port = entry.port
            if not entry.permanent:
                walk.expires = min(walk.expires, entry.used + AGEING)
            ok = port is not None and may_leave(port, came_from)
            if walk.steps is not None:
                walk.step("bridge", "forward" if ok else "drop", f"{mac_text(mac)} dev {port.name if port else '-'}")
            return (port,) if ok and port is not None else ()
    walk.cacheable = False
    ports = flood_ports(bridge.ports, came_from)
    if walk.steps is not None:
        walk.step("bridge", "flood", f"{mac_text(mac)} to {len(ports)} ports")
    return ports


def send_to_ports(stack: Stack, walk: Walk, ports: Sequence[Link], frame: Buffer) -> None:
    for port in ports:
        walk.mtu = min(walk.mtu, port.mtu)
        if len(frame) - L3 > port.mtu and not frame[1]:
            port.tx_dropped += 1
            walk.drop("bridge_mtu", "bridge")
        else:
            transmit(stack, walk, port, frame)


def tunnel(stack: Stack, walk: Walk, dev: Link, frame: Buffer) -> None:
    """Encapsulation: the remote VTEPs of the destination's MAC, or of the all-zero default entry."""
    assert dev.fdb is not None
    mac = bytes(frame[ETH : ETH + 6])
    entry = dev.fdb.entries.get(mac) or dev.fdb.entries.get(ZERO_MAC)
    if entry is None or not entry.remotes:
        dev.tx_dropped += 1
        walk.drop("vxlan_no_fdb", "tunnel")
        return
    sport = 49152 + (flow_hash(walk, frame) & 0x3FFF)
    for remote in entry.remotes:
        outer = Tunnel(remote, dev.vni, sport, dev.dstport)
        if walk.steps is not None:
            walk.step("tunnel", "encapsulate", f"vxlan vni {dev.vni} to {address_text(remote)} sport {sport}")
        walk.sent(dev, frame, outer, "forwarded")


def flow_hash(walk: Walk, frame: Buffer) -> int:
    """One value for all packets of a flow, the outer source port's entropy (RFC 7348, section 5)."""
    packet = walk.packet
    if packet.buf is frame and not packet.fragment and packet.proto in (6, 17):
        return crc32(packet.src + packet.dst + bytes(frame[packet.l4 : packet.l4 + 4]), packet.proto)
    if len(frame) >= L3 + 20 and frame[L3] >> 4 == 4:
        return crc32(frame[L3 + 12 : L3 + 20])
    return crc32(frame[L3 + 8 : L3 + 40] if len(frame) >= L3 + 40 and frame[L3] >> 4 == 6 else frame[ETH : ETH + 12])


def solicit(stack: Stack, walk: Walk, entry: Neighbour) -> None:
    """An ARP request or neighbour solicitation: to all, or to the MAC that is to be confirmed."""
    dev = entry.link
    source = stack.link_source(dev, entry.ip)
    if len(entry.ip) == 16:
        own = source if any(source) and any(a == source for a, _ in dev.addresses) else icmp6.link_local(dev.mac)
        send_discovery(stack, walk, dev, icmp6.solicitation(dev.mac, own, entry.mac, entry.ip))
        return
    target = entry.mac or BROADCAST_MAC
    send_arp(stack, walk, dev, target, ARP_REQUEST, source, entry.mac or ZERO_MAC, entry.ip)


def send_arp(
    stack: Stack, walk: Walk, dev: Link, to: bytes, operation: int, sender: bytes, target_mac: bytes, target: bytes
) -> None:
    """An ARP packet of the node itself; a walk of its own that shares the caller's emits."""
    frame = bytearray(ARP_END)
    ETHERNET.pack_into(frame, ETH, to, dev.mac, ETHERTYPE_ARP)
    ARP.pack_into(frame, L3, *ARP_PREFIX, operation, dev.mac, sender, target_mac, target)
    own = Walk(frame, None, walk.now, walk.emits)
    transmit(stack, own, dev, frame)
    stack.finish(own)


def send_discovery(stack: Stack, walk: Walk, dev: Link, frame: bytearray) -> None:
    """A message of neighbour discovery of the node itself, as `send_arp`."""
    own = Walk(frame, None, walk.now, walk.emits)
    transmit(stack, own, dev, frame)
    stack.finish(own)
