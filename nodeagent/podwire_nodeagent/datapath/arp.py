"""ARP as Linux answers it (arp_ignore=0, arp_accept=0, no proxy).

Rules: a request for any local address of the node is answered on the link it came by, and teaches the asker's MAC; every other
packet updates what is already known (a reply confirms, a gratuitous one updates) and makes nothing new; a probe (sender
0.0.0.0, RFC 5227) is answered and teaches nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from podwire_nodeagent.datapath import egress
from podwire_nodeagent.datapath.neigh import Neighbour
from podwire_nodeagent.datapath.walk import Walk
from podwire_nodeagent.datapath.wire import (
    ARP,
    ARP_END,
    ARP_PREFIX,
    ARP_REPLY,
    ARP_REQUEST,
    ETH,
    ETHERNET,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    L3,
    address_text,
)

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.links import Link
    from podwire_nodeagent.datapath.stack import Stack

NOBODY = bytes(4)


def receive(stack: Stack, walk: Walk, dev: Link) -> None:
    if len(walk.frame) < ARP_END:
        walk.drop("arp_truncated", "link")
        return
    *prefix, operation, sender_mac, sender, _, target = ARP.unpack_from(walk.frame, L3)
    if tuple(prefix) != ARP_PREFIX or operation not in (ARP_REQUEST, ARP_REPLY):
        walk.drop("arp_malformed", "link")
        return
    if sender_mac[0] & 1 or sender[0] >= 224 or target[0] >= 224 or target[0] == 127:
        walk.drop("arp_martian", "link")
        return
    asked = operation == ARP_REQUEST and stack.fib.is_local(target)
    if sender != NOBODY and not stack.fib.is_local(sender):
        entry = stack.neighbours.confirm(
            dev, sender, sender_mac, walk.now, reply=operation == ARP_REPLY and target != sender, create=asked
        )
        if entry is not None and entry.queue:
            flush(stack, walk, entry)
    if asked:
        if walk.steps is not None:
            walk.step("neighbour", "deliver", f"{address_text(target)} is-at {dev.mac.hex(':')} dev {dev.name}")
        egress.send_arp(stack, walk, dev, sender_mac, ARP_REPLY, target, sender_mac, sender)
    walk.consume("arp")


def flush(stack: Stack, walk: Walk, entry: Neighbour) -> None:
    """The neighbour is known now: send what waited."""
    queue, entry.queue = entry.queue, []
    for waiting in queue:
        own = waiting.resume(walk.now, walk.emits)
        kind = ETHERTYPE_IPV4 if len(entry.ip) == 4 else ETHERTYPE_IPV6
        ETHERNET.pack_into(own.frame, ETH, entry.mac, entry.link.mac, kind)
        egress.transmit(stack, own, entry.link, own.frame)
        stack.finish(own)
