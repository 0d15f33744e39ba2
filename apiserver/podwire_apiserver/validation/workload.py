"""Workloads: the selector, the template it must match, and how it is rolled out."""

from __future__ import annotations

from podwire_apiserver import cron
from podwire_apiserver.validation.pod import check_pod_spec
from podwire_apiserver.validation.syntax import Problems, check_label_selector, check_labels, number_or_percent, quoted
from podwire_core import selectors
from podwire_core.objects import Json

EVICTION = ("AlwaysAllow", "IfHealthyBudget")
CRON_JOB_NAME = 52  # characters: its Jobs' names are longer by 11, and theirs end up in labels


def _check_template(found: Problems, path: str, template: Json, restart: tuple[str, ...]) -> None:
    check_labels(found, f"{path}.metadata.labels", template["metadata"].get("labels"))
    spec = template["spec"]
    check_pod_spec(found, f"{path}.spec", spec)
    if spec["restartPolicy"] not in restart:
        found.add(f"{path}.spec.restartPolicy", f"{quoted(spec['restartPolicy'])}: here it is {' or '.join(restart)}")


def _check_selector(found: Problems, spec: Json) -> None:
    selector = spec.get("selector")
    if selector is None:
        found.add("$.spec.selector", "missing")
        return
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        other = [key for key in selector if key not in ("matchLabels", "matchExpressions")]
        hint = f"; {other[0]} belongs under matchLabels" if other else ""
        found.add("$.spec.selector", f"empty; it would select every pod{hint}")
        return
    before = len(found.causes)
    check_label_selector(found, "$.spec.selector", selector)
    labels = spec["template"]["metadata"].get("labels")
    if len(found.causes) == before and not selectors.matches(selector, labels):
        found.add("$.spec.template.metadata.labels", f"{_text(labels)} is not what $.spec.selector selects")


def _text(labels: Json | None) -> str:
    return quoted(",".join(f"{key}={value}" for key, value in (labels or {}).items()))


def _check_scale(found: Problems, spec: Json) -> None:
    for field in ("replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"):
        found.at_least(f"$.spec.{field}", spec.get(field), 0)


def _check_rollout(found: Problems, path: str, strategy: Json, types: tuple[str, ...]) -> None:
    found.one_of(f"{path}.type", strategy.get("type"), types)
    rolling = strategy.get("rollingUpdate") or {}
    if strategy.get("type") != "RollingUpdate" and rolling:
        found.add(f"{path}.rollingUpdate", f"may not be set for type {strategy.get('type')}")
    before = len(found.causes)
    for field in ("maxSurge", "maxUnavailable"):
        found.check(f"{path}.rollingUpdate.{field}", rolling.get(field, 0), number_or_percent)
    if (
        len(found.causes) == before
        and rolling
        and all(rolling.get(field) in (0, "0%") for field in ("maxSurge", "maxUnavailable"))
    ):
        found.add(f"{path}.rollingUpdate", "maxSurge and maxUnavailable can't both be 0")


def check_deployment(found: Problems, obj: Json) -> None:
    spec = obj["spec"]
    _check_selector(found, spec)
    _check_scale(found, spec)
    _check_rollout(found, "$.spec.strategy", spec["strategy"], ("RollingUpdate", "Recreate"))
    _check_template(found, "$.spec.template", spec["template"], ("Always",))


def check_replica_set(found: Problems, obj: Json) -> None:
    _check_selector(found, obj["spec"])
    _check_scale(found, obj["spec"])
    _check_template(found, "$.spec.template", obj["spec"]["template"], ("Always",))


def check_stateful_set(found: Problems, obj: Json) -> None:
    spec = obj["spec"]
    _check_selector(found, spec)
    _check_scale(found, spec)
    found.one_of("$.spec.podManagementPolicy", spec["podManagementPolicy"], ("OrderedReady", "Parallel"))
    strategy = spec["updateStrategy"]
    found.one_of("$.spec.updateStrategy.type", strategy.get("type"), ("RollingUpdate", "OnDelete"))
    found.at_least("$.spec.updateStrategy.rollingUpdate.partition", (strategy.get("rollingUpdate") or {}).get("partition"), 0)
    _check_template(found, "$.spec.template", spec["template"], ("Always",))


def check_daemon_set(found: Problems, obj: Json) -> None:
    spec = obj["spec"]
    _check_selector(found, spec)
    _check_scale(found, spec)
    _check_rollout(found, "$.spec.updateStrategy", spec["updateStrategy"], ("RollingUpdate", "OnDelete"))
    _check_template(found, "$.spec.template", spec["template"], ("Always",))


def check_replication_controller(found: Problems, obj: Json) -> None:
    spec = obj["spec"]
    selector, labels = spec.get("selector"), spec["template"]["metadata"].get("labels") or {}
    _check_scale(found, spec)
    _check_template(found, "$.spec.template", spec["template"], ("Always",))
    if not selector:
        found.add("$.spec.selector", "missing")
        return
    check_labels(found, "$.spec.selector", selector)
    if not selectors.matches_map(selector, labels):
        found.add("$.spec.template.metadata.labels", f"{_text(labels)} is not what $.spec.selector selects")


def _check_job_spec(found: Problems, path: str, spec: Json) -> None:
    for field in ("parallelism", "completions", "backoffLimit", "ttlSecondsAfterFinished"):
        found.at_least(f"{path}.{field}", spec.get(field), 0)
    found.at_least(f"{path}.activeDeadlineSeconds", spec.get("activeDeadlineSeconds"), 1)
    found.one_of(f"{path}.completionMode", spec["completionMode"], ("NonIndexed", "Indexed"))
    if spec["completionMode"] == "Indexed" and spec.get("completions") is None:
        found.add(f"{path}.completions", "missing; completionMode Indexed needs it")
    _check_template(found, f"{path}.template", spec["template"], ("OnFailure", "Never"))


def check_job(found: Problems, obj: Json) -> None:
    _check_job_spec(found, "$.spec", obj["spec"])
    if obj["spec"].get("manualSelector"):
        _check_selector(found, obj["spec"])


def check_cron_job(found: Problems, obj: Json) -> None:
    spec = obj["spec"]
    if len(obj["metadata"].get("name") or "") > CRON_JOB_NAME:
        found.add("$.metadata.name", f"must be no more than {CRON_JOB_NAME} characters")
    zone = spec.get("timeZone") or ""
    try:
        if zone:
            cron.zone_of(zone)
    except ValueError as error:
        found.add("$.spec.timeZone", str(error))
        zone = ""
    try:
        cron.parse(spec["schedule"], zone)
    except ValueError as error:
        found.add("$.spec.schedule", str(error))
    for field in ("startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"):
        found.at_least(f"$.spec.{field}", spec.get(field), 0)
    found.one_of("$.spec.concurrencyPolicy", spec["concurrencyPolicy"], ("Allow", "Forbid", "Replace"))
    _check_job_spec(found, "$.spec.jobTemplate.spec", spec["jobTemplate"]["spec"])


def check_disruption_budget(found: Problems, obj: Json) -> None:
    spec = obj.get("spec") or {}
    check_label_selector(found, "$.spec.selector", spec.get("selector"))
    given = [field for field in ("minAvailable", "maxUnavailable") if spec.get(field) is not None]
    if len(given) > 1:
        found.add("$.spec", "minAvailable and maxUnavailable can't both be given")
    for field in given:
        found.check(f"$.spec.{field}", spec[field], number_or_percent)
    found.one_of("$.spec.unhealthyPodEvictionPolicy", spec.get("unhealthyPodEvictionPolicy") or "AlwaysAllow", EVICTION)
