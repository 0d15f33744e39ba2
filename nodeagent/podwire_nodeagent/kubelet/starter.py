"""Starting one container of a pod: image, volumes, environment, limits, then a program through its shim or a stand-in.

Every failure becomes what kubectl shows: a waiting reason and an event, and a time for the next try. Order to read: start,
the two ways to run, failures, termination messages.
"""

from __future__ import annotations

import secrets
import shutil
import time
from typing import TYPE_CHECKING

from podwire_core.objects import Container
from podwire_nodeagent.kubelet import env, hooks, images, parts, plan, runtime, volumes
from podwire_nodeagent.kubelet.images import Missing, Place, Program, StandIn
from podwire_nodeagent.kubelet.records import ENDED, INIT, RUNNING, WAITING, Ended, Record
from podwire_nodeagent.kubelet.shim.cri import CriLog
from podwire_nodeagent.standin.answers import Identity
from podwire_nodeagent.standin.client import StandinError

if TYPE_CHECKING:
    from podwire_nodeagent.kubelet.worker import PodWorker

CONFIG_RETRY = 5.0
MESSAGE_LIMIT = 4096
NO_LIMITS = "CPU and memory limits are not enforced: this machine lets podwire write no control group"
NO_OVERLAY = "the container's root is read-only: this kernel gives no overlay file system here"


async def start(worker: PodWorker, name: str) -> bool:
    """True if the container runs now (or has already ended well); otherwise its record says why not."""
    container, record = worker.containers[name], worker.record.containers[name]
    answer = images.resolve(container, _place(worker), record.kind == INIT, worker.spec.restart_policy == "Always")
    if isinstance(answer, Missing):
        _cannot_pull(worker, record, container.image, answer.message)
        return False
    present = (
        "is no program of this machine: a stand-in takes its place"
        if isinstance(answer, StandIn)
        else "already present on machine"
    )
    worker.event("Normal", "Pulled", f'Container image "{container.image}" {present}', name)
    try:
        _prepare_volumes(worker)
        spec = _program_spec(worker, container, answer)
    except (env.ConfigError, OSError) as error:
        _misconfigured(worker, record, str(error))
        return False
    _begin_run(record)
    worker.event("Normal", "Created", f"Created container: {name}", name)
    try:
        if isinstance(answer, StandIn):
            await _run_standin(worker, container, record, answer)
        else:
            await _run_program(worker, container, record, spec)
    except (runtime.StartError, StandinError, OSError) as error:
        _not_started(worker, record, str(error), getattr(error, "code", 128))
        return False
    if record.state == RUNNING:
        await _after_start(worker, container, record)
    return True


def _place(worker: PodWorker) -> Place:
    config = worker.node.config
    ip = worker.record.sandbox.ips[0] if worker.record.sandbox.ips else config.internal_ip
    return Place(config.python, config.api_socket, config.run_dir, ip, images.installed)


def _prepare_volumes(worker: PodWorker) -> None:
    if worker.spec.volumes and worker.volumes is None:
        prepared = volumes.prepare(worker.files.volumes, parts.context(worker.node, worker.record, worker.spec))
        for warning in prepared.warnings:
            worker.event("Warning", "FailedMount", warning)
        worker.volumes = prepared


def _begin_run(record: Record) -> None:
    """A new run of the container; if there was one before, this is a restart."""
    if record.ended is not None:
        record.restarts += 1
        plan.restarted(record, time.time())
        record.last, record.ended = record.ended, None
    record.state, record.reason, record.message = WAITING, "ContainerCreating", ""
    record.attempt += 1
    record.id = secrets.token_hex(32)
    record.image_tries = 0


# --- two ways to run --------------------------------


async def _run_standin(worker: PodWorker, container: Container, record: Record, answer: StandIn) -> None:
    from podwire_nodeagent.kubelet.worker import Running

    meta, config = worker.record.pod["metadata"], worker.node.config
    record.standin = True
    now = time.time()
    name = f"{meta.get('namespace', 'default')}/{meta['name']}"
    identity = Identity(name, config.node_name, worker.record.sandbox.ips[0], container.name, container.image)
    if not answer.ends:
        await worker.node.standins.start(record.id, worker.record.sandbox.netns, answer.ports, identity)
    listening = ", ".join(f"{port}/{protocol}" for protocol, port in answer.ports) or "nothing"
    text = "ends with success at once" if answer.ends else f"listens on {listening}"
    _log_line(worker, record, f"podwire: a stand-in for {container.image} {text}", now)
    worker.event("Normal", "Started", f"Started container {container.name}", container.name)
    record.started_at, record.message = now, ""
    if answer.ends:
        record.state, record.ended = ENDED, Ended(0, "Completed", now, now, id=record.id)
        return
    record.state = RUNNING
    worker.begun(container.name, Running(None))


def _log_line(worker: PodWorker, record: Record, line: str, now: float) -> None:
    path = worker.files.log(record.name, record.attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    log = CriLog(str(path))
    log.feed("stdout", line.encode() + b"\n", now)
    log.close(now)
    parts.forget(worker.files, record.name, record.attempt - 2)


def _program_spec(worker: PodWorker, container: Container, answer: Program | StandIn) -> runtime.Spec:
    """Also for a stand-in, which needs none: what its spec refers to must be there all the same. Raises ConfigError."""
    program = answer if isinstance(answer, Program) else Program([])
    vols = worker.volumes or volumes.Volumes({}, [])
    return parts.container_spec(worker.node, worker.files, worker.record, worker.spec, container, program, vols)


async def _run_program(worker: PodWorker, container: Container, record: Record, spec: runtime.Spec) -> None:
    from podwire_nodeagent.kubelet.worker import Running

    node = worker.node
    record.standin = False
    spec.cgroups = node.cgroups.create(worker.record.uid, container.name, container.resources)
    if container.resources is not None and container.resources.limits and not node.cgroups.kind:
        _say_once(worker, "limits", "LimitsNotEnforced", NO_LIMITS)
    directory = parts.prepare_directory(worker.files, container, record, spec)
    held = await runtime.start(node.config.python, spec, directory)
    if "/usr" in held.plain and "/etc" in held.plain:
        _say_once(worker, "overlay", "ReadOnlyRoot", NO_OVERLAY)
    record.state, record.started_at, record.message = RUNNING, time.time(), ""
    worker.begun(container.name, Running(held, spec, spec.cgroups))
    worker.event("Normal", "Started", f"Started container {container.name}", container.name)


def _say_once(worker: PodWorker, key: str, reason: str, message: str) -> None:
    if key not in worker.node.said:
        worker.node.said.add(key)
        worker.event("Warning", reason, message)


async def _after_start(worker: PodWorker, container: Container, record: Record) -> None:
    """postStart, then what needs no probe is so at once."""
    hook = container.lifecycle.post_start if container.lifecycle is not None else None
    if hook is not None:
        failure = await hooks.run(worker, container.name, hook)
        if failure:
            worker.event("Warning", "FailedPostStartHook", failure, container.name)
            await worker.stop(container.name, "FailedPostStartHook")
            return
    if record.state == RUNNING and container.startup_probe is None:
        record.started = True
        record.ready = container.readiness_probe is None


# --- failures --------------------------------


def _cannot_pull(worker: PodWorker, record: Record, image: str, message: str) -> None:
    """As for an image that is in no registry: ErrImagePull, then ImagePullBackOff."""
    record.image_tries += 1
    delay = min(plan.BACKOFF_FIRST * 2 ** (record.image_tries - 1), plan.BACKOFF_MOST)
    worker.not_before[record.name] = time.time() + delay
    record.state = WAITING
    if record.image_tries == 1:
        record.reason, record.message = "ErrImagePull", message
        worker.event("Warning", "Failed", f'Failed to pull image "{image}": {message}', record.name)
        worker.event("Warning", "Failed", "Error: ErrImagePull", record.name)
    else:
        record.reason, record.message = "ImagePullBackOff", f'Back-off pulling image "{image}": {message}'
        worker.event("Normal", "BackOff", f'Back-off pulling image "{image}"', record.name)


def _misconfigured(worker: PodWorker, record: Record, message: str) -> None:
    """Something the container refers to is missing; it may come."""
    worker.not_before[record.name] = time.time() + CONFIG_RETRY
    record.state = WAITING
    if message.startswith("MountVolume"):
        record.reason = "ContainerCreating" if record.kind == INIT or not worker.spec.init_containers else "PodInitializing"
        worker.event("Warning", "FailedMount", message)
        return
    record.reason, record.message = "CreateContainerConfigError", message
    worker.event("Warning", "Failed", f"Error: {message}", record.name)


def _not_started(worker: PodWorker, record: Record, message: str, code: int) -> None:
    """The program is not there, or its world could not be made: an ended run, restarted with back-off."""
    now = time.time()
    record.started_at = now
    shutil.rmtree(worker.files.container(record.name, record.attempt) / "root", ignore_errors=True)
    text = f"failed to create containerd task: failed to start container: {message}"
    record.state, record.ended = ENDED, Ended(code, "StartError", now, now, text, record.id)
    worker.event("Warning", "Failed", f"Error: {text}", record.name)


# --- termination messages --------------------------------


def termination_message(worker: PodWorker, name: str, code: int) -> str:
    """What the program wrote to its termination log, or (if it is asked for and the program failed) its last output."""
    record, container = worker.record.containers[name], worker.containers[name]
    path = worker.files.container(name, record.attempt) / "termination-log"
    text = path.read_bytes()[:MESSAGE_LIMIT].decode(errors="replace") if path.exists() else ""
    raw = next((c for c in _raw_containers(worker) if c.get("name") == container.name), {})
    if not text and code != 0 and raw.get("terminationMessagePolicy") == "FallbackToLogsOnError":
        log = worker.files.log(name, record.attempt)
        lines = log.read_bytes()[-MESSAGE_LIMIT:].splitlines() if log.exists() else []
        text = "".join(f"{line.split(b' ', 3)[-1].decode(errors='replace')}\n" for line in lines[-80:])[-2048:]
    return text


def _raw_containers(worker: PodWorker) -> list[dict[str, object]]:
    spec = worker.record.pod.get("spec") or {}
    return [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
