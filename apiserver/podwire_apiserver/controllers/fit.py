"""Does a pod fit a node? Selectors, taints, and the room left; used by the scheduler, and in part by DaemonSets.

Rules it keeps: every reason is worded as kube-scheduler words it, since people search for those words. Order to read:
affinity, taints, room, `reason_against` (the order of kube-scheduler's filters).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from podwire_core.objects import Json
from podwire_core.selectors import holds, matches_map

from .usage import HostPort, NodeUsage, amount_of, host_ports_of, owner_of, requests_of
from .view import labels_of

UNSCHEDULABLE = "node(s) were unschedulable"
AFFINITY = "node(s) didn't match Pod's node affinity/selector"
PORTS = "node(s) didn't have free ports for the requested pod ports"
TAINT = "node(s) had untolerated taint {{{}}}"
NO_PODS = "Too many pods"
DEFAULT_PODS = 110
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


# --- affinity --------------------------------


def affinity_allows(spec: Json, node: Json) -> bool:
    """nodeSelector and required node affinity."""
    selector = spec.get("nodeSelector")
    if selector and not matches_map(selector, labels_of(node)):
        return False
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(_REQUIRED)
    return required is None or any(term_matches(term, node) for term in required.get("nodeSelectorTerms") or ())


def term_matches(term: Json, node: Json) -> bool:
    """All of a term must hold; an empty term matches nothing."""
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    labels = labels_of(node)
    return all(holds(each, labels) for each in expressions) and all(
        holds(each, {"metadata.name": node["metadata"]["name"]}) for each in fields
    )


def preference(spec: Json, node: Json) -> int:
    """The weights of the preferred node affinity terms that match."""
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    terms = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    return sum(term.get("weight") or 0 for term in terms if term_matches(term.get("preference") or {}, node))


# --- taints --------------------------------


def tolerates(toleration: Json, taint: Json) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    key = toleration.get("key") or ""
    if key and key != taint.get("key"):
        return False
    if toleration.get("operator") == "Exists":
        return True
    return bool(key) and (toleration.get("value") or "") == (taint.get("value") or "")


def untolerated(spec: Json, node: Json, effects: Iterable[str]) -> Json | None:
    """The first taint with one of these effects that no toleration covers."""
    tolerations = spec.get("tolerations") or ()
    for taint in (node.get("spec") or {}).get("taints") or ():
        if taint.get("effect") in effects and not any(tolerates(each, taint) for each in tolerations):
            return dict(taint)
    return None


# --- room --------------------------------


class Need(NamedTuple):
    """What a pod asks of a node; computed once, compared with every node."""

    spec: Json
    requests: dict[str, int]
    host_ports: list[HostPort]
    owner: str
    prefers: bool  # has wishes of nodes


def need_of(pod: Json) -> Need:
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity")
    return Need(pod["spec"], requests_of(pod), host_ports_of(pod), owner_of(pod), bool(affinity))


def _shortage(requests: dict[str, int], node: Json, usage: NodeUsage) -> str | None:
    status = node.get("status") or {}
    allocatable = status.get("allocatable") or status.get("capacity") or {}
    if usage.pods + 1 > amount_of("pods", allocatable.get("pods", DEFAULT_PODS)):
        return NO_PODS
    for resource, wanted in requests.items():
        known = resource in allocatable
        if not known and (resource in ("cpu", "memory", "ephemeral-storage") or not wanted):
            continue  # a node that does not say how much it has is taken to have enough
        room = amount_of(resource, allocatable[resource]) if known else 0
        if wanted and usage.requested[resource] + wanted > room:
            return f"Insufficient {resource}"
    return None


def reason_against(need: Need, node: Json, usage: NodeUsage) -> str | None:
    """Why the pod cannot go to this node, None if it can; what concerns other pods is in `spread.py`."""
    spec = need.spec
    unschedulable = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    if (node.get("spec") or {}).get("unschedulable") and not any(
        tolerates(each, unschedulable) for each in spec.get("tolerations") or ()
    ):
        return UNSCHEDULABLE
    taint = untolerated(spec, node, ("NoSchedule", "NoExecute"))
    if taint is not None:
        return TAINT.format(f"{taint.get('key')}: {taint.get('value') or ''}")
    if not affinity_allows(spec, node):
        return AFFINITY
    if any(usage.port_taken(wanted) for wanted in need.host_ports):
        return PORTS
    return _shortage(need.requests, node, usage)
