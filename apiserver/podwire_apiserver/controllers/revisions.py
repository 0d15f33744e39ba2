"""ControllerRevisions: the templates that a StatefulSet or DaemonSet has had, so that an older one can be made again.

Rules it keeps (pkg/controller/history): equal templates share one revision (it gets the highest number when it is used
again); its name is the owner's and the template's hash; those beyond revisionHistoryLimit that no pod uses are deleted.
"""

from __future__ import annotations

from msgspec import Struct

from podwire_core.objects import Json, key_of

from .actions import AnyAction, Create, Delete, Patch
from .common import owner_reference, short_hash, uid_of
from .view import View, labels_of, namespace_of

LABEL = "controller-revision-hash"


class Revisions(Struct, frozen=True):
    """`update` is the revision of the template in force; `known` all, oldest first, that one included."""

    update: Json
    known: list[Json]
    actions: list[AnyAction]

    def named(self, name: str) -> Json | None:
        return next((each for each in self.known if each["metadata"]["name"] == name), None)

    def of_label(self, value: str) -> Json | None:
        """Pods of a StatefulSet carry the revision's name, those of a DaemonSet its hash alone."""
        return next((each for each in self.known if value in (each["metadata"]["name"], hash_of(each))), None)


def hash_of(revision: Json) -> str:
    return labels_of(revision).get(LABEL, "")


def template_of(revision: Json) -> Json:
    template: Json = revision["data"]["spec"]["template"]
    return template


def revisions_of(view: View, owner: Json) -> Revisions:
    """The owner's revisions, with a new one made if its template is new."""
    template = owner["spec"].get("template") or {}
    known = sorted(view.owned("ControllerRevision", uid_of(owner)), key=_number)
    highest = _number(known[-1])[0] if known else 0
    equal = next((each for each in reversed(known) if template_of(each) == template), None)
    if equal is None:
        made = _revision(view, owner, template, highest + 1)
        return Revisions(made, [*known, made], [Create(made)])
    if equal is known[-1]:
        return Revisions(equal, known, [])
    patch = Patch("ControllerRevision", key_of(equal), {"revision": highest + 1}, uid=uid_of(equal))
    return Revisions(equal, known, [patch])


def trimmed(owner: Json, revisions: Revisions, in_use: set[str]) -> list[AnyAction]:
    """Deletes the oldest that are named neither in `in_use` nor by the template in force."""
    keep = in_use | {revisions.update["metadata"]["name"]}
    unused = [each for each in revisions.known if each["metadata"]["name"] not in keep]
    surplus = len(unused) - owner["spec"].get("revisionHistoryLimit", 10)
    return [Delete("ControllerRevision", key_of(each), uid_of(each)) for each in unused[: max(0, surplus)]]


def _number(revision: Json) -> tuple[int, str]:
    return int(revision.get("revision") or 0), revision["metadata"]["name"]


def _revision(view: View, owner: Json, template: Json, number: int) -> Json:
    attempt = 0
    while True:
        digest = short_hash(template, *([attempt] if attempt else ()))
        name = f"{owner['metadata']['name']}-{digest}"
        if view.get("ControllerRevision", f"{namespace_of(owner)}/{name}") is None:
            break
        attempt += 1
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": name,
            "namespace": namespace_of(owner),
            "labels": {**((template.get("metadata") or {}).get("labels") or {}), LABEL: digest},
            "ownerReferences": [owner_reference(owner)],
        },
        "data": {"spec": {"template": template}},
        "revision": number,
    }
