"""Our stack against the kernel, packet by packet: whatever the kernel did with a probe must be among what ours may do.

PODWIRE_SEED repeats a run; without it, every run has clusters and packets of its own. The seed and how many packets were compared
stand in the report's section "measured", the seed also in every message.
"""

from __future__ import annotations

import os
import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SEED = int(os.environ.get("PODWIRE_SEED") or random.SystemRandom().getrandbits(32))
SETTINGS = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    print_blob=True,
)


class Judge:
    """One test's comparisons. `excused`: a difference that is known, by probe and the kernel's outcome."""

    def __init__(self, record_property, excused=lambda probe, judged: False) -> None:
        self._record, self._excused = record_property, excused
        self.packets = 0

    def compare(self, kernel, ours, every, sentinel, data, at_most: int) -> None:
        """So many of these probes, in an order that is drawn."""
        order = data.draw(st.permutations(range(len(every))))[:at_most]
        probes = [every[i] for i in order]
        sport = data.draw(st.integers(1024, 60000))
        for probe, judged in zip(probes, kernel.send(probes, sentinel, sport), strict=True):
            if not self._excused(probe, judged):
                possible = ours.outcomes(probe)
                assert judged in possible, f"seed {SEED}: {probe}: the kernel says {judged}, we say one of {possible}"
        self.packets += len(probes)

    def report(self, at_least: int) -> None:
        self._record("packets", self.packets)
        self._record("seed", SEED)
        assert self.packets >= at_least, f"seed {SEED}: only {self.packets} packets were compared"
