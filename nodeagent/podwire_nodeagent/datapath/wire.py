"""Where things stand in a frame, and the text forms of addresses.

A frame is a writable buffer: 10 bytes of virtio_net_hdr (native byte order), then Ethernet. Offsets are from the
buffer's beginning, so IPv4 is at 24. Rule: nothing here looks at more than one header or keeps state.

Order to read: offsets, structs, Tunnel and Emit, text of addresses.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import NamedTuple

Buffer = bytearray | memoryview

VNET_SIZE = 10
ETH = 10  # the Ethernet header
ETH_SIZE = 14
L3 = ETH + ETH_SIZE  # ARP, IPv4 or IPv6

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV6 = 0x86DD

ICMP, TCP, UDP = 1, 6, 17
DF, MF = 0x4000, 0x2000  # flags_offset: don't fragment; more fragments

NEEDS_CSUM = 1  # virtio_net_hdr.flags: the field at csum_start + csum_offset holds the pseudo-header's sum only
NO_VNET = bytes(VNET_SIZE)
BROADCAST_MAC = b"\xff" * 6
ZERO_MAC = bytes(6)

VNET = struct.Struct("=BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
ETHERNET = struct.Struct("!6s6sH")  # destination, source, type
IPV4 = struct.Struct("!BBHHHBBH4s4s")  # version+ihl, tos, length, id, flags+offset, ttl, protocol, checksum, source, dst
IPV6 = struct.Struct("!IHBB16s16s")  # version+class+label, payload length, next header, hop limit, source, dst
ARP = struct.Struct("!HHBBH6s4s6s4s")  # hardware, protocol, sizes, operation, sender mac and ip, target mac and ip
U16 = struct.Struct("!H")
ARP_PREFIX = (1, ETHERTYPE_IPV4, 6, 4)
ARP_REQUEST, ARP_REPLY = 1, 2
ARP_END = L3 + ARP.size


class Tunnel(NamedTuple):
    """The outer header of a frame that leaves by a vxlan link: `remote` is a node address (4 or 16 bytes)."""

    remote: bytes
    vni: int
    sport: int
    dport: int


Emit = tuple[int, Buffer, Tunnel | None]


def mac_bytes(text: str) -> bytes:
    """ValueError if it is not six pairs of hexadecimal digits."""
    parts = text.split(":")
    if len(parts) != 6 or any(len(part) != 2 for part in parts):
        raise ValueError(f"not a MAC address: {text!r}")
    return bytes(int(part, 16) for part in parts)


def mac_text(mac: bytes) -> str:
    return mac.hex(":")


def address_bytes(text: str) -> bytes:
    """ValueError if it is no IPv4 or IPv6 address. IPv4 does not go through `ipaddress`: rules have too many."""
    try:
        found = bytes(map(int, text.split(".")))
    except ValueError:
        return ipaddress.ip_address(text).packed
    return found if len(found) == 4 and "{}.{}.{}.{}".format(*found) == text else ipaddress.ip_address(text).packed


def address_text(address: bytes) -> str:
    if len(address) == 4:
        a, b, c, d = address
        return f"{a}.{b}.{c}.{d}"
    return str(ipaddress.IPv6Address(address))
