"""describe: an object in detail and what happened to it, laid out as kubectl lays it out.

A description is a tree of lines: `Lines.pair` for "Label:  value", `Lines.under` for what belongs below it. Kinds with a text
of their own are in DESCRIBERS; any other kind shows its fields as they are. Order to read: the command, Lines, the kinds, events.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click

from podwire.cli import formats as f
from podwire.cli.get import fetch, parse_what
from podwire.cli.options import namespace_option, output_option, print_json, session_command
from podwire.cli.session import Session
from podwire.paths import ClusterError
from podwire_core.objects import Json


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="KIND [NAME...] | KIND/NAME...")
@namespace_option
@click.option("-A", "--all-namespaces", is_flag=True, help="In all namespaces.")
@click.option("-l", "--selector", default="", metavar="LABELS", help="Those with these labels.")
@output_option()
@session_command
def describe(
    session: Session, what: tuple[str, ...], namespace: str | None, all_namespaces: bool, selector: str, output: str | None
) -> None:
    """Show objects in detail, with their events."""
    space = "" if all_namespaces else (namespace or "default")
    found = [fetch(session, query, space, selector, "") for query in parse_what(session, what)]
    items = [(each.query.info.kind, item) for each in found for item in each.items]
    if not items:
        raise ClusterError(f"no resources found{f' in {space} namespace' if space else ''}")
    described = [(kind, item, events_of(session, item)) for kind, item in items]
    if output == "json":
        print_json([{"object": item, "events": events} for _, item, events in described])
    else:
        click.echo("\n\n\n".join(text_of(kind, item, events, session) for kind, item, events in described))


class Lines:
    """Label and value pairs at one level of indentation; `text()` aligns the values of a level."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, Lines | None]] = []

    def pair(self, label: str, value: object) -> None:
        self.entries.append((f"{label}:", str(value), None))

    def several(self, label: str, values: list[str]) -> None:
        """One line for each; the label only on the first."""
        for index, value in enumerate(values or [f.NONE]):
            self.entries.append((f"{label}:" if index == 0 else "", value, None))

    def under(self, label: str) -> Lines:
        below = Lines()
        self.entries.append((f"{label}:", "", below))
        return below

    def raw(self, line: str) -> None:
        self.entries.append((line, "", Lines()))

    def text(self, indent: int = 0) -> str:
        width = max((len(label) for label, _, below in self.entries if below is None), default=0)
        lines = []
        for label, value, below in self.entries:
            if below is None:
                lines.append(f"{' ' * indent}{label.ljust(width)}  {value}".rstrip())
            else:
                lines.append(" " * indent + label)
                if below.entries:
                    lines.append(below.text(indent + 2))
        return "\n".join(lines)


def text_of(kind: str, obj: Json, events: list[Json], session: Session | None) -> str:
    lines = Lines()
    meta = obj["metadata"]
    lines.pair("Name", meta["name"])
    if meta.get("namespace"):
        lines.pair("Namespace", meta["namespace"])
    _describe_meta(lines, meta)
    DESCRIBERS.get(kind, _any)(lines, obj, session)
    _describe_events(lines, events)
    return lines.text()


def _describe_meta(lines: Lines, meta: Json) -> None:
    lines.several("Labels", _pairs(meta.get("labels"), "="))
    hidden = "kubectl.kubernetes.io/last-applied-configuration"
    lines.several("Annotations", _pairs({k: v for k, v in (meta.get("annotations") or {}).items() if k != hidden}, ": "))
    if meta.get("creationTimestamp"):
        lines.pair("Created", meta["creationTimestamp"])
    if meta.get("deletionTimestamp"):
        lines.pair("Status", f"Terminating (since {meta['deletionTimestamp']})")
    owners = [f"{owner['kind']}/{owner['name']}" for owner in meta.get("ownerReferences") or [] if owner.get("controller")]
    if owners:
        lines.pair("Controlled By", owners[0])


def _pairs(found: Json | None, separator: str) -> list[str]:
    return [f"{key}{separator}{value}" for key, value in sorted((found or {}).items())]


# --- kinds --------------------------------


def _pod(lines: Lines, obj: Json, session: Session | None) -> None:
    spec, status = obj.get("spec", {}), obj.get("status", {})
    lines.pair("Node", "/".join(filter(None, (spec.get("nodeName", f.NONE), status.get("hostIP")))))
    lines.pair("Start Time", status.get("startTime", f.NONE))
    lines.pair("Status", f.pod_status(obj))
    for name in ("reason", "message"):
        if status.get(name):
            lines.pair(name.capitalize(), status[name])
    lines.pair("IP", status.get("podIP", ""))
    lines.pair("Service Account", spec.get("serviceAccountName", "default"))
    for title, field in (("Init Containers", "initContainer"), ("Containers", "container")):
        containers = spec.get(f"{field}s") or []
        states = {each.get("name"): each for each in status.get(f"{field}Statuses") or []}
        if containers:
            below = lines.under(title)
            for container in containers:
                _container(below.under(container["name"]), container, states.get(container["name"]) or {})
    _conditions(lines, status)
    _volumes(lines, spec)
    lines.pair("DNS Policy", spec.get("dnsPolicy", "ClusterFirst"))
    lines.several("Node-Selectors", _pairs(spec.get("nodeSelector"), "="))
    lines.several("Tolerations", [_toleration(each) for each in spec.get("tolerations") or []])


def _container(lines: Lines, container: Json, status: Json) -> None:
    lines.pair("Container ID", status.get("containerID", ""))
    lines.pair("Image", container.get("image", ""))
    ports = [f"{port.get('containerPort')}/{port.get('protocol', 'TCP')}" for port in container.get("ports") or []]
    lines.pair("Ports", ", ".join(ports) or f.NONE)
    for name in ("command", "args"):
        if container.get(name):
            lines.pair(name.capitalize(), " ".join(map(str, container[name])))
    for title, state in (("State", status.get("state")), ("Last State", status.get("lastState"))):
        _state(lines, title, state or {})
    lines.pair("Ready", str(bool(status.get("ready"))))
    lines.pair("Restart Count", status.get("restartCount", 0))
    for title, kind in (("Limits", "limits"), ("Requests", "requests")):
        found = (container.get("resources") or {}).get(kind)
        if found:
            lines.several(title, _pairs(found, ": "))
    for name in ("liveness", "readiness", "startup"):
        probe = container.get(f"{name}Probe")
        if probe:
            lines.pair(name.capitalize(), _probe(probe))
    lines.several("Environment", [_env(each) for each in container.get("env") or []])
    lines.several("Mounts", [f"{each['mountPath']} from {each['name']}" for each in container.get("volumeMounts") or []])


def _state(lines: Lines, title: str, state: Json) -> None:
    for kind, details in state.items():
        details = details or {}
        lines.pair(title, kind.capitalize())
        for name, label in (
            *(("reason", "  Reason"), ("message", "  Message"), ("exitCode", "  Exit Code")),
            *(("startedAt", "  Started"), ("finishedAt", "  Finished")),
        ):
            if details.get(name) not in (None, ""):
                lines.pair(label, details[name])
        return
    if title == "State":
        lines.pair(title, "Waiting")


def _probe(probe: Json) -> str:
    if "httpGet" in probe:
        get = probe["httpGet"]
        what = f"http-get {get.get('scheme', 'http').lower()}://{get.get('host', '')}:{get.get('port')}{get.get('path', '/')}"
    elif "tcpSocket" in probe:
        what = f"tcp-socket {probe['tcpSocket'].get('host', '')}:{probe['tcpSocket'].get('port')}"
    elif "grpc" in probe:
        what = f"grpc :{probe['grpc'].get('port')} {probe['grpc'].get('service') or ''}".rstrip()
    else:
        what = f"exec [{' '.join(map(str, (probe.get('exec') or {}).get('command') or []))}]"
    return (
        f"{what} delay={probe.get('initialDelaySeconds', 0)}s timeout={probe.get('timeoutSeconds', 1)}s "
        f"period={probe.get('periodSeconds', 10)}s #success={probe.get('successThreshold', 1)} "
        f"#failure={probe.get('failureThreshold', 3)}"
    )


def _env(env: Json) -> str:
    source = env.get("valueFrom")
    if not source:
        return f"{env['name']}: {env.get('value', '')}"
    kind, details = next(iter(source.items()))
    return f"{env['name']}: ({kind} {details.get('fieldPath') or details.get('key') or details.get('resource') or ''})"


def _toleration(found: Json) -> str:
    text = f"{found.get('key', '')}{'=' + found['value'] if found.get('value') else ''}:{found.get('effect', '')}".strip(":")
    seconds = found.get("tolerationSeconds")
    return f"{text} op={found.get('operator', 'Equal')}" + (f" for {seconds}s" if seconds is not None else "")


def _volumes(lines: Lines, spec: Json) -> None:
    if spec.get("volumes"):
        below = lines.under("Volumes")
        for volume in spec["volumes"]:
            kind = next((key for key in volume if key != "name"), "?")
            details = volume.get(kind) or {}
            below.pair(volume["name"], " ".join(filter(None, (kind, details.get("name") or details.get("secretName") or ""))))


def _conditions(lines: Lines, status: Json) -> None:
    found = status.get("conditions") or []
    if found:
        rows = [[c.get("type", ""), c.get("status", ""), c.get("reason", ""), c.get("message", "")] for c in found]
        _table(lines.under("Conditions"), ["Type", "Status", "Reason", "Message"], rows)


def _table(lines: Lines, header: list[str], rows: list[list[str]]) -> None:
    for line in f.table(header, [["-" * len(title) for title in header], *rows]).splitlines():
        lines.raw(line)


def _service(lines: Lines, obj: Json, session: Session | None) -> None:
    spec = obj.get("spec", {})
    lines.several("Selector", [f.labels(spec.get("selector"))])
    lines.pair("Type", spec.get("type", "ClusterIP"))
    lines.pair("IP", spec.get("clusterIP", ""))
    lines.pair("IPs", ",".join(spec.get("clusterIPs") or []))
    if f.service_external(obj) != f.NONE:
        lines.pair("External", f.service_external(obj))
    slices = _slices(session, obj)
    for port in spec.get("ports") or []:
        name = port.get("name") or "<unset>"
        lines.pair("Port", f"{name}  {port['port']}/{port.get('protocol', 'TCP')}")
        lines.pair("TargetPort", f"{port.get('targetPort', port['port'])}/{port.get('protocol', 'TCP')}")
        if port.get("nodePort"):
            lines.pair("NodePort", f"{name}  {port['nodePort']}/{port.get('protocol', 'TCP')}")
        lines.pair("Endpoints", f.some(_port_endpoints(slices, port)))
    lines.pair("Session Affinity", spec.get("sessionAffinity", "None"))
    for label, field in (
        ("External Traffic Policy", "externalTrafficPolicy"),
        ("Internal Traffic Policy", "internalTrafficPolicy"),
    ):
        if spec.get(field):
            lines.pair(label, spec[field])


def _slices(session: Session | None, service: Json) -> list[Json]:
    if session is None:
        return []
    meta = service["metadata"]
    return session.api.list("EndpointSlice", meta["namespace"], labels=f"kubernetes.io/service-name={meta['name']}").items


def _port_endpoints(slices: list[Json], port: Json) -> list[str]:
    return [
        f"{address}:{each.get('port')}"
        for piece in slices
        for each in piece.get("ports") or []
        if (each.get("name") or "") == (port.get("name") or "")
        for endpoint in piece.get("endpoints") or []
        if (endpoint.get("conditions") or {}).get("ready") is not False
        for address in endpoint.get("addresses") or []
    ]


def _node(lines: Lines, obj: Json, session: Session | None) -> None:
    spec, status = obj.get("spec", {}), obj.get("status", {})
    taints = [f"{t['key']}{'=' + t['value'] if t.get('value') else ''}:{t['effect']}" for t in spec.get("taints") or []]
    lines.several("Taints", taints)
    lines.pair("Unschedulable", str(bool(spec.get("unschedulable"))).lower())
    _conditions(lines, status)
    lines.several("Addresses", [f"{each['type']}: {each['address']}" for each in status.get("addresses") or []])
    lines.several("Capacity", _pairs(status.get("capacity"), ": "))
    lines.several("System Info", _pairs(status.get("nodeInfo"), ": "))
    lines.pair("PodCIDR", spec.get("podCIDR", f.NONE))
    if session is not None:
        pods = session.api.list("Pod", fields=f"spec.nodeName={obj['metadata']['name']}").items
        below = lines.under(f"Non-terminated Pods ({len(pods)} in total)")
        rows = [[pod["metadata"]["namespace"], pod["metadata"]["name"], f.pod_status(pod)] for pod in pods]
        _table(below, ["Namespace", "Name", "Status"], rows)


def _workload(lines: Lines, obj: Json, session: Session | None) -> None:
    spec, status = obj.get("spec", {}), obj.get("status", {})
    found = spec.get("selector")
    nested = isinstance(found, dict) and ("matchLabels" in found or "matchExpressions" in found)
    lines.pair("Selector", f.selector(found) if nested else f.labels(found))
    counts = {name: count for name, count in status.items() if isinstance(count, int) and name != "observedGeneration"}
    lines.pair("Replicas", f"{spec.get('replicas', 1)} desired" if "replicas" in spec else "by node or completion")
    lines.several("Status", [f"{name}: {count}" for name, count in counts.items()])
    strategy = spec.get("strategy") or spec.get("updateStrategy")
    if strategy:
        lines.pair("StrategyType", strategy.get("type", ""))
    _template(lines.under("Pod Template"), spec.get("template", {}))
    _conditions(lines, status)


def template_text(template: Json) -> str:
    """A pod template alone, as `rollout history --revision` shows it."""
    lines = Lines()
    _template(lines.under("Pod Template"), template)
    return lines.text()


def _template(below: Lines, template: Json) -> None:
    below.several("Labels", _pairs(template.get("metadata", {}).get("labels"), "="))
    containers = below.under("Containers")
    for container in template.get("spec", {}).get("containers") or []:
        one = containers.under(container["name"])
        one.pair("Image", container.get("image", ""))
        ports = [f"{port.get('containerPort')}/{port.get('protocol', 'TCP')}" for port in container.get("ports") or []]
        one.pair("Ports", ", ".join(ports) or f.NONE)
        one.several("Environment", [_env(each) for each in container.get("env") or []])


def _any(lines: Lines, obj: Json, session: Session | None) -> None:
    for key, value in obj.items():
        if key not in ("apiVersion", "kind", "metadata"):
            _tree(lines, key[:1].upper() + key[1:], value)


def _tree(lines: Lines, label: str, value: Any) -> None:
    if isinstance(value, dict) and value:
        below = lines.under(label)
        for key, each in value.items():
            _tree(below, key, each)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        below = lines.under(label)
        for index, each in enumerate(value):
            _tree(below, str(index), each)
    elif isinstance(value, list):
        lines.several(label, [str(each) for each in value])
    elif isinstance(value, str) and "\n" in value:
        below = lines.under(label)
        for line in value.rstrip("\n").split("\n"):
            below.raw(line)
    else:
        lines.pair(label, value)


DESCRIBERS: dict[str, Callable[[Lines, Json, Session | None], None]] = {
    "Pod": _pod,
    "Service": _service,
    "Node": _node,
    **dict.fromkeys(("Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "ReplicationController", "Job"), _workload),
}

# --- events --------------------------------


def events_of(session: Session, obj: Json) -> list[Json]:
    """The events about an object, oldest first."""
    meta = obj["metadata"]
    found = session.api.list("Event", meta.get("namespace", ""), fields=f"involvedObject.name={meta['name']}").items
    mine = [e for e in found if e.get("involvedObject", {}).get("kind") == obj["kind"] and _is_of(e, meta)]
    return sorted(mine, key=_when)


def _when(event: Json) -> tuple[str, int]:
    """Time stamps have seconds; within one, the order of writing decides."""
    meta = event["metadata"]
    return str(event.get("lastTimestamp") or meta.get("creationTimestamp") or ""), int(meta.get("resourceVersion") or 0)


def _is_of(event: Json, meta: Json) -> bool:
    """Of this object, not of an earlier one of that name (a Node's events carry its name as uid)."""
    return event["involvedObject"].get("uid", "") in ("", meta.get("uid", ""), meta["name"])


def _describe_events(lines: Lines, events: list[Json]) -> None:
    if not events:
        lines.pair("Events", f.NONE)
        return
    now = time.time()
    rows = []
    for event in events:
        age = f.age(event.get("lastTimestamp") or event["metadata"].get("creationTimestamp"), now)
        if (event.get("count") or 1) > 1:
            age += f" (x{event['count']} over {f.age(event.get('firstTimestamp'), now)})"
        source = (event.get("source") or {}).get("component") or event.get("reportingComponent") or ""
        rows.append([event.get("type", ""), event.get("reason", ""), age, source, str(event.get("message", "")).strip()])
    _table(lines.under("Events"), ["Type", "Reason", "Age", "From", "Message"], rows)
