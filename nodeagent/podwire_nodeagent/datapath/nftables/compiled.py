"""What is in force: chains, rules, sets and their elements, compiled.

Rules it keeps: a jump refers to the `Chain` itself, a lookup to the set's dict, so that a change is visible to all at once.
`uses` counts who refers to a chain or a set: what is used cannot be deleted. A rule and an element know where they stand by its
name alone: no circle refers back, so that tables which are replaced go at once. Keys of sets are what `operator.attrgetter`
takes from a packet: a value, or for concatenations a tuple.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from podwire_core import nft_text
from podwire_core import nftables as nft
from podwire_nodeagent.datapath.netfilter.chains import ACCEPT_OP
from podwire_nodeagent.datapath.packet import Packet

DISPATCH: Final = 100  # beside those of netfilter.chains: `argument(packet)` is the element whose verdict counts, or None
Test = Callable[[Packet], bool]


class Chain:
    """`hook` of a base chain; then `policy` is the rule that is reached when no other decided."""

    __slots__ = ("comment", "hook", "name", "policy", "rules", "uses")

    def __init__(self, name: str, comment: str = "", hook: nft.Hook | None = None) -> None:
        self.name, self.comment, self.hook = name, comment, hook
        self.rules: tuple[Rule, ...] = ()
        self.policy: Rule | None = None
        self.uses = 0


class Set:
    """`elements`: by key, of a plain set or map its `Element`; of a set with a timeout the time until which the key is in it."""

    __slots__ = ("elements", "source", "uses")

    def __init__(self, source: nft.Set) -> None:
        self.source = source  # without elements
        self.elements: dict[Any, Any] = {}
        self.uses = 0


class Rule:
    """`chain`: its name. `refs`: the chains and sets that it uses. `packets` and `bytes` count matches, for those who ask;
    kube-proxy's rules have no counter statement, so nft prints none."""

    __slots__ = ("argument", "bytes", "chain", "family", "operation", "packets", "refs", "source", "tests")

    def __init__(
        self,
        source: nft.Rule,
        chain: str,
        family: int,
        tests: tuple[Test, ...],
        operation: int,
        argument: Any,
        refs: tuple[Chain | Set, ...],
    ) -> None:
        self.source, self.chain, self.family = source, chain, family
        self.tests, self.operation, self.argument, self.refs = tests, operation, argument, refs
        self.packets = self.bytes = 0

    def text(self) -> str:
        """As nft prints it, behind its chain."""
        return f"{self.chain} {nft_text.rule(self.source, self.family)}"


class Element:
    """An element with a verdict; `set`: the name of its map. One of an anonymous map (`numgen`) has none."""

    __slots__ = ("argument", "bytes", "operation", "packets", "set", "source")

    def __init__(self, source: nft.Element, where: str, operation: int, argument: Any) -> None:
        self.source, self.set, self.operation, self.argument = source, where, operation, argument
        self.packets = self.bytes = 0

    def text(self) -> str:
        return f"{self.set} {{ {nft_text.element(self.source)} }}".lstrip()


Decision = Rule | Element  # what ended a walk


def policy_rule(chain: Chain, family: int, operation: int = ACCEPT_OP) -> Rule:
    name = chain.hook.policy if chain.hook else "accept"
    return Rule(nft.Rule((nft.Verdict(name),)), f"{chain.name} policy", family, (), operation, None, ())
