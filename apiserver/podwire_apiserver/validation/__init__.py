"""Is this object right? Every wrong field of an object at once, each with its path: `$.spec.ports[0].port: 70000 is not a port`.

Rules it keeps: pure. Types come first (`type_problems`); what follows may rely on them. `problems` looks at one defaulted object,
`conflicts` at others, too, `update_problems` at what an update may not change. No problems is an empty list.

Order to read: this file, shape.py, shapes.py, syntax.py, metadata.py, then a file a family of kinds; immutable.py.
"""

from __future__ import annotations

from collections.abc import Callable

from podwire_apiserver.controllers.view import View
from podwire_apiserver.validation import config, crd, network, node, service, workload
from podwire_apiserver.validation.immutable import update_problems
from podwire_apiserver.validation.metadata import check_metadata
from podwire_apiserver.validation.pod import check_pod
from podwire_apiserver.validation.shape import all_type_errors, type_name
from podwire_apiserver.validation.shapes import Bare, shape_of
from podwire_apiserver.validation.syntax import Problems
from podwire_core.errors import Cause
from podwire_core.kinds import BUILTIN, ResourceInfo
from podwire_core.objects import Json

_CHECKS: dict[tuple[str, str], Callable[[Problems, Json], None]] = {
    ("", "Pod"): check_pod,
    ("", "Service"): service.check_service,
    ("", "Node"): node.check_node,
    ("", "Endpoints"): network.check_endpoints,
    ("", "ConfigMap"): config.check_config_map,
    ("", "Secret"): config.check_secret,
    ("", "ReplicationController"): workload.check_replication_controller,
    ("apps", "Deployment"): workload.check_deployment,
    ("apps", "ReplicaSet"): workload.check_replica_set,
    ("apps", "StatefulSet"): workload.check_stateful_set,
    ("apps", "DaemonSet"): workload.check_daemon_set,
    ("batch", "Job"): workload.check_job,
    ("batch", "CronJob"): workload.check_cron_job,
    ("policy", "PodDisruptionBudget"): workload.check_disruption_budget,
    ("discovery.k8s.io", "EndpointSlice"): network.check_endpoint_slice,
    ("networking.k8s.io", "NetworkPolicy"): network.check_network_policy,
    ("networking.k8s.io", "ServiceCIDR"): network.check_service_cidr,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): crd.check_crd,
}


def type_problems(info: ResourceInfo, obj: Json) -> list[Cause]:
    return all_type_errors(shape_of(info.group, info.kind) if info in BUILTIN else Bare, obj)


def problems(info: ResourceInfo, obj: Json) -> list[Cause]:
    found = Problems()
    check_metadata(found, info, obj["metadata"])
    check = _CHECKS.get((info.group, info.kind))
    if check is not None:
        check(found, obj)
    return found.causes


def conflicts(view: View, info: ResourceInfo, obj: Json) -> list[Cause]:
    """What is right in itself but taken by another object. (Addresses and node ports of Services: allocators.py.)"""
    found = Problems()
    if info.kind == "Node" and not info.group:
        node.check_pod_cidrs(found, obj, view.all("Node").values())
    elif info not in BUILTIN:
        definition = view.get("CustomResourceDefinition", f"{info.plural}.{info.group}")
        if definition is not None:
            crd.check_instance(found, definition, obj)
    return found.causes


def has_status(view: View, info: ResourceInfo) -> bool:
    """Is the status written by itself? Not where a CustomResourceDefinition doesn't say so."""
    if info in BUILTIN:
        return True
    definition = view.get("CustomResourceDefinition", f"{info.plural}.{info.group}") or {"spec": {"versions": []}}
    return any("status" in (version.get("subresources") or {}) for version in definition["spec"]["versions"])


_WITH_PODS = ("Pod", "ReplicationController", "Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job")


def warnings(info: ResourceInfo, obj: Json) -> list[str]:
    """What is stored as it is, but probably not what its writer meant."""
    if info not in BUILTIN:
        return []
    known = {
        "apiVersion",
        "kind",
        "metadata",
        "spec",
        "status",
        "data",
        "type",
        "subsets",
        *shape_of(info.group, info.kind).__struct_encode_fields__,
    }
    likely = ("apiVersion", "kind", "metadata", "spec", "status", "data")
    unknown = [f"unknown field $.{field}" for field in obj if field not in known and any(_close(field, word) for word in likely)]
    return unknown + _host_ports(info, obj)


def _host_ports(info: ResourceInfo, obj: Json) -> list[str]:
    """Host ports of a pod, or of a workload's pods, that are not on the host's network."""
    if info.kind not in _WITH_PODS:
        return []
    path, spec = "$.spec", obj.get("spec") or {}
    if info.kind != "Pod":
        path, spec = "$.spec.template.spec", (spec.get("template") or {}).get("spec") or {}
    return [
        f"{path}.containers[{index}].ports[{number}].hostPort is stored, but nothing in podwire maps it to the pod"
        for index, container in enumerate([] if spec.get("hostNetwork") else spec.get("containers") or [])
        for number, port in enumerate(container.get("ports") or [])
        if port.get("hostPort")
    ]


def _close(word: str, other: str) -> bool:
    return word.lower() == other.lower() or sorted(word.lower()) == sorted(other.lower())


__all__ = ["conflicts", "has_status", "problems", "type_name", "type_problems", "update_problems", "warnings"]
