"""What is to be done about a pod's containers: a pure function of its spec, its records and the clock.

The rules are kubelet's. Init containers run one after another, each to success; one with restartPolicy Always is a sidecar: the
next waits only until it has started, and it runs until the last main container has ended. A container that ended is restarted as
the pod's restartPolicy says, the first time at once, then after 10 s, doubling to 300 s; ten minutes without a restart
forgive all.

Order to read: Plan, plan, the restart rules, back-off.
"""

from __future__ import annotations

from msgspec import Struct

from podwire_core.objects import Container, PodSpec
from podwire_nodeagent.kubelet.records import ENDED, INIT, MAIN, RUNNING, SIDECAR, WAITING, Record

BACKOFF_FIRST, BACKOFF_MOST = 10.0, 300.0
BACKOFF_FORGIVE = 2 * BACKOFF_MOST


class Plan(Struct):
    """`start` names containers to start now, `stop` those to stop (in order), `waiting` the new waiting reasons; `look_again` is
    when time alone changes the plan; `finished` says that nothing will ever run again."""

    start: list[str] = []
    stop: list[str] = []
    waiting: dict[str, str] = {}
    look_again: float | None = None
    finished: bool = False

    def at(self, when: float) -> None:
        self.look_again = when if self.look_again is None else min(when, self.look_again)


def kinds(spec: PodSpec) -> dict[str, str]:
    """Every container of the pod and what it is, in order."""
    found = {c.name: SIDECAR if c.restart_policy == "Always" else INIT for c in spec.init_containers or []}
    return found | {c.name: MAIN for c in spec.containers}


def containers(spec: PodSpec) -> dict[str, Container]:
    return {c.name: c for c in [*(spec.init_containers or []), *spec.containers]}


def plan(spec: PodSpec, records: dict[str, Record], now: float) -> Plan:
    result = Plan()
    inits = [records[c.name] for c in spec.init_containers or []]
    mains = [records[c.name] for c in spec.containers]
    if not _begun(mains):
        if _failed_for_good(spec, inits):
            result.stop = [r.name for r in reversed(inits) if r.state == RUNNING]
            result.finished = not result.stop
            return result
        if not _initialize(inits, result, now):
            return result
    for record in mains:
        if record.state != RUNNING and _wanted(spec, record):
            _start(record, result, now)
    sidecars = [r for r in inits if r.kind == SIDECAR]
    if all(record.state == ENDED and not _wanted(spec, record) for record in mains):
        result.stop = [r.name for r in reversed(sidecars) if r.state == RUNNING]
        result.finished = not result.stop
        return result
    for record in sidecars:
        if record.state != RUNNING:
            _start(record, result, now)
    return result


def _begun(mains: list[Record]) -> bool:
    """Once a main container has run, init containers are history."""
    return any(record.attempt for record in mains)


def initialized(spec: PodSpec, records: dict[str, Record]) -> bool:
    """All init containers have ended well, all sidecars have started."""
    if _begun([records[c.name] for c in spec.containers]):
        return True
    return all(_passed(records[c.name]) for c in spec.init_containers or [])


def _passed(record: Record) -> bool:
    if record.kind == SIDECAR:
        return record.state == RUNNING and record.started
    return record.state == ENDED and record.ended is not None and record.ended.code == 0


def _failed_for_good(spec: PodSpec, inits: list[Record]) -> bool:
    return spec.restart_policy == "Never" and any(
        r.kind == INIT and r.state == ENDED and r.ended is not None and r.ended.code != 0 for r in inits
    )


def _initialize(inits: list[Record], result: Plan, now: float) -> bool:
    """True when all have passed; otherwise the first that has not is started, if it is time."""
    for record in inits:
        if _passed(record):
            continue
        if record.state != RUNNING:
            _start(record, result, now)
        return False
    return True


# --- restart rules --------------------------------


def _wanted(spec: PodSpec, record: Record) -> bool:
    """Whether a main container that does not run should."""
    if record.state == WAITING or record.ended is None:
        return True
    match spec.restart_policy:
        case "Always":
            return True
        case "OnFailure":
            return record.ended.code != 0
        case _:
            return False


def _start(record: Record, result: Plan, now: float) -> None:
    due = start_due(record)
    if due <= now:
        result.start.append(record.name)
    else:
        result.at(due)
        if record.ended is not None:
            result.waiting[record.name] = "CrashLoopBackOff"


# --- back-off --------------------------------


def start_due(record: Record) -> float:
    """When a container may start (again)."""
    since = record.ended.finished if record.ended is not None else record.delayed_at
    if record.ended is not None and since - record.delayed_at > BACKOFF_FORGIVE:
        return since
    return since + record.delay


def restarted(record: Record, now: float) -> None:
    """Makes the next restart wait longer; called at each restart (and after each image that could not be had)."""
    forgiven = record.delay == 0 or (record.ended is not None and now - record.delayed_at > BACKOFF_FORGIVE)
    record.delay = BACKOFF_FIRST if forgiven else min(record.delay * 2, BACKOFF_MOST)
    record.delayed_at = now
