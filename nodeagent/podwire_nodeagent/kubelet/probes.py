"""What a sequence of probe results means: a pure state machine, one per probe of a running container.

A verdict changes after `successThreshold` successes or `failureThreshold` failures in a row. It starts as kubelet has it: not
ready, alive, not started. `next_delay` is the pause before the next probe: a container that is not ready yet is asked more
often than its period says (Kubernetes permits that, so that pods become ready soon); such early failures are nobody's event.
"""

from __future__ import annotations

from msgspec import Struct

from podwire_core.objects import Probe

READINESS, LIVENESS, STARTUP = "Readiness", "Liveness", "Startup"
EAGER_FIRST = 0.1


class ProbeState(Struct):
    """`verdict` None: unknown (a startup probe that has neither passed nor failed)."""

    kind: str
    probe: Probe
    verdict: bool | None = None
    run: int = 0  # length of the current run of equal results
    last: bool | None = None
    eager: float = EAGER_FIRST

    @property
    def early(self) -> bool:
        """Whether the next probe comes before a period has passed."""
        return self.kind == READINESS and self.verdict is None and self.eager < self.probe.period_seconds

    def observe(self, success: bool) -> bool:
        """Counts a result. True if the verdict changed."""
        self.run = self.run + 1 if success == self.last else 1
        self.last = success
        threshold = self.probe.success_threshold if success else self.probe.failure_threshold
        if self.run < threshold or self.verdict == success:
            return False
        before, self.verdict = self.verdict, success
        if self.kind == READINESS and not success and before is None:
            self.verdict = None  # it never was ready: still being asked eagerly, until that has grown to the period
            return False
        return True

    def next_delay(self) -> float:
        if not self.early:
            return float(max(1, self.probe.period_seconds))
        delay, self.eager = self.eager, self.eager * 2
        return delay
