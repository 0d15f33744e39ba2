"""All outcomes of a dataplane's random choices, one after another: a `Chooser` that is played back.

How: the first run answers every question with yes and notes the answers; each further run repeats them up to the last yes and
says no there (depth first). A question with probability 0 or 1 is no choice.
"""

from __future__ import annotations


class Choices:
    exhaustive = True  # ask even where the live dataplane goes by history, as a round robin does

    def __init__(self) -> None:
        self._script: list[bool] = []
        self._asked = 0
        self._picks = 0

    # --- the Chooser that stacks see --------------------------------

    def chance(self, probability: float) -> bool:
        if probability <= 0.0 or probability >= 1.0:
            return probability >= 1.0
        if self._asked == len(self._script):
            self._script.append(True)
        self._asked += 1
        return self._script[self._asked - 1]

    def below(self, n: int) -> int:
        """Picks among equals: any will do, but not always the same, so that NAT finds free ports quickly."""
        self._picks += 1
        return self._picks % n

    # --- the player --------------------------------

    def start(self) -> None:
        """Begin with the first outcome."""
        self._script.clear()
        self._asked = 0

    def advance(self) -> bool:
        """On to the next outcome; False when all have been."""
        del self._script[self._asked :]
        while self._script and not self._script[-1]:
            self._script.pop()
        self._asked = 0
        if not self._script:
            return False
        self._script[-1] = False
        return True
