"""Nodes: their pod networks, which may not overlap, taints and addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from podwire_apiserver.validation.syntax import (
    Problems,
    dns_subdomain,
    ip_address,
    label_value,
    network_cidr,
    qualified_name,
    quoted,
)
from podwire_core.objects import Json

_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def check_node(found: Problems, obj: Json) -> None:
    spec = obj.get("spec") or {}
    cidrs = spec.get("podCIDRs") or []
    if spec.get("podCIDR"):
        found.check("$.spec.podCIDR", spec["podCIDR"], network_cidr)
        if cidrs and cidrs[0] != spec["podCIDR"]:
            found.add("$.spec.podCIDRs[0]", f"{quoted(cidrs[0])} is not the podCIDR {quoted(spec['podCIDR'])}")
    for index, each in enumerate(cidrs):
        found.check(f"$.spec.podCIDRs[{index}]", each, network_cidr)
    for index, taint in enumerate(spec.get("taints") or []):
        found.check(f"$.spec.taints[{index}].key", taint["key"], qualified_name)
        found.check(f"$.spec.taints[{index}].value", taint.get("value") or "", label_value)
        found.one_of(f"$.spec.taints[{index}].effect", taint["effect"], _EFFECTS)
    for index, address in enumerate((obj.get("status") or {}).get("addresses") or []):
        check = dns_subdomain if address["type"] in ("Hostname", "InternalDNS", "ExternalDNS") else ip_address
        found.check(f"$.status.addresses[{index}].address", address["address"], check)


def _networks(obj: Json) -> list[tuple[str, ipaddress.IPv4Network | ipaddress.IPv6Network]]:
    spec = obj.get("spec") or {}
    texts = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
    return [(text, ipaddress.ip_network(text)) for text in texts if not network_cidr(text)]


def check_pod_cidrs(found: Problems, obj: Json, nodes: Iterable[Json]) -> None:
    mine, name = _networks(obj), obj["metadata"].get("name")
    for other in nodes if mine else ():
        if other["metadata"]["name"] == name:
            continue
        for text, network in mine:
            for taken, theirs in _networks(other):
                if network.version == theirs.version and network.overlaps(theirs):
                    found.add("$.spec.podCIDR", f"{text} overlaps {taken} of Node {other['metadata']['name']}")
