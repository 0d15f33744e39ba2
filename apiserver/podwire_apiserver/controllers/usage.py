"""What the pods of a node ask for, kept up to date pod by pod: the scheduler's arithmetic.

A pod counts from its binding until it has ended. Requests are the sum of its containers', or the largest init container's.
"""

from __future__ import annotations

from collections import Counter

from podwire_core import quantity
from podwire_core.objects import Json

HostPort = tuple[str, str, int]  # protocol, host address, port


def counts(pod: Json) -> bool:
    if not pod.get("spec", {}).get("nodeName"):
        return False
    return (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")


def requests_of(pod: Json) -> dict[str, int]:
    """Per resource; cpu in thousandths. Requests default to limits, as in the API."""
    total: Counter[str] = Counter()
    for container in pod["spec"].get("containers") or ():
        total.update(_requests(container))
    for container in pod["spec"].get("initContainers") or ():
        for name, amount in _requests(container).items():
            total[name] = max(total[name], amount)
    return dict(total)


def _requests(container: Json) -> dict[str, int]:
    resources = container.get("resources") or {}
    asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: amount_of(name, text) for name, text in asked.items()}


def amount_of(resource: str, text: str | int | float) -> int:
    return quantity.milli(text) if resource == "cpu" else quantity.value(text)


def host_ports_of(pod: Json) -> list[HostPort]:
    """With hostNetwork every containerPort is a host port."""
    host_network = pod["spec"].get("hostNetwork", False)
    ports = [port for container in pod["spec"].get("containers") or () for port in container.get("ports") or ()]
    return [
        (port.get("protocol") or "TCP", port.get("hostIP") or "0.0.0.0", number)
        for port in ports
        if (number := port.get("hostPort") or (port.get("containerPort") if host_network else 0))
    ]


def owner_of(pod: Json) -> str:
    """The uid of the pod's controller, "" if it has none."""
    references = pod["metadata"].get("ownerReferences") or ()
    return next((str(ref.get("uid")) for ref in references if ref.get("controller")), "")


class NodeUsage:
    __slots__ = ("owners", "pods", "ports", "requested")

    def __init__(self) -> None:
        self.pods = 0
        self.requested: Counter[str] = Counter()
        self.ports: Counter[HostPort] = Counter()
        self.owners: Counter[str] = Counter()  # pods per controller

    def add(self, pod: Json) -> None:
        self.pods += 1
        self.requested.update(requests_of(pod))
        self.ports.update(host_ports_of(pod))
        self.owners[owner_of(pod)] += 1

    def remove(self, pod: Json) -> None:
        self.pods -= 1
        self.requested.subtract(requests_of(pod))
        self.ports.subtract(host_ports_of(pod))
        self.owners[owner_of(pod)] -= 1

    def port_taken(self, wanted: HostPort) -> bool:
        protocol, address, number = wanted
        return any(
            count > 0 and protocol == other and number == taken and (address == ip or "0.0.0.0" in (address, ip))
            for (other, ip, taken), count in self.ports.items()
        )
