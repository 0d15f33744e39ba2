"""CustomResourceDefinitions, and their instances against the schema they give: types, required fields, enums, ranges."""

from __future__ import annotations

import re
from typing import Any

from podwire_apiserver.validation.shape import type_name
from podwire_apiserver.validation.syntax import Problems, dns_label, dns_label_1035, dns_subdomain, quoted
from podwire_core.kinds import BUILTIN
from podwire_core.objects import Json

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
_BUILTIN_GROUPS = {info.group for info in BUILTIN}


def check_crd(found: Problems, obj: Json) -> None:
    spec = obj["spec"]
    names = spec["names"]
    found.check("$.spec.group", spec["group"], dns_subdomain)
    if "." not in spec["group"] or spec["group"] in _BUILTIN_GROUPS:
        found.add("$.spec.group", f"{quoted(spec['group'])} is not a domain of your own")
    found.check("$.spec.names.plural", names["plural"], dns_label)
    found.check("$.spec.names.kind", names["kind"].lower(), dns_label_1035)
    found.one_of("$.spec.scope", spec["scope"], ("Namespaced", "Cluster"))
    expected = f"{names['plural']}.{spec['group']}"
    if obj["metadata"].get("name") not in (None, "", expected):
        found.add("$.metadata.name", f"{quoted(obj['metadata']['name'])} must be <plural>.<group>, {quoted(expected)}")
    versions = spec["versions"]
    if not versions:
        found.add("$.spec.versions", "missing; there is at least one")
    for index, version in enumerate(versions):
        found.check(f"$.spec.versions[{index}].name", version["name"], dns_label_1035)
    if versions and sum(1 for version in versions if version.get("storage")) != 1:
        found.add("$.spec.versions", "exactly one version has storage: true")
    if versions and not any(version.get("served", True) for version in versions):
        found.add("$.spec.versions", "none is served")


def check_instance(found: Problems, definition: Json, obj: Json) -> None:
    version = obj["apiVersion"].rpartition("/")[2]
    for each in definition["spec"]["versions"]:
        if each["name"] == version:
            schema = (each.get("schema") or {}).get("openAPIV3Schema")
            for field, value in obj.items():
                part = ((schema or {}).get("properties") or {}).get(field)
                if part is not None and field not in ("apiVersion", "kind", "metadata"):
                    _check_value(found, f"$.{field}", value, part)
            for field in (schema or {}).get("required") or []:
                if field not in obj:
                    found.add(f"$.{field}", "missing")


def _check_value(found: Problems, path: str, value: Any, schema: Json) -> None:
    if value is None and schema.get("nullable"):
        return
    if not _has_type(value, schema):
        expected = "int or string" if schema.get("x-kubernetes-int-or-string") else schema.get("type")
        found.add(path, f"expected {expected}, got {type_name(value)}")
        return
    if schema.get("enum") is not None and value not in schema["enum"]:
        found.add(path, f"{quoted(value)} is not one of {', '.join(map(str, schema['enum']))}")
    if isinstance(value, dict):
        _check_object(found, path, value, schema)
    elif isinstance(value, list):
        _check_size(found, path, len(value), schema, "Items")
        for index, item in enumerate(value):
            _check_value(found, f"{path}[{index}]", item, schema.get("items") or {})
    elif isinstance(value, str):
        _check_size(found, path, len(value), schema, "Length")
        if schema.get("pattern") and not _matches(schema["pattern"], value):
            found.add(path, f"{quoted(value)} does not match {schema['pattern']}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if value < schema.get("minimum", value):
            found.add(path, f"{value} is less than {schema['minimum']}")
        if value > schema.get("maximum", value):
            found.add(path, f"{value} is more than {schema['maximum']}")


def _has_type(value: Any, schema: Json) -> bool:
    if schema.get("x-kubernetes-int-or-string"):
        return isinstance(value, int | str) and not isinstance(value, bool)
    types = _TYPES.get(schema.get("type", ""))
    return types is None or (isinstance(value, types) and (bool in types or not isinstance(value, bool)))


def _check_object(found: Problems, path: str, value: Json, schema: Json) -> None:
    properties, others = schema.get("properties") or {}, schema.get("additionalProperties")
    for field in schema.get("required") or []:
        if field not in value:
            found.add(f"{path}.{field}", "missing")
    for field, item in value.items():
        if field in properties:
            _check_value(found, f"{path}.{field}", item, properties[field])
        elif isinstance(others, dict):
            _check_value(found, f"{path}.{field}", item, others)


def _check_size(found: Problems, path: str, size: int, schema: Json, what: str) -> None:
    if size < schema.get(f"min{what}", size) or size > schema.get(f"max{what}", size):
        bounds = f"{schema.get(f'min{what}', 0)} to {schema.get(f'max{what}', '∞')}"
        found.add(path, f"has {size} {'items' if what == 'Items' else 'characters'}, expected {bounds}")


def _matches(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return True  # RE2 syntax that Python doesn't know: not this instance's fault
