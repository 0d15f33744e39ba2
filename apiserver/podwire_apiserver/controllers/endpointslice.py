"""EndpointSlices of Services with a selector: at most 100 endpoints each, and as few writes as the changes allow.

Rules it keeps (pkg/controller/endpointslice): one slice has one address family and one set of ports; an endpoint stays in the
slice where it is; new ones fill slices that are being written anyway, then new slices; an empty slice goes, except the last
of a family, which stays as a placeholder.

Order to read: reconcile, pack (endpoints into slices), writing a slice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from podwire_core.objects import Json, key_of

from .actions import AnyAction, Create, Delete, Update
from .common import deleting, fresh_name, owner_reference, uid_of
from .endpoints import (
    HEADLESS,
    ZONE,
    PodEndpoint,
    Ports,
    families_of,
    is_headless,
    pod_endpoints,
    pod_state,
    services_concerned,
    slice_ports,
)
from .view import Change, View, labels_of, namespace_of

MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
MANAGER = "endpointslice-controller.k8s.io"
SERVICE_NAME = "kubernetes.io/service-name"
MOST = 100


class EndpointSliceController:
    name = "endpointslice-controller"
    kinds = ("Service", "Pod", "EndpointSlice", "Node")

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        if change.kind == "Service":
            return [change.key] if change.new else ()
        if change.kind == "Pod":
            same = pod_state(change.old) == pod_state(change.new)
            return () if same else sorted(services_concerned(view, change.both()))
        if change.kind == "Node":
            zones = [labels_of(each).get(ZONE) for each in change.both()]
            if change.old is not None and change.new is not None and zones[0] == zones[1]:
                return ()
            return sorted(services_concerned(view, view.pods_on(change.key)))
        name = labels_of(change.either).get(SERVICE_NAME)
        ours = labels_of(change.either).get(MANAGED_BY) == MANAGER
        return [f"{namespace_of(change.either)}/{name}"] if name and ours else ()

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        service = view.get("Service", key)
        if service is None or deleting(service) or not selects(service):
            return ()
        actions: list[AnyAction] = []
        mine = [each for each in view.slices_of(key) if labels_of(each).get(MANAGED_BY) == MANAGER]
        families = families_of(service)
        for family in families:
            there = [each for each in mine if each.get("addressType") == family and not deleting(each)]
            actions += Packing(view, service, family, there, now).actions()
        stale = [each for each in mine if each.get("addressType") not in families and not deleting(each)]
        return [*actions, *(_delete(each) for each in stale)]


def selects(service: Json) -> bool:
    return bool(service["spec"].get("selector")) and service["spec"].get("type") != "ExternalName"


def _delete(slice_: Json) -> Delete:
    return Delete("EndpointSlice", key_of(slice_), uid_of(slice_))


def slice_labels(service: Json) -> dict[str, str]:
    labels = {key: value for key, value in labels_of(service).items() if key not in (HEADLESS,)}
    labels |= {SERVICE_NAME: service["metadata"]["name"], MANAGED_BY: MANAGER}
    return labels | ({HEADLESS: ""} if is_headless(service) else {})


class Packing:
    """The slices of one Service and one family, before and after."""

    def __init__(self, view: View, service: Json, family: str, there: list[Json], now: float) -> None:
        self.view, self.service, self.family, self.there, self.now = view, service, family, there, now
        self.groups: dict[Ports, dict[str, PodEndpoint]] = {}
        for endpoint in pod_endpoints(view, service, family):
            self.groups.setdefault(endpoint.ports, {})[endpoint.value["targetRef"]["uid"]] = endpoint
        self.made = 0

    def actions(self) -> list[AnyAction]:
        slices: dict[Ports, list[Json]] = {}
        for each in self.there:
            slices.setdefault(_ports_of(each), []).append(each)
        actions: list[AnyAction] = []
        kept = 0
        for ports in sorted({*self.groups, *slices}):
            writes, left = self._pack(ports, slices.get(ports, []), dict(self.groups.get(ports, {})))
            actions += writes
            kept += left
        return actions if kept else self._placeholder(actions)

    def _pack(self, ports: Ports, there: list[Json], wanted: dict[str, PodEndpoint]) -> tuple[list[AnyAction], int]:
        """Writes for one set of ports, and how many slices are there afterwards."""
        after: list[tuple[Json, list[Json]]] = []
        for each in there:
            stay = []
            for old in each.get("endpoints") or ():
                endpoint = wanted.pop((old.get("targetRef") or {}).get("uid", ""), None)
                if endpoint is not None:
                    stay.append(endpoint.value)
            after.append((each, stay))
        new = [endpoint.value for endpoint in wanted.values()]
        dirty = [pair for pair in after if pair[1] != (pair[0].get("endpoints") or [])]
        clean = [pair for pair in after if pair not in dirty]
        for _, stay in [*sorted(dirty, key=lambda pair: -len(pair[1])), *sorted(clean, key=lambda pair: len(pair[1]))]:
            room = MOST - len(stay)
            stay += new[:room]
            del new[:room]
        writes = [write for each, stay in after if stay for write in self._written(each, stay)]
        writes += [_delete(each) for each, stay in after if not stay]
        fresh = [self._made(ports, new[start : start + MOST]) for start in range(0, len(new), MOST)]
        return [*writes, *(Create(each) for each in fresh)], sum(bool(stay) for _, stay in after) + len(fresh)

    def _written(self, slice_: Json, endpoints: list[Json]) -> list[AnyAction]:
        labels = slice_labels(self.service)
        if (slice_.get("endpoints") or []) == endpoints and labels_of(slice_) == labels:
            return []
        return [Update({**slice_, "metadata": {**slice_["metadata"], "labels": labels}, "endpoints": endpoints})]

    def _placeholder(self, actions: list[AnyAction]) -> list[AnyAction]:
        """Consumers tell "no endpoints" from "not looked at yet" by an empty slice."""
        if not self.there:
            return [*actions, Create(self._made((), []))]
        last = self.there[0]
        others = [action for action in actions if not (isinstance(action, Delete) and action.key == key_of(last))]
        if not last.get("endpoints") and labels_of(last) == slice_labels(self.service):
            return others
        metadata = {**last["metadata"], "labels": slice_labels(self.service)}
        return [*others, Update({**last, "metadata": metadata, "endpoints": []})]

    def _made(self, ports: Ports, endpoints: list[Json]) -> Json:
        service, self.made = self.service, self.made + 1
        prefix = f"{service['metadata']['name']}-"
        seed = (uid_of(service), self.family, self.now, self.made)
        name = fresh_name(self.view, "EndpointSlice", namespace_of(service), prefix, *seed)
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name,
                "generateName": prefix,
                "namespace": namespace_of(service),
                "labels": slice_labels(service),
                "ownerReferences": [owner_reference(service)],
            },
            "addressType": self.family,
            "endpoints": endpoints,
            "ports": slice_ports(ports),
        }


def _ports_of(slice_: Json) -> Ports:
    return tuple(
        (port.get("name") or "", port.get("protocol") or "TCP", int(port.get("port") or 0), port.get("appProtocol") or "")
        for port in slice_.get("ports") or ()
    )
