"""Which objects a list or a watch wants: namespace, label selector, field selector, made ready once and asked often. Pure."""

from __future__ import annotations

from msgspec import Struct

from podwire_core import selectors
from podwire_core.errors import ApiError
from podwire_core.kinds import ResourceInfo
from podwire_core.objects import Json

# Fields that a kind may be selected by, besides its name and namespace, as in Kubernetes.
_FIELDS: dict[str, tuple[str, ...]] = {
    "Pod": (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
    ),
    "Node": ("spec.unschedulable",),
    "Namespace": ("status.phase",),
    "Service": ("spec.type", "spec.clusterIP"),
    "Secret": ("type",),
    "ReplicaSet": ("status.replicas",),
    "ReplicationController": ("status.replicas",),
    "Job": ("status.successful",),
    "Event": (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "reason",
        "type",
        "source",
        "reportingComponent",
    ),
}
_ALWAYS = ("metadata.name", "metadata.namespace")

FieldTerm = tuple[tuple[str, ...], bool, str]  # path, wanted equal, value


class Filter(Struct, frozen=True):
    namespace: str = ""
    name: str = ""  # a field selector's metadata.name=…, so that a list can go straight to it
    labels: list[selectors.Requirement] = []
    fields: list[FieldTerm] = []

    def matches(self, obj: Json) -> bool:
        meta = obj["metadata"]
        if self.namespace and meta.get("namespace", "") != self.namespace:
            return False
        if self.labels and not selectors.satisfies(self.labels, meta.get("labels")):
            return False
        return all((_text(obj, path) == value) is equal for path, equal, value in self.fields)


def compile_filter(info: ResourceInfo, namespace: str, labels: str, fields: str) -> Filter:
    """Raises ApiError(400)."""
    if namespace and not info.namespaced:
        namespace = ""
    try:
        requirements = selectors.parse(labels)
    except ValueError as error:
        raise ApiError(400, f"bad label selector: {error}") from None
    terms = _parse_fields(info, fields)
    name = next((value for path, equal, value in terms if equal and path == ("metadata", "name")), "")
    return Filter(namespace, name, requirements, terms)


def _parse_fields(info: ResourceInfo, text: str) -> list[FieldTerm]:
    terms: list[FieldTerm] = []
    for part in filter(None, text.split(",")):
        operator = next((op for op in ("!=", "==", "=") if op in part), None)
        if operator is None:
            raise ApiError(400, f"bad field selector {part!r}: expected FIELD=VALUE or FIELD!=VALUE")
        field, _, value = part.partition(operator)
        known = (*_ALWAYS, *_FIELDS.get(info.kind, ()))
        if field.strip() not in known:
            raise ApiError(400, f"{info.kind} has no selectable field {field.strip()!r}; it has {', '.join(known)}")
        terms.append((tuple(field.strip().split(".")), operator != "!=", value.strip()))
    return terms


def _text(obj: Json, path: tuple[str, ...]) -> str:
    """A field as text, "" where it is missing; booleans as Kubernetes writes them."""
    value: object = obj
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    if isinstance(value, dict):  # an Event's source
        value = value.get("component")
    if isinstance(value, bool):
        return "true" if value else "false"
    default = "false" if path[-1] in ("unschedulable", "hostNetwork") else ""
    return default if value is None else str(value)
