"""StatefulSet: pods with ordinals, stable names and an order.

Rules it keeps (pkg/controller/statefulset): with OrderedReady one pod at a time is made, in order, when all before it are
running and available, and one deleted, from the end; with Parallel all at once. A rolling update replaces from the highest
ordinal down to `partition`, one at a time; pods that come back below the partition come back with the current revision.

Order to read: reconcile, Plan (the steps in order), making a pod, the status.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from podwire_core.objects import Json, key_of

from .actions import Again, AnyAction, Create, Delete
from .common import (
    available,
    controller_ref,
    deleting,
    event,
    finished,
    next_available,
    owner_key,
    phase_of,
    pod_from_template,
    ready,
    status_update,
    uid_of,
)
from .replicaset import claim_pods
from .revisions import LABEL, Revisions, revisions_of, template_of, trimmed
from .view import Change, View, labels_of, namespace_of

NAME = "statefulset-controller"
_ORDINAL = re.compile(r"(.*)-(0|[1-9]\d*)")


class StatefulSetController:
    name = NAME
    kinds = ("StatefulSet", "Pod")

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        if change.kind == "StatefulSet":
            return [change.key] if change.new else ()
        woken = {key for pod in change.both() if (key := owner_key(pod, "StatefulSet"))}
        if change.new is not None and controller_ref(change.new) is None and (match := _ORDINAL.fullmatch(change.key)):
            woken |= {match[1]} if view.get("StatefulSet", match[1]) else set()
        return sorted(woken)

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        owner = view.get("StatefulSet", key)
        if owner is None:
            return ()
        pods, actions = claim_pods(view, owner, owner["spec"].get("selector") or {})
        revisions = revisions_of(view, owner)
        plan = Plan(view, owner, pods, revisions, now)
        if not deleting(owner):
            actions += [*revisions.actions, *plan.steps()]
        status = plan.status()
        actions += status_update(owner, status)
        used = {status["currentRevision"], *(labels_of(pod).get(LABEL, "") for pod in pods)}
        actions += trimmed(owner, revisions, used)
        later = next_available(pods, plan.min_ready, now)
        return [*actions, Again(later)] if later is not None else actions


def ordinal_of(pod: Json) -> int:
    match = _ORDINAL.fullmatch(pod["metadata"]["name"])
    return int(match[2]) if match else -1


class Plan:
    """One reconcile of one StatefulSet: what it has, and what comes next."""

    def __init__(self, view: View, owner: Json, pods: list[Json], revisions: Revisions, now: float) -> None:
        self.view, self.owner, self.revisions, self.now = view, owner, revisions, now
        spec = owner["spec"]
        self.start = (spec.get("ordinals") or {}).get("start") or 0
        self.ordinals = range(self.start, self.start + spec.get("replicas", 1))
        prefix = f"{owner['metadata']['name']}-"
        named = {pod["metadata"]["name"]: pod for pod in pods}
        self.pods = {number: pod for number in self.ordinals if (pod := named.get(f"{prefix}{number}"))}
        self.surplus = sorted((pod for pod in pods if ordinal_of(pod) not in self.ordinals), key=ordinal_of)
        self.all = pods
        self.min_ready = spec.get("minReadySeconds") or 0
        self.ordered = spec.get("podManagementPolicy", "OrderedReady") == "OrderedReady"
        strategy = spec.get("updateStrategy") or {}
        self.rolling = strategy.get("type", "RollingUpdate") == "RollingUpdate"
        self.partition = (strategy.get("rollingUpdate") or {}).get("partition") or 0
        self.update_name = revisions.update["metadata"]["name"]
        self.current_name = (owner.get("status") or {}).get("currentRevision") or self.update_name

    def steps(self) -> list[AnyAction]:
        actions: list[AnyAction] = []
        for number in self.ordinals:
            done, step = self._fill(number)
            actions += step
            if not done and self.ordered:
                return actions
        for pod in reversed(self.surplus):
            if not deleting(pod):
                actions += self._delete(pod)
            if self.ordered:
                return actions
        return actions or self._update()

    def _fill(self, number: int) -> tuple[bool, list[AnyAction]]:
        """Whether the ordinal has what it should have, and the step towards it."""
        pod = self.pods.get(number)
        if pod is None:
            return False, self._make(number)
        if finished(pod) and not deleting(pod):
            return False, self._delete(pod)
        return self._healthy(pod), []

    def _healthy(self, pod: Json) -> bool:
        running = phase_of(pod) == "Running" and not deleting(pod)
        return running and available(pod, self.min_ready, self.now)

    def _update(self) -> list[AnyAction]:
        if not self.rolling:
            return []
        for number in reversed(self.ordinals):
            if number < self.start + self.partition:
                break
            pod = self.pods.get(number)
            if pod is not None and labels_of(pod).get(LABEL) != self.update_name and not deleting(pod):
                return self._delete(pod)
            if pod is None or not self._healthy(pod):
                break
        return []

    # --- pods --------------------------------

    def _revision_for(self, number: int) -> Json:
        """The current revision for ordinals which an update must not (or did not yet) reach."""
        kept = self.partition or ((self.owner.get("status") or {}).get("currentReplicas") or 0)
        current = self.revisions.named(self.current_name)
        if self.rolling and current is not None and number < self.start + kept:
            return current
        return self.revisions.update

    def _make(self, number: int) -> list[AnyAction]:
        owner, revision = self.owner, self._revision_for(number)
        name = f"{owner['metadata']['name']}-{number}"
        if self.view.get("Pod", f"{namespace_of(owner)}/{name}") is not None:  # somebody else's; wait for its end
            return []
        pod = pod_from_template(template_of(revision), owner, name)
        pod["metadata"]["labels"] |= {
            LABEL: revision["metadata"]["name"],
            "statefulset.kubernetes.io/pod-name": name,
            "apps.kubernetes.io/pod-index": str(number),
        }
        pod["spec"] = {**pod["spec"], "hostname": name, "subdomain": owner["spec"].get("serviceName") or ""}
        claims = self._claims(name)
        if claims:
            pod["spec"]["volumes"] = _volumes(pod, owner, name)
        text = f"create Pod {name} in StatefulSet {owner['metadata']['name']} successful"
        return [*claims, Create(pod), event(owner, "Normal", "SuccessfulCreate", text, NAME)]

    def _claims(self, pod_name: str) -> list[AnyAction]:
        """A PersistentVolumeClaim for each volumeClaimTemplate, which outlives the pod."""
        actions: list[AnyAction] = []
        namespace = namespace_of(self.owner)
        for template in self.owner["spec"].get("volumeClaimTemplates") or ():
            name = f"{template['metadata']['name']}-{pod_name}"
            if self.view.get("PersistentVolumeClaim", f"{namespace}/{name}") is None:
                labels = (self.owner["spec"].get("selector") or {}).get("matchLabels") or {}
                metadata = {**template["metadata"], "name": name, "namespace": namespace, "labels": labels}
                head = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata}
                actions.append(Create({**template, **head}))
        return actions

    def _delete(self, pod: Json) -> list[AnyAction]:
        text = f"delete Pod {pod['metadata']['name']} in StatefulSet {self.owner['metadata']['name']} successful"
        note = event(self.owner, "Normal", "SuccessfulDelete", text, NAME)
        return [Delete("Pod", key_of(pod), uid_of(pod)), note]

    # --- status --------------------------------

    def status(self) -> Json:
        live = [pod for pod in self.all if not finished(pod) or deleting(pod)]
        counts = {
            "readyReplicas": sum(phase_of(pod) == "Running" and ready(pod) for pod in live),
            "availableReplicas": sum(available(pod, self.min_ready, self.now) for pod in live),
            "currentReplicas": self._with(self.current_name),
            "updatedReplicas": self._with(self.update_name),
        }
        current = self.current_name
        whole = len(self.pods) == len(self.ordinals) == len(live) == counts["readyReplicas"] == counts["updatedReplicas"]
        if whole and self.rolling:
            current, counts["currentReplicas"] = self.update_name, counts["updatedReplicas"]
        old = self.owner.get("status") or {}
        status: Json = {key: value for key, value in old.items() if key not in counts}
        status |= {key: count for key, count in counts.items() if count}
        status |= {"replicas": len(live), "currentRevision": current, "updateRevision": self.update_name}
        status["observedGeneration"] = self.owner["metadata"].get("generation") or 0
        return status

    def _with(self, revision: str) -> int:
        return sum(labels_of(pod).get(LABEL) == revision and not deleting(pod) for pod in self.all)


def _volumes(pod: Json, owner: Json, pod_name: str) -> list[Json]:
    names = [template["metadata"]["name"] for template in owner["spec"].get("volumeClaimTemplates") or ()]
    others = [volume for volume in pod["spec"].get("volumes") or () if volume.get("name") not in names]
    return [*others, *({"name": name, "persistentVolumeClaim": {"claimName": f"{name}-{pod_name}"}} for name in names)]
