"""Maglev hashing (Eisenbud et al., NSDI 2016): a table of backends in which few places change when a backend comes or goes.

Each backend has a permutation of all places, made of two hashes of its address; in turns each takes the next free place of its
permutation. Weights are 1. The size is prime, so that every step width visits all places. Backends stand in order of their
hash, so that the table depends on the set alone. (Cilium hashes with murmur3 and a seed of its own: places differ, properties
do not.)
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from hashlib import blake2b


def permutation(backend: bytes, size: int) -> tuple[int, int]:
    """Where a backend's permutation begins, and its step."""
    digest = blake2b(backend, digest_size=16).digest()
    return int.from_bytes(digest[:8], "little") % size, int.from_bytes(digest[8:], "little") % (size - 1) + 1


def table(backends: Mapping[int, bytes], size: int) -> array[int]:
    """A backend's number at each place; `backends`: what is hashed, by number. Empty if there are none."""
    if not backends:
        return array("I")
    turns = sorted((*permutation(name, size), number) for number, name in backends.items())
    places = [0] * size
    at = [begin for begin, _, _ in turns]
    left = size
    while True:
        for turn, (_, step, number) in enumerate(turns):
            place = at[turn]
            while places[place]:
                place = (place + step) % size
            places[place] = number
            at[turn] = (place + step) % size
            left -= 1
            if not left:
                return array("I", places)
