"""Job: pods that run to completion.

Rules it keeps (pkg/controller/job): `parallelism` pods at a time until `completions` have succeeded (without completions:
until one has, and the others end); after a failure the next pod waits 10 s, 20 s, … up to 6 min; more than backoffLimit
failures, or activeDeadlineSeconds, end the Job and its pods; ttlSecondsAfterFinished deletes it. Completion mode Indexed
gives pods an index.

Order to read: reconcile, Run (what is there, what comes next), the status.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

from podwire_core.objects import Json, key_of

from .actions import Again, AnyAction, Create, Delete
from .common import (
    condition_of,
    controller_ref,
    created,
    deleting,
    event,
    finished,
    fresh_name,
    owner_key,
    phase_of,
    pod_from_template,
    ready,
    seconds,
    status_update,
    timestamp,
    uid_of,
    with_condition,
)
from .view import Change, View, namespace_of

NAME = "job-controller"
INDEX = "batch.kubernetes.io/job-completion-index"
BACKOFF, BACKOFF_LIMIT = 10.0, 360.0


class JobController:
    name = NAME
    kinds = ("Job", "Pod")

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        if change.kind == "Job":
            return [change.key] if change.new else ()
        return sorted({key for pod in change.both() if (key := owner_key(pod, "Job"))})

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        job = view.get("Job", key)
        if job is None or deleting(job):
            return ()
        if (end := end_of(job)) is not None:
            return self._expire(job, end, now)
        run = Run(view, job, now)
        verdict = run.verdict()
        steps = run.stop() if verdict else run.steps()
        return [*steps, *status_update(job, run.status(verdict)), *run.verdict_event(verdict), *run.alarms()]

    def _expire(self, job: Json, end: Json, now: float) -> list[AnyAction]:
        after = job["spec"].get("ttlSecondsAfterFinished")
        if after is None:
            return []
        at = seconds((job.get("status") or {}).get("completionTime") or end.get("lastTransitionTime")) + after
        return [Delete("Job", key_of(job), uid_of(job))] if at <= now else [Again(at)]


def end_of(job: Json) -> Json | None:
    """The condition that says it has ended."""
    conditions = [condition_of(job, "Complete"), condition_of(job, "Failed")]
    return next((each for each in conditions if each and each.get("status") == "True"), None)


class Run:
    """One reconcile of one Job that has not ended."""

    def __init__(self, view: View, job: Json, now: float) -> None:
        self.view, self.job, self.now, self.spec = view, job, now, job["spec"]
        uid = uid_of(job)
        self.pods = [pod for pod in view.owned("Pod", uid) if (controller_ref(pod) or {}).get("uid") == uid]
        self.live = [pod for pod in self.pods if not finished(pod) and not deleting(pod)]
        self.succeeded = [pod for pod in self.pods if phase_of(pod) == "Succeeded"]
        self.failed = [pod for pod in self.pods if phase_of(pod) == "Failed"]
        self.completions: int | None = self.spec.get("completions")
        self.parallelism = self.spec.get("parallelism", 1)
        self.indexed = self.spec.get("completionMode") == "Indexed"
        self.started = seconds((job.get("status") or {}).get("startTime")) or now

    def verdict(self) -> tuple[str, str, str] | None:
        """(condition, reason, message) if the Job ends now."""
        deadline = self.spec.get("activeDeadlineSeconds")
        if deadline is not None and self.started + deadline <= self.now:
            return "Failed", "DeadlineExceeded", "Job was active longer than specified deadline"
        restarts = sum(_restarts(pod) for pod in self.live)
        if len(self.failed) + restarts > self.spec.get("backoffLimit", 6):
            return "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        all_done = bool(self.succeeded) and not self.live
        done = all_done if self.completions is None else self._done() >= self.completions
        return ("Complete", "CompletionsReached", "Reached expected number of succeeded pods") if done else None

    def verdict_event(self, verdict: tuple[str, str, str] | None) -> list[AnyAction]:
        if verdict is None:
            return []
        condition, reason, message = verdict
        if condition == "Complete":
            return [event(self.job, "Normal", "Completed", "Job completed", NAME)]
        return [event(self.job, "Warning", reason, message, NAME)]

    def _done(self) -> int:
        return len({index_of(pod) for pod in self.succeeded}) if self.indexed else len(self.succeeded)

    def stop(self) -> list[AnyAction]:
        return [Delete("Pod", key_of(pod), uid_of(pod)) for pod in self.live]

    def steps(self) -> list[AnyAction]:
        if self.spec.get("suspend"):
            return self.stop()
        if self.completions is None:
            wanted = len(self.live) if self.succeeded else self.parallelism
        else:
            wanted = min(self.parallelism, self.completions - self._done())
        if len(self.live) > wanted:
            youngest = sorted(self.live, key=lambda pod: (ready(pod), -created(pod), key_of(pod)))
            return [Delete("Pod", key_of(pod), uid_of(pod)) for pod in youngest[: len(self.live) - wanted]]
        if len(self.live) == wanted or self._resume_at() > self.now:
            return []
        return [each for number in self._numbers(wanted - len(self.live)) for each in self._make(number)]

    def _numbers(self, count: int) -> list[int]:
        if not self.indexed or self.completions is None:
            return list(range(count))
        taken = {index_of(pod) for pod in (*self.live, *self.succeeded)}
        return [number for number in range(self.completions) if number not in taken][:count]

    def _resume_at(self) -> float:
        """When the next pod may be made: the time of the last failure and the wait that the number of failures asks for."""
        if not self.failed:
            return 0.0
        wait: float = min(BACKOFF * 2 ** min(len(self.failed) - 1, 10), BACKOFF_LIMIT)
        return max(map(_ended_at, self.failed)) + wait

    def _make(self, number: int) -> list[AnyAction]:
        job, meta = self.job, self.job["metadata"]
        prefix = f"{meta['name']}-{number}-" if self.indexed else f"{meta['name']}-"
        name = fresh_name(self.view, "Pod", namespace_of(job), prefix, uid_of(job), self.now, number)
        pod = pod_from_template(self.spec.get("template") or {}, job, name)
        for key, value in (("controller-uid", uid_of(job)), ("job-name", meta["name"])):
            pod["metadata"]["labels"] |= {key: value, f"batch.kubernetes.io/{key}": value}
        if self.indexed:
            pod = _with_index(pod, number, meta["name"])
        return [Create(pod), event(job, "Normal", "SuccessfulCreate", f"Created pod: {name}", NAME)]

    def alarms(self) -> list[AnyAction]:
        deadline = self.spec.get("activeDeadlineSeconds")
        times = [self._resume_at(), *([self.started + deadline] if deadline is not None else [])]
        return [Again(time) for time in times if time > self.now]

    def status(self, verdict: tuple[str, str, str] | None) -> Json:
        counts = {
            "active": 0 if verdict else len(self.live),
            "ready": 0 if verdict else sum(map(ready, self.live)),
            "succeeded": len(self.succeeded),
            "failed": len(self.failed),
        }
        old = self.job.get("status") or {}
        status: Json = {key: value for key, value in old.items() if key not in counts}
        status |= {key: count for key, count in counts.items() if count}
        if not self.spec.get("suspend"):
            status.setdefault("startTime", timestamp(self.now))
        if verdict:
            condition, reason, message = verdict
            status["conditions"] = with_condition(old.get("conditions"), condition, "True", reason, message, self.now)
            if condition == "Complete":
                status["completionTime"] = timestamp(self.now)
        return status


def index_of(pod: Json) -> int:
    with contextlib.suppress(ValueError):
        return int((pod["metadata"].get("annotations") or {}).get(INDEX, -1))
    return -1


def _with_index(pod: Json, number: int, job_name: str) -> Json:
    """The index as annotation, label, host name and environment variable."""
    metadata = {**pod["metadata"], "annotations": {**pod["metadata"].get("annotations", {}), INDEX: str(number)}}
    metadata["labels"] = {**metadata["labels"], INDEX: str(number)}
    variable = {"name": "JOB_COMPLETION_INDEX", "value": str(number)}
    containers = [{**each, "env": [*(each.get("env") or ()), variable]} for each in pod["spec"].get("containers") or ()]
    spec = {**pod["spec"], "hostname": f"{job_name}-{number}", "containers": containers}
    return {**pod, "metadata": metadata, "spec": spec}


def _restarts(pod: Json) -> int:
    """Restarts in place count as failures, too (restartPolicy OnFailure)."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return sum(status.get("restartCount") or 0 for status in statuses)


def _ended_at(pod: Json) -> float:
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    ends = [seconds(((status.get("state") or {}).get("terminated") or {}).get("finishedAt")) for status in statuses]
    return max([*ends, created(pod)])
