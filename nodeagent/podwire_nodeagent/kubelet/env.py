"""A container's environment: pure. Order and rules are kubelet's: Service variables, envFrom, then env, later ones
winning; `$(NAME)` in a value, in command and in args is replaced if NAME is known so far, `$$` is a dollar sign.

Expected failures are ConfigError: the container waits with reason CreateContainerConfigError until the object it names is there.
Order to read: Context, compose, references, Service variables, expansion, command lines.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator

from msgspec import Struct

from podwire_core import quantity
from podwire_core.objects import Container, EnvFromSource, EnvVar, Json, PodSpec
from podwire_nodeagent.kubelet.config import Getter

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ConfigError(Exception):
    """One line: what is missing or wrong."""


class Context(Struct):
    """What references in a pod may refer to. `invalid` collects names of envFrom keys that were left out."""

    pod: Json
    spec: PodSpec
    host_ip: str
    pod_ips: list[str]
    node_name: str
    allocatable: dict[str, str]
    services: list[Json]
    config_map: Getter
    secret: Getter
    invalid: list[str] = []

    @property
    def namespace(self) -> str:
        return str(self.pod["metadata"].get("namespace", "default"))


def compose(container: Container, context: Context) -> dict[str, str]:
    """The variables of the spec; the image's own (PATH, HOME) come below them."""
    result: dict[str, str] = {}
    for source in container.env_from or []:
        result |= dict(_env_from(source, context))
    service = service_variables(context.services, context.namespace, context.spec.enable_service_links)
    for variable in container.env or []:
        value = _value(variable, container, context, service | result)
        if value is not None:
            result[variable.name] = value
    return service | result


def _env_from(source: EnvFromSource, context: Context) -> Iterator[tuple[str, str]]:
    if source.config_map_ref is not None:
        data = _data(context, "configmap", source.config_map_ref.name, source.config_map_ref.optional)
    elif source.secret_ref is not None:
        data = _data(context, "secret", source.secret_ref.name, source.secret_ref.optional)
    else:
        return
    for key, value in data.items():
        name = source.prefix + key
        if re.fullmatch(r"[ -<>-~]+", name):  # printable, no "="
            yield name, value.decode("utf-8", "surrogateescape")
        else:
            context.invalid.append(name)


def _value(variable: EnvVar, container: Container, context: Context, known: dict[str, str]) -> str | None:
    source = variable.value_from
    if source is None:
        return expand(variable.value or "", known)
    if source.field_ref is not None:
        return field(source.field_ref.field_path, context)
    if source.resource_field_ref is not None:
        reference = source.resource_field_ref
        return resource(reference.resource, reference.container_name or container.name, reference.divisor, context)
    for kind, ref in (("configmap", source.config_map_key_ref), ("secret", source.secret_key_ref)):
        if ref is None:
            continue
        data = _data(context, kind, ref.name, ref.optional)
        if ref.key in data:
            return data[ref.key].decode("utf-8", "surrogateescape")
        if not ref.optional:
            named = "ConfigMap" if kind == "configmap" else "Secret"
            raise ConfigError(f"couldn't find key {ref.key} in {named} {context.namespace}/{ref.name}")
    return None


# --- references --------------------------------


def _data(context: Context, kind: str, name: str, optional: bool | None) -> dict[str, bytes]:
    obj = (context.config_map if kind == "configmap" else context.secret)(context.namespace, name)
    if obj is not None:
        return data_of(obj)
    if optional:
        return {}
    raise ConfigError(f'{kind} "{name}" not found')


def data_of(obj: Json) -> dict[str, bytes]:
    """The contents of a ConfigMap or Secret as bytes."""
    if obj.get("kind") == "Secret":
        encoded = {key: base64.b64decode(value) for key, value in (obj.get("data") or {}).items()}
        return encoded | {key: str(value).encode() for key, value in (obj.get("stringData") or {}).items()}
    plain = {key: str(value).encode() for key, value in (obj.get("data") or {}).items()}
    return plain | {key: base64.b64decode(value) for key, value in (obj.get("binaryData") or {}).items()}


def field(path: str, context: Context) -> str:
    """What a fieldRef means, for variables and downward API files alike."""
    meta = context.pod["metadata"]
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['([^']*)'\]", path):
        return str((meta.get(match[1]) or {}).get(match[2], ""))
    match path:
        case "metadata.labels" | "metadata.annotations":
            values = meta.get(path.partition(".")[2]) or {}
            return "\n".join(f'{key}="{_escaped(str(values[key]))}"' for key in sorted(values))
        case "metadata.name" | "metadata.namespace" | "metadata.uid":
            return str(meta.get(path.partition(".")[2], ""))
        case "spec.nodeName":
            return context.node_name
        case "spec.serviceAccountName":
            return context.spec.service_account_name or "default"
        case "status.hostIP" | "status.hostIPs":
            return context.host_ip
        case "status.podIP":
            return context.pod_ips[0] if context.pod_ips else ""
        case "status.podIPs":
            return ",".join(context.pod_ips)
    raise ConfigError(f"unsupported fieldPath: {path}")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def resource(name: str, container_name: str, divisor: str | float, context: Context) -> str:
    """What a resourceFieldRef means: the container's, or for a missing limit the node's."""
    every = [*(context.spec.init_containers or []), *context.spec.containers]
    container = next((c for c in every if c.name == container_name), None)
    if container is None:
        raise ConfigError(f"container {container_name} not found")
    kind, _, what = name.partition(".")
    if kind not in ("limits", "requests") or not what:
        raise ConfigError(f"unsupported container resource: {name}")
    resources = container.resources
    given = (resources.limits if kind == "limits" else resources.requests) if resources is not None else None
    amount = (given or {}).get(what) or (context.allocatable.get(what, "0") if kind == "limits" else "0")
    unit = quantity.parse(str(divisor)) if str(divisor) not in ("", "0") else quantity.parse("1")
    return str(math.ceil(quantity.parse(str(amount)) / unit))


# --- Service variables --------------------------------


def service_variables(services: list[Json], namespace: str, links: bool) -> dict[str, str]:
    """{NAME}_SERVICE_HOST and the docker-link variables, of the namespace's Services (if `links`) and of default/kubernetes."""
    result: dict[str, str] = {}
    for service in services:
        meta, spec = service["metadata"], service.get("spec") or {}
        address = spec.get("clusterIP") or ""
        master = (meta.get("namespace"), meta["name"]) == ("default", "kubernetes")
        if address in ("", "None") or not spec.get("ports") or not (master or (links and meta.get("namespace") == namespace)):
            continue
        result |= _variables_of(meta["name"].upper().replace("-", "_"), address, spec["ports"])
    return result


def _variables_of(name: str, address: str, ports: list[Json]) -> dict[str, str]:
    host = f"[{address}]" if ":" in address else address
    first = ports[0]
    result = {f"{name}_SERVICE_HOST": address, f"{name}_SERVICE_PORT": str(first["port"])}
    result |= {f"{name}_SERVICE_PORT_{p['name'].upper().replace('-', '_')}": str(p["port"]) for p in ports if p.get("name")}
    result[f"{name}_PORT"] = f"{first.get('protocol', 'TCP').lower()}://{host}:{first['port']}"
    for port in ports:
        protocol = port.get("protocol", "TCP")
        prefix = f"{name}_PORT_{port['port']}_{protocol}"
        result[prefix] = f"{protocol.lower()}://{host}:{port['port']}"
        result |= {f"{prefix}_PROTO": protocol.lower(), f"{prefix}_PORT": str(port["port"]), f"{prefix}_ADDR": address}
    return result


# --- expansion --------------------------------

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


def expand(text: str, known: dict[str, str]) -> str:
    """`$(NAME)` by its value if known, else left; `$$` is `$`, so `$$(NAME)` stays `$(NAME)`."""

    def replaced(match: re.Match[str]) -> str:
        if match[1] is None:
            return "$"
        return known.get(match[1], match[0])

    return _REFERENCE.sub(replaced, text)


def expand_all(words: list[str] | None, known: dict[str, str]) -> list[str] | None:
    return None if words is None else [expand(word, known) for word in words]
