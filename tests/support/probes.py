"""Probes: single packets sent through a node, and what became of them, told alike for a Linux kernel and for our stack.

A probe is known by its IPv4 identification, which forwarding and NAT leave alone and which an ICMP error quotes.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

TCP, UDP, ICMP = 6, 17, 1
IDENTS = range(0x4000, 0xC000)  # below and above: what a node sends on its own


@dataclass(frozen=True)
class Probe:
    """`link`: where it arrives; "" if the node itself sends it."""

    link: str
    src: str
    dst: str
    port: int
    proto: int = TCP

    def __str__(self) -> str:
        name = "tcp" if self.proto == TCP else "udp"
        return f"{self.src} -> {self.dst}:{self.port}/{name} from {self.link or 'the node'}"


@dataclass(frozen=True)
class Outcome:
    """`what`: forwarded (`link`), delivered, rejected (`icmp` type and code, or "reset"), dropped."""

    what: str
    link: str = ""
    src: str = ""
    dst: str = ""
    port: int = 0
    icmp: tuple[int, int] = (0, 0)

    @property
    def destination(self) -> tuple[str, int]:
        return self.dst, self.port


DROPPED = Outcome("dropped")


def _checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def packet(probe: Probe, ident: int, sport: int) -> bytes:
    """An IPv4 packet: a SYN, or a datagram of eight bytes."""
    src, dst = socket.inet_aton(probe.src), socket.inet_aton(probe.dst)
    if probe.proto == TCP:
        body = struct.pack("!HHIIBBHHH", sport, probe.port, 1000, 0, 0x50, 2, 64000, 0, 0)
    else:
        body = struct.pack("!HHHH", sport, probe.port, 16, 0) + b"podwire!"
    pseudo = src + dst + struct.pack("!BBH", 0, probe.proto, len(body))
    at = 16 if probe.proto == TCP else 6
    body = body[:at] + struct.pack("!H", _checksum(pseudo + body)) + body[at + 2 :]
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), ident, 0x4000, 64, probe.proto, 0, src, dst)
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + body


def frame(data: bytes, src_mac: str, dst_mac: str) -> bytearray:
    """With the virtio header before it."""
    return bytearray(bytes(10) + bytes.fromhex(dst_mac.replace(":", "") + src_mac.replace(":", "")) + b"\x08\0" + data)


def told_by(data: bytes, link: str, local: bool) -> tuple[int, Outcome] | None:
    """What an IPv4 packet that left the node (or was delivered on it) says of which probe; None: nothing of any."""
    if len(data) < 28 or data[0] >> 4 != 4:
        return None
    head = (data[0] & 15) * 4
    ident, proto = struct.unpack_from("!H", data, 4)[0], data[9]
    if proto == ICMP:
        kind, code = data[head], data[head + 1]
        quoted = struct.unpack_from("!H", data, head + 12)[0] if len(data) >= head + 28 else 0
        return (quoted, Outcome("rejected", icmp=(kind, code))) if quoted in IDENTS else None
    if ident not in IDENTS or proto not in (TCP, UDP):
        return None
    src, dst = socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])
    port = struct.unpack_from("!H", data, head + 2)[0]
    return ident, Outcome("delivered" if local else "forwarded", "" if local else link, src, dst, port)
