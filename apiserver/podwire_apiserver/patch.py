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


def three_way(last: Json, live: Json, wanted: Json) -> Json:
    """`live` with everything that `wanted` says, without what `last` said and `wanted` no longer does.

    Lists are taken whole: what the server adds to their elements are defaults, and defaulting adds them again."""
    result = dict(live)
    for key in last:
        if key not in wanted:
            result.pop(key, None)
    for key, value in wanted.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            before, said = live.get(key), last.get(key)
            result[key] = three_way(said if isinstance(said, dict) else {}, before if isinstance(before, dict) else {}, value)
        else:
            result[key] = value
    return result
