"""Ones' complement sums (RFC 1071) and completing partial checksums.

Sums are kept modulo 65535, where 0 and 65535 are the same value: `int.from_bytes(x, "big") % 65535` is the sum of all
16-bit words in one operation.

Rules: a stored IPv4, TCP or ICMP checksum is canonical, 0…65534, as computing it anew gives; UDP's 0 means "none", so a
UDP checksum of 0 is stored as 65535.
"""

from __future__ import annotations

from podwire_nodeagent.datapath.wire import ETH, L3, NEEDS_CSUM, U16, UDP, VNET, Buffer


def ones_sum(data: Buffer | bytes) -> int:
    """The sum of the big-endian 16-bit words, modulo 65535; an odd end is padded with zero."""
    value = int.from_bytes(data, "big") % 65535
    return value * 256 % 65535 if len(data) & 1 else value


def checksum(data: Buffer | bytes, start: int = 0) -> int:
    """The value for a checksum field that is zero in `data` (or outside it); `start` is a sum to add."""
    return -(ones_sum(data) + start) % 65535 if start or any(data) else 0xFFFF


def pseudo_sum(addresses: Buffer | bytes, protocol: int, length: int) -> int:
    """Sum of the pseudo-header; `addresses` is source and destination in one slice."""
    return (ones_sum(addresses) + protocol + length) % 65535


def complete(frame: Buffer) -> None:
    """Computes the checksum of a NEEDS_CSUM frame that is no superframe, in place, and clears the flag."""
    flags, gso_type, _, _, start, offset = VNET.unpack_from(frame, 0)
    if not flags & NEEDS_CSUM or gso_type:
        return
    begin, field = ETH + start, ETH + start + offset
    if begin < L3 or field + 2 > len(frame):
        return
    value = -ones_sum(frame[begin:]) % 65535
    if offset == 6 and frame[L3 + 9 if frame[L3] >> 4 == 4 else L3 + 6] == UDP and not value:
        value = 0xFFFF
    U16.pack_into(frame, field, value)
    frame[0] = flags & ~NEEDS_CSUM
