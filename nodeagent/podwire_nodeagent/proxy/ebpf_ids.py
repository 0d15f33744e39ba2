"""Numbers for things that keep them as long as they exist: backends (shared by Services) and frontends (rev_nat_index)."""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heappop, heappush
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Ids(Generic[K]):
    """`take` counts references, `drop` gives one back; a number is used again only when its last holder is gone, the smallest
    first. The first is 1, the last `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.numbers: dict[K, int] = {}
        self._references: dict[K, int] = {}
        self._free: list[int] = []
        self._next = 1

    def take(self, key: K) -> int:
        """Its number; 0 if there is none left."""
        number = self.numbers.get(key, 0)
        if not number:
            number = self._new()
            if not number:
                return 0
            self.numbers[key] = number
        self._references[key] = self._references.get(key, 0) + 1
        return number

    def drop(self, key: K) -> int:
        """The number that became free, 0 if others still hold it."""
        self._references[key] -= 1
        if self._references[key]:
            return 0
        del self._references[key]
        number = self.numbers.pop(key)
        heappush(self._free, number)
        return number

    def _new(self) -> int:
        if self._free:
            return heappop(self._free)
        if self._next > self.limit:
            return 0
        self._next += 1
        return self._next - 1
