"""Namespaces: what every one of them has (the ServiceAccount "default"), and their deletion with all that is in them.

Rules it keeps (pkg/controller/namespace): a Namespace is held by the finalizer "kubernetes" in spec.finalizers (where the API has
it; metadata.finalizers is understood, too) until nothing is left in it; pods get their grace period.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from podwire_core.objects import Json

from .actions import AnyAction, Create, Delete, Patch, UpdateStatus
from .common import deleting, uid_of
from .view import Change, View, namespace_of

FINALIZER = "kubernetes"


class NamespaceController:
    name = "namespace-controller"
    kinds = ("*",)

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        if change.kind == "Namespace":
            return [change.key] if change.new and deleting(change.new) else ()
        namespace = namespace_of(change.either)
        owner = view.get("Namespace", namespace) if namespace else None
        return [namespace] if owner is not None and deleting(owner) and change.kind != "Event" else ()

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        namespace = view.get("Namespace", key)
        if namespace is None or not deleting(namespace):
            return ()
        actions: list[AnyAction] = []
        status = namespace.get("status") or {}
        if status.get("phase") != "Terminating":
            actions.append(UpdateStatus({**namespace, "status": {**status, "phase": "Terminating"}}))
        there = view.everything_in(key)
        for kind, name in there:
            obj = view.get(kind, name)
            if obj is not None and not deleting(obj):
                actions.append(Delete(kind, name, uid_of(obj)))
        return actions if there else [*actions, *_release(namespace, key)]


def _release(namespace: Json, key: str) -> list[AnyAction]:
    patch: Json = {}
    for part in ("spec", "metadata"):
        finalizers = (namespace.get(part) or {}).get("finalizers") or []
        if FINALIZER in finalizers:
            patch[part] = {"finalizers": [each for each in finalizers if each != FINALIZER] or None}
    return [Patch("Namespace", key, patch, uid=uid_of(namespace))] if patch else []


class ServiceAccountController:
    name = "serviceaccount-controller"
    kinds = ("Namespace", "ServiceAccount")

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        if change.kind == "Namespace":
            return [change.key] if change.new else ()
        return [namespace_of(change.either)] if change.new is None and change.key.endswith("/default") else ()

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        namespace = view.get("Namespace", key)
        if namespace is None or deleting(namespace) or view.get("ServiceAccount", f"{key}/default") is not None:
            return ()
        metadata = {"name": "default", "namespace": key}
        return [Create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})]
