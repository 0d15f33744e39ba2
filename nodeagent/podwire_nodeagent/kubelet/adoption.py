"""Taking over a pod that a former agent left: containers go on as they are, or are found to have ended while nobody looked.

Nothing is restarted because the agent was. Only what is gone counts as ended: a program without its shim, a stand-in that its
process does not know, everything of a sandbox that a reboot has taken.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from podwire_nodeagent.kubelet import runtime, sandbox
from podwire_nodeagent.kubelet.records import RUNNING, Record, Sandbox

if TYPE_CHECKING:
    from podwire_nodeagent.kubelet.worker import PodWorker


def adopt(worker: PodWorker, standins: frozenset[str]) -> None:
    """`standins`: the IDs that the stand-in process has."""
    from podwire_nodeagent.kubelet.worker import Running

    if not any(record.attempt for record in worker.record.containers.values()):
        return
    alive = sandbox.lives(worker.record.sandbox)
    for name, record in worker.record.containers.items():
        if not record.standin:
            _adopt_program(worker, name, record, alive)
        elif record.state == RUNNING and record.id in standins and alive:
            worker.begun(name, Running(None))
        elif record.state == RUNNING:
            worker.ended(name, 137, time.time())
    if worker.record.sandbox.netns and not alive and not worker.record.failed:
        worker.event("Normal", "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
        worker.record.sandbox = Sandbox()


def _adopt_program(worker: PodWorker, name: str, record: Record, alive: bool) -> None:
    from podwire_nodeagent.kubelet.worker import Running

    directory = worker.files.container(name, record.attempt)
    held = runtime.adopt(directory) if record.attempt else None
    if held is None:
        if record.state == RUNNING:
            left = runtime.ending(directory)
            worker.ended(name, *(left if left is not None else (137, time.time())))
        return
    if record.state != RUNNING:  # the agent died between starting it and writing that down
        record.state, record.started_at, record.ended = RUNNING, time.time(), None
        record.id = record.id or secrets.token_hex(32)
        record.started = worker.containers[name].startup_probe is None
        record.ready = record.started and worker.containers[name].readiness_probe is None
    spec = runtime.read_spec(directory)
    worker.begun(name, Running(held, spec, spec.cgroups if spec is not None else []))
    if not alive:
        runtime.send_signal(held, 9)
