"""The packets of a simulation: the first packet of a flow, ARP and neighbour discovery, and what of an arrived frame matters.

A frame begins with an empty virtio_net_hdr, as everywhere in the datapath. Checksums are right, since the stack looks at them.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from podwire_core.trace import Digest
from podwire_nodeagent.datapath import icmp6
from podwire_nodeagent.datapath.packet import ICMPV6
from podwire_nodeagent.datapath.wire import (
    ARP,
    ARP_END,
    ARP_PREFIX,
    ARP_REPLY,
    ARP_REQUEST,
    BROADCAST_MAC,
    ETH,
    ETHERNET,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IPV4,
    IPV6,
    L3,
    NO_VNET,
    Buffer,
    address_bytes,
    address_text,
)

TCP, UDP, SCTP = 6, 17, 132
PROTOCOLS = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}
TTL = 64
PAYLOAD = b"podwire\n"
_DF = 0x4000
_SYN = 0x02


class Seen(NamedTuple):
    """An IP packet as somebody receives it."""

    mac: bytes  # destination
    protocol: int
    source: str
    destination: str
    port: int
    flags: int  # TCP


class Arp(NamedTuple):
    """Of ARP, or what of neighbour discovery is the same: a solicitation is a request, an advertisement a reply."""

    operation: int
    sender_mac: bytes
    sender: str
    target: str


def first_packet(protocol: str, source: str, destination: str, sport: int, dport: int, ident: int) -> bytes:
    """The IP packet that opens a flow: a SYN, a datagram, an INIT."""
    number = PROTOCOLS[protocol]
    src, dst = address_bytes(source), address_bytes(destination)
    payload = _TRANSPORT[number](src, dst, sport, dport)
    if len(src) == 16:
        return IPV6.pack(6 << 28, len(payload), number, TTL, src, dst) + payload
    header = bytearray(IPV4.pack(0x45, 0, 20 + len(payload), ident & 0xFFFF, _DF, TTL, number, 0, src, dst))
    struct.pack_into("!H", header, 10, _checksum(header))
    return bytes(header) + payload


def _tcp(src: bytes, dst: bytes, sport: int, dport: int) -> bytes:
    segment = struct.pack("!HHIIBBHHHBBH", sport, dport, 1, 0, 6 << 4, _SYN, 64240, 0, 0, 2, 4, 1460)
    return _summed(segment, 16, src, dst, TCP)


def _udp(src: bytes, dst: bytes, sport: int, dport: int) -> bytes:
    return _summed(struct.pack("!HHHH", sport, dport, 8 + len(PAYLOAD), 0) + PAYLOAD, 6, src, dst, UDP)


def _sctp(src: bytes, dst: bytes, sport: int, dport: int) -> bytes:
    """An INIT chunk (RFC 9260); the checksum is a CRC32c of the packet with a zero checksum."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 0x706F6477, 65536, 1, 1, 1)
    packet = struct.pack("!HHII", sport, dport, 0, 0) + chunk
    return packet[:8] + struct.pack("<I", _crc32c(packet)) + packet[12:]


_TRANSPORT = {TCP: _tcp, UDP: _udp, SCTP: _sctp}


def _summed(segment: bytes, at: int, src: bytes, dst: bytes, protocol: int) -> bytes:
    value = _checksum(src + dst + struct.pack("!BBH", 0, protocol, len(segment)) + segment)
    return segment[:at] + struct.pack("!H", value or 0xFFFF) + segment[at + 2 :]


def _checksum(data: bytes | bytearray) -> int:
    """RFC 1071."""
    even = bytes(data) + b"\0" * (len(data) & 1)
    total: int = sum(struct.unpack(f"!{len(even) // 2}H", even))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


# --- frames --------------------------------


def ip_frame(to: bytes, source: bytes, packet: bytes) -> bytearray:
    kind = ETHERTYPE_IPV4 if packet[0] >> 4 == 4 else ETHERTYPE_IPV6
    return bytearray(NO_VNET + ETHERNET.pack(to, source, kind) + packet)


def arp_frame(operation: int, mac: bytes, sender: str, to: bytes, target: str) -> bytearray:
    """A request (to nobody yet: ZERO_MAC) or a reply; of neighbour discovery for IPv6."""
    if ":" in target and operation == ARP_REQUEST:
        return icmp6.solicitation(mac, address_bytes(sender), b"", address_bytes(target))
    if ":" in target:
        flags = icmp6.SOLICITED | icmp6.OVERRIDE
        return icmp6.advertisement(mac, address_bytes(sender), to, address_bytes(target), flags)
    destination = BROADCAST_MAC if operation == ARP_REQUEST else to
    head = NO_VNET + ETHERNET.pack(destination, mac, ETHERTYPE_ARP)
    body = ARP.pack(*ARP_PREFIX, operation, mac, address_bytes(sender), to, address_bytes(target))
    return bytearray(head + body)


def read_arp(frame: Buffer) -> Arp | None:
    kind = _kind(frame)
    if kind == ETHERTYPE_IPV6:
        return _read_discovery(frame)
    if len(frame) < ARP_END or kind != ETHERTYPE_ARP:
        return None
    *_, operation, mac, sender, _, target = ARP.unpack_from(frame, L3)
    return Arp(operation, mac, address_text(sender), address_text(target))


def _kind(frame: Buffer) -> int:
    return frame[L3 - 2] << 8 | frame[L3 - 1] if len(frame) >= L3 else 0


def _read_discovery(frame: Buffer) -> Arp | None:
    if len(frame) < L3 + 64 or frame[L3 + 6] != ICMPV6:
        return None
    mac, target = bytes(frame[ETH + 6 : ETH + 12]), address_text(bytes(frame[L3 + 48 : L3 + 64]))
    source, destination = (address_text(bytes(frame[at : at + 16])) for at in (L3 + 8, L3 + 24))
    if frame[L3 + 40] == icmp6.SOLICITATION:
        return Arp(ARP_REQUEST, mac, source, target)
    return Arp(ARP_REPLY, mac, target, destination) if frame[L3 + 40] == icmp6.ADVERTISEMENT else None


def read_ip(frame: Buffer) -> Seen | None:
    if _kind(frame) == ETHERTYPE_IPV6 and len(frame) >= L3 + 48:
        _, _, protocol, _, src, dst = IPV6.unpack_from(frame, L3)
        port = frame[L3 + 42] << 8 | frame[L3 + 43]
        flags = frame[L3 + 53] if protocol == TCP and len(frame) > L3 + 53 else 0
        return Seen(bytes(frame[ETH : ETH + 6]), protocol, address_text(src), address_text(dst), port, flags)
    if len(frame) < L3 + 28 or _kind(frame) != ETHERTYPE_IPV4:
        return None
    fields = IPV4.unpack_from(frame, L3)
    at = L3 + (fields[0] & 15) * 4
    port = frame[at + 2] << 8 | frame[at + 3]
    flags = frame[at + 13] if fields[6] == TCP and len(frame) > at + 13 else 0
    source, destination = address_text(fields[8]), address_text(fields[9])
    return Seen(bytes(frame[ETH : ETH + 6]), fields[6], source, destination, port, flags)


def seen(mac: bytes, packet: bytes) -> Seen:
    """A packet that never leaves its sender."""
    found = read_ip(ip_frame(mac, mac, packet))
    assert found is not None, "it was made here"
    return found


def redirected(frame: bytearray, to: bytes, source: bytes) -> bytearray:
    """The frame as a router passes it on to another MAC (its hop is not counted)."""
    return frame[:ETH] + to + source + frame[ETH + 12 :]


def opens_a_flow(seen: Seen, protocol: str) -> bool:
    """Not an answer: no RST, no ICMP error."""
    return seen.protocol == PROTOCOLS[protocol] and (seen.protocol != TCP or seen.flags == _SYN)


def digest(source: str, destination: str, port: int) -> Digest:
    """Of a packet that no stack has seen."""
    return Digest(source, destination, dport=port)
