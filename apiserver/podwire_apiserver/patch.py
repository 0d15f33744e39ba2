"""Changing objects by description: JSON merge patch (RFC 7386), and the three-way merge behind `apply`. Pure."""

from __future__ import annotations

from typing import Any

from podwire_core.objects import Json


def merge_patch(target: Any, patch: Any) -> Any:
    """The patched value, as a new one; what the patch doesn't mention is shared with the target."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


_BY_NAME = ("containers", "initContainers", "volumes", "env", "imagePullSecrets")  # lists that Kubernetes merges by name


def three_way(last: Json, live: Json, wanted: Json) -> Json:
    """`live` with everything that `wanted` says, without what `last` said and `wanted` no longer does.

    Other lists than _BY_NAME are taken whole: what the server adds to their elements are defaults, which it adds again."""
    result = dict(live)
    for key in last:
        if key not in wanted:
            result.pop(key, None)
    for key, value in wanted.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = three_way(_object(last.get(key)), _object(live.get(key)), value)
        elif key in _BY_NAME and _named(value) and _named(live.get(key)):
            result[key] = _merge_list(last.get(key), live[key], value)
        else:
            result[key] = value
    return result


def _merge_list(last: Any, live: list[Json], wanted: list[Json]) -> list[Json]:
    """In the order of `wanted`, then what others have added."""
    before = {item["name"]: item for item in last} if _named(last) else {}
    there, names = {item["name"]: item for item in live}, {item["name"] for item in wanted}
    merged = [three_way(before.get(item["name"], {}), there.get(item["name"], {}), item) for item in wanted]
    return merged + [item for item in live if item["name"] not in names and item["name"] not in before]


def _named(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in value)


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}
