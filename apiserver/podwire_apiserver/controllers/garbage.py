"""Garbage collection by owner references: background cascade, foreground, orphaning.

Rules it keeps (pkg/controller/garbagecollector): an object all of whose owners are gone goes; dangling references beside living
owners are dropped; an owner being deleted with the finalizer "foregroundDeletion" waits for dependents that block it;
with "orphan" its dependents lose their reference first. Owners are known by uid: a new object of the same name owns nothing.

The View must hold every kind before this controller runs: what is not in it does not exist. Keys are "Kind|key".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from podwire_core.objects import Json

from .actions import AnyAction, Delete, Patch
from .common import deleting, uid_of
from .view import Change, Ref, View

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"


class GarbageCollector:
    name = "garbage-collector"
    kinds = ("*",)

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        woken: list[Ref] = []
        if change.new is None:
            woken += view.dependents(uid_of(change.either))
            for uid in _owners(change.either):  # an owner may be waiting for this to be gone
                owner = view.by_uid(uid)
                woken += [owner] if owner and _waits(view, owner) else []
        else:
            before = change.old["metadata"] if change.old else {}
            if _owners(change.new) and before.get("ownerReferences") != change.new["metadata"].get("ownerReferences"):
                woken.append((change.kind, change.key))
            if deleting(change.new) and _finalizers(change.new) & {FOREGROUND, ORPHAN}:
                woken += [(change.kind, change.key), *view.dependents(uid_of(change.new))]
        return [f"{kind}|{key}" for kind, key in woken]

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        kind, _, name = key.partition("|")
        obj = view.get(kind, name)
        if obj is None:
            return ()
        if deleting(obj):
            finalizers = _finalizers(obj)
            if ORPHAN in finalizers:
                return _orphan(view, (kind, name), obj)
            return _foreground(view, (kind, name), obj) if FOREGROUND in finalizers else ()
        return _collect(view, (kind, name), obj)


def _owners(obj: Json) -> list[str]:
    return [str(ref.get("uid")) for ref in obj["metadata"].get("ownerReferences") or ()]


def _finalizers(obj: Json) -> set[str]:
    return set(obj["metadata"].get("finalizers") or ())


def _object(view: View, ref: Ref | None) -> Json | None:
    return view.get(*ref) if ref else None


def _waits(view: View, ref: Ref) -> bool:
    obj = view.get(*ref)
    return obj is not None and deleting(obj) and FOREGROUND in _finalizers(obj)


def _collect(view: View, ref: Ref, obj: Json) -> list[AnyAction]:
    """An object that is not being deleted itself: do its owners still exist?"""
    references: list[Json] = obj["metadata"].get("ownerReferences") or []
    alive: list[Json] = []
    waiting: list[Json] = []
    for reference in references:
        owner = _object(view, view.by_uid(str(reference.get("uid"))))
        if owner is None:
            continue
        in_foreground = deleting(owner) and FOREGROUND in _finalizers(owner)
        (waiting if in_foreground else alive).append(reference)
    if alive:
        if len(alive) == len(references):
            return []
        return [Patch(*ref, {"metadata": {"ownerReferences": alive}}, uid=uid_of(obj))]
    if not references:
        return []
    return [Delete(*ref, uid_of(obj), propagation="Foreground" if waiting and view.dependents(uid_of(obj)) else "Background")]


def _orphan(view: View, ref: Ref, owner: Json) -> list[AnyAction]:
    actions: list[AnyAction] = []
    for dependent in view.dependents(uid_of(owner)):
        obj = view.get(*dependent)
        if obj is not None:
            others = [each for each in obj["metadata"]["ownerReferences"] if each.get("uid") != uid_of(owner)]
            actions.append(Patch(*dependent, {"metadata": {"ownerReferences": others or None}}, uid=uid_of(obj)))
    return [*actions, _without(ref, owner, ORPHAN)]


def _foreground(view: View, ref: Ref, owner: Json) -> list[AnyAction]:
    actions: list[AnyAction] = []
    blocked = False
    for dependent in view.dependents(uid_of(owner)):
        obj = view.get(*dependent)
        if obj is None:
            continue
        references = obj["metadata"]["ownerReferences"]
        blocked |= any(each.get("uid") == uid_of(owner) and each.get("blockOwnerDeletion") for each in references)
        if not deleting(obj):
            actions += _collect(view, dependent, obj)
    return actions if blocked else [*actions, _without(ref, owner, FOREGROUND)]


def _without(ref: Ref, obj: Json, finalizer: str) -> Patch:
    left = [each for each in obj["metadata"].get("finalizers") or () if each != finalizer]
    return Patch(*ref, {"metadata": {"finalizers": left or None}}, uid=uid_of(obj))
