"""Endpoints, the older form: made for every Service with a selector, and mirrored into EndpointSlices where a user made them.

Rules it keeps (pkg/controller/endpoint, endpointslicemirroring): addresses of pods that serve are `addresses`, of others
`notReadyAddresses`, terminating ones are left out unless published; at most 1 000. Endpoints of a Service without a selector are
mirrored, one slice for each subset and family.

Order to read: EndpointsController, subsets, MirroringController.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from podwire_core.objects import Json, key_of

from .actions import AnyAction, Create, Delete, Update
from .common import deleting, fresh_name, owner_reference, uid_of
from .endpoints import (
    HEADLESS,
    PodEndpoint,
    Ports,
    families_of,
    family_of,
    is_headless,
    pod_endpoints,
    pod_state,
    services_concerned,
    slice_ports,
)
from .endpointslice import MANAGED_BY, MOST, SERVICE_NAME, selects
from .view import Change, View, labels_of, namespace_of

ENDPOINTS_MANAGED_BY = "endpoints.kubernetes.io/managed-by"
MIRROR = "endpointslicemirroring-controller.k8s.io"
SKIP = "endpointslice.kubernetes.io/skip-mirror"
MOST_ADDRESSES = 1000


class EndpointsController:
    name = "endpoints-controller"
    kinds = ("Service", "Pod", "Endpoints")

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        if change.kind == "Pod":
            same = pod_state(change.old) == pod_state(change.new)
            return () if same else sorted(services_concerned(view, change.both()))
        return [change.key]

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        service, there = view.get("Service", key), view.get("Endpoints", key)
        if service is None:
            ours = there is not None and ENDPOINTS_MANAGED_BY in labels_of(there) and not deleting(there)
            return [Delete("Endpoints", key, uid_of(there))] if there and ours else ()
        if deleting(service) or not selects(service):
            return ()
        wanted = subsets(view, service)
        labels = {**labels_of(service), ENDPOINTS_MANAGED_BY: "endpoint-controller"}
        labels |= {HEADLESS: ""} if is_headless(service) else {}
        if there is None:
            metadata = {"name": service["metadata"]["name"], "namespace": namespace_of(service), "labels": labels}
            return [Create({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": wanted})]
        if (there.get("subsets") or []) == wanted and labels_of(there) == labels:
            return ()
        return [Update({**there, "metadata": {**there["metadata"], "labels": labels}, "subsets": wanted})]


def subsets(view: View, service: Json) -> list[Json]:
    groups: dict[Ports, list[PodEndpoint]] = {}
    publish = bool(service["spec"].get("publishNotReadyAddresses"))
    endpoints = pod_endpoints(view, service, families_of(service)[0])
    for endpoint in endpoints[:MOST_ADDRESSES]:
        if publish or not endpoint.value["conditions"]["terminating"]:
            groups.setdefault(endpoint.ports, []).append(endpoint)
    return [_subset(ports, groups[ports]) for ports in sorted(groups)]


def _subset(ports: Ports, endpoints: list[PodEndpoint]) -> Json:
    subset: Json = {}
    for field, is_ready in (("addresses", True), ("notReadyAddresses", False)):
        listed = [_address(each) for each in endpoints if each.value["conditions"]["ready"] is is_ready]
        if listed:
            subset[field] = sorted(listed, key=lambda address: str(address["ip"]))  # as text, as Kubernetes does
    if ports:
        subset["ports"] = slice_ports(ports)
        for port in subset["ports"]:
            if not port["name"]:
                del port["name"]
    return subset


def _address(endpoint: PodEndpoint) -> Json:
    value = endpoint.value
    address: Json = {"ip": endpoint.address, "targetRef": value["targetRef"]}
    return address | {key: value[key] for key in ("hostname", "nodeName") if key in value}


class MirroringController:
    name = "endpointslicemirroring-controller"
    kinds = ("Endpoints", "Service", "EndpointSlice")

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        if change.kind != "EndpointSlice":
            return [change.key]
        labels = labels_of(change.either)
        if labels.get(MANAGED_BY) != MIRROR or SERVICE_NAME not in labels:
            return ()
        return [f"{namespace_of(change.either)}/{labels[SERVICE_NAME]}"]

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        source, service = view.get("Endpoints", key), view.get("Service", key)
        there = [each for each in view.slices_of(key) if labels_of(each).get(MANAGED_BY) == MIRROR and not deleting(each)]
        wanted: list[Json] = []
        if source is not None and service is not None and _mirrored(source, service):
            wanted = mirror_slices(source)
        actions: list[AnyAction] = []
        unused = list(there)
        for number, each in enumerate(wanted):
            same = next((old for old in unused if _shape(old) == _shape(each)), None)
            if same is None:
                assert source is not None, "slices are wanted of a source"
                actions += self._made(view, source, each, now, number)
                continue
            unused.remove(same)
            if (same.get("endpoints") or []) != each["endpoints"]:
                actions.append(Update({**same, "endpoints": each["endpoints"]}))
        return [*actions, *(Delete("EndpointSlice", key_of(each), uid_of(each)) for each in unused)]

    def _made(self, view: View, source: Json, slice_: Json, now: float, number: int) -> list[AnyAction]:
        prefix = f"{source['metadata']['name']}-"
        name = fresh_name(view, "EndpointSlice", namespace_of(source), prefix, uid_of(source), now, number)
        labels = {**labels_of(source), SERVICE_NAME: source["metadata"]["name"], MANAGED_BY: MIRROR}
        metadata = {
            "name": name,
            "generateName": prefix,
            "namespace": namespace_of(source),
            "labels": labels,
            "ownerReferences": [owner_reference(source)],
        }
        head = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata}
        return [Create({**head, **slice_})]


def _mirrored(source: Json, service: Json) -> bool:
    skipped = labels_of(source).get(SKIP) == "true" or ENDPOINTS_MANAGED_BY in labels_of(source)
    elected = "control-plane.alpha.kubernetes.io/leader" in (source["metadata"].get("annotations") or {})
    return not (skipped or elected or deleting(source) or service["spec"].get("selector"))


def _shape(slice_: Json) -> object:
    return slice_.get("addressType"), slice_.get("ports")


def mirror_slices(source: Json) -> list[Json]:
    found: list[Json] = []
    for subset in source.get("subsets") or ():
        ports = [
            {"name": port.get("name") or "", "protocol": port.get("protocol") or "TCP", "port": port.get("port")}
            | ({"appProtocol": port["appProtocol"]} if port.get("appProtocol") else {})
            for port in subset.get("ports") or ()
        ]
        endpoints = [
            *(_mirror(each, True) for each in subset.get("addresses") or ()),
            *(_mirror(each, False) for each in subset.get("notReadyAddresses") or ()),
        ]
        for family in ("IPv4", "IPv6"):
            some = [each for each in endpoints if family_of(each["addresses"][0]) == family][:MOST_ADDRESSES]
            parts = [some[start : start + MOST] for start in range(0, len(some), MOST)]
            found += [{"addressType": family, "endpoints": part, "ports": ports} for part in parts]
    return found


def _mirror(address: Json, is_ready: bool) -> Json:
    value: Json = {"addresses": [address["ip"]], "conditions": {"ready": is_ready, "serving": is_ready, "terminating": False}}
    return value | {key: address[key] for key in ("hostname", "nodeName", "targetRef") if address.get(key)}
