"""Services, EndpointSlices and Nodes as the API server hands them out, for tests of what is compiled from them."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def service(
    name: str, cluster_ip: str, ports: list[Json] | None = None, namespace: str = "ns", status: Json | None = None, **spec: Any
):
    """`ports` default to 80/TCP named p80."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ports": ports or [port(80)], **spec},
        "status": status or {"loadBalancer": {}},
    }


def port(number: int, name: str | None = None, protocol: str = "TCP", **more: Any) -> Json:
    return {"name": f"p{number}" if name is None else name, "port": number, "protocol": protocol, **more}


def endpoint(
    address: str, node: str | None = None, zones: list[str] | None = None, nodes: list[str] | None = None, **conditions: bool
):
    """Conditions: ready, serving, terminating."""
    found: Json = {"addresses": [address], "conditions": conditions}
    if node is not None:
        found["nodeName"] = node
    if zones or nodes:
        found["hints"] = {"forZones": [{"name": z} for z in zones or ()], "forNodes": [{"name": n} for n in nodes or ()]}
    return found


def endpoint_slice(
    of: str, endpoints: list[Json], ports: list[Json] | None = None, namespace: str = "ns", name: str = "", family: int = 4
):
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name or f"{of}-1", "namespace": namespace, "labels": {"kubernetes.io/service-name": of}},
        "addressType": f"IPv{family}",
        "endpoints": endpoints,
        "ports": ports or [port(80)],
    }


def node(name: str, address: str, pod_cidr: str = "", zone: str = "", annotations: dict[str, str] | None = None) -> Json:
    labels = {"topology.kubernetes.io/zone": zone} if zone else {}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": annotations or {}},
        "spec": {"podCIDR": pod_cidr, "podCIDRs": [pod_cidr]} if pod_cidr else {},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }


def by_key(objects: list[Json]) -> dict[str, Json]:
    return {f"{o['metadata']['namespace']}/{o['metadata']['name']}": o for o in objects}
