"""Maglev hashing as Linux's ip_vs_mh does it: every server fills slots of a table in an order of its own, so that few keys move
when a server comes or goes.

The table has PRIME slots. Linux has one of ten primes from 251 to 131071 (CONFIG_IP_VS_MH_TAB_INDEX), 4093 by default, where 3 %
of the other clients move when one of 100 servers goes; with 32749, its 15 bits, it is 0.9 %.

A server's order is `offset + i * skip`, from two hashes of its address and port. Weights, divided by their common divisor, say
how many slots a server takes each turn. Hashes are SipHash-1-3 of 32 bits (hsiphash), with Linux's two fixed keys.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache
from math import gcd
from typing import Final, Protocol

PRIME: Final = 32749
KEYS: Final = (2654435761, 2654446892)
_MASK: Final = 0xFFFFFFFFFFFFFFFF


class Weighted(Protocol):
    address: bytes
    port: int
    weight: int


@lru_cache(maxsize=65536)
def siphash13(value: int, key: int) -> int:
    """SipHash-1-3 of one 32-bit word, both halves of the key the same; the lower 32 bits."""
    v0, v1 = key ^ 0x736F6D6570736575, key ^ 0x646F72616E646F6D
    v2, v3 = key ^ 0x6C7967656E657261, key ^ 0x7465646279746573
    last = 4 << 56 | value
    v0, v1, v2, v3 = _round(v0, v1, v2, v3 ^ last)
    v0, v2 = v0 ^ last, v2 ^ 0xFF
    for _ in range(3):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return (v0 ^ v1 ^ v2 ^ v3) & 0xFFFFFFFF


def _round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    v0 = v0 + v1 & _MASK
    v1 = _rotated(v1, 13) ^ v0
    v0 = _rotated(v0, 32)
    v2 = v2 + v3 & _MASK
    v3 = _rotated(v3, 16) ^ v2
    v0 = v0 + v3 & _MASK
    v3 = _rotated(v3, 21) ^ v0
    v2 = v2 + v1 & _MASK
    v1 = _rotated(v1, 17) ^ v2
    return v0, v1, _rotated(v2, 32), v3


def _rotated(value: int, by: int) -> int:
    return (value << by | value >> 64 - by) & _MASK


def hashed(address: bytes, port: int, key: int) -> int:
    """Of an address (IPv6 folded to 32 bits) and a port."""
    folded = 0
    for at in range(0, len(address), 4):
        folded ^= int.from_bytes(address[at : at + 4], "big")
    return siphash13(folded + port & 0xFFFFFFFF, key)


def populate(servers: Sequence[Weighted], size: int = PRIME) -> Sequence[int]:
    """For each slot the index of its server; empty if no server has a weight."""
    divisor = gcd(*(server.weight for server in servers)) if servers else 0
    if not divisor:
        return ()
    turns = [server.weight // divisor for server in servers]
    at = [hashed(server.address, server.port, KEYS[0]) % size for server in servers]
    skip = [hashed(server.address, server.port, KEYS[1]) % (size - 1) + 1 for server in servers]
    table = array("i", [-1]) * size
    filled = 0
    while True:
        for index, count in enumerate(turns):
            for _ in range(count):
                slot = at[index]
                while table[slot] >= 0:
                    slot = (slot + skip[index]) % size
                at[index] = slot
                table[slot] = index
                filled += 1
                if filled == size:
                    return table
