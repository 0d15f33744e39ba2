"""Deployment: a ReplicaSet for each template it has had, and the moving of replicas from old ones to the new one.

Rules it keeps (pkg/controller/deployment): never more than replicas + maxSurge pods, never fewer available than
replicas - maxUnavailable; the arithmetic of a rollout is in rollout.py. Its revision is an annotation of the ReplicaSets, the
highest that of the template in force; old ReplicaSets beyond revisionHistoryLimit go when the rollout is complete.

Order to read: reconcile, family (which ReplicaSets), the new ReplicaSet, history, the status.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from podwire_core.objects import Json, key_of
from podwire_core.selectors import matches

from . import rollout
from .actions import Again, AnyAction, Create, Delete, Patch, Update
from .common import (
    age_order,
    controller_ref,
    deleting,
    event,
    finished,
    owner_key,
    owner_reference,
    seconds,
    short_hash,
    status_update,
    timestamp,
    uid_of,
    with_condition,
)
from .rollout import replicas_of
from .view import Change, View, labels_of, namespace_of

HASH = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
NOT_COPIED = {
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    "deployment.kubernetes.io/revision-history",
    rollout.DESIRED,
    rollout.MAXIMUM,
    "deprecated.deployment.rollback.to",
}
NAME = "deployment-controller"


class Family(Struct, frozen=True):
    """The ReplicaSets of a Deployment: the one with its template (None: not made yet) and the others, oldest first."""

    new: Json | None
    old: list[Json]

    @property
    def all(self) -> list[Json]:
        return [*self.old, *([self.new] if self.new else [])]


class DeploymentController:
    name = NAME
    kinds = ("Deployment", "ReplicaSet", "Pod")

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        if change.kind == "Deployment":
            return [change.key] if change.new else ()
        if change.kind == "Pod":
            return _recreating(view, change)
        woken = {key for each in change.both() if (key := owner_key(each, "Deployment"))}
        if change.new is not None and controller_ref(change.new) is None:
            woken |= {key_of(owner) for owner in view.in_namespace("Deployment", namespace_of(change.new))}
        return sorted(woken)

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        deployment = view.get("Deployment", key)
        if deployment is None:
            return ()
        sets, actions = claim_sets(view, deployment)
        family = family_of(deployment, sets)
        if not deleting(deployment):
            writes = self._sync(view, deployment, family)
            actions += writes
            if not writes:
                actions += trim_history(deployment, family)
        status = deployment_status(deployment, family, now)
        actions += status_update(deployment, status)
        return [*actions, *_deadline(deployment, status, now)]

    def _sync(self, view: View, deployment: Json, family: Family) -> list[AnyAction]:
        spec = deployment["spec"]
        if spec.get("paused"):
            return _scaled(deployment, rollout.proportional(deployment, family.new, family.old), family.all)
        if family.new is None:
            if rollout.is_recreate(deployment) and (any(replicas_of(each) for each in family.old) or _has_pods(view, family.old)):
                return _scaled(deployment, {key_of(each): 0 for each in family.old}, family.old)
            return self._make_new(view, deployment, family)
        renewed = _renew(deployment, family)
        if renewed:
            return renewed
        if rollout.was_scaled(deployment, family.all):
            return _scaled(deployment, rollout.proportional(deployment, family.new, family.old), family.all)
        if rollout.is_recreate(deployment):
            return _scaled(deployment, self._recreate(view, deployment, family), family.all)
        return _scaled(deployment, rollout.rolling(deployment, family.new, family.old), family.all)

    def _recreate(self, view: View, deployment: Json, family: Family) -> dict[str, int]:
        old = {key_of(each): 0 for each in family.old if replicas_of(each)}
        if old or _has_pods(view, family.old) or family.new is None:
            return old
        return {key_of(family.new): rollout.desired(deployment)}

    def _make_new(self, view: View, deployment: Json, family: Family) -> list[AnyAction]:
        collisions = (deployment.get("status") or {}).get("collisionCount") or 0
        template = deployment["spec"].get("template") or {}
        digest = short_hash(template, *([collisions] if collisions else ()))
        made = new_set(deployment, family, digest)
        if view.get("ReplicaSet", key_of(made)) is not None:  # another template (or owner) has that name
            status = {**(deployment.get("status") or {}), "collisionCount": collisions + 1}
            return status_update(deployment, status)
        name, count = made["metadata"]["name"], made["spec"]["replicas"]
        return [Create(made), _scale_event(deployment, name, 0, count)]


# --- which ReplicaSets are ours --------------------------------


def claim_sets(view: View, deployment: Json) -> tuple[list[Json], list[AnyAction]]:
    """As `replicaset.claim_pods`, of ReplicaSets."""
    selector, uid = deployment["spec"].get("selector"), uid_of(deployment)
    actions: list[AnyAction] = []
    mine = [each for each in view.owned("ReplicaSet", uid) if (controller_ref(each) or {}).get("uid") == uid]
    if deleting(deployment):
        return mine, actions
    for each in view.in_namespace("ReplicaSet", namespace_of(deployment)):
        if controller_ref(each) is None and matches(selector, labels_of(each)) and not deleting(each):
            owners = [*(each["metadata"].get("ownerReferences") or ()), owner_reference(deployment)]
            actions.append(Patch("ReplicaSet", key_of(each), {"metadata": {"ownerReferences": owners}}, uid=uid_of(each)))
            mine.append(each)
    return mine, actions


def family_of(deployment: Json, sets: list[Json]) -> Family:
    template = _bare(deployment["spec"].get("template") or {})
    ordered = sorted(sets, key=age_order)
    new = next((each for each in ordered if _bare(each["spec"].get("template") or {}) == template), None)
    return Family(new, [each for each in ordered if each is not new])


def _bare(template: Json) -> Json:
    """The template without the label that the controller adds."""
    metadata = template.get("metadata") or {}
    labels = {key: value for key, value in (metadata.get("labels") or {}).items() if key != HASH}
    rest = {key: value for key, value in metadata.items() if value and key not in ("labels", "creationTimestamp")}
    return {**template, "metadata": {**rest, "labels": labels}}


def _recreating(view: View, change: Change) -> Iterable[str]:
    """Recreate waits for the end of old pods, which no ReplicaSet's status tells."""
    if change.new is not None and not finished(change.new):
        return ()
    set_key = owner_key(change.either, "ReplicaSet")
    owner = view.get("ReplicaSet", set_key) if set_key else None
    key = owner_key(owner, "Deployment") if owner else None
    deployment = view.get("Deployment", key) if key else None
    return [key] if key and deployment and rollout.is_recreate(deployment) else ()


def _has_pods(view: View, sets: list[Json]) -> bool:
    return any(not finished(pod) for each in sets for pod in view.owned("Pod", uid_of(each)))


# --- writing ReplicaSets --------------------------------


def revision_of(obj: Json) -> int:
    try:
        return int((obj["metadata"].get("annotations") or {}).get(REVISION) or 0)
    except ValueError:
        return 0


def _annotations(deployment: Json, revision: int) -> dict[str, str]:
    given = deployment["metadata"].get("annotations") or {}
    copied = {key: value for key, value in given.items() if key not in NOT_COPIED}
    return copied | {REVISION: str(revision)} | rollout.size_notes(deployment)


def new_set(deployment: Json, family: Family, digest: str) -> Json:
    spec = deployment["spec"]
    template = spec.get("template") or {}
    metadata = template.get("metadata") or {}
    labels = {**(metadata.get("labels") or {}), HASH: digest}
    selector = spec.get("selector") or {}
    revision = max(map(revision_of, family.old), default=0) + 1
    made: Json = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": f"{deployment['metadata']['name']}-{digest}",
            "namespace": namespace_of(deployment),
            "labels": labels,
            "annotations": _annotations(deployment, revision),
            "ownerReferences": [owner_reference(deployment)],
        },
        "spec": {
            "replicas": rollout.first_replicas(deployment, family.old),
            "selector": {**selector, "matchLabels": {**(selector.get("matchLabels") or {}), HASH: digest}},
            "template": {**template, "metadata": {**metadata, "labels": labels}},
        },
    }
    if spec.get("minReadySeconds"):
        made["spec"]["minReadySeconds"] = spec["minReadySeconds"]
    return made


def _renew(deployment: Json, family: Family) -> list[AnyAction]:
    """Keeps the new ReplicaSet's revision the highest, and its annotations and minReadySeconds those of the Deployment."""
    new = family.new
    assert new is not None, "asked only with a new ReplicaSet"
    revision = max(revision_of(new), max(map(revision_of, family.old), default=0) + 1)
    actions: list[AnyAction] = []
    have = new["metadata"].get("annotations") or {}
    wanted = {**have, **_annotations(deployment, revision)}
    wanted |= {key: have[key] for key in (rollout.DESIRED, rollout.MAXIMUM) if key in have}  # these move with scaling
    min_ready = deployment["spec"].get("minReadySeconds") or 0
    if wanted != have or (new["spec"].get("minReadySeconds") or 0) != min_ready:
        changed = {**new, "metadata": {**new["metadata"], "annotations": wanted}}
        actions.append(Update({**changed, "spec": {**new["spec"], "minReadySeconds": min_ready}}))
    if revision_of(deployment) != revision:
        patch = {"metadata": {"annotations": {REVISION: str(revision)}}}
        actions.append(Patch("Deployment", key_of(deployment), patch, uid=uid_of(deployment)))
    return actions


def _scaled(deployment: Json, wanted: dict[str, int], sets: list[Json]) -> list[AnyAction]:
    """The writes that give these ReplicaSets these sizes, and the annotations which tell a rollout from a scaling."""
    actions: list[AnyAction] = []
    for each in sets:
        before, after = replicas_of(each), wanted.get(key_of(each), replicas_of(each))
        have = each["metadata"].get("annotations") or {}
        notes = {**have, **rollout.size_notes(deployment)}
        if before == after and (have == notes or (not after and key_of(each) not in wanted)):
            continue
        metadata = {**each["metadata"], "annotations": notes}
        actions.append(Update({**each, "metadata": metadata, "spec": {**each["spec"], "replicas": after}}))
        if before != after:
            actions.append(_scale_event(deployment, each["metadata"]["name"], before, after))
    return actions


def _scale_event(deployment: Json, name: str, before: int, after: int) -> AnyAction:
    way = "up" if after >= before else "down"
    note = f"Scaled {way} replica set {name} from {before} to {after}"
    return event(deployment, "Normal", "ScalingReplicaSet", note, NAME)


def trim_history(deployment: Json, family: Family) -> list[AnyAction]:
    limit = deployment["spec"].get("revisionHistoryLimit", 10)
    if not rollout.complete(deployment, family.new, family.old):
        return []
    idle = [each for each in family.old if not replicas_of(each) and not (each.get("status") or {}).get("replicas")]
    idle = sorted((each for each in idle if not deleting(each)), key=revision_of)
    return [Delete("ReplicaSet", key_of(each), uid_of(each)) for each in idle[: max(0, len(idle) - limit)]]


# --- the status --------------------------------


def deployment_status(deployment: Json, family: Family, now: float) -> Json:
    def total(sets: Iterable[Json], field: str) -> int:
        return sum((each.get("status") or {}).get(field) or 0 for each in sets)

    counts = {
        "replicas": total(family.all, "replicas"),
        "updatedReplicas": total([family.new] if family.new else [], "replicas"),
        "readyReplicas": total(family.all, "readyReplicas"),
        "availableReplicas": total(family.all, "availableReplicas"),
    }
    counts["unavailableReplicas"] = max(0, sum(map(replicas_of, family.all)) - counts["availableReplicas"])
    old = deployment.get("status") or {}
    status: Json = {key: value for key, value in old.items() if key not in counts}
    status |= {key: count for key, count in counts.items() if count}
    status["observedGeneration"] = deployment["metadata"].get("generation") or 0
    enough = counts["availableReplicas"] >= rollout.desired(deployment) - rollout.max_unavailable(deployment)
    reason = "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable"
    text = "Deployment has minimum availability." if enough else "Deployment does not have minimum availability."
    more = {"lastUpdateTime": timestamp(now)}
    conditions = with_condition(old.get("conditions"), "Available", str(enough), reason, text, now, **more)
    status["conditions"] = _progressing(deployment, family, counts, conditions, now)
    return status


def _progressing(deployment: Json, family: Family, counts: dict[str, int], conditions: list[Json], now: float) -> list[Json]:
    more = {"lastUpdateTime": timestamp(now)}
    name = family.new["metadata"]["name"] if family.new else ""
    old = deployment.get("status") or {}
    last = next((each for each in conditions if each["type"] == "Progressing"), None)
    if deployment["spec"].get("paused"):
        return with_condition(conditions, "Progressing", "Unknown", "DeploymentPaused", "Deployment is paused", now, **more)
    if rollout.complete(deployment, family.new, family.old):
        text = f'ReplicaSet "{name}" has successfully progressed.'
        return with_condition(conditions, "Progressing", "True", "NewReplicaSetAvailable", text, now, **more)
    moved = any((old.get(field) or 0) < counts[field] for field in ("updatedReplicas", "readyReplicas", "availableReplicas"))
    if last is None or moved or last.get("reason") in ("DeploymentPaused", "NewReplicaSetAvailable"):
        others = [each for each in conditions if each["type"] != "Progressing"] if moved else conditions
        text = f'ReplicaSet "{name}" is progressing.'
        return with_condition(others, "Progressing", "True", "ReplicaSetUpdated", text, now, **more)
    deadline = deployment["spec"].get("progressDeadlineSeconds") or 600
    if seconds(last.get("lastUpdateTime")) + deadline <= now:
        text = f'ReplicaSet "{name}" has timed out progressing.'
        return with_condition(conditions, "Progressing", "False", "ProgressDeadlineExceeded", text, now, **more)
    return conditions


def _deadline(deployment: Json, status: Json, now: float) -> list[AnyAction]:
    last = next((each for each in status["conditions"] if each["type"] == "Progressing"), None)
    if last is None or last.get("reason") != "ReplicaSetUpdated":
        return []
    deadline = seconds(last.get("lastUpdateTime")) + (deployment["spec"].get("progressDeadlineSeconds") or 600)
    return [Again(deadline)] if deadline > now else []
