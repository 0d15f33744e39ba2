"""PodDisruptionBudget: how many of the pods it selects may go away just now. Nothing here evicts, so it is told and not enforced.

Rules it keeps (pkg/controller/disruption): the expected number is what the pods' controllers want, or the pods there are, for
minAvailable as a number; a percentage is of the expected and rounded up; never fewer than 0 are allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from podwire_core.objects import Json, key_of
from podwire_core.selectors import matches

from .actions import AnyAction
from .common import active, controller_ref, deleting, ready, resolve, status_update
from .view import Change, View, labels_of, namespace_of


class DisruptionController:
    name = "disruption-controller"
    kinds = ("PodDisruptionBudget", "Pod")

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        if change.kind == "PodDisruptionBudget":
            return [change.key] if change.new else ()
        return {
            key_of(budget)
            for pod in change.both()
            for budget in view.in_namespace("PodDisruptionBudget", namespace_of(pod))
            if _selects(budget, pod)
        }

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        budget = view.get("PodDisruptionBudget", key)
        if budget is None or deleting(budget):
            return ()
        pods = [pod for pod in view.in_namespace("Pod", namespace_of(budget)) if active(pod) and _selects(budget, pod)]
        healthy = sum(map(ready, pods))
        expected, desired = _wanted(view, budget.get("spec") or {}, pods)
        status = {
            **{key: value for key, value in (budget.get("status") or {}).items() if key == "conditions"},
            "currentHealthy": healthy,
            "desiredHealthy": desired,
            "disruptionsAllowed": max(0, healthy - desired) if expected else 0,
            "expectedPods": expected,
            "observedGeneration": budget["metadata"].get("generation") or 0,
        }
        return status_update(budget, status)


def _selects(budget: Json, pod: Json) -> bool:
    selector = (budget.get("spec") or {}).get("selector")
    return selector is not None and matches(selector, labels_of(pod))


def _wanted(view: View, spec: Json, pods: list[Json]) -> tuple[int, int]:
    """How many pods there should be, and how many of them healthy."""
    at_least, at_most_gone = spec.get("minAvailable"), spec.get("maxUnavailable")
    if at_most_gone is not None:
        expected = _scale(view, pods)
        return expected, max(0, expected - resolve(at_most_gone, expected, up=True, default=0))
    if isinstance(at_least, str):
        expected = _scale(view, pods)
        return expected, resolve(at_least, expected, up=True, default=1)
    return len(pods), 1 if at_least is None else int(at_least)


def _scale(view: View, pods: list[Json]) -> int:
    """What the pods' controllers want, each counted once; a pod without one stands for itself."""
    wanted: dict[str, int] = {}
    for pod in pods:
        reference = controller_ref(pod)
        owner = view.get(reference["kind"], f"{namespace_of(pod)}/{reference['name']}") if reference else None
        if reference is None or owner is None:
            wanted[key_of(pod)] = 1
        else:
            wanted[reference["uid"]] = int(owner["spec"].get("replicas", 1))
    return sum(wanted.values())
