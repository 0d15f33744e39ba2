"""The templates that a workload has had.

A Deployment's are in its ReplicaSets, a StatefulSet's or DaemonSet's in its ControllerRevisions. Pure: the objects come in.
`rollout history` prints them, `rollout undo` puts one back. Order to read: history_of, target_of, restored.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

from msgspec import Struct

from podwire.paths import ClusterError
from podwire_core.objects import Json

HOLDERS = {"Deployment": "ReplicaSet", "StatefulSet": "ControllerRevision", "DaemonSet": "ControllerRevision"}
DEPLOYMENT_REVISION = "deployment.kubernetes.io/revision"
CAUSE = "kubernetes.io/change-cause"
HASH = "pod-template-hash"


class Revision(Struct, frozen=True):
    """One template. `cause` is what the annotation kubernetes.io/change-cause said then."""

    number: int
    template: Json
    cause: str


def history_of(owner: Json, holders: Iterable[Json]) -> list[Revision]:
    """Oldest first; of the objects in `holders` those that `owner` controls."""
    uid = owner["metadata"].get("uid")
    mine = [each for each in holders if any(ref.get("uid") == uid for ref in each["metadata"].get("ownerReferences") or ())]
    found = [_of_set(each) if owner["kind"] == "Deployment" else _of_controller_revision(each) for each in mine]
    return sorted((each for each in found if each.number), key=lambda each: each.number)


def _of_set(replica_set: Json) -> Revision:
    notes = replica_set["metadata"].get("annotations") or {}
    template = copy.deepcopy(replica_set["spec"]["template"])
    template.get("metadata", {}).get("labels", {}).pop(HASH, None)
    number = str(notes.get(DEPLOYMENT_REVISION, ""))
    return Revision(int(number) if number.isdigit() else 0, template, notes.get(CAUSE) or "")


def _of_controller_revision(revision: Json) -> Revision:
    notes = revision["metadata"].get("annotations") or {}
    return Revision(int(revision.get("revision") or 0), revision["data"]["spec"]["template"], notes.get(CAUSE) or "")


def target_of(owner: Json, history: list[Revision], number: int) -> Revision:
    """What `rollout undo --to-revision NUMBER` means; 0: the one before the present. ClusterError if there is none."""
    kind, name = owner["kind"].lower(), owner["metadata"]["name"]
    if number:
        found = next((each for each in history if each.number == number), None)
        if found is None:
            raise ClusterError(f'unable to find revision {number} of {kind} "{name}"; there are {_numbers(history)}')
        return found
    if len(history) < 2:
        raise ClusterError(f'no rollout history found for {kind} "{name}"')
    return history[-2]


def _numbers(history: list[Revision]) -> str:
    return ", ".join(str(each.number) for each in history) or "none"


def restored(owner: Json, revision: Revision) -> Json | None:
    """The workload with that template; None if it has it already."""
    if owner["spec"].get("template") == revision.template:
        return None
    changed = copy.deepcopy(owner)
    changed["spec"]["template"] = copy.deepcopy(revision.template)
    if revision.cause:
        changed["metadata"].setdefault("annotations", {})[CAUSE] = revision.cause
    return changed
