"""One container: its ports, environment, probes, mounts and resources."""

from __future__ import annotations

from podwire_apiserver.validation.syntax import (
    PROTOCOLS,
    Problems,
    dns_label,
    ip_address,
    port_name,
    port_number,
    port_reference,
    quantity_text,
    quoted,
)
from podwire_core import quantity
from podwire_core.objects import Json

_PULL = ("Always", "IfNotPresent", "Never")
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc")
_HOOKS = ("exec", "httpGet", "tcpSocket", "sleep")
_FIELDS = (
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
)


def check_container(found: Problems, path: str, item: Json, volumes: set[str], host_network: bool) -> None:
    found.check(f"{path}.name", item.get("name", ""), dns_label)
    image = item.get("image", "")
    if not image:
        found.add(f"{path}.image", "missing")
    elif image != image.strip():
        found.add(f"{path}.image", f"{quoted(image)} has white space around it")
    found.one_of(f"{path}.imagePullPolicy", item["imagePullPolicy"], _PULL)
    _check_ports(found, f"{path}.ports", item.get("ports") or [], host_network)
    _check_environment(found, f"{path}.env", item.get("env") or [])
    _check_mounts(found, f"{path}.volumeMounts", item.get("volumeMounts") or [], volumes)
    _check_resources(found, f"{path}.resources", item.get("resources") or {})
    for field in ("livenessProbe", "readinessProbe", "startupProbe"):
        if item.get(field) is not None:
            _check_probe(found, f"{path}.{field}", item[field], field)
    for field, hook in (item.get("lifecycle") or {}).items():
        if isinstance(hook, dict):
            _check_handler(found, f"{path}.lifecycle.{field}", hook, _HOOKS)


def _check_ports(found: Problems, path: str, ports: list[Json], host_network: bool) -> None:
    names: set[str] = set()
    for index, port in enumerate(ports):
        at = f"{path}[{index}]"
        found.check(f"{at}.containerPort", port["containerPort"], port_number)
        found.one_of(f"{at}.protocol", port["protocol"], PROTOCOLS)
        if port.get("name"):
            found.check(f"{at}.name", port["name"], port_name)
            if port["name"] in names:
                found.add(f"{at}.name", f"{quoted(port['name'])} is there twice")
            names.add(port["name"])
        if port.get("hostPort"):
            found.check(f"{at}.hostPort", port["hostPort"], port_number)
            if host_network and port["hostPort"] != port["containerPort"]:
                found.add(
                    f"{at}.hostPort", f"must be the containerPort {port['containerPort']}, since the pod is on the host's network"
                )
        if port.get("hostIP"):
            found.check(f"{at}.hostIP", port["hostIP"], ip_address)


def _check_environment(found: Problems, path: str, variables: list[Json]) -> None:
    for index, variable in enumerate(variables):
        name, source = variable.get("name", ""), variable.get("valueFrom")
        if not name or "=" in name or not name.isprintable():
            found.add(
                f"{path}[{index}].name", f"{quoted(name)} is not the name of an environment variable" if name else "missing"
            )
        if source is None:
            continue
        if variable.get("value"):
            found.add(f"{path}[{index}].valueFrom", "may not stand beside a value")
        if len(source) != 1:
            found.add(f"{path}[{index}].valueFrom", f"expected one source, got {', '.join(source) or 'none'}")
        reference = (source.get("fieldRef") or {}).get("fieldPath")
        if reference is not None and reference not in _FIELDS and not _is_map_entry(reference):
            found.add(f"{path}[{index}].valueFrom.fieldRef.fieldPath", f"{quoted(reference)} is not a field a pod can refer to")


def _is_map_entry(reference: str) -> bool:
    return reference.endswith("']") and reference.startswith(("metadata.labels['", "metadata.annotations['"))


def _check_mounts(found: Problems, path: str, mounts: list[Json], volumes: set[str]) -> None:
    paths: set[str] = set()
    for index, mount in enumerate(mounts):
        if mount["name"] not in volumes:
            found.add(f"{path}[{index}].name", f"there is no volume {quoted(mount['name'])}")
        where = mount["mountPath"]
        if not where or where in paths:
            found.add(f"{path}[{index}].mountPath", f"{quoted(where)} is there twice" if where else "missing")
        paths.add(where)


def _check_resources(found: Problems, path: str, resources: Json) -> None:
    good = True
    for field in ("requests", "limits"):
        for name, amount in (resources.get(field) or {}).items():
            if field == "requests" and amount == (resources.get("limits") or {}).get(name):
                continue  # a default, or as good as one: the limit has been, or will be, checked
            good &= found.check(f"{path}.{field}.{name}", amount, quantity_text)
            if good and quantity.parse(str(amount)) < 0:
                found.add(f"{path}.{field}.{name}", f"{amount} is less than 0")
    for name, amount in (resources.get("requests") or {}).items() if good else ():
        limit = (resources.get("limits") or {}).get(name)
        if limit is not None and quantity.parse(str(amount)) > quantity.parse(str(limit)):
            found.add(f"{path}.requests.{name}", f"{amount} is more than the limit {limit}")


def _check_probe(found: Problems, path: str, probe: Json, field: str) -> None:
    _check_handler(found, path, probe, _HANDLERS)
    for name, least in (("initialDelaySeconds", 0), ("timeoutSeconds", 1), ("periodSeconds", 1), ("failureThreshold", 1)):
        found.at_least(f"{path}.{name}", probe.get(name), least)
    if field != "readinessProbe" and probe.get("successThreshold", 1) != 1:
        found.add(f"{path}.successThreshold", f"must be 1 for a {field}")


def _check_handler(found: Problems, path: str, handler: Json, kinds: tuple[str, ...]) -> None:
    given = [kind for kind in kinds if handler.get(kind) is not None]
    if len(given) != 1:
        found.add(path, f"expected one of {', '.join(kinds)}, got {' and '.join(given) or 'none'}")
    for kind in given:
        action = handler[kind]
        if kind == "exec" and not action.get("command"):
            found.add(f"{path}.exec.command", "missing")
        elif kind in ("httpGet", "tcpSocket", "grpc"):
            found.check(f"{path}.{kind}.port", action.get("port", 0), port_reference)
        if kind == "httpGet":
            found.one_of(f"{path}.httpGet.scheme", action.get("scheme", "HTTP"), ("HTTP", "HTTPS"))
