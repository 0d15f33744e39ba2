"""A chain to which every Service contributes, such as KUBE-SERVICES: what is in it, and how a change of it is told.

Rules it keeps: the Services' rules stand in order of their owners' names, each owner's in the order given, so that the same
contributions make the same chain, whatever came first. A small change of a long chain is told as a splice, which names its
neighbours and costs the same at any length; one that would say more than the chain itself states the chain.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping

from podwire_core import netfilter as nf
from podwire_core.netlink import ChainSplice, Splice

LAST = "~"  # an owner that stands behind every "ns/name"
Rules = tuple[nf.Rule, ...]


class SharedChain:
    def __init__(self, name: str) -> None:
        self.name = name
        self._rules: list[nf.Rule] = []
        self._owners: list[str] = []  # whose each is

    def whole(self) -> nf.Chain:
        return nf.Chain(self.name, tuple(self._rules))

    def change(self, contributions: Mapping[str, Rules]) -> nf.Chain | ChainSplice | None:
        """These owners' rules are now these; how to bring a chain there that was as this one. None: nothing is different."""
        found = ((owner, self._hunk(owner, contributions[owner])) for owner in sorted(contributions))
        hunks = [(owner, hunk) for owner, hunk in found if hunk.old != hunk.new]
        if not hunks:
            return None
        length = len(self._rules)
        self._apply(hunks)
        splices = tuple(hunk for _, hunk in hunks)
        said = sum(len(hunk.old) + len(hunk.new) + 1 for hunk in splices)
        return ChainSplice(self.name, length, splices) if said < len(self._rules) else self.whole()

    def _hunk(self, owner: str, new: Rules) -> Splice:
        at, end = bisect_left(self._owners, owner), bisect_right(self._owners, owner)
        return Splice(at, self._rules[at - 1] if at else None, tuple(self._rules[at:end]), new)

    def _apply(self, hunks: list[tuple[str, Splice]]) -> None:
        rules: list[nf.Rule] = []
        owners: list[str] = []
        behind = 0
        for owner, hunk in hunks:
            rules += self._rules[behind : hunk.at]
            owners += self._owners[behind : hunk.at]
            rules += hunk.new
            owners += [owner] * len(hunk.new)
            behind = hunk.at + len(hunk.old)
        self._rules = rules + self._rules[behind:]
        self._owners = owners + self._owners[behind:]
