"""`StackNode` with a table of nftables, whose choices are played by the chooser of `podwire check`, or by real dice."""

from __future__ import annotations

from random import Random

from support.kernel_node6 import StackNode6
from support.probes import Outcome, Probe
from support.stack_node import StackNode

from podwire.simulation import Choices
from podwire_core.netlink import NftReplace
from podwire_nodeagent.datapath.chooser import RandomChooser


class NftNode(StackNode):
    def __init__(self, ops, table, dice: Random | None = None) -> None:
        self._choices = Choices()
        super().__init__(ops, (), RandomChooser(dice) if dice else self._choices)
        self.stack.apply([NftReplace((table,))], 0.0)

    def outcomes(self, probe: Probe) -> set[Outcome]:
        found = set()
        self._choices.start()
        while True:
            found.add(self.send(probe))
            if not self._choices.advance():
                return found

    def play(self, script: list[bool]) -> None:
        """What the next packet's dice say, then always yes."""
        self._choices.start()
        self._choices._script[:] = script

    def played(self, probe: Probe, script: list[bool], now: float) -> Outcome:
        self.play(script)
        return self.send(probe, now)


class NftNode6(NftNode, StackNode6):
    """The same of IPv6."""
