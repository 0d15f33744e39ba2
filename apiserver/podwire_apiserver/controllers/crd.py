"""CustomResourceDefinitions: established as soon as they are stored (admission says so), with the names and versions that
the definition has now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .actions import AnyAction
from .common import condition_of, deleting, status_update, with_condition
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
        status = dict(crd.get("status") or {})
        for condition in ("NamesAccepted", "Established"):
            if condition_of(crd, condition) is None:
                text = "the initial names have been accepted"
                status["conditions"] = with_condition(
                    status.get("conditions"), condition, "True", "InitialNamesAccepted", text, now
                )
        names = crd["spec"].get("names") or {}
        kind = str(names.get("kind", ""))
        status["acceptedNames"] = {"singular": kind.lower(), "listKind": f"{kind}List", **names}
        stored = {each["name"]: None for each in crd["spec"].get("versions") or () if each.get("storage")}
        status["storedVersions"] = list({**dict.fromkeys(status.get("storedVersions") or ()), **stored})
        return status_update(crd, status)
