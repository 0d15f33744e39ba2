"""The verbs: create, get, list, update, patch, delete, bind, with Kubernetes' meaning of each.

Rules it keeps: an object is stored only after types, defaults, validation and (for Services) addresses, in that order; a refused
request changes nothing. System fields of metadata are the server's. `update` and `patch` leave the status alone, subresource
"status" changes nothing else. A write that changes nothing makes no revision. `generation` counts changes of anything but
metadata and status. All errors are ApiError.

Order to read: Stored, Resources (reading, create, update, patch, bind), metadata.py, deletion.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from msgspec import Struct

from podwire_apiserver import admission, validation
from podwire_apiserver.allocators import follow_address
from podwire_apiserver.controllers.common import timestamp, with_condition
from podwire_apiserver.deletion import Deletion
from podwire_apiserver.metadata import new_metadata, updated_metadata
from podwire_apiserver.patch import merge_patch
from podwire_apiserver.selections import compile_filter
from podwire_apiserver.state import State, object_key, revision_of
from podwire_core.errors import ApiError, Cause
from podwire_core.kinds import BUILTIN, ResourceInfo
from podwire_core.objects import Json, key_of

MAX_OBJECT = 1_500_000  # bytes, as etcd's limit for a request
_KEEPS_STATUS = ("Node", "Namespace")  # a status given at creation is kept


class Stored(Struct):
    object: Json
    warnings: list[str] = []


class Resources:
    def __init__(self, state: State, clock: Callable[[], float], rng: random.Random) -> None:
        self.state, self._clock, self._rng = state, clock, rng
        self._deletion = Deletion(state, clock)

    # --- reading --------------------------------

    def info(self, word: str) -> ResourceInfo:
        info = self.state.catalogue.find(word)
        if info is None:
            raise ApiError(404, f'the server has no kind "{word}" (`podwire api-resources` lists them)')
        return info

    def info_of(self, obj: Json) -> ResourceInfo:
        """The kind of an object that somebody sent. Raises ApiError(400)."""
        api_version, kind = obj.get("apiVersion"), obj.get("kind")
        for field, value in (("apiVersion", api_version), ("kind", kind)):
            if not isinstance(value, str) or not value:
                what = "missing" if value is None or value == "" else f"expected str, got {validation.type_name(value)}"
                raise ApiError(400, f"$.{field}: {what}", causes=[Cause(f"$.{field}", what)])
        info = self.state.catalogue.of(str(api_version), str(kind))
        if info is None:
            raise ApiError(400, self.state.catalogue.why_not(str(api_version), str(kind)))
        return info

    def get(self, kind: str, name: str, namespace: str = "") -> Json:
        return self._existing(self.info(kind), name, namespace)

    def select(self, kind: str, namespace: str = "", labels: str = "", fields: str = "", revision: int = 0) -> Sequence[Json]:
        info = self.info(kind)
        wanted = compile_filter(info, namespace, labels, fields)
        if revision and revision != self.state.revision:
            return [obj for obj in self.state.all_at(info, wanted.namespace, revision) if wanted.matches(obj)]
        if wanted.name and (wanted.namespace or not info.namespaced):
            found = self.state.get(info, object_key(wanted.namespace, wanted.name))
            return [found] if found is not None and wanted.matches(found) else []
        objects = self.state.all_of(info, wanted.namespace)
        return [obj for obj in objects if wanted.matches(obj)] if wanted.labels or wanted.fields else objects

    def _existing(self, info: ResourceInfo, name: str, namespace: str) -> Json:
        found = self.state.get(info, object_key((namespace or "default") if info.namespaced else "", name))
        if found is None:
            group = f".{info.group}" if info.group else ""
            raise ApiError(404, f'{info.plural}{group} "{name}" not found')
        return found

    # --- create --------------------------------

    def create(self, given: Json) -> Stored:
        info = self.info_of(given)
        obj = self._typed(info, given)
        new_metadata(info, obj, timestamp(self._clock()), self._rng, self._taken(info))
        if info in BUILTIN and info.kind not in _KEEPS_STATUS:
            obj.pop("status", None)
        self._complete(info, obj)
        self._check_namespace(info, obj)
        if self.state.get(info, key_of(obj)) is not None:
            raise ApiError(409, f'{info.plural} "{obj["metadata"]["name"]}" already exists', "AlreadyExists")
        self._assign(info, obj, None)
        return Stored(self.state.write(info, None, obj), self._warnings(info, obj))

    def _typed(self, info: ResourceInfo, given: Json) -> Json:
        """A copy whose fields have the right types."""
        obj = admission.copy_without_nulls(given) if info in BUILTIN else admission.copy(given)
        obj.setdefault("metadata", {})
        _refuse(info, obj, validation.type_problems(info, obj))
        if info.namespaced:
            obj["metadata"].setdefault("namespace", "default")
        return obj

    def _complete(self, info: ResourceInfo, obj: Json) -> None:
        """Defaults and validation. Definitions are validated first: their defaults build on required fields."""
        if info.kind == "CustomResourceDefinition":
            _refuse(info, obj, validation.problems(info, obj))
        admission.default_in_place(obj)
        size = admission.size(obj)
        if size > MAX_OBJECT:
            raise ApiError(413, f"{_title(info, obj)} has {size} bytes, the limit is {MAX_OBJECT}")
        _refuse(info, obj, validation.problems(info, obj) + validation.conflicts(self.state.view, info, obj))

    def _taken(self, info: ResourceInfo) -> Callable[[str, str], bool]:
        return lambda namespace, name: self.state.get(info, object_key(namespace, name)) is not None

    def _check_namespace(self, info: ResourceInfo, obj: Json) -> None:
        if not info.namespaced:
            return
        name = obj["metadata"]["namespace"]
        namespace = self.state.view.get("Namespace", name)
        if namespace is None:
            raise ApiError(
                404, f'namespaces "{name}" not found', causes=[Cause("$.metadata.namespace", f'no namespace "{name}"')]
            )
        if namespace["metadata"].get("deletionTimestamp"):
            raise ApiError(403, f"namespace {name} is being terminated; nothing new can be created in it")

    def _assign(self, info: ResourceInfo, obj: Json, old: Json | None) -> None:
        if info.kind == "Service" and not info.group:
            _refuse(info, obj, self.state.allocator.assign(obj, old))

    def _warnings(self, info: ResourceInfo, obj: Json) -> list[str]:
        warnings = validation.warnings(info, obj)
        if not info.acted_on:
            warnings.append(f"{info.kind} is stored, but nothing in podwire acts on it")
        return warnings

    # --- update --------------------------------

    def update(self, given: Json, subresource: str = "") -> Stored:
        info = self.info_of(given)
        obj = self._typed(info, given)
        meta = obj["metadata"]
        old = self._existing(info, meta.get("name", ""), meta.get("namespace", ""))
        return self._replace(info, old, obj, subresource)

    def patch(self, kind: str, name: str, namespace: str, patch: Json, subresource: str = "") -> Stored:
        """A JSON merge patch; metadata.uid and metadata.resourceVersion in it are preconditions."""
        info = self.info(kind)
        old = self._existing(info, name, namespace)
        merged = merge_patch(old, patch)
        if not isinstance(merged, dict) or (merged.get("kind"), merged.get("apiVersion")) != (old["kind"], old["apiVersion"]):
            raise ApiError(422, "a patch can't change apiVersion and kind")
        return self._replace(info, old, self._typed(info, merged), subresource)

    def bind(self, key: str, uid: str, node: str) -> Stored:
        """The scheduler's decision, in one write."""
        info = self.info("Pod")
        namespace, _, name = key.partition("/")
        old = self._existing(info, name, namespace)
        if old["metadata"]["uid"] != uid or old["spec"].get("nodeName") or old["metadata"].get("deletionTimestamp"):
            raise ApiError(409, f'pod "{key}" is bound, or is another one by now')
        conditions = with_condition(old["status"].get("conditions"), "PodScheduled", "True", "", "", self._clock())
        new = {**old, "spec": {**old["spec"], "nodeName": node}, "status": {**old["status"], "conditions": conditions}}
        return Stored(self.state.write(info, old, new))

    def _replace(self, info: ResourceInfo, old: Json, obj: Json, subresource: str) -> Stored:
        if subresource not in ("", "status"):
            raise ApiError(404, f'{info.kind} has no subresource "{subresource}"')
        _check_preconditions(info, old, obj["metadata"])
        status_only = {**old, "status": obj.get("status") or {}}
        new = status_only if subresource else self._with_new_spec(info, old, obj)
        if self._deletion.may_go(info, new):
            return Stored(self.state.write(info, old, None))
        if new == old:
            return Stored(old)
        return Stored(self.state.write(info, old, new), [] if subresource else self._warnings(info, new))

    def _with_new_spec(self, info: ResourceInfo, old: Json, obj: Json) -> Json:
        if validation.has_status(self.state.view, info):
            obj.pop("status", None)
            if "status" in old:
                obj["status"] = old["status"]
        obj["metadata"] = updated_metadata(old["metadata"], obj["metadata"])
        if info.kind == "Service" and not info.group and isinstance(obj.get("spec"), dict):
            follow_address(obj["spec"], old["spec"])
        self._complete(info, obj)
        self._assign(info, obj, old)
        _refuse(info, obj, validation.update_problems(info, old, obj))
        if "generation" in old["metadata"] and _content(old) != _content(obj):
            obj["metadata"]["generation"] = old["metadata"]["generation"] + 1
        return obj

    # --- delete --------------------------------

    def delete(
        self, kind: str, name: str, namespace: str = "", grace: int | None = None, propagation: str = "", uid: str = ""
    ) -> Json:
        """The object as it was last, or as it is now if it still has to wait for a grace period or finalizers."""
        info = self.info(kind)
        old = self._existing(info, name, namespace)
        if uid and uid != old["metadata"]["uid"]:
            raise ApiError(409, f'{info.plural} "{name}" is another one by now: its uid is {old["metadata"]["uid"]}, not {uid}')
        return self._deletion.delete(info, old, grace, propagation or "Background")


def _content(obj: Json) -> Json:
    return {field: value for field, value in obj.items() if field not in ("metadata", "status")}


def _check_preconditions(info: ResourceInfo, old: Json, meta: Json) -> None:
    name = old["metadata"]["name"]
    if meta.get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
        raise ApiError(409, f'{info.plural} "{name}" is another one by now: its uid is {old["metadata"]["uid"]}')
    version = str(meta.get("resourceVersion") or revision_of(old))
    if version != str(revision_of(old)):
        raise ApiError(409, f'{info.plural} "{name}" was changed meanwhile (at {revision_of(old)}, not {version}); read it again')


def _title(info: ResourceInfo, obj: Json) -> str:
    group = f".{info.group}" if info.group else ""
    meta = obj.get("metadata")
    name = (meta.get("name") or meta.get("generateName")) if isinstance(meta, dict) else ""
    return f'{info.kind}{group} "{name or ""}"'


def _refuse(info: ResourceInfo, obj: Json, causes: Sequence[Cause]) -> None:
    if causes:
        text = "; ".join(f"{cause.field}: {cause.message}" for cause in causes[:10])
        more = f"; and {len(causes) - 10} more" if len(causes) > 10 else ""
        raise ApiError(422, f"{_title(info, obj)} is invalid: {text}{more}", causes=list(causes))
