"""From pods to endpoints: which pods of a Service are endpoints, in which condition, behind which ports. Pure, shared by the
EndpointSlice controller and the Endpoints controller.

Rules it keeps (discovery.k8s.io/v1): a pod with an address that has not ended is an endpoint; serving as it is ready;
ready if it also is not terminating, or publishNotReadyAddresses is set; a named target port is looked up in each pod, so
that pods of one Service can have different ports.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from podwire_core.objects import Json

from .common import deleting, finished, ready, uid_of
from .view import View, labels_of, namespace_of

ZONE = "topology.kubernetes.io/zone"
HEADLESS = "service.kubernetes.io/headless"
Ports = tuple[tuple[str, str, int, str], ...]  # (name, protocol, port, appProtocol)


class PodEndpoint(Struct, frozen=True):
    address: str
    ports: Ports
    value: Json  # as in EndpointSlice.endpoints


def is_headless(service: Json) -> bool:
    return bool(service["spec"].get("clusterIP") == "None")


def families_of(service: Json) -> list[str]:
    """ "IPv4", "IPv6": the address types that the Service has endpoints of."""
    spec = service["spec"]
    if spec.get("ipFamilies"):
        return list(spec["ipFamilies"])
    address = spec.get("clusterIP") or ""
    return ["IPv6" if ":" in address else "IPv4"]


def addresses_of(pod: Json) -> list[str]:
    status = pod.get("status") or {}
    listed = [each["ip"] for each in status.get("podIPs") or () if each.get("ip")]
    return listed or ([status["podIP"]] if status.get("podIP") else [])


def family_of(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"


def target_port(pod: Json, port: Json) -> int | None:
    """The number behind a Service port at this pod; None if it has no port of that name."""
    target = port.get("targetPort") or port["port"]
    if isinstance(target, int):
        return target
    protocol = port.get("protocol") or "TCP"
    spec = pod["spec"]
    sidecars = [each for each in spec.get("initContainers") or () if each.get("restartPolicy") == "Always"]
    for container in (*(spec.get("containers") or ()), *sidecars):
        for each in container.get("ports") or ():
            if each.get("name") == target and (each.get("protocol") or "TCP") == protocol:
                return int(each["containerPort"])
    return int(target) if str(target).isdigit() else None


def ports_at(pod: Json, service: Json) -> Ports:
    found = []
    for port in service["spec"].get("ports") or ():
        number = target_port(pod, port)
        if number is not None:
            found.append((port.get("name") or "", port.get("protocol") or "TCP", number, port.get("appProtocol") or ""))
    return tuple(found)


def pod_endpoints(view: View, service: Json, family: str) -> list[PodEndpoint]:
    """The endpoints of one family, sorted by pod."""
    found = []
    for pod in view.pods_matching(namespace_of(service), service["spec"].get("selector")):
        address = next((each for each in addresses_of(pod) if family_of(each) == family), None)
        if address is not None and not finished(pod):
            found.append(PodEndpoint(address, ports_at(pod, service), endpoint_value(view, service, pod, address)))
    return found


def endpoint_value(view: View, service: Json, pod: Json, address: str) -> Json:
    serving, terminating = ready(pod), deleting(pod)
    publish = bool(service["spec"].get("publishNotReadyAddresses"))
    value: Json = {
        "addresses": [address],
        "conditions": {
            "ready": publish or (serving and not terminating),
            "serving": serving,
            "terminating": terminating,
        },
        "targetRef": {
            "kind": "Pod",
            "namespace": namespace_of(pod),
            "name": pod["metadata"]["name"],
            "uid": uid_of(pod),
        },
    }
    node_name = pod["spec"].get("nodeName")
    if node_name:
        value["nodeName"] = node_name
        zone = labels_of(view.get("Node", node_name) or {"metadata": {}}).get(ZONE)
        value |= {"zone": zone} if zone else {}
    if pod["spec"].get("hostname") and pod["spec"].get("subdomain") == service["metadata"]["name"]:
        value["hostname"] = pod["spec"]["hostname"]
    hints = _hints(service, value)
    return value | ({"hints": hints} if hints else {})


def _hints(service: Json, value: Json) -> Json:
    """spec.trafficDistribution: keep traffic in the endpoint's own zone, or on its own node."""
    wish = service["spec"].get("trafficDistribution")
    hints: Json = {}
    if not value["conditions"]["ready"] or wish not in ("PreferClose", "PreferSameZone", "PreferSameNode"):
        return hints
    if value.get("zone"):
        hints["forZones"] = [{"name": value["zone"]}]
    if wish == "PreferSameNode" and value.get("nodeName"):
        hints["forNodes"] = [{"name": value["nodeName"]}]
    return hints


def slice_ports(ports: Ports) -> list[Json]:
    return [
        {"name": name, "protocol": protocol, "port": number} | ({"appProtocol": app} if app else {})
        for name, protocol, number, app in ports
    ]


def services_concerned(view: View, pods: Iterable[Json]) -> set[str]:
    """Keys of the Services that select any of these (states of) pods."""
    return {f"{namespace_of(each)}/{each['metadata']['name']}" for pod in pods for each in view.services_selecting(pod)}


def pod_state(pod: Json | None) -> object:
    """All of a pod that endpoints are made of; if it stays the same, no Service need be looked at."""
    if pod is None:
        return None
    spec = pod["spec"]
    named = [each.get("ports") for each in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ()))]
    placed = (spec.get("nodeName"), spec.get("hostname"), spec.get("subdomain"), uid_of(pod))
    return addresses_of(pod), ready(pod), deleting(pod), finished(pod), labels_of(pod), placed, named
