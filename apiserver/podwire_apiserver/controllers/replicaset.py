"""ReplicaSet and ReplicationController: as many pods as asked for.

Rules they keep (pkg/controller/replicaset): pods are adopted and released by selector; Succeeded and Failed pods do not
count; at most 500 pods are made or deleted at once; those are deleted first that are worth least (`deletion_rank`).

Order to read: ReplicaSetController, claims, deletion_rank, the status.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from podwire_core.objects import Json, key_of
from podwire_core.selectors import matches

from .actions import Again, AnyAction, Create, Delete, Patch
from .common import (
    active,
    available,
    controller_ref,
    created,
    deleting,
    event,
    fresh_name,
    next_available,
    owner_key,
    owner_reference,
    phase_of,
    pod_from_template,
    ready,
    ready_since,
    status_update,
    uid_of,
)
from .view import Change, View, labels_of, namespace_of

BURST = 500
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"


class ReplicaSetController:
    """`kind` is ReplicaSet or ReplicationController: they differ in the form of the selector alone."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.name = f"{kind.lower()}-controller"
        self.kinds = (kind, "Pod")

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        if change.kind == self.kind:
            return [change.key] if change.new else ()
        woken = {key for pod in change.both() if (key := owner_key(pod, self.kind))}
        if change.new is not None and controller_ref(change.new) is None and active(change.new):  # an orphan to adopt?
            woken |= {key_of(owner) for owner in view.in_namespace(self.kind, namespace_of(change.new))}
        return sorted(woken)

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        owner = view.get(self.kind, key)
        if owner is None:
            return ()
        spec, selector = owner["spec"], self.selector_of(owner)
        pods, claims = claim_pods(view, owner, selector)
        pods = [pod for pod in pods if active(pod)]
        actions: list[AnyAction] = list(claims)
        if not deleting(owner):
            actions += self._scale(view, owner, pods, now)
        min_ready = spec.get("minReadySeconds") or 0
        actions += status_update(owner, replica_status(owner, pods, min_ready, now))
        later = next_available(pods, min_ready, now)
        return [*actions, Again(later)] if later is not None else actions

    def selector_of(self, owner: Json) -> Json:
        spec = owner["spec"]
        if self.kind == "ReplicaSet":
            return spec.get("selector") or {}
        labels = spec.get("selector") or ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
        return {"matchLabels": labels}

    def _scale(self, view: View, owner: Json, pods: list[Json], now: float) -> list[AnyAction]:
        wanted = owner["spec"].get("replicas", 1)
        actions: list[AnyAction] = []
        if len(pods) < wanted:
            for number in range(min(wanted - len(pods), BURST)):
                actions += self._make(view, owner, now, number)
        elif len(pods) > wanted:
            for pod in self._worst(view, owner, pods)[: min(len(pods) - wanted, BURST)]:
                actions.append(Delete("Pod", key_of(pod), uid_of(pod)))
                note = f"Deleted pod: {pod['metadata']['name']}"
                actions.append(event(owner, "Normal", "SuccessfulDelete", note, self.name))
        return actions

    def _make(self, view: View, owner: Json, now: float, number: int) -> list[AnyAction]:
        prefix = f"{owner['metadata']['name']}-"
        name = fresh_name(view, "Pod", namespace_of(owner), prefix, uid_of(owner), now, number)
        pod = pod_from_template(owner["spec"].get("template") or {}, owner, name)
        return [Create(pod), event(owner, "Normal", "SuccessfulCreate", f"Created pod: {name}", self.name)]

    def _worst(self, view: View, owner: Json, pods: list[Json]) -> list[Json]:
        together = Counter(pod["spec"].get("nodeName") or "" for pod in pods)
        return sorted(pods, key=lambda pod: deletion_rank(pod, together[pod["spec"].get("nodeName") or ""]))


def claim_pods(view: View, owner: Json, selector: Json) -> tuple[list[Json], list[AnyAction]]:
    """The pods that `owner` controls after adopting orphans that match and releasing its own that no longer do."""
    mine: list[Json] = []
    actions: list[AnyAction] = []
    reference = owner_reference(owner)
    for pod in view.owned("Pod", uid_of(owner)):
        if (controller_ref(pod) or {}).get("uid") != uid_of(owner):
            continue
        if matches(selector, labels_of(pod)) or deleting(owner):
            mine.append(pod)
            continue
        others = [other for other in pod["metadata"]["ownerReferences"] if other.get("uid") != uid_of(owner)]
        release = {"metadata": {"ownerReferences": others or None}}
        actions.append(Patch("Pod", key_of(pod), release, uid=uid_of(pod)))
    if deleting(owner):
        return mine, actions
    for pod in view.pods_selected(namespace_of(owner), selector):
        if controller_ref(pod) is None and active(pod):
            adopt = {"metadata": {"ownerReferences": [*(pod["metadata"].get("ownerReferences") or ()), reference]}}
            actions.append(Patch("Pod", key_of(pod), adopt, uid=uid_of(pod)))
            mine.append(pod)
    return mine, actions


def deletion_rank(pod: Json, on_same_node: int) -> tuple[Any, ...]:
    """Sorts the pod to delete first to the front: unassigned, pending, not ready, cheap, crowded, ready for the shortest
    time, often restarted, young."""
    cost = int((pod["metadata"].get("annotations") or {}).get(DELETION_COST) or 0)
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    restarts = max((status.get("restartCount") or 0 for status in statuses), default=0)
    phase = {"Pending": 0, "Unknown": 1, "Running": 2}.get(phase_of(pod), 2)
    assigned = bool(pod["spec"].get("nodeName"))
    rank = (assigned, phase, ready(pod), cost, -on_same_node, -ready_since(pod), -restarts)
    return (*rank, -created(pod), pod["metadata"]["name"])


def replica_status(owner: Json, pods: list[Json], min_ready: int, now: float) -> Json:
    labels = ((owner["spec"].get("template") or {}).get("metadata") or {}).get("labels") or {}
    counts = {
        "fullyLabeledReplicas": sum(labels.items() <= labels_of(pod).items() for pod in pods),
        "readyReplicas": sum(ready(pod) for pod in pods),
        "availableReplicas": sum(available(pod, min_ready, now) for pod in pods),
    }
    old = owner.get("status") or {}
    status: Json = {key: value for key, value in old.items() if key not in counts}
    status |= {key: count for key, count in counts.items() if count}
    status |= {"replicas": len(pods), "observedGeneration": owner["metadata"].get("generation") or 0}
    return status
