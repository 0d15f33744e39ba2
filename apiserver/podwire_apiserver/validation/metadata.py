"""Metadata: names as the kind wants them, labels, annotations, owners, finalizers."""

from __future__ import annotations

from collections.abc import Callable

from podwire_apiserver.validation.syntax import (
    Problems,
    check_labels,
    dns_label,
    dns_label_1035,
    dns_subdomain,
    path_segment,
    qualified_name,
)
from podwire_core.kinds import ResourceInfo
from podwire_core.objects import Json

MAX_ANNOTATIONS = 256 * 1024
_NAMES: dict[str, Callable[[str], str]] = {
    "Service": dns_label_1035,
    "Namespace": dns_label,
    "Role": path_segment,
    "RoleBinding": path_segment,
    "ClusterRole": path_segment,
    "ClusterRoleBinding": path_segment,
    "IPAddress": path_segment,
    "APIService": path_segment,
}


def check_metadata(found: Problems, info: ResourceInfo, meta: Json) -> None:
    if not meta.get("name"):
        found.add("$.metadata.name", "missing" + ("; or generateName" if not meta.get("generateName") else ""))
    else:
        found.check("$.metadata.name", meta["name"], _NAMES.get(info.kind, dns_subdomain))
    if info.namespaced:
        found.check("$.metadata.namespace", meta.get("namespace", ""), dns_label)
    elif meta.get("namespace"):
        found.add("$.metadata.namespace", f"a {info.kind} is in no namespace")
    check_labels(found, "$.metadata.labels", meta.get("labels"))
    for key in meta.get("annotations") or {}:
        found.check(f"$.metadata.annotations.{key}", key.lower(), qualified_name)
    if sum(len(key) + len(value) for key, value in (meta.get("annotations") or {}).items()) > MAX_ANNOTATIONS:
        found.add("$.metadata.annotations", f"more than {MAX_ANNOTATIONS} bytes")
    for index, name in enumerate(meta.get("finalizers") or []):
        found.check(f"$.metadata.finalizers[{index}]", name, qualified_name)
    _check_owners(found, meta.get("ownerReferences") or [])


def _check_owners(found: Problems, references: list[Json]) -> None:
    for index, reference in enumerate(references):
        for field in ("apiVersion", "kind", "name", "uid"):
            if not reference.get(field):
                found.add(f"$.metadata.ownerReferences[{index}].{field}", "missing")
    if sum(1 for reference in references if reference.get("controller")) > 1:
        found.add("$.metadata.ownerReferences", "only one owner can be the controller")
