"""Services. Which addresses and node ports are free is the allocators' question, not this file's."""

from __future__ import annotations

from podwire_apiserver.validation.syntax import (
    PROTOCOLS,
    Problems,
    check_labels,
    cidr,
    dns_label,
    dns_subdomain,
    ip_address,
    port_number,
    port_reference,
    quoted,
)
from podwire_core.objects import Json

_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
_EXPOSED = ("NodePort", "LoadBalancer")
_POLICIES = ("Cluster", "Local")
_FAMILY_POLICIES = ("SingleStack", "PreferDualStack", "RequireDualStack")
MAX_AFFINITY = 86_400


def check_service(found: Problems, obj: Json) -> None:
    spec = obj["spec"]
    found.one_of("$.spec.type", spec["type"], _TYPES)
    check_labels(found, "$.spec.selector", spec.get("selector"))
    if spec["type"] == "ExternalName":
        _check_external_name(found, spec)
    else:
        _check_addresses(found, spec)
    headless = spec.get("clusterIP") == "None"
    if not spec.get("ports") and not headless and spec["type"] != "ExternalName":
        found.add("$.spec.ports", "missing; a Service has at least one port, unless it is headless")
    _check_ports(found, spec)
    _check_affinity(found, spec)
    _check_policies(found, spec)


def _check_external_name(found: Problems, spec: Json) -> None:
    name = spec.get("externalName", "").removesuffix(".")
    found.check("$.spec.externalName", name, dns_subdomain if name else lambda _: "missing; type ExternalName needs one")
    if spec.get("clusterIP"):
        found.add("$.spec.clusterIP", "must be empty for type ExternalName")


def _check_addresses(found: Problems, spec: Json) -> None:
    address, all_of_them = spec.get("clusterIP", ""), spec.get("clusterIPs") or []
    if address == "None":
        if spec["type"] in _EXPOSED:
            found.add("$.spec.clusterIP", f'may not be "None" for type {spec["type"]}')
    elif address:
        found.check("$.spec.clusterIP", address, ip_address)
    for index, each in enumerate(all_of_them):
        if each != "None":
            found.check(f"$.spec.clusterIPs[{index}]", each, ip_address)
    if address and all_of_them and all_of_them[0] != address:
        found.add("$.spec.clusterIPs[0]", f"{quoted(all_of_them[0])} is not the clusterIP {quoted(address)}")
    for index, each in enumerate(spec.get("externalIPs") or []):
        found.check(f"$.spec.externalIPs[{index}]", each, ip_address)
    if spec.get("loadBalancerIP"):
        found.check("$.spec.loadBalancerIP", spec["loadBalancerIP"], ip_address)
    for index, each in enumerate(spec.get("loadBalancerSourceRanges") or []):
        found.check(f"$.spec.loadBalancerSourceRanges[{index}]", each.strip(), cidr)
    for index, family in enumerate(spec.get("ipFamilies") or []):
        found.one_of(f"$.spec.ipFamilies[{index}]", family, ("IPv4", "IPv6"))
    if spec.get("ipFamilyPolicy"):
        found.one_of("$.spec.ipFamilyPolicy", spec["ipFamilyPolicy"], _FAMILY_POLICIES)


def _check_ports(found: Problems, spec: Json) -> None:
    ports, names, numbers = spec.get("ports") or [], set(), set()
    for index, port in enumerate(ports):
        at = f"$.spec.ports[{index}]"
        found.check(f"{at}.port", port["port"], port_number)
        found.check(f"{at}.targetPort", port["targetPort"], port_reference)
        found.one_of(f"{at}.protocol", port["protocol"], PROTOCOLS)
        name = port.get("name", "")
        if name:
            found.check(f"{at}.name", name, dns_label)
            if name in names:
                found.add(f"{at}.name", f"{quoted(name)} is there twice")
        elif len(ports) > 1:
            found.add(f"{at}.name", "missing; with several ports each has a name")
        if (port["port"], port["protocol"]) in numbers:
            found.add(f"{at}.port", f"{port['port']}/{port['protocol']} is there twice")
        names.add(name)
        numbers.add((port["port"], port["protocol"]))
        number = port.get("nodePort")
        if number and found.check(f"{at}.nodePort", number, port_number) and spec["type"] not in _EXPOSED:
            found.add(f"{at}.nodePort", f"may not be set for type {spec['type']}")


def _check_affinity(found: Problems, spec: Json) -> None:
    found.one_of("$.spec.sessionAffinity", spec["sessionAffinity"], ("None", "ClientIP"))
    config = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
    seconds = config.get("timeoutSeconds")
    if seconds is not None and not 0 < seconds <= MAX_AFFINITY:
        found.add("$.spec.sessionAffinityConfig.clientIP.timeoutSeconds", f"{seconds} is not in 1-{MAX_AFFINITY}")


def _check_policies(found: Problems, spec: Json) -> None:
    for field in ("internalTrafficPolicy", "externalTrafficPolicy"):
        if spec.get(field):
            found.one_of(f"$.spec.{field}", spec[field], _POLICIES)
    if spec.get("externalTrafficPolicy") and spec["type"] not in _EXPOSED and not spec.get("externalIPs"):
        found.add("$.spec.externalTrafficPolicy", f"may not be set for type {spec['type']} without externalIPs")
    if spec.get("healthCheckNodePort") and not (spec["type"] == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"):
        found.add("$.spec.healthCheckNodePort", "may only be set for type LoadBalancer with externalTrafficPolicy Local")
