"""IPv6 packets for tests of the stack, built and read by code of its own. packets.py's counterpart."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from support.packets import ethernet, inet, mac

NO_LINK_OPTION = ""


def ip(text: str) -> bytes:
    return IPv6Address(text).packed


def ipv6(src: str, dst: str, proto: int, payload: bytes, *, hops=64, tos=0, label=0, extensions=()) -> bytes:
    """`extensions`: (number, body after next header and length), in order."""
    for number, body in reversed(extensions):
        length = 0 if number == 44 else (len(body) + 2) // 8 - 1
        payload = bytes((proto, length)) + body + payload
        proto = number
    return struct.pack("!IHBB", 6 << 28 | tos << 20 | label, len(payload), proto, hops) + ip(src) + ip(dst) + payload


def _sum(src: str, dst: str, proto: int, segment: bytes) -> int:
    return inet(ip(src) + ip(dst) + struct.pack("!II", len(segment), proto) + segment)


def udp(src: str, dst: str, sport: int, dport: int, data: bytes = b"", **header) -> bytes:
    return ipv6(src, dst, 17, udp_segment(src, dst, sport, dport, data), **header)


def udp_segment(src: str, dst: str, sport: int, dport: int, data: bytes) -> bytes:
    segment = struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data
    return segment[:6] + (_sum(src, dst, 17, segment) or 0xFFFF).to_bytes(2, "big") + data


def tcp(src: str, dst: str, sport: int, dport: int, flags: int, seq: int, ack: int, data: bytes = b"", **header) -> bytes:
    segment = struct.pack("!HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, 0x50, flags, 64000, 0, 0) + data
    segment = segment[:16] + _sum(src, dst, 6, segment).to_bytes(2, "big") + segment[18:]
    return ipv6(src, dst, 6, segment, **header)


def icmp(src: str, dst: str, kind: int, code: int, rest: bytes, data: bytes = b"", **header) -> bytes:
    body = bytes((kind, code, 0, 0)) + rest + data
    body = body[:2] + _sum(src, dst, 58, body).to_bytes(2, "big") + body[4:]
    return ipv6(src, dst, 58, body, **header)


def echo(src: str, dst: str, ident: int = 7, seq: int = 1, data: bytes = b"ping", reply=False, **header) -> bytes:
    return icmp(src, dst, 129 if reply else 128, 0, struct.pack("!HH", ident, seq), data, **header)


def solicitation(src: str, dst: str, target: str, link: str = NO_LINK_OPTION, hops: int = 255) -> bytes:
    option = bytes((1, 1)) + mac(link) if link else b""
    return icmp(src, dst, 135, 0, bytes(4), ip(target) + option, hops=hops)


def advertisement(src: str, dst: str, target: str, link: str, flags: int = 0x60, hops: int = 255) -> bytes:
    return icmp(src, dst, 136, 0, bytes((flags, 0, 0, 0)), ip(target) + bytes((2, 1)) + mac(link), hops=hops)


def fragments(packet: bytes, size: int, ident: int = 99) -> list[bytes]:
    """Pieces of at most `size` payload bytes (a multiple of 8) of a packet without extension headers."""
    first, _, proto, hops = struct.unpack("!IHBB", packet[:8])
    payload, pieces = packet[40:], []
    for at in range(0, len(payload), size):
        more = at + size < len(payload)
        head = struct.pack("!BBHI", proto, 0, at | more, ident)
        body = head + payload[at : at + size]
        pieces.append(struct.pack("!IHBB", first, len(body), 44, hops) + packet[8:40] + body)
    return pieces


def solicited_node(address: str) -> str:
    return str(IPv6Address(ip("ff02::1:ff00:0")[:13] + ip(address)[13:]))


def group_mac(group: str) -> str:
    return "33:33:" + ip(group)[12:].hex(":")


def frame(dst: str, src: str, packet: bytes) -> bytearray:
    return ethernet(dst, src, 0x86DD, packet)


@dataclass
class Seen6:
    """A frame taken apart; `bad` names checksums that are wrong."""

    dst_mac: str = ""
    src_mac: str = ""
    kind: int = 0
    src: str = ""
    dst: str = ""
    proto: int = 0
    hops: int = 0
    tos: int = 0
    sport: int = 0
    dport: int = 0
    flags: int = 0
    offset: int = -1
    more: bool = False
    icmp: tuple[int, int] = (-1, -1)
    rest: bytes = b""
    payload: bytes = b""
    packet: bytes = b""
    bad: list[str] = field(default_factory=list)


def decode(data) -> Seen6:
    data = bytes(data)[10:]
    seen = Seen6(data[:6].hex(":"), data[6:12].hex(":"), int.from_bytes(data[12:14], "big"))
    if seen.kind == 0x86DD:
        decode_ip(data[14:], seen)
    return seen


def decode_ip(packet: bytes, seen: Seen6) -> Seen6:
    first, length, seen.proto, seen.hops = struct.unpack("!IHBB", packet[:8])
    seen.tos, seen.packet = first >> 20 & 255, packet[: 40 + length]
    seen.src, seen.dst = str(IPv6Address(packet[8:24])), str(IPv6Address(packet[24:40]))
    body = seen.packet[40:]
    while seen.proto in (0, 43, 60):
        seen.proto, body = body[0], body[(body[1] + 1) * 8 :]
    if seen.proto == 44:
        word = int.from_bytes(body[2:4], "big")
        seen.proto, seen.offset, seen.more, seen.payload = body[0], word & ~7, bool(word & 1), body[8:]
        return seen
    if seen.proto in (6, 17, 58) and _sum(seen.src, seen.dst, seen.proto, body):
        seen.bad.append("l4")
    if seen.proto in (6, 17):
        seen.sport, seen.dport = struct.unpack("!HH", body[:4])
        seen.payload = body[8:] if seen.proto == 17 else body[(body[12] >> 4) * 4 :]
        seen.flags = 0 if seen.proto == 17 else body[13]
    elif seen.proto == 58:
        seen.icmp, seen.rest, seen.payload = (body[0], body[1]), body[4:8], body[8:]
    return seen
