"""`apply`: create what is missing, merge what is there, all objects or none.

Rules it keeps: what was applied is remembered in the annotation that kubectl uses, so that a field which a later manifest no
longer has is removed, and fields that others set stay. All errors of all objects come at once, each with the
number of its object: `$[3].spec.ports[0].port`. A dry run does everything and then takes it back.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from podwire_apiserver import admission
from podwire_apiserver.patch import three_way
from podwire_apiserver.resources import Resources
from podwire_core.errors import ApiError, Cause
from podwire_core.objects import Json
from podwire_core.rpc.messages import CONFIGURED, CREATED, UNCHANGED

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class Outcome(Struct):
    object: Json
    what: str
    warnings: list[str]


class _TakeBack(Exception):
    """Ends the transaction of a dry run."""


def apply_all(resources: Resources, objs: list[Json], dry_run: bool = False) -> list[Outcome]:
    outcomes: list[Outcome] = []
    failures: list[tuple[int, ApiError]] = []
    try:
        with resources.state.transaction():
            for index, obj in enumerate(objs):
                try:
                    outcomes.append(_apply(resources, obj))
                except ApiError as error:
                    failures.append((index, error))
            if failures:
                raise _joined(failures)
            if dry_run:
                raise _TakeBack
    except _TakeBack:
        pass
    return outcomes


def _apply(resources: Resources, given: Json) -> Outcome:
    info = resources.info_of(given)
    meta = given.get("metadata")
    if not isinstance(meta, dict) or not isinstance(meta.get("name"), str) or not isinstance(meta.get("namespace") or "", str):
        created = resources.create(given)  # refuses it with all its errors, unless it has a generateName
        return Outcome(created.object, CREATED, created.warnings)
    wanted = _with_annotation(given)
    try:
        live = resources.get(resources.state.catalogue.name(info), meta["name"], meta.get("namespace") or "")
    except ApiError as error:
        if error.code != 404:
            raise
        created = resources.create(wanted)
        return Outcome(created.object, CREATED, created.warnings)
    if given["apiVersion"] != live["apiVersion"]:
        live = {**live, "apiVersion": given["apiVersion"]}
    stored = resources.update(_merged(live, wanted))
    unchanged = stored.object["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"]
    return Outcome(stored.object, UNCHANGED if unchanged else CONFIGURED, stored.warnings)


def _merged(live: Json, wanted: Json) -> Json:
    text = (live["metadata"].get("annotations") or {}).get(LAST_APPLIED, "{}")
    try:
        last = msgspec.json.decode(text)
    except msgspec.DecodeError:
        last = {}
    merged = three_way(last if isinstance(last, dict) else {}, live, wanted)
    merged["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
    merged["metadata"]["uid"] = live["metadata"]["uid"]
    return merged


def _with_annotation(given: Json) -> Json:
    """The object as it was applied, in its own annotation. A dump's system fields are not what its writer asks for."""
    obj = admission.copy(given)
    obj.pop("status", None)
    meta = obj["metadata"]
    for field in ("resourceVersion", "uid", "creationTimestamp", "generation", "managedFields", "selfLink"):
        meta.pop(field, None)
    annotations = meta.get("annotations")
    if annotations is not None and not isinstance(annotations, dict):
        return obj  # its type is refused later
    if annotations:
        annotations.pop(LAST_APPLIED, None)
    text = msgspec.json.encode(obj, order="sorted").decode()
    meta["annotations"] = {**(annotations or {}), LAST_APPLIED: text + "\n"}
    return obj


def _joined(failures: list[tuple[int, ApiError]]) -> ApiError:
    causes: list[Cause] = []
    for index, error in failures:
        if error.causes:
            causes += [Cause(f"$[{index}]{cause.field.removeprefix('$')}", cause.message) for cause in error.causes]
        else:
            causes.append(Cause(f"$[{index}]", error.message))
    _, first = failures[0]
    more = f" (and {len(failures) - 1} more objects)" if len(failures) > 1 else ""
    return ApiError(first.code, first.message + more, first.reason, causes)
