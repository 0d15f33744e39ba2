"""Frames for tests of the stack, built and read by code of its own (nothing of the datapath's), one field at a time."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address

VNET = bytes(10)
BROADCAST = "ff:ff:ff:ff:ff:ff"
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def ip(text: str) -> bytes:
    return IPv4Address(text).packed


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def inet(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for i in range(0, len(data), 2):
        total += data[i] << 8 | (data[i + 1] if i + 1 < len(data) else 0)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF ^ total


def ethernet(dst: str, src: str, kind: int, payload: bytes) -> bytearray:
    return bytearray(VNET + mac(dst) + mac(src) + kind.to_bytes(2, "big") + payload)


def ipv4(
    src: str, dst: str, proto: int, payload: bytes, *, ttl=64, ident=1, df=True, more=False, offset=0, tos=0, options=b""
) -> bytes:
    flags = (0x4000 if df else 0) | (0x2000 if more else 0) | offset >> 3
    size = 20 + len(options)
    head = struct.pack("!BBHHHBBH", 0x40 | size >> 2, tos, size + len(payload), ident, flags, ttl, proto, 0)
    head += ip(src) + ip(dst) + options
    return head[:10] + inet(head).to_bytes(2, "big") + head[12:] + payload


def _pseudo(src: str, dst: str, proto: int, segment: bytes) -> bytes:
    return ip(src) + ip(dst) + struct.pack("!HH", proto, len(segment)) + segment


def udp(src: str, dst: str, sport: int, dport: int, data: bytes = b"", *, checksum=True, **header) -> bytes:
    segment = struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data
    value = (inet(_pseudo(src, dst, 17, segment)) or 0xFFFF) if checksum else 0
    return ipv4(src, dst, 17, segment[:6] + value.to_bytes(2, "big") + data, **header)


def tcp(src: str, dst: str, sport: int, dport: int, flags: int, seq: int, ack: int, data: bytes = b"", **header) -> bytes:
    segment = struct.pack("!HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, 0x50, flags, 64000, 0, 0) + data
    value = inet(_pseudo(src, dst, 6, segment))
    return ipv4(src, dst, 6, segment[:16] + value.to_bytes(2, "big") + segment[18:], **header)


def icmp(src: str, dst: str, kind: int, code: int, rest: bytes, data: bytes = b"", **header) -> bytes:
    body = bytes((kind, code, 0, 0)) + rest + data
    return ipv4(src, dst, 1, body[:2] + inet(body).to_bytes(2, "big") + body[4:], **header)


def echo(src: str, dst: str, ident: int = 7, seq: int = 1, data: bytes = b"ping", reply=False, **header) -> bytes:
    return icmp(src, dst, 0 if reply else 8, 0, struct.pack("!HH", ident, seq), data, **header)


def arp(operation: int, sender_mac: str, sender: str, target_mac: str, target: str) -> bytes:
    return struct.pack("!HHBBH", 1, 0x800, 6, 4, operation) + mac(sender_mac) + ip(sender) + mac(target_mac) + ip(target)


def frame(dst: str, src: str, packet: bytes) -> bytearray:
    return ethernet(dst, src, 0x800, packet)


@dataclass
class Seen:
    """A frame taken apart; `bad` names checksums that are wrong."""

    dst_mac: str = ""
    src_mac: str = ""
    kind: int = 0
    src: str = ""
    dst: str = ""
    proto: int = 0
    ttl: int = 0
    tos: int = 0
    ident: int = 0
    df: bool = False
    more: bool = False
    offset: int = 0
    sport: int = 0
    dport: int = 0
    flags: int = 0
    seq: int = 0
    ack: int = 0
    icmp: tuple[int, int] = (-1, -1)
    rest: bytes = b""
    payload: bytes = b""
    packet: bytes = b""
    operation: int = 0  # ARP
    bad: list[str] = field(default_factory=list)


def decode(data) -> Seen:
    data = bytes(data)[10:]
    text = [data[i : i + 6].hex(":") for i in (0, 6)]
    seen = Seen(text[0], text[1], int.from_bytes(data[12:14], "big"))
    if seen.kind == 0x806:
        seen.operation = int.from_bytes(data[20:22], "big")
        seen.src, seen.dst = str(IPv4Address(data[28:32])), str(IPv4Address(data[38:42]))
    elif seen.kind == 0x800:
        decode_ip(data[14:], seen)
    return seen


def decode_ip(packet: bytes, seen: Seen) -> Seen:
    size, total = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
    word = int.from_bytes(packet[6:8], "big")
    seen.tos, seen.ident, seen.ttl, seen.proto = packet[1], int.from_bytes(packet[4:6], "big"), packet[8], packet[9]
    seen.df, seen.more, seen.offset = bool(word & 0x4000), bool(word & 0x2000), (word & 0x1FFF) * 8
    seen.src, seen.dst = str(IPv4Address(packet[12:16])), str(IPv4Address(packet[16:20]))
    seen.packet = packet[:total]
    if inet(packet[:size]):
        seen.bad.append("ip")
    body = packet[size:total]
    if seen.offset or seen.more:
        seen.payload = body
    elif seen.proto in (6, 17):
        decode_l4(body, seen)
    elif seen.proto == 1:
        seen.icmp, seen.rest, seen.payload = (body[0], body[1]), body[4:8], body[8:]
        if inet(body):
            seen.bad.append("icmp")
    return seen


def decode_l4(body: bytes, seen: Seen) -> None:
    seen.sport, seen.dport = struct.unpack("!HH", body[:4])
    none = seen.proto == 17 and body[6:8] == b"\0\0"
    if not none and inet(_pseudo(seen.src, seen.dst, seen.proto, body)):
        seen.bad.append("l4")
    if seen.proto == 17:
        seen.payload = body[8:]
    else:
        seen.seq, seen.ack, size, seen.flags = struct.unpack("!IIBB", body[4:14])
        seen.payload = body[(size >> 4) * 4 :]
