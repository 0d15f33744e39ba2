"""EndpointSlices, Endpoints, NetworkPolicies, ServiceCIDRs."""

from __future__ import annotations

import ipaddress

from podwire_apiserver.validation.syntax import (
    PROTOCOLS,
    Problems,
    check_label_selector,
    cidr,
    dns_label,
    dns_subdomain,
    ip_address,
    network_cidr,
    port_number,
    port_reference,
    quoted,
)
from podwire_core.objects import Json

MAX_ENDPOINTS, MAX_ADDRESSES = 1000, 100


def check_endpoint_slice(found: Problems, obj: Json) -> None:
    kind = obj.get("addressType", "IPv4")
    found.one_of("$.addressType", kind, ("IPv4", "IPv6", "FQDN"))
    endpoints = obj.get("endpoints") or []
    if len(endpoints) > MAX_ENDPOINTS:
        found.add("$.endpoints", f"more than {MAX_ENDPOINTS}")
    for index, endpoint in enumerate(endpoints[:MAX_ENDPOINTS]):
        _check_endpoint(found, f"$.endpoints[{index}]", endpoint, kind)
    names: set[str] = set()
    for index, port in enumerate(obj.get("ports") or []):
        at, name = f"$.ports[{index}]", port.get("name") or ""
        if name:
            found.check(f"{at}.name", name, dns_label)
        if name in names:
            found.add(f"{at}.name", f"{quoted(name)} is there twice")
        names.add(name)
        if port.get("port") is not None:
            found.check(f"{at}.port", port["port"], port_number)
        found.one_of(f"{at}.protocol", port["protocol"], PROTOCOLS)


def _check_endpoint(found: Problems, path: str, endpoint: Json, kind: str) -> None:
    addresses = endpoint["addresses"]
    if not addresses:
        found.add(f"{path}.addresses", "missing; an endpoint has at least one")
    if len(addresses) > MAX_ADDRESSES:
        found.add(f"{path}.addresses", f"more than {MAX_ADDRESSES}")
    for index, address in enumerate(addresses[:MAX_ADDRESSES]):
        at = f"{path}.addresses[{index}]"
        if kind == "FQDN":
            found.check(at, address, dns_subdomain)
        elif found.check(at, address, ip_address) and f"IPv{ipaddress.ip_address(address).version}" != kind:
            found.add(at, f"{quoted(address)} is not an {kind} address, as $.addressType says")
    if endpoint.get("hostname"):
        found.check(f"{path}.hostname", endpoint["hostname"], dns_label)


def check_endpoints(found: Problems, obj: Json) -> None:
    for index, subset in enumerate(obj.get("subsets") or []):
        at = f"$.subsets[{index}]"
        for field in ("addresses", "notReadyAddresses"):
            for number, address in enumerate(subset.get(field) or []):
                found.check(f"{at}.{field}[{number}].ip", address["ip"], ip_address)
        if not subset.get("addresses") and not subset.get("notReadyAddresses"):
            found.add(at, "has neither addresses nor notReadyAddresses")
        for number, port in enumerate(subset.get("ports") or []):
            found.check(f"{at}.ports[{number}].port", port["port"], port_number)
            found.one_of(f"{at}.ports[{number}].protocol", port["protocol"], PROTOCOLS)
            if len(subset["ports"]) > 1 and not port.get("name"):
                found.add(f"{at}.ports[{number}].name", "missing; with several ports each has a name")


# --- NetworkPolicy --------------------------------


def check_network_policy(found: Problems, obj: Json) -> None:
    spec = obj["spec"]
    check_label_selector(found, "$.spec.podSelector", spec.get("podSelector"))
    for index, kind in enumerate(spec["policyTypes"]):
        found.one_of(f"$.spec.policyTypes[{index}]", kind, ("Ingress", "Egress"))
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for index, rule in enumerate(spec.get(direction) or []):
            at = f"$.spec.{direction}[{index}]"
            for number, peer in enumerate(rule.get(peers) or []):
                _check_peer(found, f"{at}.{peers}[{number}]", peer)
            for number, port in enumerate(rule.get("ports") or []):
                _check_policy_port(found, f"{at}.ports[{number}]", port)


def _check_peer(found: Problems, path: str, peer: Json) -> None:
    selecting = [field for field in ("podSelector", "namespaceSelector") if field in peer]
    for field in selecting:
        check_label_selector(found, f"{path}.{field}", peer[field])
    if "ipBlock" in peer:
        if selecting:
            found.add(path, f"ipBlock may not stand beside {selecting[0]}")
        _check_ip_block(found, f"{path}.ipBlock", peer["ipBlock"])
    elif not selecting:
        found.add(path, "expected podSelector, namespaceSelector or ipBlock")


def _check_ip_block(found: Problems, path: str, block: Json) -> None:
    good = found.check(f"{path}.cidr", block["cidr"], cidr)
    for index, each in enumerate(block.get("except") or []):
        if found.check(f"{path}.except[{index}]", each, cidr) and good and not _inside(each, block["cidr"]):
            found.add(f"{path}.except[{index}]", f"{quoted(each)} is not within {block['cidr']}")


def _inside(inner: str, outer: str) -> bool:
    a, b = ipaddress.ip_network(inner, strict=False), ipaddress.ip_network(outer, strict=False)
    return a.version == b.version and a != b and a.subnet_of(b)  # type: ignore[arg-type]


def _check_policy_port(found: Problems, path: str, port: Json) -> None:
    found.one_of(f"{path}.protocol", port["protocol"], PROTOCOLS)
    number, end = port.get("port"), port.get("endPort")
    if number is not None:
        found.check(f"{path}.port", number, port_reference)
    if end is not None:
        if not isinstance(number, int):
            found.add(f"{path}.endPort", "needs a port that is a number")
        elif found.check(f"{path}.endPort", end, port_number) and end < number:
            found.add(f"{path}.endPort", f"{end} is less than the port {number}")


def check_service_cidr(found: Problems, obj: Json) -> None:
    for index, each in enumerate(obj["spec"]["cidrs"]):
        found.check(f"$.spec.cidrs[{index}]", each, network_cidr)
