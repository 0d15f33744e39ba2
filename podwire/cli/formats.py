"""How single values are printed, as kubectl prints them: ages, label sets, selectors, ports, pod states.

Pure functions of objects (plain dicts) and the present time; a missing field never fails, it prints as kubectl prints it.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence

from podwire_core.objects import Json

NONE = "<none>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], titles: bool = True) -> str:
    """Columns as kubectl's: left-aligned, three spaces apart, the last one not padded."""
    lines = [list(header)] if titles else []
    lines += [[" ".join(cell.split("\n")) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))] if lines else []
    return "\n".join("   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def timestamp(text: str | None) -> float | None:
    """Seconds since 1970 of an RFC 3339 time; None if there is none, or it isn't one."""
    if not text:
        return None
    try:
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def age(text: str | None, now: float) -> str:
    then = timestamp(text)
    return "<unknown>" if then is None else duration(now - then)


def duration(seconds: float) -> str:
    """Kubernetes' HumanDuration: about two significant figures."""
    total = int(seconds)
    if total < -1:
        return "<invalid>"
    if total < 120:
        return f"{max(total, 0)}s"
    minutes, hours, days = total // 60, total // 3600, total // 86400
    if minutes < 10:
        return _pair(minutes, "m", total % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _pair(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return _pair(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    return _pair(days // 365, "y", days % 365, "d") if days < 2920 else f"{days // 365}y"


def _pair(big: int, big_unit: str, small: int, small_unit: str) -> str:
    return f"{big}{big_unit}{small}{small_unit}" if small else f"{big}{big_unit}"


def labels(found: Json | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((found or {}).items())) or NONE


def selector(found: Json | None) -> str:
    """A LabelSelector in the syntax of `-l`."""
    if not found:
        return NONE
    parts = [f"{key}={value}" for key, value in sorted((found.get("matchLabels") or {}).items())]
    for requirement in found.get("matchExpressions") or []:
        key, values = requirement.get("key", ""), ",".join(requirement.get("values") or [])
        operator = requirement.get("operator", "")
        if operator == "Exists":
            parts.append(key)
        elif operator == "DoesNotExist":
            parts.append(f"!{key}")
        else:
            parts.append(f"{key} {operator.lower()} ({values})")
    return ",".join(parts) or NONE


def some(items: Sequence[str], at_most: int = 3) -> str:
    """ "a,b,c + 2 more..." """
    if not items:
        return NONE
    more = len(items) - at_most
    return ",".join(items[:at_most]) + (f" + {more} more..." if more > 0 else "")


def condition(obj: Json, kind: str) -> Json:
    """The condition of that type, or {}."""
    for found in (obj.get("status") or {}).get("conditions") or []:
        if found.get("type") == kind:
            return dict(found)
    return {}


# --- pods --------------------------------


def pod_ready(pod: Json) -> str:
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    ready = sum(1 for status in statuses if status.get("ready") and "running" in (status.get("state") or {}))
    return f"{ready}/{len((pod.get('spec') or {}).get('containers') or [])}"


def pod_restarts(pod: Json, now: float) -> str:
    status = pod.get("status") or {}
    statuses = status.get("containerStatuses") or status.get("initContainerStatuses") or []
    count = sum(each.get("restartCount", 0) for each in statuses)
    ends = [timestamp((each.get("lastState") or {}).get("terminated", {}).get("finishedAt")) for each in statuses]
    last = max((end for end in ends if end is not None), default=None)
    return f"{count} ({duration(now - last)} ago)" if count and last is not None else str(count)


def pod_status(pod: Json) -> str:
    """The STATUS column: what kubectl makes of phase, reasons and container states."""
    status = pod.get("status") or {}
    phase = status.get("phase", "Pending")
    text = _init_status(pod) or _containers_status(status, status.get("reason") or phase, bool(_is(pod, "Ready")))
    if (pod.get("metadata") or {}).get("deletionTimestamp") and phase not in ("Succeeded", "Failed"):
        return "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    return text


def _is(obj: Json, kind: str) -> bool:
    return bool(condition(obj, kind).get("status") == "True")


def _init_status(pod: Json) -> str:
    """ "Init:1/2" and the like while an init container is not done, else ""."""
    statuses = (pod.get("status") or {}).get("initContainerStatuses") or []
    total = len((pod.get("spec") or {}).get("initContainers") or [])
    for index, each in enumerate(statuses):
        state = each.get("state") or {}
        terminated, waiting = state.get("terminated"), state.get("waiting") or {}
        if terminated and terminated.get("exitCode") == 0:
            continue
        if terminated:
            return f"Init:{_ended(terminated)}"
        if waiting.get("reason") not in (None, "", "PodInitializing"):
            return f"Init:{waiting['reason']}"
        return f"Init:{index}/{total}"
    return ""


def _containers_status(status: Json, reason: str, ready: bool) -> str:
    running = False
    for each in reversed(status.get("containerStatuses") or []):
        state = each.get("state") or {}
        if (state.get("waiting") or {}).get("reason"):
            reason = state["waiting"]["reason"]
        elif state.get("terminated"):
            reason = _ended(state["terminated"])
        elif each.get("ready") and "running" in state:
            running = True
    if reason == "Completed" and running:
        return "Running" if ready else "NotReady"
    return reason


def _ended(terminated: Json) -> str:
    if terminated.get("reason"):
        return str(terminated["reason"])
    if terminated.get("signal"):
        return f"Signal:{terminated['signal']}"
    return f"ExitCode:{terminated.get('exitCode', 0)}"


# --- services, endpoints --------------------------------


def service_ports(service: Json) -> str:
    def one(port: Json) -> str:
        node_port = f":{port['nodePort']}" if port.get("nodePort") else ""
        return f"{port.get('port')}{node_port}/{port.get('protocol', 'TCP')}"

    return ",".join(one(port) for port in (service.get("spec") or {}).get("ports") or []) or NONE


def service_external(service: Json) -> str:
    spec = service.get("spec") or {}
    if spec.get("type") == "ExternalName":
        return str(spec.get("externalName", NONE))
    ingress = (service.get("status") or {}).get("loadBalancer", {}).get("ingress") or []
    addresses = [each.get("ip") or each.get("hostname", "") for each in ingress] + (spec.get("externalIPs") or [])
    if addresses:
        return ",".join(addresses)
    return "<pending>" if spec.get("type") == "LoadBalancer" else NONE


def endpoints(obj: Json) -> list[str]:
    """ "ip:port" of everything that is ready in an Endpoints object."""
    return [
        f"{address['ip']}:{port['port']}"
        for subset in obj.get("subsets") or []
        for port in subset.get("ports") or []
        for address in subset.get("addresses") or []
    ]


def slice_addresses(obj: Json) -> list[str]:
    return [address for endpoint in obj.get("endpoints") or [] for address in endpoint.get("addresses") or []]


# --- nodes --------------------------------


def node_status(node: Json) -> str:
    text = "Ready" if _is(node, "Ready") else "NotReady"
    return text + (",SchedulingDisabled" if (node.get("spec") or {}).get("unschedulable") else "")


def node_roles(node: Json) -> str:
    prefix = "node-role.kubernetes.io/"
    found = [key.removeprefix(prefix) for key in (node.get("metadata") or {}).get("labels") or {} if key.startswith(prefix)]
    return ",".join(sorted(found)) or NONE


def node_address(node: Json, kind: str) -> str:
    addresses = (node.get("status") or {}).get("addresses") or []
    return next((str(each["address"]) for each in addresses if each.get("type") == kind), NONE)
