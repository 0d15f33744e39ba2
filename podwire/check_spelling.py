"""Addresses of Services and EndpointSlices as older API servers let them in, brought to the one form that everything else reads.

Rules it keeps: what is read is what kube-proxy reads ("172.30.0.041" is 172.30.0.41, "203.0.113.000/025" a /25); what cannot be
read stays as it is, for the validation to refuse; objects come as copies and are changed in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from podwire_core.objects import Json
from podwire_nodeagent.proxy.addresses import canonical, network


def respell(obj: Json) -> None:
    if obj["kind"] == "Service":
        _respell_service(obj)
    elif obj["kind"] == "EndpointSlice":
        for endpoint in _dicts(obj.get("endpoints")):
            _each(endpoint, "addresses", canonical)


def _respell_service(service: Json) -> None:
    spec, status = service.get("spec"), service.get("status")
    if isinstance(spec, dict):
        for field in ("clusterIP", "loadBalancerIP"):
            _one(spec, field)
        for field in ("clusterIPs", "externalIPs"):
            _each(spec, field, canonical)
        _each(spec, "loadBalancerSourceRanges", network)
    balancer = status.get("loadBalancer") if isinstance(status, dict) else None
    for ingress in _dicts(balancer.get("ingress") if isinstance(balancer, dict) else None):
        _one(ingress, "ip")


def _one(holder: Json, field: str) -> None:
    if isinstance(holder.get(field), str):
        holder[field] = canonical(holder[field]) or holder[field]


def _each(holder: Json, field: str, read: Callable[[str], str | None]) -> None:
    given = holder.get(field)
    if isinstance(given, list):
        holder[field] = [read(text) or text if isinstance(text, str) else text for text in given]


def _dicts(given: Any) -> list[Json]:
    return [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
