"""CronJob: a Job each time its schedule comes round.

Rules it keeps (pkg/controller/cronjob, cronjob_controllerv2.go): of the times missed since the last Job (or since the
CronJob was made) only the latest is made up for, and not if startingDeadlineSeconds have passed; a time never gives two Jobs,
for the Job's name is made of it; concurrencyPolicy Forbid waits for the running Job, Replace deletes it; finished Jobs beyond
the history limits go, oldest first.

Order to read: reconcile, the Jobs there are, what is due, starting one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from podwire_apiserver import cron
from podwire_core.objects import Json, key_of

from .actions import Again, AnyAction, Create, Delete
from .common import (
    controller_ref,
    created,
    deleting,
    event,
    owner_key,
    owner_reference,
    seconds,
    status_update,
    timestamp,
    uid_of,
)
from .job import end_of
from .view import Change, View, namespace_of

NAME = "cronjob-controller"
SCHEDULED_AT = "batch.kubernetes.io/cronjob-scheduled-timestamp"
MANY_MISSED = 100
SLACK = 0.1  # seconds after the time itself, as upstream: never a moment too early


class CronJobController:
    name = NAME
    kinds = ("CronJob", "Job")

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        if change.kind == "CronJob":
            return [change.key] if change.new else ()
        return sorted({key for job in change.both() if (key := owner_key(job, "CronJob"))})

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        owner = view.get("CronJob", key)
        if owner is None or deleting(owner):
            return ()
        jobs = [job for job in view.owned("Job", uid_of(owner)) if (controller_ref(job) or {}).get("uid") == uid_of(owner)]
        running, status, actions = _take_stock(owner, jobs)
        actions += _trim(owner, jobs)
        if not owner["spec"].get("suspend"):
            actions += _start_due(view, owner, running, status, now)
        status["active"] = [_reference(job) for job in running if not deleting(job)]
        if not status["active"]:
            del status["active"]
        return [*actions, *status_update(owner, status)]


# --- the Jobs there are --------------------------------


def _take_stock(owner: Json, jobs: list[Json]) -> tuple[list[Json], Json, list[AnyAction]]:
    """Running Jobs, the status to change further, and Events about those that ended since the status was written."""
    status = copy.deepcopy(owner.get("status") or {})
    was_active = {reference.get("uid") for reference in status.get("active") or ()}
    running, actions = [], list[AnyAction]()
    for job in sorted(jobs, key=created):
        end = end_of(job)
        if end is None:
            running.append(job)
            continue
        finished_at = (job.get("status") or {}).get("completionTime")
        if finished_at and seconds(finished_at) > seconds(status.get("lastSuccessfulTime")):
            status["lastSuccessfulTime"] = finished_at
        if uid_of(job) in was_active:
            text = f"Saw completed job: {job['metadata']['name']}, condition: {end['type']}"
            actions.append(event(owner, "Normal", "SawCompletedJob", text, NAME))
    return running, status, actions


def _trim(owner: Json, jobs: list[Json]) -> list[AnyAction]:
    actions: list[AnyAction] = []
    ended = [(job, end) for job in jobs if not deleting(job) and (end := end_of(job)) is not None]
    for condition, field, default in (("Complete", "successfulJobsHistoryLimit", 3), ("Failed", "failedJobsHistoryLimit", 1)):
        limit = owner["spec"].get(field, default)
        kind = sorted((job for job, end in ended if end["type"] == condition), key=_started)
        for job in kind[: max(0, len(kind) - limit)]:
            actions += _delete(owner, job)
    return actions


def _started(job: Json) -> tuple[float, str]:
    return seconds((job.get("status") or {}).get("startTime")) or created(job), job["metadata"]["name"]


def _delete(owner: Json, job: Json) -> list[AnyAction]:
    note = event(owner, "Normal", "SuccessfulDelete", f"Deleted job {job['metadata']['name']}", NAME)
    return [Delete("Job", key_of(job), uid_of(job)), note]


# --- what is due --------------------------------


def _start_due(view: View, owner: Json, running: list[Json], status: Json, now: float) -> list[AnyAction]:
    """Starts the Job that is due, if one is, and sets the alarm for the next. Changes `running` and `status`."""
    spec = owner["spec"]
    try:
        schedule = cron.parse(spec["schedule"], spec.get("timeZone") or "")
    except ValueError as error:  # validated when it was stored, but zones come from the machine
        return [event(owner, "Warning", "UnparseableSchedule", f"unparseable schedule: {error}", NAME)]
    since = seconds(status.get("lastScheduleTime")) or created(owner)
    deadline = spec.get("startingDeadlineSeconds")
    if deadline is not None:
        since = max(since, now - deadline)
    actions: list[AnyAction] = []
    due = schedule.latest(since, now)
    if due is not None:
        if _missed_many(schedule, since, now):
            text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew"
            actions.append(event(owner, "Warning", "TooManyMissedTimes", text, NAME))
        actions += _start(view, owner, running, status, due)
    after = schedule.next(now)
    return actions if after is None else [*actions, Again(after + SLACK)]


def _missed_many(schedule: cron.Calendar | cron.Every, since: float, now: float) -> bool:
    for _ in range(MANY_MISSED + 1):
        following = schedule.next(since)
        if following is None or following > now:
            return False
        since = following
    return True


# --- starting a Job --------------------------------


def _start(view: View, owner: Json, running: list[Json], status: Json, due: float) -> list[AnyAction]:
    policy = owner["spec"].get("concurrencyPolicy") or "Allow"
    job = job_of(owner, due)
    there = view.get("Job", key_of(job))
    if there is not None:  # made by an earlier turn that could not write the status
        status["lastScheduleTime"] = timestamp(due)
        return []
    if policy == "Forbid" and running:
        text = "Not starting job because prior execution is running and concurrency policy is Forbid"
        return [event(owner, "Normal", "JobAlreadyActive", text, NAME)]
    actions: list[AnyAction] = []
    if policy == "Replace":
        for each in running:
            actions += _delete(owner, each)
        running.clear()
    status["lastScheduleTime"] = timestamp(due)
    note = event(owner, "Normal", "SuccessfulCreate", f"Created job {job['metadata']['name']}", NAME)
    return [*actions, Create(job), note]  # it is `active` from the next turn on, when it has a uid


def job_of(owner: Json, due: float) -> Json:
    """The Job for that time. Its name ends in the time in minutes: one time, one name."""
    template = owner["spec"].get("jobTemplate") or {}
    given = template.get("metadata") or {}
    at = datetime.fromtimestamp(due, cron.zone_of(zone) if (zone := owner["spec"].get("timeZone")) else UTC)
    notes = {**(given.get("annotations") or {}), SCHEDULED_AT: at.isoformat().replace("+00:00", "Z")}
    metadata = {
        "name": f"{owner['metadata']['name']}-{int(due // 60)}",
        "namespace": namespace_of(owner),
        "labels": dict(given.get("labels") or {}),
        "annotations": notes,
        "ownerReferences": [owner_reference(owner)],
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": copy.deepcopy(template.get("spec") or {})}


def _reference(job: Json) -> Json:
    meta = job["metadata"]
    fields = ("name", "namespace", "uid", "resourceVersion")
    return {"apiVersion": job["apiVersion"], "kind": "Job"} | {field: meta[field] for field in fields if field in meta}
