"""A pod's status from its spec and records: pure, and the only place that decides phases and conditions.

Rules it keeps: conditions that are not kubelet's own (readiness gates, what controllers add) pass through as the API has them; a
condition's lastTransitionTime changes only with its status. Words and rules are kubelet's (pkg/kubelet/status, kubelet_pods.go).

Order to read: pod_status, phase, conditions, container statuses.
"""

from __future__ import annotations

from collections.abc import Sequence

from podwire_core.objects import Container, Json, PodSpec
from podwire_nodeagent.kubelet import plan
from podwire_nodeagent.kubelet.records import ENDED, INIT, RUNNING, WAITING, Ended, PodRecord, Record, timestamp

OWN_CONDITIONS = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady")


def pod_status(record: PodRecord, spec: PodSpec, host_ip: str, now: float, other_ips: Sequence[str] = ()) -> Json:
    """The whole `status` to write; what other writers put into the object's status stays."""
    old: Json = record.pod.get("status") or {}
    status: Json = {key: value for key, value in old.items() if key not in ("reason", "message")}
    status["phase"] = phase(spec, record)
    status["conditions"] = _conditions(record, spec, status["phase"], old.get("conditions") or [], timestamp(now))
    status["hostIP"], status["hostIPs"] = host_ip, [{"ip": ip} for ip in (host_ip, *other_ips)]
    if record.sandbox.ips:
        status["podIP"], status["podIPs"] = record.sandbox.ips[0], [{"ip": ip} for ip in record.sandbox.ips]
    status["startTime"] = timestamp(record.started_at)
    if spec.init_containers:
        status["initContainerStatuses"] = [_container_status(c, record.containers[c.name]) for c in spec.init_containers]
    status["containerStatuses"] = [_container_status(c, record.containers[c.name]) for c in spec.containers]
    if record.failed:
        status["reason"], status["message"] = record.failed, record.failed_message
    return status


# --- phase --------------------------------


def phase(spec: PodSpec, record: PodRecord) -> str:
    if record.failed:
        return "Failed"
    records = record.containers
    inits = [records[c.name] for c in spec.init_containers or []]
    if any(_dead_init(r) for r in inits) and spec.restart_policy == "Never":
        return "Failed"
    if not plan.initialized(spec, records):
        return "Pending"
    mains = [records[c.name] for c in spec.containers]
    if any(r.state == WAITING and r.ended is None for r in mains):
        return "Pending"
    running = any(r.state == RUNNING for r in mains)
    if running or spec.restart_policy == "Always":
        return "Running"
    codes = [r.ended.code for r in mains if r.ended is not None]
    if not any(codes):
        return "Succeeded"
    return "Failed" if spec.restart_policy == "Never" else "Running"


def _dead_init(record: Record) -> bool:
    return record.kind == INIT and record.state == ENDED and record.ended is not None and record.ended.code != 0


# --- conditions --------------------------------


def _conditions(record: PodRecord, spec: PodSpec, phase_now: str, old: list[Json], now: str) -> list[Json]:
    by_type = {c["type"]: c for c in old}
    fresh = {
        "PodReadyToStartContainers": _truth(bool(record.sandbox.ips) and phase_now not in ("Succeeded", "Failed")),
        "Initialized": _initialized(record, spec, phase_now),
        "Ready": _ready(record, spec, phase_now, by_type),
        "ContainersReady": _containers_ready(record, spec, phase_now),
    }
    if "PodScheduled" not in by_type:
        fresh["PodScheduled"] = _truth(True)
    result = []
    for kind, condition in fresh.items():
        before = by_type.get(kind)
        same = before is not None and before.get("status") == condition["status"]
        since = before.get("lastTransitionTime", now) if before is not None and same else now
        result.append({"type": kind, **condition, "lastTransitionTime": since})
    return result + [c for kind, c in by_type.items() if kind not in fresh]


def _truth(value: bool, reason: str = "", message: str = "") -> Json:
    result: Json = {"status": "True" if value else "False"}
    return result | ({"reason": reason} if reason else {}) | ({"message": message} if message else {})


def _initialized(record: PodRecord, spec: PodSpec, phase_now: str) -> Json:
    if phase_now == "Succeeded":
        return _truth(True, "PodCompleted")
    if plan.initialized(spec, record.containers):
        return _truth(True)
    missing = [c.name for c in spec.init_containers or [] if not _init_done(record.containers[c.name])]
    return _truth(False, "ContainersNotInitialized", f"containers with incomplete status: [{' '.join(missing)}]")


def _init_done(record: Record) -> bool:
    if record.kind != INIT:
        return record.started
    return record.ended is not None and record.state == ENDED and record.ended.code == 0


def _containers_ready(record: PodRecord, spec: PodSpec, phase_now: str) -> Json:
    if phase_now in ("Succeeded", "Failed"):
        return _truth(False, "PodCompleted" if phase_now == "Succeeded" else "PodFailed")
    counted = [c.name for c in spec.init_containers or [] if c.restart_policy == "Always"] + [c.name for c in spec.containers]
    unready = [name for name in counted if not record.containers[name].ready]
    if unready:
        return _truth(False, "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    return _truth(True)


def _ready(record: PodRecord, spec: PodSpec, phase_now: str, conditions: dict[str, Json]) -> Json:
    containers = _containers_ready(record, spec, phase_now)
    if containers["status"] != "True":
        return containers
    for gate in spec.readiness_gates or []:
        condition = conditions.get(gate.condition_type)
        if condition is None:
            text = f'corresponding condition of pod readiness gate "{gate.condition_type}" does not exist.'
            return _truth(False, "ReadinessGatesNotReady", text)
        if condition.get("status") != "True":
            text = f'the status of pod readiness gate "{gate.condition_type}" is not "True", but {condition.get("status")}'
            return _truth(False, "ReadinessGatesNotReady", text)
    return containers


# --- container statuses --------------------------------


def _container_status(container: Container, record: Record) -> Json:
    last = record.ended or record.last if record.state == WAITING else record.last
    return {
        "name": container.name,
        "image": container.image,
        "imageID": f"podwire://{'stand-in' if record.standin else 'machine'}/{container.image}" if record.id else "",
        "containerID": f"podwire://{record.id}" if record.id else "",
        "ready": record.ready if record.kind != INIT else record.state == ENDED and _init_done(record),
        "started": record.state == RUNNING and record.started,
        "restartCount": record.restarts,
        "state": _state(record),
        "lastState": {"terminated": _terminated(last)} if last is not None else {},
    }


def _state(record: Record) -> Json:
    if record.state == RUNNING:
        return {"running": {"startedAt": timestamp(record.started_at)}}
    if record.state == ENDED and record.ended is not None:
        return {"terminated": _terminated(record.ended)}
    return {"waiting": {"reason": record.reason} | ({"message": record.message} if record.message else {})}


def _terminated(ended: Ended) -> Json:
    result: Json = {"exitCode": ended.code, "reason": ended.reason}
    if ended.signal:
        result["signal"] = ended.signal
    if ended.message:
        result["message"] = ended.message
    times = {"startedAt": timestamp(ended.started), "finishedAt": timestamp(ended.finished)}
    return result | times | ({"containerID": f"podwire://{ended.id}"} if ended.id else {})
