"""What an update may not change. Both objects are defaulted and valid; Services have their addresses."""

from __future__ import annotations

from typing import Any

from podwire_apiserver.validation.syntax import Problems
from podwire_core.errors import Cause
from podwire_core.kinds import ResourceInfo
from podwire_core.objects import Json

_FIXED: dict[tuple[str, str], tuple[str, ...]] = {
    ("apps", "Deployment"): ("spec.selector",),
    ("apps", "ReplicaSet"): ("spec.selector",),
    ("apps", "DaemonSet"): ("spec.selector",),
    ("apps", "StatefulSet"): ("spec.selector", "spec.serviceName", "spec.podManagementPolicy", "spec.volumeClaimTemplates"),
    ("batch", "Job"): ("spec.selector", "spec.template", "spec.completionMode"),
    ("discovery.k8s.io", "EndpointSlice"): ("addressType",),
    ("", "Secret"): ("type",),
    ("apiextensions.k8s.io", "CustomResourceDefinition"): ("spec.group", "spec.scope", "spec.names.kind", "spec.names.plural"),
}
_POD_MUTABLE = ("activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations", "containers", "initContainers")


def update_problems(info: ResourceInfo, old: Json, new: Json) -> list[Cause]:
    found = Problems()
    for path in _FIXED.get((info.group, info.kind), ()):
        if _at(old, path) != _at(new, path):
            found.add(f"$.{path}", "can't be changed; delete the object and create it anew")
    if not info.group:
        if info.kind == "Pod":
            _check_pod(found, old["spec"], new["spec"])
        elif info.kind == "Service":
            _check_service(found, old["spec"], new["spec"])
        elif info.kind == "Node":
            _check_node(found, old.get("spec") or {}, new.get("spec") or {})
        elif info.kind in ("ConfigMap", "Secret") and old.get("immutable"):
            for field in ("data", "binaryData", "immutable"):
                if old.get(field) != new.get(field):
                    found.add(f"$.{field}", "can't be changed: the object is immutable")
    return found.causes


def _at(obj: Json, path: str) -> Any:
    value: Any = obj
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _check_pod(found: Problems, old: Json, new: Json) -> None:
    """Of a pod's spec only images, the deadline, the grace period and further tolerations may change."""
    for field in sorted(old.keys() | new.keys()):
        if field not in _POD_MUTABLE and old.get(field) != new.get(field):
            found.add(f"$.spec.{field}", "a pod's can't be changed")
    for field in ("containers", "initContainers"):
        before, after = old.get(field) or [], new.get(field) or []
        if len(before) != len(after):
            found.add(f"$.spec.{field}", "a pod's can't be added or removed")
            continue
        for index, (was, will_be) in enumerate(zip(before, after, strict=True)):
            if {**was, "image": ""} != {**will_be, "image": ""}:
                found.add(f"$.spec.{field}[{index}]", "of a pod's container only the image can be changed")
    if any(toleration not in (new.get("tolerations") or []) for toleration in old.get("tolerations") or []):
        found.add("$.spec.tolerations", "a pod's can be added to, not changed or removed")


def _check_service(found: Problems, old: Json, new: Json) -> None:
    if "ExternalName" in (old.get("type"), new.get("type")):
        return
    if old.get("clusterIP") and new.get("clusterIP") != old["clusterIP"]:
        found.add("$.spec.clusterIP", f"can't be changed (it is {old['clusterIP']}); delete the Service and create it anew")


def _check_node(found: Problems, old: Json, new: Json) -> None:
    for field in ("podCIDR", "podCIDRs"):
        if old.get(field) and new.get(field) != old[field]:
            found.add(f"$.spec.{field}", f"can't be changed (it is {old[field]})")
