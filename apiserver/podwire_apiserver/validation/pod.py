"""A pod's specification, in a Pod and in a workload's template."""

from __future__ import annotations

from collections.abc import Iterable

from podwire_apiserver.validation import container
from podwire_apiserver.validation.syntax import (
    Problems,
    check_labels,
    dns_label,
    dns_subdomain,
    ip_address,
    qualified_name,
    quoted,
)
from podwire_core.objects import Json

_RESTART = ("Always", "OnFailure", "Never")
_DNS = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
MAX_NAMESERVERS, MAX_SEARCHES = 3, 32


def check_pod(found: Problems, obj: Json) -> None:
    check_pod_spec(found, "$.spec", obj["spec"])


def check_pod_spec(found: Problems, path: str, spec: Json) -> None:
    found.one_of(f"{path}.restartPolicy", spec["restartPolicy"], _RESTART)
    found.at_least(f"{path}.terminationGracePeriodSeconds", spec.get("terminationGracePeriodSeconds"), 0)
    found.at_least(f"{path}.activeDeadlineSeconds", spec.get("activeDeadlineSeconds"), 1)
    check_labels(found, f"{path}.nodeSelector", spec.get("nodeSelector"))
    for field, check in (("hostname", dns_label), ("subdomain", dns_label), ("nodeName", dns_subdomain)):
        if spec.get(field):
            found.check(f"{path}.{field}", spec[field], check)
    _check_dns(found, path, spec)
    _check_volumes(found, path, spec.get("volumes") or [])
    _check_containers(found, path, spec)
    for index, alias in enumerate(spec.get("hostAliases") or []):
        found.check(f"{path}.hostAliases[{index}].ip", alias["ip"], ip_address)
        for number, name in enumerate(alias.get("hostnames") or []):
            found.check(f"{path}.hostAliases[{index}].hostnames[{number}]", name, dns_subdomain)
    for index, toleration in enumerate(spec.get("tolerations") or []):
        _check_toleration(found, f"{path}.tolerations[{index}]", toleration)


def unique(found: Problems, path: str, field: str, items: Iterable[Json]) -> None:
    seen: set[str] = set()
    for index, item in enumerate(items):
        name = str(item.get(field) or "")
        if name and name in seen:
            found.add(f"{path}[{index}].{field}", f"{quoted(name)} is there twice")
        seen.add(name)


def _check_containers(found: Problems, path: str, spec: Json) -> None:
    containers, first = spec.get("containers") or [], spec.get("initContainers") or []
    if not containers:
        found.add(f"{path}.containers", "missing; a pod has at least one container")
    unique(found, f"{path}.containers", "name", containers)
    unique(found, f"{path}.initContainers", "name", first)
    names = {item.get("name") for item in containers}
    for index, item in enumerate(first):
        if item.get("name") in names:
            found.add(f"{path}.initContainers[{index}].name", f"{quoted(item['name'])} is a container's name, too")
    volumes = {str(volume.get("name")) for volume in spec.get("volumes") or []}
    for field, items in (("containers", containers), ("initContainers", first)):
        for index, item in enumerate(items):
            container.check_container(found, f"{path}.{field}[{index}]", item, volumes, bool(spec.get("hostNetwork")))
    _check_host_ports(found, f"{path}.containers", containers)


def _check_host_ports(found: Problems, path: str, containers: list[Json]) -> None:
    seen: set[tuple[int, str, str]] = set()
    for index, item in enumerate(containers):
        for number, port in enumerate(item.get("ports") or []):
            key = (port.get("hostPort") or 0, port.get("protocol", "TCP"), port.get("hostIP", ""))
            if key[0] and key in seen:
                found.add(f"{path}[{index}].ports[{number}].hostPort", f"{key[0]}/{key[1]} is there twice")
            seen.add(key)


def _check_dns(found: Problems, path: str, spec: Json) -> None:
    found.one_of(f"{path}.dnsPolicy", spec["dnsPolicy"], _DNS)
    config = spec.get("dnsConfig") or {}
    servers, searches = config.get("nameservers") or [], config.get("searches") or []
    if spec["dnsPolicy"] == "None" and not servers:
        found.add(f"{path}.dnsConfig.nameservers", "missing; dnsPolicy None needs at least one")
    for index, server in enumerate(servers):
        found.check(f"{path}.dnsConfig.nameservers[{index}]", server, ip_address)
    if len(servers) > MAX_NAMESERVERS:
        found.add(f"{path}.dnsConfig.nameservers", f"more than {MAX_NAMESERVERS}")
    if len(searches) > MAX_SEARCHES:
        found.add(f"{path}.dnsConfig.searches", f"more than {MAX_SEARCHES}")
    for index, search in enumerate(searches):
        if search != ".":
            found.check(f"{path}.dnsConfig.searches[{index}]", search.removesuffix(".").replace("_", "-"), dns_subdomain)


def _check_volumes(found: Problems, path: str, volumes: list[Json]) -> None:
    unique(found, f"{path}.volumes", "name", volumes)
    for index, volume in enumerate(volumes):
        at = f"{path}.volumes[{index}]"
        if not isinstance(volume.get("name"), str) or not volume["name"]:
            found.add(f"{at}.name", "missing")
        else:
            found.check(f"{at}.name", volume["name"], dns_label)
        sources = [field for field in volume if field != "name"]
        if len(sources) > 1:
            found.add(at, f"more than one source: {', '.join(sources)}")


def _check_toleration(found: Problems, path: str, toleration: Json) -> None:
    operator, key = toleration.get("operator") or "Equal", toleration.get("key")
    found.one_of(f"{path}.operator", operator, ("Exists", "Equal"))
    if key:
        found.check(f"{path}.key", key, qualified_name)
    elif operator == "Equal":
        found.add(f"{path}.operator", "must be Exists where there is no key")
    if operator == "Exists" and toleration.get("value"):
        found.add(f"{path}.value", "must be empty where the operator is Exists")
    if toleration.get("effect"):
        found.one_of(f"{path}.effect", toleration["effect"], _EFFECTS)
