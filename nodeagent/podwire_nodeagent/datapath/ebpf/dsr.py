"""Direct server return: a request from outside reaches a backend on another node with its source as it was, and that node answers
the client itself, with the Service's address.

How the backend's node learns that address: an IPv4 option in the first packet (TCP: the SYN; UDP: each datagram), 8 bytes: type
0x9a, length, port, address, as Cilium's `--bpf-lb-dsr-dispatch=opt`. That node keeps it as an entry; the option stays in the
packet. A superframe or a packet that would become too long for its link gets no option and is dropped by Cilium; here the first
packets of TCP never are, and a datagram that is too long is fragmented or answered with "fragmentation needed" as any other.

Order to read: wanted and send (the node that is asked), receive (the backend's node).
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from podwire_core import ebpf
from podwire_core.trace import Step
from podwire_nodeagent.datapath.ebpf.lb import Found
from podwire_nodeagent.datapath.ebpf.table import Entry
from podwire_nodeagent.datapath.netfilter.connection import invert, make_key, packet_key, split
from podwire_nodeagent.datapath.netfilter.explain import endpoint
from podwire_nodeagent.datapath.packet import ACK, SCTP, SYN, TCP, Packet
from podwire_nodeagent.datapath.rewrite import inet_sum
from podwire_nodeagent.datapath.wire import L3

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.fib import Route
    from podwire_nodeagent.datapath.stack import Stack
    from podwire_nodeagent.datapath.walk import Walk

OPTION = Struct("!BBH4s")


def wanted(stack: Stack, found: Found, route: Route | None, inside: bool) -> bool:
    """Requests from outside under policy Cluster whose backend is on another node."""
    if stack.lb.settings.mode != "dsr" or inside or route is None or found.service.flags & ebpf.EXT_LOCAL_SCOPE:
        return False
    return bool(route.via) or (route.dev is not None and route.dev.kind in ("uplink", "vxlan"))


def send(stack: Stack, walk: Walk, packet: Packet, entry: Entry, stage: str) -> None:
    """Put the option into a packet that may be its backend's first."""
    begins = packet.proto != TCP or packet.flags & (SYN | ACK) == SYN
    if not begins or packet.l4 - L3 != 20 or packet.proto == SCTP or walk.frame[1]:
        return
    _, address, _, port = split(entry.original)
    head, l3, l4 = walk.frame, L3, packet.l4
    header = bytearray(head[l3:l4])
    header[0] = 0x47
    header[2:4] = (packet.length + 8).to_bytes(2, "big")
    header[10:12] = b"\0\0"
    header += OPTION.pack(ebpf.DSR_OPTION, 8, port, address)
    header[10:12] = inet_sum(header).to_bytes(2, "big")
    vnet = bytearray(head[:10])
    if vnet[0] & 1:  # where the transport header begins, for the checksum offload
        vnet[6:8] = (int.from_bytes(vnet[6:8], "little") + 8).to_bytes(2, "little")
    walk.frame = bytearray(vnet + head[10:l3] + header + head[l4 : packet.end])
    walk.cacheable = False
    packet.parse(walk.frame)
    if walk.steps is not None:
        walk.steps.append(Step(stage, "encapsulate", f"dsr option {endpoint(address, port)}", origin=entry.origin))


def receive(stack: Stack, walk: Walk, packet: Packet, stage: str) -> bool:
    """A packet with the option: keep what it says. True if it had one."""
    kind, size, port, address = OPTION.unpack_from(walk.frame, L3 + 20)
    if kind != ebpf.DSR_OPTION or size != 8:
        return False
    key = packet_key(packet)
    src, _, sport, _ = split(key)
    original = make_key(src, address, sport, port, packet.proto)
    entry = stack.lb.table.find(key, walk.now)
    if entry is None or entry.original != original:
        entry = Entry(original, invert(key), walk.now, 0, 0, "")
        entry.extra, entry.untracked, entry.dsr = key, True, True
        stack.lb.table.add(entry, walk.now)
    entry.saw(packet, 0, walk.now)
    walk.untracked, walk.cacheable = True, False
    if walk.steps is not None:
        walk.steps.append(Step(stage, "decapsulate", f"dsr option {endpoint(address, port)}: answers come from there"))
    return True


def follow(walk: Walk, packet: Packet, entry: Entry) -> bool:
    """A later request, at the backend's node: it is addressed to the backend already."""
    entry.saw(packet, 0, walk.now)
    walk.untracked, walk.bpf, walk.bpf_direction = True, entry, 0
    return True
