"""Where a pod may go because of other pods: affinity, anti-affinity and topology spread constraints.

Rules it keeps: topologies are node labels; a term looks at the pods of its namespaces (the pod's own, if none are named);
anti-affinity of pods that are there counts against newcomers, too; a pod whose own labels satisfy its affinity may be the
first. Everything is counted once a pod, then asked for each node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cached_property

from podwire_core.objects import Json
from podwire_core.selectors import matches

from .common import deleting
from .usage import counts
from .view import View, labels_of, namespace_of

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
AFFINITY = "node(s) didn't match pod affinity rules"
ANTI_AFFINITY = "node(s) didn't match pod anti-affinity rules"
EXISTING = "node(s) didn't satisfy existing pods anti-affinity rules"
SPREAD = "node(s) didn't match pod topology spread constraints"


class Neighbours:
    def __init__(self, view: View, pod: Json, nodes: list[Json]) -> None:
        self.view, self.pod, self.nodes = view, pod, nodes
        affinity = pod["spec"].get("affinity") or {}
        self.near = [self._counted(term) for term in _terms(affinity, "podAffinity", _REQUIRED)]
        self.apart = [self._counted(term) for term in _terms(affinity, "podAntiAffinity", _REQUIRED)]
        self.wishes = [
            (sign * (each.get("weight") or 0), *self._counted(each.get("podAffinityTerm") or {}))
            for part, sign in (("podAffinity", 1), ("podAntiAffinity", -1))
            for each in _terms(affinity, part, _PREFERRED)
        ]
        self.spreads = [self._spread(each) for each in pod["spec"].get("topologySpreadConstraints") or ()]
        self.forbidden = self._forbidden()

    @cached_property
    def labels(self) -> dict[str, dict[str, str]]:
        """By node; most pods look at none."""
        return {node["metadata"]["name"]: _topology_labels(node) for node in self.nodes}

    def reason_against(self, node: Json) -> str | None:
        if not (self.near or self.apart or self.spreads or self.forbidden):
            return None
        labels = self.labels[node["metadata"]["name"]]
        for term, counted in self.near:
            value = labels.get(term.get("topologyKey", ""))
            first = not counted and _selects(term, self.pod, self.pod)
            if value is None or not (counted[value] or first):
                return AFFINITY
        for term, counted in self.apart:
            value = labels.get(term.get("topologyKey", ""))
            if value is not None and counted[value]:
                return ANTI_AFFINITY
        if any(labels.get(key) == value for key, value in self.forbidden):
            return EXISTING
        for constraint, counted, least in self.spreads:
            value = labels.get(constraint.get("topologyKey", ""))
            hard = constraint.get("whenUnsatisfiable", "DoNotSchedule") == "DoNotSchedule"
            if hard and (value is None or counted[value] + 1 - least > (constraint.get("maxSkew") or 1)):
                return SPREAD
        return None

    def preference(self, node: Json) -> int:
        if not (self.wishes or self.spreads):
            return 0
        labels = self.labels[node["metadata"]["name"]]
        total = sum(weight for weight, term, counted in self.wishes if counted[labels.get(term.get("topologyKey", ""), "")])
        return int(total) - sum(counted[labels.get(each.get("topologyKey", ""), "")] for each, counted, _ in self.spreads)

    # --- counting --------------------------------

    def _counted(self, term: Json) -> tuple[Json, Counter[str]]:
        """How many pods of the term there are in each of its topology's domains."""
        counted: Counter[str] = Counter()
        for namespace in term.get("namespaces") or self._namespaces(term):
            for other in self.view.pods_selected(namespace, term.get("labelSelector")):
                domain = self.labels.get(other["spec"].get("nodeName") or "", {}).get(term.get("topologyKey", ""))
                if domain is not None and counts(other) and other is not self.pod:
                    counted[domain] += 1
        return term, counted

    def _namespaces(self, term: Json) -> Iterable[str]:
        selector = term.get("namespaceSelector")
        if selector is None:
            return [namespace_of(self.pod)]
        return sorted(name for name, each in self.view.all("Namespace").items() if matches(selector, labels_of(each)))

    def _spread(self, constraint: Json) -> tuple[Json, Counter[str], int]:
        counted: Counter[str] = Counter()
        for other in self.view.pods_selected(namespace_of(self.pod), constraint.get("labelSelector")):
            domain = self.labels.get(other["spec"].get("nodeName") or "", {}).get(constraint.get("topologyKey", ""))
            if domain is not None and counts(other) and not deleting(other):
                counted[domain] += 1
        domains = {labels[key] for labels in self.labels.values() if (key := constraint.get("topologyKey", "")) in labels}
        return constraint, counted, min((counted[domain] for domain in domains), default=0)

    def _forbidden(self) -> set[tuple[str, str]]:
        """Domains in which a pod that is there wants to have none such as this one."""
        found: set[tuple[str, str]] = set()
        for other in self.view.repelling():
            labels = self.labels.get(other["spec"]["nodeName"], {})
            for term in _terms(other["spec"].get("affinity") or {}, "podAntiAffinity", _REQUIRED):
                key = term.get("topologyKey", "")
                if key in labels and _selects(term, other, self.pod):
                    found.add((key, labels[key]))
        return found


def _topology_labels(node: Json) -> dict[str, str]:
    return {"kubernetes.io/hostname": node["metadata"]["name"], **labels_of(node)}


def _terms(affinity: Json, part: str, when: str) -> list[Json]:
    return list((affinity.get(part) or {}).get(when) or ())


def _selects(term: Json, owner: Json, pod: Json) -> bool:
    """Does a term of `owner` speak of this pod?"""
    namespaces = term.get("namespaces") or [namespace_of(owner)]
    return namespace_of(pod) in namespaces and matches(term.get("labelSelector"), labels_of(pod))
