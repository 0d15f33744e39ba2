"""The scheduler: a node for every pod that has none.

Rules it keeps: a node that is given stays; the first node that fits, in the order of `score`, is taken, so equal views
give equal placements; a pod that fits nowhere says why in kube-scheduler's words (condition PodScheduled, event
FailedScheduling, written when the reasons change) and is tried again when a node or another pod changes. Nothing is preempted.

Order to read: wakes, reconcile, score; why a node does not fit is in fit.py and spread.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from podwire_core.objects import Json

from .actions import AnyAction, Bind, Event, UpdateStatus
from .common import condition_of, deleting, finished, uid_of, with_condition
from .fit import Need, need_of, preference, reason_against
from .spread import Neighbours
from .view import Change, View, labels_of

NAME = "default-scheduler"


def pending(pod: Json) -> bool:
    gated = bool(pod["spec"].get("schedulingGates"))
    ours = pod["spec"].get("schedulerName") in (None, "", NAME)
    return not pod["spec"].get("nodeName") and not deleting(pod) and not finished(pod) and ours and not gated


class Scheduler:
    name = NAME
    kinds = ("Pod", "Node")

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        if change.kind == "Pod":
            return self._woken_by_pod(view, change)
        if change.old is not None and change.new is not None and _room(change.old) == _room(change.new):
            return ()
        return view.waiting()

    def _woken_by_pod(self, view: View, change: Change) -> Iterable[str]:
        old, new = change.old, change.new
        if new is not None and pending(new):
            same = old is not None and pending(old) and old["spec"] == new["spec"]
            return () if same else [change.key]
        freed = old is not None and bool(old["spec"].get("nodeName")) and not finished(old) and (new is None or finished(new))
        placed = new is not None and bool(new["spec"].get("nodeName")) and (old is None or not old["spec"].get("nodeName"))
        if freed:
            return view.waiting()
        return view.waiting("company") if placed else ()

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        pod = view.get("Pod", key)
        if pod is None or not pending(pod):
            return ()
        nodes = [node for node in view.all("Node").values() if not deleting(node)]
        need, neighbours = need_of(pod), Neighbours(view, pod, nodes)
        reasons: Counter[str] = Counter()
        for node in sorted(nodes, key=lambda node: score(view, need, node, neighbours)):
            name = node["metadata"]["name"]
            reason = reason_against(need, node, view.usage(name)) or neighbours.reason_against(node)
            if reason is None:
                note = f"Successfully assigned {key} to {name}"
                return [Bind(key, uid_of(pod), name), Event(pod, "Normal", "Scheduled", note, NAME)]
            reasons[reason] += 1
        return _failed(pod, why_not(len(nodes), reasons), now)


def score(view: View, need: Need, node: Json, neighbours: Neighbours) -> tuple[object, ...]:
    """Smallest first: what the pod prefers, few of the same owner, few pods, the name."""
    name = node["metadata"]["name"]
    usage = view.usage(name)
    taints = (node.get("spec") or {}).get("taints")
    soft = sum(taint.get("effect") == "PreferNoSchedule" for taint in taints) if taints else 0
    wish = (preference(need.spec, node) if need.prefers else 0) + neighbours.preference(node)
    siblings = usage.owners[need.owner] if need.owner else 0
    return soft, -wish, siblings, usage.pods, name


def why_not(nodes: int, reasons: Counter[str]) -> str:
    if not nodes:
        return "no nodes available to schedule pods"
    listed = ", ".join(sorted(f"{count} {reason}" for reason, count in reasons.items()))
    return f"0/{nodes} nodes are available: {listed}."


def _failed(pod: Json, message: str, now: float) -> list[AnyAction]:
    before = condition_of(pod, "PodScheduled") or {}
    if before.get("message") == message and before.get("status") == "False":
        return []
    status = pod.get("status") or {}
    conditions = with_condition(status.get("conditions"), "PodScheduled", "False", "Unschedulable", message, now)
    update = UpdateStatus({**pod, "status": {"phase": "Pending", **status, "conditions": conditions}})
    return [update, Event(pod, "Warning", "FailedScheduling", message, NAME)]


def _room(node: Json) -> object:
    spec, status = node.get("spec") or {}, node.get("status") or {}
    return labels_of(node), spec.get("taints"), spec.get("unschedulable"), status.get("allocatable"), deleting(node)
