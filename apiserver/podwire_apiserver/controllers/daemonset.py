"""DaemonSet: one pod on every node that its template fits.

Rules it keeps (pkg/controller/daemon): the node is chosen here and written as required affinity to metadata.name, so that the
scheduler binds it; DaemonSet pods tolerate what nodes get when they are unwell. A rolling update deletes old pods as far as
maxUnavailable allows (those that are not available first), or with maxSurge makes the new one before the old one goes.

Order to read: reconcile, fits, the update, the status.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from podwire_core.objects import Json, key_of

from .actions import Again, AnyAction, Create, Delete
from .common import (
    available,
    controller_ref,
    deleting,
    event,
    finished,
    fresh_name,
    next_available,
    owner_key,
    pod_from_template,
    ready,
    resolve,
    status_update,
    uid_of,
)
from .fit import affinity_allows, untolerated
from .replicaset import claim_pods
from .revisions import LABEL, Revisions, hash_of, revisions_of, template_of, trimmed
from .view import Change, View, labels_of, namespace_of

NAME = "daemonset-controller"
_TOLERATED = (
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
)


class DaemonSetController:
    name = NAME
    kinds = ("DaemonSet", "Pod", "Node")

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        if change.kind == "DaemonSet":
            return [change.key] if change.new else ()
        if change.kind == "Node":
            same = change.old and change.new and _placement(change.old) == _placement(change.new)
            return () if same else sorted(view.all("DaemonSet"))
        woken = {key for pod in change.both() if (key := owner_key(pod, "DaemonSet"))}
        if change.new is not None and controller_ref(change.new) is None:
            woken |= {key_of(owner) for owner in view.in_namespace("DaemonSet", namespace_of(change.new))}
        return sorted(woken)

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        owner = view.get("DaemonSet", key)
        if owner is None:
            return ()
        pods, actions = claim_pods(view, owner, owner["spec"].get("selector") or {})
        revisions = revisions_of(view, owner)
        round_ = Round(view, owner, pods, revisions, now)
        if not deleting(owner):
            actions += [*revisions.actions, *(round_.place() or round_.update())]
        actions += status_update(owner, round_.status())
        used = {each["metadata"]["name"] for pod in pods if (each := revisions.of_label(labels_of(pod).get(LABEL, "")))}
        actions += trimmed(owner, revisions, used)
        later = next_available(pods, round_.min_ready, now)
        return [*actions, Again(later)] if later is not None else actions


def _placement(node: Json) -> object:
    spec = node.get("spec") or {}
    return labels_of(node), spec.get("taints"), deleting(node)


def node_of(pod: Json) -> str:
    """The node it is on or meant for."""
    if pod["spec"].get("nodeName"):
        return str(pod["spec"]["nodeName"])
    affinity = ((pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}).get(_REQUIRED) or {}
    for term in affinity.get("nodeSelectorTerms") or ():
        for requirement in term.get("matchFields") or ():
            if requirement.get("key") == "metadata.name" and requirement.get("values"):
                return str(requirement["values"][0])
    return ""


_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


class Round:
    """One reconcile of one DaemonSet."""

    def __init__(self, view: View, owner: Json, pods: list[Json], revisions: Revisions, now: float) -> None:
        self.view, self.owner, self.revisions, self.now = view, owner, revisions, now
        self.by_node: dict[str, list[Json]] = {}
        for pod in pods:
            self.by_node.setdefault(node_of(pod), []).append(pod)
        self.wanted = [name for name, node in sorted(view.all("Node").items()) if self._fits(node)]
        self.min_ready = owner["spec"].get("minReadySeconds") or 0
        given = (owner["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}
        self.surge = resolve(given.get("maxSurge"), len(self.wanted), up=True, default=0)
        unavailable = resolve(given.get("maxUnavailable"), len(self.wanted), up=True, default=1)
        self.max_unavailable = unavailable if unavailable or self.surge else 1

    def _fits(self, node: Json) -> bool:
        """Also a node that is full: the pod then waits for room."""
        spec = self._spec((self.owner["spec"].get("template") or {}).get("spec") or {}, node["metadata"]["name"])
        if deleting(node) or spec.get("nodeName") not in (None, "", node["metadata"]["name"]):
            return False
        return affinity_allows(spec, node) and untolerated(spec, node, ("NoSchedule", "NoExecute")) is None

    def _spec(self, spec: Json, node: str) -> Json:
        tolerations = [{"key": key, "operator": "Exists", "effect": effect} for key, effect in _TOLERATED]
        if spec.get("hostNetwork"):
            network = {"key": "node.kubernetes.io/network-unavailable", "operator": "Exists", "effect": "NoSchedule"}
            tolerations.append(network)
        affinity = spec.get("affinity") or {}
        node_affinity = affinity.get("nodeAffinity") or {}
        here = [{"key": "metadata.name", "operator": "In", "values": [node]}]
        terms = (node_affinity.get(_REQUIRED) or {}).get("nodeSelectorTerms") or [{}]
        required = {"nodeSelectorTerms": [{**term, "matchFields": here} for term in terms]}
        return {
            **spec,
            "affinity": {**affinity, "nodeAffinity": {**node_affinity, _REQUIRED: required}},
            "tolerations": [*(spec.get("tolerations") or ()), *tolerations],
        }

    # --- placing --------------------------------

    def place(self) -> list[AnyAction]:
        actions: list[AnyAction] = []
        for node in self.wanted:
            here = self.by_node.get(node, [])
            failed = [pod for pod in here if finished(pod) and not deleting(pod)]
            for pod in failed:
                actions += self._delete(pod)
            if not here:
                actions += self._make(node)
            actions += self._surplus(here)
        for node in sorted(set(self.by_node) - set(self.wanted)):
            for pod in self.by_node[node]:
                if not deleting(pod):
                    actions += self._delete(pod)
        return actions

    def _surplus(self, here: list[Json]) -> list[AnyAction]:
        """Of several live pods of one revision on a node the oldest stays."""
        actions: list[AnyAction] = []
        for updated in (True, False):
            same = [pod for pod in here if not deleting(pod) and not finished(pod) and self._updated(pod) is updated]
            same.sort(key=lambda pod: (not ready(pod), pod["metadata"].get("creationTimestamp") or "", key_of(pod)))
            for pod in same[1:]:
                actions += self._delete(pod)
        return actions

    def _make(self, node: str) -> list[AnyAction]:
        owner = self.owner
        prefix = f"{owner['metadata']['name']}-"
        name = fresh_name(self.view, "Pod", namespace_of(owner), prefix, uid_of(owner), self.now, node)
        pod = pod_from_template(template_of(self.revisions.update), owner, name)
        pod["metadata"]["labels"] |= {LABEL: hash_of(self.revisions.update), "pod-template-generation": self._generation()}
        pod["spec"] = self._spec(pod["spec"], node)
        return [Create(pod), event(owner, "Normal", "SuccessfulCreate", f"Created pod: {name}", NAME)]

    def _generation(self) -> str:
        return str(self.owner["metadata"].get("generation") or 1)

    def _delete(self, pod: Json) -> list[AnyAction]:
        note = event(self.owner, "Normal", "SuccessfulDelete", f"Deleted pod: {pod['metadata']['name']}", NAME)
        return [Delete("Pod", key_of(pod), uid_of(pod)), note]

    # --- updating --------------------------------

    def _updated(self, pod: Json) -> bool:
        return labels_of(pod).get(LABEL) == hash_of(self.revisions.update)

    def _available(self, pod: Json) -> bool:
        return not deleting(pod) and available(pod, self.min_ready, self.now)

    def update(self) -> list[AnyAction]:
        if (self.owner["spec"].get("updateStrategy") or {}).get("type", "RollingUpdate") != "RollingUpdate":
            return []
        return self._update_surging() if self.surge else self._update_in_place()

    def _update_in_place(self) -> list[AnyAction]:
        old, down = [], 0
        for node in self.wanted:
            here = self.by_node.get(node, [])
            up = any(self._available(pod) for pod in here)
            down += not up
            old += [(up, node, pod) for pod in here if not self._updated(pod) and not deleting(pod)]
        actions: list[AnyAction] = []
        for up, _, pod in sorted(old, key=lambda each: each[:2]):  # those that serve nobody cost nothing
            if up and down >= self.max_unavailable:
                break
            down += up
            actions += self._delete(pod)
        return actions

    def _update_surging(self) -> list[AnyAction]:
        actions: list[AnyAction] = []
        surging = sum(len([pod for pod in self.by_node.get(node, []) if not deleting(pod)]) > 1 for node in self.wanted)
        for node in self.wanted:
            here = [pod for pod in self.by_node.get(node, []) if not deleting(pod)]
            old = [pod for pod in here if not self._updated(pod)]
            new = [pod for pod in here if self._updated(pod)]
            if not old:
                continue
            if not new and (surging < self.surge or not any(map(self._available, old))):
                surging += 1
                actions += self._make(node)
            elif any(map(self._available, new)):
                for pod in old:
                    actions += self._delete(pod)
        return actions

    # --- status --------------------------------

    def status(self) -> Json:
        live = {node: [pod for pod in pods if not deleting(pod)] for node, pods in self.by_node.items()}
        here = [live.get(node, []) for node in self.wanted]
        elsewhere = set(live) - set(self.wanted)
        is_available = sum(any(map(self._available, pods)) for pods in here)
        counts = {
            "updatedNumberScheduled": sum(any(map(self._updated, pods)) for pods in here),
            "numberAvailable": is_available,
            "numberUnavailable": len(self.wanted) - is_available,
        }
        status: Json = {key: value for key, value in (self.owner.get("status") or {}).items() if key not in counts}
        status |= {key: count for key, count in counts.items() if count}
        status |= {
            "desiredNumberScheduled": len(self.wanted),
            "currentNumberScheduled": sum(bool(pods) for pods in here),
            "numberMisscheduled": sum(any(not finished(pod) for pod in live[node]) for node in elsewhere),
            "numberReady": sum(any(map(ready, pods)) for pods in here),
            "observedGeneration": self.owner["metadata"].get("generation") or 0,
        }
        return status
