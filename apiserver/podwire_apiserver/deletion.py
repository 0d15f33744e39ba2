"""Deletion: grace periods, finalizers, namespaces, and what becomes of the dependents.

Rules it keeps: an object with finalizers, or a bound Pod with a grace period, is only marked (deletionTimestamp) and goes when
the last finalizer does and, for a Pod, when its kubelet deletes it with grace 0. A marked object's grace can be shortened, never
lengthened. Namespaces and dependents are emptied by controllers: a Namespace waits for its finalizer "kubernetes";
propagation Foreground and Orphan are finalizers, too. With a CustomResourceDefinition go its instances.
"""

from __future__ import annotations

from collections.abc import Callable

from podwire_apiserver.controllers.common import timestamp
from podwire_apiserver.state import CRD, State
from podwire_core.errors import ApiError
from podwire_core.kinds import ResourceInfo
from podwire_core.objects import Json

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
_PROTECTED = ("default", "kube-system", "kube-public", "kube-node-lease")
_FINALIZER = {"Background": "", "Foreground": FOREGROUND, "Orphan": ORPHAN}


class Deletion:
    def __init__(self, state: State, clock: Callable[[], float]) -> None:
        self._state, self._clock = state, clock

    def delete(self, info: ResourceInfo, old: Json, grace: int | None, propagation: str) -> Json:
        if propagation not in _FINALIZER:
            raise ApiError(422, f"propagation {propagation!r}: expected {', '.join(_FINALIZER)}")
        if grace is not None and grace < 0:
            raise ApiError(422, f"grace {grace}: expected 0 or more seconds")
        if info.kind == "Namespace" and old["metadata"]["name"] in _PROTECTED:
            raise ApiError(403, f'namespaces "{old["metadata"]["name"]}" is a system namespace; it can\'t be deleted')
        new = self._marked(info, old, grace, propagation)
        if self.may_go(info, new):
            if info.kind == CRD:
                self._delete_instances(old)
            return self._state.write(info, old, None)
        return old if new == old else self._state.write(info, old, new)

    def _marked(self, info: ResourceInfo, old: Json, grace: int | None, propagation: str) -> Json:
        meta = dict(old["metadata"])
        finalizers = [name for name in meta.get("finalizers") or [] if name not in (FOREGROUND, ORPHAN)]
        if _FINALIZER[propagation]:
            finalizers.append(_FINALIZER[propagation])
        if finalizers or "finalizers" in meta:
            meta["finalizers"] = finalizers
        seconds = self._grace(info, old, grace)
        if "deletionTimestamp" not in meta or seconds < meta.get("deletionGracePeriodSeconds", 0):
            meta.update(deletionTimestamp=timestamp(self._clock() + seconds), deletionGracePeriodSeconds=seconds)
        new = {**old, "metadata": meta}
        if info.kind == "Namespace":
            new["status"] = {**(old.get("status") or {}), "phase": "Terminating"}
        return new

    @staticmethod
    def _grace(info: ResourceInfo, old: Json, grace: int | None) -> int:
        """Only a Pod that a kubelet has, and that has not ended, gets time."""
        if info.kind != "Pod" or not old["spec"].get("nodeName"):
            return 0
        if (old.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            return 0
        return int(old["spec"].get("terminationGracePeriodSeconds", 30)) if grace is None else grace

    def may_go(self, info: ResourceInfo, obj: Json) -> bool:
        """Is it marked, and nothing has to be waited for?"""
        meta = obj["metadata"]
        if "deletionTimestamp" not in meta or meta.get("finalizers") or meta.get("deletionGracePeriodSeconds"):
            return False
        return info.kind != "Namespace" or not (obj.get("spec") or {}).get("finalizers")

    def _delete_instances(self, crd: Json) -> None:
        info = self._state.catalogue.find(crd["metadata"]["name"])
        for instance in self._state.all_of(info) if info else ():
            self._state.write(info, instance, None)  # type: ignore[arg-type]
