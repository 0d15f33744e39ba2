"""VXLAN's header (RFC 7348), a pure codec: eight bytes between UDP and the inner Ethernet frame.

Rules: out, the I flag is the only flag and everything reserved is zero; in, the I flag must be set and everything reserved is
ignored. What cannot be decoded is a reason (its drop counter's name), never an exception.
"""

from __future__ import annotations

from functools import lru_cache

from podwire_nodeagent.datapath.wire import ETH_SIZE, Buffer

SIZE = 8
I_FLAG = 0x08
MAX_VNI = (1 << 24) - 1
OUTER = 20 + 8 + SIZE + ETH_SIZE  # what the tunnel adds to an inner IPv4 packet, over IPv4

SHORT, NO_VNI = -1, -2
REASONS = {SHORT: "vxlan_short", NO_VNI: "vxlan_no_vni_flag"}


@lru_cache(maxsize=1024)
def encode(vni: int) -> bytes:
    if not 0 <= vni <= MAX_VNI:
        raise ValueError(f"VNI {vni} is not in 0…{MAX_VNI}")
    return bytes((I_FLAG, 0, 0, 0)) + vni.to_bytes(3, "big") + b"\0"


def decode(header: Buffer | bytes, size: int) -> int:
    """The VNI of a datagram of `size` bytes that begins with `header`, or one of REASONS (negative)."""
    if size < SIZE + ETH_SIZE:
        return SHORT
    if not header[0] & I_FLAG:
        return NO_VNI
    return header[4] << 16 | header[5] << 8 | header[6]
