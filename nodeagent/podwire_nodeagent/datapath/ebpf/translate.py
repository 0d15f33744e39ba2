"""Translating packets by entries of the table: addresses, ports, quoted packets in ICMP errors, and what traces say of it.

Order to read: rewritten, explain, leave (hooks ebpf/to-container and ebpf/to-host: the way back to a client on this node), ICMP
errors.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from podwire_core import ebpf
from podwire_core.trace import Step
from podwire_nodeagent.datapath.ebpf.lb import Found
from podwire_nodeagent.datapath.ebpf.table import Entry
from podwire_nodeagent.datapath.netfilter.connection import DST_NAT, ORIGINAL, REPLY, SRC_NAT, invert, packet_key, split
from podwire_nodeagent.datapath.netfilter.embedded import embedded_key, translate_error
from podwire_nodeagent.datapath.netfilter.explain import endpoint
from podwire_nodeagent.datapath.netfilter.protocols import ICMP_ERRORS
from podwire_nodeagent.datapath.packet import ICMP, SCTP, TCP, UDP, UNTRACKED, Packet

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.stack import Stack
    from podwire_nodeagent.datapath.walk import Walk

PROTOCOLS = frozenset((TCP, UDP, SCTP))


def rewritten(
    walk: Walk, packet: Packet, entry: Entry, direction: int, stage: str, stack: Stack, found: Found | None = None
) -> None:
    """The packet as the entry says, and what the trace and the flow cache need to know."""
    before = (packet.src, packet.dst, packet.sport, packet.dport)
    stack.lb.table.saw(entry, packet, direction, walk.now)
    rewrite = entry.rewrite(direction)
    if rewrite is not None:
        rewrite.apply(packet)
    if walk.bpf is not None and walk.bpf is not entry:
        walk.cacheable = False  # two entries on one walk: rare, and a cached flow knows one
    walk.bpf, walk.bpf_direction = entry, direction
    if walk.steps is not None:
        explain(stack, walk, packet, entry, before, direction, stage, found)


def explain(
    stack: Stack,
    walk: Walk,
    packet: Packet,
    entry: Entry,
    before: tuple[bytes, bytes, int, int],
    direction: int,
    stage: str,
    found: Found | None,
) -> None:
    """What has been decided, as steps."""
    src, dst, sport, dport = before
    if direction == ORIGINAL:
        rule = f"{ebpf.CT}[{endpoint(src, sport)} -> {endpoint(dst, dport)}] = backend_id {entry.backend_id}"
        if found is not None:
            rule = ebpf.describe(ebpf.SERVICES, found.key, found.value)
    else:
        key = ebpf.pack_index(entry.rev_nat_index)
        value = stack.lb.maps[ebpf.REVERSE_NAT].get(key)
        gone = f"{ebpf.CT}[{endpoint(src, sport)} -> {endpoint(dst, dport)}] = rev_nat_index {entry.rev_nat_index}"
        rule = ebpf.describe(ebpf.REVERSE_NAT, key, value) if value is not None else gone
    names = ("dnat", "snat") if direction == ORIGINAL else ("un-snat", "un-dnat")
    if (packet.dst, packet.dport) != (dst, dport):
        detail = f"destination {endpoint(dst, dport)} -> {endpoint(packet.dst, packet.dport)}"
        note(walk, stage, names[0], detail, rule if direction == ORIGINAL else snat_rule(entry), entry.origin, 1)
    if (packet.src, packet.sport) != (src, sport):
        detail = f"source {endpoint(src, sport)} -> {endpoint(packet.src, packet.sport)}"
        note(walk, stage, names[1], detail, rule if direction == REPLY else snat_rule(entry), entry.origin, 1)


def snat_rule(entry: Entry) -> str:
    """The element of cilium_snat_v4_external that stands for the entry's source."""
    client, _, cport, _ = split(entry.original)
    source, backend, sport, bport = split(invert(entry.reply))
    return f"{ebpf.SNAT}[{endpoint(client, cport)} -> {endpoint(backend, bport)}] = {endpoint(source, sport)}"


def note(walk: Walk, stage: str, action: str, detail: str, rule: str = "", origin: str = "", lookups: int = 0) -> None:
    """A step of a traced walk."""
    if walk.steps is not None:
        walk.steps.append(Step(stage, action, detail, rule, origin, lookups))
        walk.timed()


# --- the way back, and errors --------------------------------


def leave(stack: Stack, walk: Walk) -> None:
    """A packet is about to leave for the bridge or the host namespace: an answer to a client on this node?"""
    packet = walk.packet
    if packet.proto == ICMP:
        if packet.dport >> 8 in ICMP_ERRORS:
            found = quoted(stack, packet, walk.now)
            if found is not None and found[1] == REPLY and not found[0].untracked:
                translate_quoted(walk, packet, *found, "ebpf/to-container")
        return
    if packet.proto not in PROTOCOLS or packet.fragment:
        return
    key = packet_key(packet)
    entry = stack.lb.table.find(key, walk.now)
    if entry is not None and key == entry.reply and not entry.untracked:
        to_host = stack.fib.is_local(packet.dst)
        rewritten(walk, packet, entry, REPLY, "ebpf/to-host" if to_host else "ebpf/to-container", stack)


def arrived_icmp(stack: Stack, walk: Walk, packet: Packet) -> bool:
    """An ICMP error about a translated packet."""
    if packet.dport >> 8 in ICMP_ERRORS:
        found = quoted(stack, packet, walk.now)
        if found is not None and (found[0].untracked or found[1] == ORIGINAL):
            walk.untracked = found[0].untracked
            walk.cacheable = False
            translate_quoted(walk, packet, *found, "ebpf/icmp")
    return True


def quoted(stack: Stack, packet: Packet, now: float) -> tuple[Entry, int] | None:
    """The entry of the packet that an error quotes, and the direction in which the error goes."""
    key = embedded_key(packet)
    entry = stack.lb.table.find(invert(key), now) if key else None
    if entry is None:
        return None
    return entry, ORIGINAL if invert(key) == entry.original else REPLY


def translate_quoted(walk: Walk, packet: Packet, entry: Entry, direction: int, stage: str) -> None:
    before = (packet.src, packet.dst)
    kept, packet.direction = packet.direction, direction
    for source in (False, True):
        if entry.status & (SRC_NAT if source != bool(direction) else DST_NAT):
            translate_error(packet, entry, source)
    packet.direction = kept
    walk.cacheable = False
    if walk.steps is not None and before != (packet.src, packet.dst):
        detail = f"{ip_address(before[0])} -> {ip_address(before[1])} is {ip_address(packet.src)} -> {ip_address(packet.dst)}"
        note(walk, stage, "related", detail, origin=entry.origin)


def answer(stack: Stack, own: Walk) -> None:
    """An error or reset that the stack makes because of a packet that netfilter does not track."""
    packet = own.packet
    if packet.proto == ICMP:
        arrived_icmp(stack, own, packet)
    elif packet.proto in PROTOCOLS:
        key = packet_key(packet)
        entry = stack.lb.table.find(key, own.now)
        if entry is not None and key == entry.reply:
            rewritten(own, packet, entry, REPLY, "ebpf/to-netdev", stack)
    packet.ctinfo = UNTRACKED
