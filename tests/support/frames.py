"""Superframes as a TAP hands them out, and a byte-by-byte segmenter to hold the fast ones against."""

from __future__ import annotations

import struct

from podwire_nodeagent.datapath.offload import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4

VNET = struct.Struct("=BBHHHH")


def slow_sum(data: bytes, start: int = 0) -> int:
    total = start
    for i in range(0, len(data), 2):
        total += data[i] << 8 | (data[i + 1] if i + 1 < len(data) else 0)
    while total > 65535:
        total = (total & 65535) + (total >> 16)
    return total


def finish(frame: bytearray, l4: int, proto: int, v4: bool) -> bytes:
    """Fill in lengths' checksums of an Ethernet frame whose other fields are right."""
    at = l4 + (16 if proto == 6 else 6)
    frame[at : at + 2] = b"\0\0"
    addresses = frame[26:34] if v4 else frame[22:54]
    value = 65535 - slow_sum(frame[l4:], slow_sum(addresses) + proto + len(frame) - l4)
    frame[at : at + 2] = (value or (65535 if proto == 17 else 0)).to_bytes(2, "big")
    if v4:
        frame[24:26] = b"\0\0"
        frame[24:26] = (65535 - slow_sum(frame[14:l4])).to_bytes(2, "big")
    return bytes(frame)


def reference(frame: bytes, prefix: bytes) -> list[bytes]:
    """What a segmenting network card makes of a superframe."""
    _, gso, _, size, start, _ = VNET.unpack_from(frame)
    eth, proto, v4 = frame[10:], 17 if gso & 127 == GSO_UDP_L4 else 6, frame[24] >> 4 == 4
    l4 = start
    header = l4 + (4 * (eth[l4 + 12] >> 4) if proto == 6 else 8)
    pieces = [eth[i : i + size] for i in range(header, len(eth), size)]
    out = []
    for i, piece in enumerate(pieces):
        one = bytearray(eth[:header] + piece)
        if v4:
            one[16:18] = (len(one) - 14).to_bytes(2, "big")
            one[18:20] = ((int.from_bytes(one[18:20], "big") + i) & 65535).to_bytes(2, "big")
        else:
            one[18:20] = (len(one) - 54).to_bytes(2, "big")
        if proto == 6:
            seq = (int.from_bytes(one[l4 + 4 : l4 + 8], "big") + i * size) & 0xFFFFFFFF
            one[l4 + 4 : l4 + 8] = seq.to_bytes(4, "big")
            one[l4 + 13] &= (0x7F if i else 0xFF) & (0xFF if i == len(pieces) - 1 else 0xF6)
        else:
            one[l4 + 4 : l4 + 6] = (len(one) - l4).to_bytes(2, "big")
        out.append(prefix + finish(one, l4, proto, v4))
    return out


def superframe(
    payload: bytes, size: int, *, v4: bool = True, udp: bool = False, options: bytes = b"", ip_options: bytes = b"",
    ident: int = 7, seq: int = 1000, flags: int = 0x10, source: bytes = b"\x0a\xf4\x01\x05",
) -> bytearray:  # fmt: skip
    """A frame as a TAP hands it out."""
    transport = struct.pack("!HHHH", 1234, 80, 8 + len(payload), 0) if udp else b""
    if not udp:
        transport = struct.pack("!HHIIBBHHH", 1234, 80, seq, 99, (20 + len(options)) << 2, flags, 500, 0, 0) + options
    length = len(transport) + len(payload)
    if v4:
        ip = struct.pack(
            "!BBHHHBBH",
            0x45 + len(ip_options) // 4,
            2,
            20 + len(ip_options) + length & 65535,
            ident,
            0x4000,
            63,
            17 if udp else 6,
            0,
        )
        ip += source + b"\x0a\xf4\x02\x07" + ip_options
        ip = ip[:10] + (65535 - slow_sum(ip)).to_bytes(2, "big") + ip[12:]
    else:
        ip = struct.pack("!IHBB", 0x60000000, length & 65535, 17 if udp else 6, 64) + bytes(range(32))
    eth = bytes.fromhex("02000af4020702000af40105") + (b"\x08\x00" if v4 else b"\x86\xdd")
    kind = GSO_UDP_L4 if udp else GSO_TCPV4 if v4 else GSO_TCPV6
    vnet = VNET.pack(1, kind, 0, size, 14 + len(ip), 6 if udp else 16)
    frame = bytearray(vnet + eth + ip + transport + payload)
    field = len(vnet + eth + ip) + (6 if udp else 16)
    pseudo = slow_sum(ip[12:20] if v4 else ip[8:40], (17 if udp else 6) + length)
    frame[field : field + 2] = pseudo.to_bytes(2, "big")  # as the kernel leaves it to whoever cuts
    return frame


def pieces(result: tuple[memoryview, int]) -> list[bytes]:
    data, step = result
    return [bytes(data[i : i + step]) for i in range(0, len(data), step)]
