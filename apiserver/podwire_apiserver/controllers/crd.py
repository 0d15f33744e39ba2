"""CustomResourceDefinitions: their names are accepted and they are established as soon as they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .actions import AnyAction
from .common import deleting, status_update, with_condition
from .view import Change, View


class CrdController:
    name = "crd-controller"
    kinds = ("CustomResourceDefinition",)

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        return [change.key] if change.new else ()

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        crd = view.get("CustomResourceDefinition", key)
        if crd is None or deleting(crd):
            return ()
        old = crd.get("status") or {}
        accepted = with_condition(old.get("conditions"), "NamesAccepted", "True", "NoConflicts", "no conflicts found", now)
        text = "the initial names have been accepted"
        conditions = with_condition(accepted, "Established", "True", "InitialNamesAccepted", text, now)
        names = crd["spec"].get("names") or {}
        listed = {"listKind": f"{names.get('kind', '')}List", "singular": str(names.get("kind", "")).lower(), **names}
        stored = [each["name"] for each in crd["spec"].get("versions") or () if each.get("storage")]
        return status_update(crd, {**old, "conditions": conditions, "acceptedNames": listed, "storedVersions": stored})
