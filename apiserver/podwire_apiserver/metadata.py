"""What the server does to an object's metadata: names it, and keeps its own fields out of the writers' hands. Pure."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable

from podwire_core.kinds import ResourceInfo
from podwire_core.objects import Json

_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_SYSTEM = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "resourceVersion")
MAX_GENERATED = 63


def new_metadata(info: ResourceInfo, obj: Json, now: str, rng: random.Random, taken: Callable[[str, str], bool]) -> None:
    """Of an object to be created, in place. Names that are missing are left to validation."""
    meta = obj["metadata"]
    for field in _SYSTEM:
        meta.pop(field, None)
    if not meta.get("name") and meta.get("generateName"):
        meta["name"] = _generated(meta["generateName"], meta.get("namespace", ""), rng, taken)
    meta["uid"] = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    meta["creationTimestamp"] = now
    if "spec" in obj:
        meta["generation"] = 1


def _generated(prefix: str, namespace: str, rng: random.Random, taken: Callable[[str, str], bool]) -> str:
    while True:
        name = prefix[: MAX_GENERATED - 5] + "".join(rng.choice(_LETTERS) for _ in range(5))
        if not taken(namespace, name):
            return name


def updated_metadata(old: Json, given: Json) -> Json:
    """The writer's metadata with the server's own fields as they were."""
    meta = {field: value for field, value in given.items() if field not in _SYSTEM}
    meta.update({field: old[field] for field in _SYSTEM if field in old})
    return meta
