"""The columns of `podwire get` for every kind, as kubectl prints them (-o wide adds the wide ones).

A kind is a row of COLUMNS: (title, value of an object at a time, wide only). A kind that is not listed prints NAME and AGE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from podwire.cli import formats as f
from podwire.paths import ClusterError
from podwire_core.objects import Json


class Column(NamedTuple):
    title: str
    value: Callable[[Json, float], str]
    wide: bool = False


def _meta(obj: Json) -> Json:
    return dict(obj.get("metadata") or {})


def _spec(obj: Json) -> Json:
    return dict(obj.get("spec") or {})


def _status(obj: Json) -> Json:
    return dict(obj.get("status") or {})


def _field(title: str, *path: str, default: str = f.NONE, wide: bool = False) -> Column:
    """A column that is one field of the object."""

    def value(obj: Json, now: float) -> str:
        found: object = obj
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return default if found is None or found == "" else str(found)

    return Column(title, value, wide)


NAME = _field("NAME", "metadata", "name", default="")
AGE = Column("AGE", lambda o, now: f.age(_meta(o).get("creationTimestamp"), now))


def _count(title: str, name: str) -> Column:
    return _field(title, "status", name, default="0")


def _desired(obj: Json) -> int:
    return int(_spec(obj).get("replicas", 1))


def _containers(obj: Json) -> list[Json]:
    return list(_spec(obj).get("template", {}).get("spec", {}).get("containers") or [])


def _job_containers(obj: Json) -> list[Json]:
    return _containers({"spec": _spec(obj).get("jobTemplate", {}).get("spec", {})})


WORKLOAD_WIDE = [
    Column("CONTAINERS", lambda o, now: ",".join(c.get("name", "") for c in _containers(o)), True),
    Column("IMAGES", lambda o, now: ",".join(c.get("image", "") for c in _containers(o)), True),
]
SELECTOR = Column("SELECTOR", lambda o, now: f.selector(_spec(o).get("selector")), True)
PLAIN_SELECTOR = Column("SELECTOR", lambda o, now: f.labels(_spec(o).get("selector")), True)
DESIRED = Column("DESIRED", lambda o, now: str(_desired(o)))
REPLICAS = [NAME, DESIRED, _count("CURRENT", "replicas"), _count("READY", "readyReplicas"), AGE, *WORKLOAD_WIDE]


def _job_status(obj: Json, now: float) -> str:
    for kind, text in (("Complete", "Complete"), ("Failed", "Failed"), ("Suspended", "Suspended")):
        if f.condition(obj, kind).get("status") == "True":
            return text
    return "Terminating" if _meta(obj).get("deletionTimestamp") else "Running"


def _job_duration(obj: Json, now: float) -> str:
    start, end = f.timestamp(_status(obj).get("startTime")), f.timestamp(_status(obj).get("completionTime"))
    return "" if start is None else f.duration((end if end is not None else now) - start)


def _slice_ports(obj: Json, now: float) -> str:
    return f.some([str(port.get("port", "*")) for port in obj.get("ports") or []]).replace(f.NONE, "<unset>")


def _event_age(obj: Json, now: float) -> str:
    last = f.age(obj.get("lastTimestamp") or obj.get("eventTime") or _meta(obj).get("creationTimestamp"), now)
    count = obj.get("count") or 1
    return f"{last} (x{count} over {f.age(obj.get('firstTimestamp'), now)})" if count > 1 else last


def _event_object(obj: Json, now: float) -> str:
    about = obj.get("involvedObject") or {}
    return f"{about.get('kind', '').lower()}/{about.get('name', '')}"


def _ingress_hosts(obj: Json, now: float) -> str:
    return ",".join(rule.get("host", "*") for rule in _spec(obj).get("rules") or []) or "*"


def _size(obj: Json, now: float) -> str:
    return str(len(obj.get("data") or {}) + len(obj.get("binaryData") or {}))


def _nominated(obj: Json, now: float) -> str:
    return str(_status(obj).get("nominatedNodeName") or f.NONE)


def _gates(obj: Json, now: float) -> str:
    gates = [gate.get("conditionType", "") for gate in _spec(obj).get("readinessGates") or []]
    ready = sum(1 for gate in gates if f.condition(obj, gate).get("status") == "True")
    return f"{ready}/{len(gates)}" if gates else f.NONE


COLUMNS: dict[str, Sequence[Column]] = {
    "Pod": [
        NAME,
        Column("READY", lambda o, now: f.pod_ready(o)),
        Column("STATUS", lambda o, now: f.pod_status(o)),
        Column("RESTARTS", f.pod_restarts),
        AGE,
        _field("IP", "status", "podIP", wide=True),
        _field("NODE", "spec", "nodeName", wide=True),
        Column("NOMINATED NODE", _nominated, True),
        Column("READINESS GATES", _gates, True),
    ],
    "Node": [
        NAME,
        Column("STATUS", lambda o, now: f.node_status(o)),
        Column("ROLES", lambda o, now: f.node_roles(o)),
        AGE,
        _field("VERSION", "status", "nodeInfo", "kubeletVersion", default=""),
        Column("INTERNAL-IP", lambda o, now: f.node_address(o, "InternalIP"), True),
        Column("EXTERNAL-IP", lambda o, now: f.node_address(o, "ExternalIP"), True),
        _field("OS-IMAGE", "status", "nodeInfo", "osImage", default="<unknown>", wide=True),
        _field("KERNEL-VERSION", "status", "nodeInfo", "kernelVersion", default="<unknown>", wide=True),
        _field("CONTAINER-RUNTIME", "status", "nodeInfo", "containerRuntimeVersion", default="<unknown>", wide=True),
    ],
    "Service": [
        NAME,
        _field("TYPE", "spec", "type", default="ClusterIP"),
        _field("CLUSTER-IP", "spec", "clusterIP"),
        Column("EXTERNAL-IP", lambda o, now: f.service_external(o)),
        Column("PORT(S)", lambda o, now: f.service_ports(o)),
        AGE,
        PLAIN_SELECTOR,
    ],
    "Deployment": [
        NAME,
        Column("READY", lambda o, now: f"{_status(o).get('readyReplicas', 0)}/{_desired(o)}"),
        _count("UP-TO-DATE", "updatedReplicas"),
        _count("AVAILABLE", "availableReplicas"),
        AGE,
        *WORKLOAD_WIDE,
        SELECTOR,
    ],
    "ReplicaSet": [*REPLICAS, SELECTOR],
    "ReplicationController": [*REPLICAS, PLAIN_SELECTOR],
    "StatefulSet": [
        NAME,
        Column("READY", lambda o, now: f"{_status(o).get('readyReplicas', 0)}/{_desired(o)}"),
        AGE,
        *WORKLOAD_WIDE,
    ],
    "DaemonSet": [
        NAME,
        _count("DESIRED", "desiredNumberScheduled"),
        _count("CURRENT", "currentNumberScheduled"),
        _count("READY", "numberReady"),
        _count("UP-TO-DATE", "updatedNumberScheduled"),
        _count("AVAILABLE", "numberAvailable"),
        Column("NODE SELECTOR", lambda o, now: f.labels(_spec(o).get("template", {}).get("spec", {}).get("nodeSelector"))),
        AGE,
        *WORKLOAD_WIDE,
        SELECTOR,
    ],
    "Job": [
        NAME,
        Column("STATUS", _job_status),
        Column("COMPLETIONS", lambda o, now: f"{_status(o).get('succeeded', 0)}/{_spec(o).get('completions') or 1}"),
        Column("DURATION", _job_duration),
        AGE,
        *WORKLOAD_WIDE,
        SELECTOR,
    ],
    "CronJob": [
        NAME,
        _field("SCHEDULE", "spec", "schedule"),
        _field("TIMEZONE", "spec", "timeZone"),
        _field("SUSPEND", "spec", "suspend", default="False"),
        Column("ACTIVE", lambda o, now: str(len(_status(o).get("active") or []))),
        Column("LAST SCHEDULE", lambda o, now: f.age(_status(o).get("lastScheduleTime"), now).replace("<unknown>", f.NONE)),
        AGE,
        Column("CONTAINERS", lambda o, now: ",".join(c.get("name", "") for c in _job_containers(o)), True),
        Column("IMAGES", lambda o, now: ",".join(c.get("image", "") for c in _job_containers(o)), True),
    ],
    "PodDisruptionBudget": [
        NAME,
        _field("MIN AVAILABLE", "spec", "minAvailable", default="N/A"),
        _field("MAX UNAVAILABLE", "spec", "maxUnavailable", default="N/A"),
        _field("ALLOWED DISRUPTIONS", "status", "disruptionsAllowed", default="0"),
        AGE,
    ],
    "ConfigMap": [NAME, Column("DATA", _size), AGE],
    "Secret": [NAME, _field("TYPE", "type", default="Opaque"), Column("DATA", _size), AGE],
    "ServiceAccount": [NAME, Column("SECRETS", lambda o, now: str(len(o.get("secrets") or []))), AGE],
    "Namespace": [NAME, _field("STATUS", "status", "phase", default="Active"), AGE],
    "Endpoints": [NAME, Column("ENDPOINTS", lambda o, now: f.some(f.endpoints(o))), AGE],
    "EndpointSlice": [
        NAME,
        _field("ADDRESSTYPE", "addressType"),
        Column("PORTS", _slice_ports),
        Column("ENDPOINTS", lambda o, now: f.some(f.slice_addresses(o)).replace(f.NONE, "<unset>")),
        AGE,
    ],
    "Event": [
        Column("LAST SEEN", _event_age),
        _field("TYPE", "type", default="Normal"),
        _field("REASON", "reason", default=""),
        Column("OBJECT", _event_object),
        _field("SOURCE", "source", "component", default="", wide=True),
        Column("MESSAGE", lambda o, now: str(o.get("message", "")).strip()),
    ],
    "Lease": [NAME, _field("HOLDER", "spec", "holderIdentity", default=""), AGE],
    "NetworkPolicy": [NAME, Column("POD-SELECTOR", lambda o, now: f.selector(_spec(o).get("podSelector"))), AGE],
    "CustomResourceDefinition": [NAME, _field("CREATED AT", "metadata", "creationTimestamp")],
    "Ingress": [
        NAME,
        _field("CLASS", "spec", "ingressClassName"),
        Column("HOSTS", _ingress_hosts),
        Column("ADDRESS", lambda o, now: f.service_external(o).replace(f.NONE, "")),
        Column("PORTS", lambda o, now: "80, 443" if _spec(o).get("tls") else "80"),
        AGE,
    ],
}
DEFAULT: Sequence[Column] = [NAME, AGE]


def columns_of(kind: str, wide: bool) -> list[Column]:
    return [column for column in COLUMNS.get(kind, DEFAULT) if wide or not column.wide]


def custom_columns(definition: Json, version: str) -> list[Column]:
    """The columns that a CustomResourceDefinition asks for; [] if it asks for none."""
    versions = [each for each in _spec(definition).get("versions") or [] if each.get("name") == version]
    asked = [each for found in versions for each in found.get("additionalPrinterColumns") or []]
    return [NAME, *map(_custom_column, asked)] if asked else []


def _custom_column(asked: Json) -> Column:
    from podwire.cli import jsonpath

    def value(obj: Json, now: float) -> str:
        try:
            text = jsonpath.render(f"{{{asked['jsonPath']}}}", obj)
        except ClusterError:
            return ""  # a path that we can't read
        return f.age(text, now) if asked.get("type") == "date" and text else text

    return Column(str(asked["name"]).upper(), value, bool(asked.get("priority")))


def in_order(kind: str, items: list[Json]) -> list[Json]:
    """Events by time, as they are read; everything else by name."""
    if kind == "Event":
        return sorted(items, key=lambda o: str(o.get("lastTimestamp") or _meta(o).get("creationTimestamp") or ""))
    return sorted(items, key=lambda o: (_meta(o).get("namespace", ""), _meta(o).get("name", "")))


def rows_of(
    kind: str,
    items: list[Json],
    now: float,
    *,
    wide: bool = False,
    namespaces: bool = False,
    prefix: str = "",
    custom: Sequence[Column] = (),
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table; `prefix` ("pod/") goes before names when several kinds are printed; `custom` columns
    take the place of the kind's."""
    columns = [column for column in custom if wide or not column.wide] or columns_of(kind, wide)
    header = [column.title for column in columns]
    rows = [[column.value(obj, now) for column in columns] for obj in items]
    if prefix and columns[0] is NAME:
        rows = [[prefix + row[0], *row[1:]] for row in rows]
    if namespaces:
        header = ["NAMESPACE", *header]
        rows = [[_meta(obj).get("namespace", ""), *row] for obj, row in zip(items, rows, strict=True)]
    return header, rows
