"""From walks to trace records: which packets are wanted, digests, and the Hop that joins a walk's steps.

A filter is any object with `addresses`, `ports` and `protocol`, such as netlink.Subscribe. A packet matches if an address
(port) is one of the packet's, coming or going, or of its connection in either direction; `protocol` is the packet's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from podwire_core.trace import Digest, Hop
from podwire_nodeagent.datapath.netfilter.connection import split
from podwire_nodeagent.datapath.packet import ICMP, ICMPV6, SCTP, TCP, UDP, Packet
from podwire_nodeagent.datapath.wire import ARP, ARP_END, ETHERTYPE_ARP, L3, Buffer, address_text

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.links import Link
    from podwire_nodeagent.datapath.walk import Walk

PROTOCOLS = {ICMP: "icmp", ICMPV6: "icmpv6", TCP: "tcp", UDP: "udp", SCTP: "sctp"}
NO_PORTS = ("icmp", "icmpv6")
FLAGS = "FSRPAUEW"


class Filter(Protocol):
    """What a subscriber wants to see."""

    @property
    def addresses(self) -> tuple[str, ...]: ...

    @property
    def ports(self) -> tuple[int, ...]: ...

    @property
    def protocol(self) -> str: ...


def digest(frame: Buffer) -> Digest:
    """Of a whole frame; an empty one if it carries nothing known."""
    if len(frame) >= ARP_END and frame[L3 - 2] << 8 | frame[L3 - 1] == ETHERTYPE_ARP:
        *_, operation, _, sender, _, target = ARP.unpack_from(frame, L3)
        return Digest(address_text(sender), address_text(target), "arp", sport=operation)
    packet = Packet()
    if len(frame) <= L3 or packet.parse(frame):
        return Digest()
    return packet_digest(packet)


def packet_digest(packet: Packet) -> Digest:
    proto = PROTOCOLS.get(packet.proto, str(packet.proto))
    ports = (packet.dport >> 8, packet.dport & 255) if proto in NO_PORTS and not packet.fragment else (packet.sport, packet.dport)
    flags = "".join(letter for bit, letter in enumerate(FLAGS) if packet.flags >> bit & 1)
    return Digest(
        address_text(packet.src),
        address_text(packet.dst),
        proto,
        *ports,
        ident=packet.ident,
        seq=packet.seq,
        ack=packet.ack,
        flags=flags,
        length=packet.length,
        ttl=packet.ttl,
    )


def wanted(want: Filter, walk: Walk, out: Digest | None) -> bool:
    entered = walk.entered or Digest()
    digests = [entered] if out is None else [entered, out]
    if want.protocol and all(d.proto != want.protocol for d in digests):
        return False
    if not want.addresses and not want.ports:
        return True
    addresses = {a for d in digests for a in (d.src, d.dst)}
    ports = {p for d in digests if d.proto not in NO_PORTS for p in (d.sport, d.dport)}
    ct = walk.packet.ct
    for key in (known for each in (ct, walk.bpf) if each is not None for known in (each.original, each.reply)):
        src, dst, sport, dport = split(key)
        addresses |= {address_text(src), address_text(dst)}
        ports |= {sport, dport}
    return (not want.addresses or not addresses.isdisjoint(want.addresses)) and (
        not want.ports or not ports.isdisjoint(want.ports)
    )


def hop(walk: Walk, node: str, seq: int, time: float, out: Digest | None) -> Hop:
    """The record of a finished walk."""
    tunnel = walk.tunnel
    return Hop(
        node=node,
        seq=seq,
        time=time,
        in_link=name_of(walk.link),
        entered=walk.entered or Digest(),
        steps=list(walk.steps or ()),
        verdict=walk.verdict,
        out_link=name_of(walk.out_link),
        out=out,
        reason=walk.reason,
        tunnel_dst=address_text(tunnel.remote) if tunnel else "",
        in_alias=walk.link.alias if walk.link else "",
        out_alias=walk.out_link.alias if walk.out_link else "",
        ns=walk.clock() - walk.started,
    )


def name_of(link: Link | None) -> str:
    return link.name if link else ""
