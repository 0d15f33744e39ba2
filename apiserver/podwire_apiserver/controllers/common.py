"""What several controllers need: times, conditions, owner references, names, pods' states.

Rules it keeps: nothing here changes its arguments. Order to read: time, names, ownership, status, pods.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from podwire_core.objects import IntOrString, Json

from .actions import AnyAction, Event, UpdateStatus
from .view import View, labels_of

# --- time --------------------------------


def timestamp(now: float) -> str:
    """ "2024-05-01T12:00:00Z", as metadata holds it: whole seconds."""
    return datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_timestamp(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@lru_cache(maxsize=8192)
def seconds(text: str | None) -> float:
    """A timestamp as seconds since the epoch; 0 if there is none or it cannot be read."""
    if not text:
        return 0.0
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0


def created(obj: Json) -> float:
    return seconds(obj["metadata"].get("creationTimestamp"))


def age_order(obj: Json) -> tuple[float, str]:
    """Oldest first."""
    return created(obj), obj["metadata"]["name"]


# --- names --------------------------------

_SAFE = "bcdfghjklmnpqrstvwxz2456789"  # no vowels, no digits that look like letters: no words by accident


def short_hash(*parts: object, length: int = 10) -> str:
    """A stable name for a value, in the alphabet of Kubernetes' generated names."""
    encoded = msgspec.json.encode(parts, order="sorted")
    number = int.from_bytes(hashlib.sha256(encoded).digest()[:10], "big")
    letters = []
    for _ in range(length):
        number, digit = divmod(number, len(_SAFE))
        letters.append(_SAFE[digit])
    return "".join(letters)


def fresh_name(view: View, kind: str, namespace: str, prefix: str, *seed: object) -> str:
    """`prefix` and five letters, not taken in the View; the same arguments give the same name."""
    prefix = prefix[:58]
    attempt = 0
    while True:
        name = prefix + short_hash(kind, namespace, prefix, attempt, *seed, length=5)
        if view.get(kind, f"{namespace}/{name}" if namespace else name) is None:
            return name
        attempt += 1


# --- ownership --------------------------------


def uid_of(obj: Json) -> str:
    return str(obj["metadata"].get("uid") or "")


def deleting(obj: Json) -> bool:
    return bool(obj["metadata"].get("deletionTimestamp"))


def controller_ref(obj: Json) -> Json | None:
    references: Iterable[Json] = obj["metadata"].get("ownerReferences") or ()
    return next((reference for reference in references if reference.get("controller")), None)


def owner_reference(owner: Json) -> Json:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": uid_of(owner),
        "controller": True,
        "blockOwnerDeletion": True,
    }


def owner_key(obj: Json, kind: str) -> str | None:
    """The key of the controller of this kind that owns the object."""
    reference = controller_ref(obj)
    if reference is None or reference.get("kind") != kind:
        return None
    namespace = obj["metadata"].get("namespace")
    return f"{namespace}/{reference['name']}" if namespace else str(reference["name"])


# --- status --------------------------------


def condition_of(obj: Json, type_: str) -> Json | None:
    conditions: Iterable[Json] = (obj.get("status") or {}).get("conditions") or ()
    return next((condition for condition in conditions if condition.get("type") == type_), None)


def with_condition(
    conditions: Iterable[Json] | None, type_: str, status: str, reason: str, message: str, now: float, **more: str
) -> list[Json]:
    """The conditions with this one set; lastTransitionTime moves only when `status` does."""
    result, new = [], {"type": type_, "status": status, "lastTransitionTime": timestamp(now), **more}
    new |= {key: value for key, value in (("reason", reason), ("message", message)) if value}
    place = None
    for condition in conditions or ():
        if condition.get("type") != type_:
            result.append(condition)
            continue
        place = len(result)
        if condition.get("status") == status:
            new["lastTransitionTime"] = condition.get("lastTransitionTime") or new["lastTransitionTime"]
            if all(condition.get(key) == new.get(key) for key in ("reason", "message")):
                new = condition
    result.insert(len(result) if place is None else place, new)
    return result


def status_update(obj: Json, status: Json) -> list[AnyAction]:
    """Writes the status if it differs from what is there."""
    return [] if (obj.get("status") or {}) == status else [UpdateStatus({**obj, "status": status})]


def event(obj: Json, type_: str, reason: str, message: str, source: str) -> Event:
    return Event(obj, type_, reason, message, source)


def resolve(value: IntOrString | None, total: int, *, up: bool, default: IntOrString) -> int:
    """maxSurge (rounded up) or maxUnavailable (rounded down): a number or a percentage of `total`."""
    given = default if value is None else value
    if isinstance(given, str) and given.endswith("%"):
        share = int(given[:-1]) * total / 100
        return math.ceil(share) if up else math.floor(share)
    return int(given)


# --- pods --------------------------------


def phase_of(pod: Json) -> str:
    return (pod.get("status") or {}).get("phase") or "Pending"


def finished(pod: Json) -> bool:
    return phase_of(pod) in ("Succeeded", "Failed")


def active(pod: Json) -> bool:
    return not finished(pod) and not deleting(pod)


def ready(pod: Json) -> bool:
    condition = condition_of(pod, "Ready")
    return condition is not None and condition.get("status") == "True"


def ready_since(pod: Json) -> float:
    condition = condition_of(pod, "Ready")
    return seconds((condition or {}).get("lastTransitionTime"))


def available(pod: Json, min_ready_seconds: int, now: float) -> bool:
    return ready(pod) and (min_ready_seconds == 0 or ready_since(pod) + min_ready_seconds <= now)


def next_available(pods: Iterable[Json], min_ready_seconds: int, now: float) -> float | None:
    """When the next of the ready pods becomes available by mere waiting."""
    if not min_ready_seconds:
        return None
    times = (ready_since(pod) + min_ready_seconds for pod in pods if ready(pod))
    return min((time for time in times if time > now), default=None)


def pod_from_template(template: Json, owner: Json, name: str) -> Json:
    """A Pod as `owner` makes it of its template; labels, annotations and finalizers are the template's."""
    given = template.get("metadata") or {}
    metadata = {
        "name": name,
        "namespace": owner["metadata"].get("namespace") or "default",
        "labels": dict(given.get("labels") or {}),
        "ownerReferences": [owner_reference(owner)],
    }
    metadata |= {key: given[key] for key in ("annotations", "finalizers") if given.get(key)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template.get("spec") or {}}


def with_label(obj: Json, key: str, value: str) -> Json:
    return {**obj, "metadata": {**obj["metadata"], "labels": {**labels_of(obj), key: value}}}
