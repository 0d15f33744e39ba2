"""The arithmetic of Deployments: how many replicas each ReplicaSet should have next. Pure functions of counts.

Rules it keeps (pkg/controller/deployment/{rolling,sync}.go): maxSurge percentages round up, maxUnavailable ones down, both
zero means one unavailable; a rollout first grows the new ReplicaSet to the surge, then shrinks old ones: unhealthy
pods first, then as far as availability allows; a scaling in mid-rollout is spread in proportion to sizes. Answers are
{key: replicas}.

Order to read: limits, rolling, proportional, complete.
"""

from __future__ import annotations

from podwire_core.objects import Json, key_of

from .common import age_order, created, resolve

DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"


# --- limits --------------------------------


def desired(deployment: Json) -> int:
    return int(deployment["spec"].get("replicas", 1))


def is_recreate(deployment: Json) -> bool:
    return (deployment["spec"].get("strategy") or {}).get("type") == "Recreate"


def limits(deployment: Json) -> tuple[int, int]:
    """(maxSurge, maxUnavailable) in pods."""
    if is_recreate(deployment):
        return 0, 0
    given = (deployment["spec"].get("strategy") or {}).get("rollingUpdate") or {}
    surge = resolve(given.get("maxSurge"), desired(deployment), up=True, default="25%")
    unavailable = resolve(given.get("maxUnavailable"), desired(deployment), up=False, default="25%")
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return surge, unavailable


def max_unavailable(deployment: Json) -> int:
    return min(limits(deployment)[1], desired(deployment))


def size_notes(deployment: Json) -> dict[str, str]:
    """What a ReplicaSet remembers of the Deployment's size when it was last sized."""
    return {DESIRED: str(desired(deployment)), MAXIMUM: str(desired(deployment) + limits(deployment)[0])}


def replicas_of(replica_set: Json) -> int:
    return int(replica_set["spec"].get("replicas", 1))


def available_of(replica_set: Json) -> int:
    """Never more than its size: pods beyond that are about to go, though its status may not say so yet."""
    return min(int((replica_set.get("status") or {}).get("availableReplicas") or 0), replicas_of(replica_set))


# --- a rollout --------------------------------


def first_replicas(deployment: Json, old: list[Json]) -> int:
    """With how many replicas a new ReplicaSet begins."""
    if is_recreate(deployment):
        return desired(deployment)
    room = desired(deployment) + limits(deployment)[0] - sum(map(replicas_of, old))
    return min(max(room, 0), desired(deployment))


def rolling(deployment: Json, new: Json, old: list[Json]) -> dict[str, int]:
    """The next step: grow the new one, or else shrink the old ones."""
    size, wanted = replicas_of(new), desired(deployment)
    if size > wanted:
        return {key_of(new): wanted}
    room = wanted + limits(deployment)[0] - size - sum(map(replicas_of, old))
    if size < wanted and room > 0:
        return {key_of(new): size + min(room, wanted - size)}
    return _shrink_old(deployment, new, old)


def _shrink_old(deployment: Json, new: Json, old: list[Json]) -> dict[str, int]:
    everything = [*old, new]
    minimum = desired(deployment) - max_unavailable(deployment)
    new_unavailable = max(replicas_of(new) - available_of(new), 0)
    spare = sum(map(replicas_of, everything)) - minimum - new_unavailable
    if spare <= 0 or not any(map(replicas_of, old)):
        return {}
    sizes = {key_of(each): replicas_of(each) for each in old}
    ordered = sorted(old, key=age_order)
    for each in ordered:  # unhealthy pods serve nobody
        cut = min(spare, max(sizes[key_of(each)] - available_of(each), 0))
        sizes[key_of(each)] -= cut
        spare -= cut
    extra = sum(map(available_of, everything)) - minimum
    for each in ordered:
        cut = min(max(extra, 0), sizes[key_of(each)])
        sizes[key_of(each)] -= cut
        extra -= cut
    return {key_of(each): sizes[key_of(each)] for each in old if sizes[key_of(each)] != replicas_of(each)}


# --- scaling --------------------------------


def was_scaled(deployment: Json, sets: list[Json]) -> bool:
    """Has spec.replicas changed since a ReplicaSet was last sized?"""
    noted = [(each["metadata"].get("annotations") or {}).get(DESIRED) for each in sets if replicas_of(each)]
    return any(note is not None and note != str(desired(deployment)) for note in noted)


def proportional(deployment: Json, new: Json | None, old: list[Json]) -> dict[str, int]:
    """Sizes after a scaling (or while paused), without moving the rollout forward."""
    wanted = desired(deployment)
    sets = [*old, *([new] if new else [])]
    in_use = [each for each in sets if replicas_of(each)]
    if len(in_use) <= 1:
        only = in_use[0] if in_use else new or (max(old, key=created) if old else None)
        return {key_of(only): wanted} if only is not None else {}
    if new is not None and replicas_of(new) == wanted == available_of(new):
        return {key_of(each): 0 for each in old if replicas_of(each)}
    if is_recreate(deployment):
        return {}
    return _shares(deployment, in_use)


def _shares(deployment: Json, sets: list[Json]) -> dict[str, int]:
    wanted, surge = desired(deployment), limits(deployment)[0]
    to_add = (wanted + surge if wanted else 0) - sum(map(replicas_of, sets))
    sign = 1 if to_add >= 0 else -1
    ordered = sorted(sets, key=lambda each: (-replicas_of(each), -sign * created(each), each["metadata"]["name"]))
    sizes, added = {key_of(each): replicas_of(each) for each in ordered}, 0
    for each in ordered:
        share = _share(deployment, each, wanted + surge)
        left = to_add - added
        share = min(share, left) if to_add > 0 else max(share, left)
        sizes[key_of(each)] += share
        added += share
    first = key_of(ordered[0])
    sizes[first] = max(sizes[first] + to_add - added, 0)
    return sizes


def _share(deployment: Json, replica_set: Json, maximum: int) -> int:
    """By how much one ReplicaSet changes to keep its part of the whole."""
    size = replicas_of(replica_set)
    if desired(deployment) == 0:
        return -size
    noted = (replica_set["metadata"].get("annotations") or {}).get(MAXIMUM)
    before = int(noted) if noted and noted.isdigit() else (deployment.get("status") or {}).get("replicas") or 0
    return int(size * maximum / before + 0.5) - size if before else 0


def complete(deployment: Json, new: Json | None, old: list[Json]) -> bool:
    """All replicas are of the new template and available, and no old one runs."""
    if new is None:
        return False
    status = new.get("status") or {}
    settled = (status.get("observedGeneration") or 0) >= (new["metadata"].get("generation") or 0)
    counts = (status.get("replicas") or 0, available_of(new), replicas_of(new))
    idle = not any(replicas_of(each) or (each.get("status") or {}).get("replicas") for each in old)
    return settled and idle and counts == (desired(deployment),) * 3
