"""Randomness as an argument: who decides where the dataplane may choose.

Two kinds of choice are kept apart. `chance` decides which way a packet goes (`-m statistic`), so an exhaustive check scripts it
and enumerates every outcome; `below` picks among equals (a NAT source port, a hash seed), where any answer is as good.
"""

from __future__ import annotations

from random import Random
from typing import Protocol


class Chooser(Protocol):
    """What the stack asks when it may choose. One with a true attribute `exhaustive` is also asked where the choice depends on
    what was chosen before."""

    def chance(self, probability: float) -> bool:
        """True with that probability."""

    def below(self, n: int) -> int:
        """A number in 0..n-1."""


class RandomChooser:
    """The live chooser; a seeded `Random` makes a run repeatable."""

    __slots__ = ("_random", "below")

    def __init__(self, random: Random) -> None:
        self._random = random.random
        self.below = random._randbelow  # type: ignore[attr-defined]

    def chance(self, probability: float) -> bool:
        return self._random() < probability
