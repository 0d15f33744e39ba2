"""The View: all objects in memory, with the indexes that controllers ask; the only thing a controller sees of the cluster.

Rules it keeps: objects are replaced, never changed in place (whoever gets one must copy it before changing it); `apply` costs
what the one object costs, so 10 000 pods are as cheap to follow as 10; answers come sorted by key, so that controllers are
deterministic. A kind is named as the API names it: "Pod", or "Kind.group" where that is ambiguous.

Order to read: Change, the index functions, View.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from types import MappingProxyType

from msgspec import Struct

from podwire_core.objects import Json, key_of
from podwire_core.selectors import matches, matches_map

from .usage import NodeUsage, counts

Ref = tuple[str, str]  # kind, key


class Change(Struct, frozen=True):
    """One object before and after; None where it did not or does not exist."""

    kind: str
    key: str
    old: Json | None
    new: Json | None

    @property
    def either(self) -> Json:
        """The newest state known (of a deleted object: the last one)."""
        obj = self.new if self.new is not None else self.old
        assert obj is not None, "a change has an object"
        return obj

    def both(self) -> Iterable[Json]:
        return (obj for obj in (self.old, self.new) if obj is not None)


def namespace_of(obj: Json) -> str:
    return str(obj["metadata"].get("namespace") or "")


def labels_of(obj: Json) -> dict[str, str]:
    return obj["metadata"].get("labels") or {}


def _by_namespace(obj: Json) -> Iterable[Hashable]:
    return (namespace_of(obj),)


def _by_owner(obj: Json) -> Iterable[Hashable]:
    return [ref.get("uid") for ref in obj["metadata"].get("ownerReferences") or ()]


def _by_label(obj: Json) -> Iterable[Hashable]:
    namespace = namespace_of(obj)
    return [(namespace, key, value) for key, value in labels_of(obj).items()]


def _by_node(obj: Json) -> Iterable[Hashable]:
    return ((obj.get("spec") or {}).get("nodeName") or "",)


def _by_repulsion(obj: Json) -> Iterable[Hashable]:
    """Pods with a required anti-affinity, which newcomers have to respect."""
    anti = ((obj.get("spec") or {}).get("affinity") or {}).get("podAntiAffinity") or {}
    return (True,) if anti.get("requiredDuringSchedulingIgnoredDuringExecution") and counts(obj) else ()


def _by_wait(obj: Json) -> Iterable[Hashable]:
    """Pods that the scheduler has tried in vain: "room" all of them, "company" those that look for other pods."""
    if (obj.get("spec") or {}).get("nodeName"):
        return ()
    conditions = (obj.get("status") or {}).get("conditions") or ()
    if not any(each.get("type") == "PodScheduled" and each.get("status") == "False" for each in conditions):
        return ()
    return ("room", "company") if (obj["spec"].get("affinity") or {}).get("podAffinity") else ("room",)


def _by_service(obj: Json) -> Iterable[Hashable]:
    service = labels_of(obj).get("kubernetes.io/service-name")
    return (f"{namespace_of(obj)}/{service}",) if service else ()


def _by_selector(obj: Json) -> Iterable[Hashable]:
    """A Service under one pair of its selector: a pod it selects has that label, too."""
    selector = (obj.get("spec") or {}).get("selector")
    return ((namespace_of(obj), *min(selector.items())),) if selector else ()


_EVERY: tuple[tuple[str, Callable[[Json], Iterable[Hashable]]], ...] = (("namespace", _by_namespace), ("owner", _by_owner))
_INDEXES: dict[str, tuple[tuple[str, Callable[[Json], Iterable[Hashable]]], ...]] = {
    "Pod": (*_EVERY, ("label", _by_label), ("node", _by_node), ("repelling", _by_repulsion), ("wait", _by_wait)),
    "Service": (*_EVERY, ("selector", _by_selector)),
    "EndpointSlice": (*_EVERY, ("service", _by_service)),
}


class View:
    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, Json]] = {}
        self._indexes: dict[tuple[str, str, Hashable], dict[str, Json]] = {}  # (kind, index, value) → objects by key
        self._owners: dict[str, dict[Ref, None]] = {}  # uid → what names it as an owner
        self._namespaces: dict[str, dict[Ref, None]] = {}  # namespace → everything in it
        self._uids: dict[str, Ref] = {}
        self._usage: dict[str, NodeUsage] = {}

    # --- changing --------------------------------

    def apply(self, kind: str, key: str, obj: Json | None) -> Change:
        """Replaces one object (None: removes it) and says what changed."""
        objects = self._kinds.setdefault(kind, {})
        old = objects.pop(key, None)
        if old is not None:
            self._forget(kind, key, old)
        if obj is not None:
            objects[key] = obj
            self._learn(kind, key, obj)
        return Change(kind, key, old, obj)

    def _learn(self, kind: str, key: str, obj: Json) -> None:
        for name, function in _INDEXES.get(kind, _EVERY):
            for value in function(obj):
                self._indexes.setdefault((kind, name, value), {})[key] = obj
        for uid in _by_owner(obj):
            self._owners.setdefault(str(uid), {})[kind, key] = None
        self._namespaces.setdefault(namespace_of(obj), {})[kind, key] = None
        self._uids[obj["metadata"].get("uid", "")] = (kind, key)
        if kind == "Pod" and counts(obj):
            self._usage.setdefault(obj["spec"]["nodeName"], NodeUsage()).add(obj)

    def _forget(self, kind: str, key: str, obj: Json) -> None:
        for name, function in _INDEXES.get(kind, _EVERY):
            for value in function(obj):
                _discard(self._indexes, (kind, name, value), key)
        for uid in _by_owner(obj):
            _discard(self._owners, str(uid), (kind, key))
        _discard(self._namespaces, namespace_of(obj), (kind, key))
        self._uids.pop(obj["metadata"].get("uid", ""), None)
        if kind == "Pod" and counts(obj):
            self._usage[obj["spec"]["nodeName"]].remove(obj)

    # --- asking --------------------------------

    def get(self, kind: str, key: str) -> Json | None:
        return self._kinds.get(kind, {}).get(key)

    def all(self, kind: str) -> Mapping[str, Json]:
        """All objects of a kind by key, in no order."""
        return MappingProxyType(self._kinds.get(kind, {}))

    def kinds(self) -> list[str]:
        return sorted(kind for kind, objects in self._kinds.items() if objects)

    def in_namespace(self, kind: str, namespace: str) -> list[Json]:
        return self._found(kind, "namespace", namespace)

    def everything_in(self, namespace: str) -> list[Ref]:
        return sorted(self._namespaces.get(namespace, ()))

    def owned(self, kind: str, uid: str) -> list[Json]:
        """Objects of the kind with an owner reference to the uid (controller or not)."""
        return self._found(kind, "owner", uid)

    def dependents(self, uid: str) -> list[Ref]:
        """All objects with an owner reference to the uid, of any kind."""
        return sorted(self._owners.get(uid, ()))

    def by_uid(self, uid: str) -> Ref | None:
        return self._uids.get(uid)

    def pods_on(self, node: str) -> list[Json]:
        return self._found("Pod", "node", node)

    def pods_matching(self, namespace: str, selector: Mapping[str, str] | None) -> list[Json]:
        """Pods that a plain map selects; an empty one selects none."""
        if not selector:
            return []
        candidates = min(
            (self._indexes.get(("Pod", "label", (namespace, key, value)), {}) for key, value in selector.items()), key=len
        )
        return [candidates[key] for key in sorted(candidates) if matches_map(selector, labels_of(candidates[key]))]

    def pods_selected(self, namespace: str, selector: Json | None) -> list[Json]:
        """Pods that a LabelSelector selects; an empty one selects all."""
        wanted = (selector or {}).get("matchLabels")
        pods = self.pods_matching(namespace, wanted) if wanted else self.in_namespace("Pod", namespace)
        return [pod for pod in pods if matches(selector, labels_of(pod))]

    def repelling(self) -> list[Json]:
        """Bound pods with a required anti-affinity."""
        return self._found("Pod", "repelling", True)

    def waiting(self, for_: str = "room") -> list[str]:
        """Keys of the pods that were tried and have no node; for "company": of those that look for other pods."""
        return sorted(self._indexes.get(("Pod", "wait", for_), ()))

    def services_selecting(self, pod: Json) -> list[Json]:
        namespace, labels = namespace_of(pod), labels_of(pod)
        found: dict[str, Json] = {}
        for pair in labels.items():
            found |= self._indexes.get(("Service", "selector", (namespace, *pair)), {})
        return [found[key] for key in sorted(found) if matches_map(found[key]["spec"]["selector"], labels)]

    def slices_of(self, service: str) -> list[Json]:
        """EndpointSlices of the Service with this key."""
        return self._found("EndpointSlice", "service", service)

    def usage(self, node: str) -> NodeUsage:
        """What the pods bound to the node ask for."""
        return self._usage.get(node) or NodeUsage()

    def _found(self, kind: str, index: str, value: Hashable) -> list[Json]:
        objects = self._indexes.get((kind, index, value), {})
        return [objects[key] for key in sorted(objects)]


def _discard(index: dict, value: Hashable, member: Hashable) -> None:  # type: ignore[type-arg]
    members = index.get(value)
    if members is not None:
        members.pop(member, None)
        if not members:
            del index[value]


def view_of(objects: Iterable[Json]) -> View:
    """A View of these objects, under their own kinds."""
    view = View()
    for obj in objects:
        view.apply(obj["kind"], key_of(obj), obj)
    return view
