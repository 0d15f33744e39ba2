"""The probes of one running container as tasks: they feed the state machines of probes.py and act on their verdicts.

Readiness and liveness begin when the container has started (its startup probe has passed, postStart is done). A container
that fails liveness or startup is stopped, and the plan restarts it. The tasks end with the container.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from podwire_core.objects import Probe
from podwire_nodeagent.kubelet import hooks
from podwire_nodeagent.kubelet.probes import LIVENESS, READINESS, STARTUP, ProbeState
from podwire_nodeagent.kubelet.records import RUNNING

if TYPE_CHECKING:
    from podwire_nodeagent.kubelet.worker import PodWorker, Running

STARTED_POLL = 0.05


async def probe_container(worker: PodWorker, name: str, running: Running) -> None:
    """Until the container ends."""
    container, record = worker.containers[name], worker.record.containers[name]
    with running.scope:
        async with trio.open_nursery() as nursery:
            if container.startup_probe is not None and not record.started:
                await _repeat(worker, name, ProbeState(STARTUP, container.startup_probe))
            while not record.started and (container.readiness_probe or container.liveness_probe):
                await trio.sleep(STARTED_POLL)  # postStart
            for kind, probe in ((READINESS, container.readiness_probe), (LIVENESS, container.liveness_probe)):
                if probe is not None:
                    adopted = True if kind == LIVENESS or record.ready else None
                    nursery.start_soon(_repeat, worker, name, ProbeState(kind, probe, verdict=adopted))


async def _repeat(worker: PodWorker, name: str, state: ProbeState) -> None:
    """Probe after probe; a startup probe's first verdict ends it."""
    record = worker.record.containers[name]
    await trio.sleep(_initial_delay(worker, name, state.probe))
    while True:
        early = state.early
        result = await hooks.probe_once(worker, name, state.probe)
        changed = state.observe(result.ok)
        if not result.ok and not early:
            worker.event("Warning", "Unhealthy", f"{state.kind} probe failed: {result.message}", name)
        if changed and record.state == RUNNING:
            _conclude(worker, name, state)
            if state.kind == STARTUP:
                return
        await trio.sleep(state.next_delay())


def _initial_delay(worker: PodWorker, name: str, probe: Probe) -> float:
    since = time.time() - worker.record.containers[name].started_at
    return max(0.0, probe.initial_delay_seconds - since)


def _conclude(worker: PodWorker, name: str, state: ProbeState) -> None:
    record, container = worker.record.containers[name], worker.containers[name]
    success = bool(state.verdict)
    if state.kind == READINESS:
        record.ready = success
    elif state.kind == STARTUP and success:
        record.started = True
        record.ready = container.readiness_probe is None
    elif not success:
        text = f"Container {name} failed {state.kind.lower()} probe, will be restarted"
        grace = state.probe.termination_grace_period_seconds
        worker.nursery.start_soon(worker.stop, name, text, float(grace) if grace is not None else None)
        return
    else:
        return
    worker.note()
    worker.wake()
