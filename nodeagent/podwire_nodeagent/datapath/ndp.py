"""Neighbour discovery (RFC 4861) as Linux does it, without duplicate address detection: addresses here are assigned, not guessed.

Rules:
- A message counts only if its hop limit is 255, its code 0, its checksum right and its options whole.
- A solicitation for an address of the link that it came by is answered, and teaches the asker's MAC; one from the unspecified
  address (somebody's duplicate address detection) is answered to all nodes and teaches nothing.
- An advertisement makes nothing new: a solicited one confirms, any other updates. One without the override flag changes no MAC.
- Routers are not discovered: solicitations for them, advertisements and redirects of others are counted and ignored. Pods get
  their default route from the CNI plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from podwire_nodeagent.datapath import arp, egress, icmp6
from podwire_nodeagent.datapath.netfilter.embedded import message_sum
from podwire_nodeagent.datapath.packet import ICMPV6, Packet
from podwire_nodeagent.datapath.wire import ETH, address_text

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.links import Link
    from podwire_nodeagent.datapath.stack import Stack
    from podwire_nodeagent.datapath.walk import Walk


def is_discovery(packet: Packet) -> bool:
    return packet.proto == ICMPV6 and packet.dport >> 8 in icmp6.DISCOVERY


def receive(stack: Stack, walk: Walk, dev: Link) -> None:
    """A message of neighbour discovery that has passed INPUT."""
    packet = walk.packet
    kind = packet.dport >> 8
    if packet.ttl != 255 or packet.dport & 255 or (not packet.checksum_is_partial() and message_sum(packet)):
        walk.drop("ndp_malformed", "neighbour")
        return
    if kind not in (icmp6.SOLICITATION, icmp6.ADVERTISEMENT):
        stack.count("ndp.ignored")
        walk.consume("ndp")
        return
    mac = link_option(packet, icmp6.SOURCE_LINK if kind == icmp6.SOLICITATION else icmp6.TARGET_LINK)
    target = bytes(packet.buf[packet.l4 + 8 : packet.l4 + 24])
    if mac is None or len(target) < 16 or icmp6.is_multicast(target):
        walk.drop("ndp_malformed", "neighbour")
    elif kind == icmp6.SOLICITATION:
        solicited(stack, walk, dev, target, mac)
    else:
        advertised(stack, walk, dev, target, mac)


def link_option(packet: Packet, wanted: int) -> bytes | None:
    """The MAC in an option, b"" without one, None if the options are not whole."""
    buf, at, end = packet.buf, packet.l4 + 24, packet.end
    found = b""
    while at < end:
        size = buf[at + 1] << 3 if at + 1 < end else 0
        if not size or at + size > end:
            return None
        if buf[at] == wanted and size == 8:
            found = bytes(buf[at + 2 : at + 8])
        at += size
    return None if found and found[0] & 1 else found


def solicited(stack: Stack, walk: Walk, dev: Link, target: bytes, mac: bytes) -> None:
    packet = walk.packet
    probe = packet.src == icmp6.UNSPECIFIED
    if probe and mac:
        walk.drop("ndp_malformed", "neighbour")
        return
    if owns(dev, target):
        sender = mac or bytes(walk.frame[ETH + 6 : ETH + 12])
        to, to_mac, flags = packet.src, sender, icmp6.SOLICITED
        if icmp6.is_multicast(packet.dst):
            flags |= icmp6.OVERRIDE
        if probe:
            to, to_mac, flags = icmp6.ALL_NODES, icmp6.group_mac(icmp6.ALL_NODES), icmp6.OVERRIDE
        elif mac:
            learn(stack, walk, dev, packet.src, mac, reply=False, create=True)
        if walk.steps is not None:
            walk.step("neighbour", "deliver", f"{address_text(target)} is-at {dev.mac.hex(':')} dev {dev.name}")
        router = icmp6.ROUTER if stack.settings.forwarding6 else 0
        egress.send_discovery(stack, walk, dev, icmp6.advertisement(dev.mac, target, to_mac, to, flags | router))
    walk.consume("ndp")


def advertised(stack: Stack, walk: Walk, dev: Link, target: bytes, mac: bytes) -> None:
    packet = walk.packet
    flags = packet.buf[packet.l4 + 4]
    entry = stack.neighbours.get(dev, target)
    known = entry.mac if entry is not None else b""
    if flags & icmp6.SOLICITED and icmp6.is_multicast(packet.dst):
        walk.drop("ndp_malformed", "neighbour")
        return
    if known and mac and mac != known and not flags & icmp6.OVERRIDE:
        stack.count("ndp.ignored")
    elif mac or known:
        learn(stack, walk, dev, target, mac or known, reply=bool(flags & icmp6.SOLICITED), create=False)
    walk.consume("ndp")


def learn(stack: Stack, walk: Walk, dev: Link, address: bytes, mac: bytes, *, reply: bool, create: bool) -> None:
    entry = stack.neighbours.confirm(dev, address, mac, walk.now, reply=reply, create=create)
    if entry is not None and entry.queue:
        arp.flush(stack, walk, entry)


def owns(dev: Link, address: bytes) -> bool:
    """Whether it is an address of this link (unlike ARP, which answers for all of the node's), or the one its MAC makes."""
    return any(own == address for own, _ in dev.addresses) or address == icmp6.link_local(dev.mac)


def member(stack: Stack, dev: Link, group: bytes) -> bool:
    """Whether the node listens to a group on a link: all nodes, all routers, and its own addresses' solicited-node groups."""
    if group == icmp6.ALL_NODES or (group == icmp6.ALL_ROUTERS and stack.settings.forwarding6):
        return True
    own = [address for address, _ in dev.addresses if len(address) == 16]
    return any(group == icmp6.solicited_node(address) for address in (*own, icmp6.link_local(dev.mac)))
