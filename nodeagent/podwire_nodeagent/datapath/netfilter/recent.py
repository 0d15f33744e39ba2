"""The lists of `-m recent`, by which kube-proxy keeps a client with its backend (session affinity). As xt_recent: at
most 100 addresses a list, the longest unused one makes room; times are of the last packet that `--set` the address."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

MAX_ADDRESSES: Final = 100  # ip_list_tot


class RecentLists:
    __slots__ = ("lists",)

    def __init__(self) -> None:
        self.lists: dict[str, OrderedDict[bytes, float]] = {}

    def set(self, name: str, address: bytes, now: float) -> None:
        addresses = self.lists.setdefault(name, OrderedDict())
        addresses[address] = now
        addresses.move_to_end(address)
        if len(addresses) > MAX_ADDRESSES:
            addresses.popitem(last=False)

    def check(self, name: str, address: bytes, seconds: int, reap: bool, now: float) -> bool:
        """Was the address set, within that many seconds (0: ever)?"""
        addresses = self.lists.get(name)
        if addresses is None:
            return False
        if reap:
            while addresses and next(iter(addresses.values())) < now - seconds:
                addresses.popitem(last=False)
        then = addresses.get(address)
        return then is not None and (not seconds or then >= now - seconds)

    def forget(self, name: str) -> None:
        """No rule names this list any more."""
        self.lists.pop(name, None)
