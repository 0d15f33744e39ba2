"""kube-proxy's health checks, as far as they are decisions: which node ports are served, and how many endpoints they tell.

A load balancer asks every node at the Service's healthCheckNodePort whether it has an endpoint (externalTrafficPolicy Local), and
at port 10256 whether the node takes part at all. Independent of the mode. Pure; what answers is health_server.py.

Rules it keeps: endpoints are counted as kube-proxy does, by address, ready ones on this node; a change that concerns no Service
with a health check costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from podwire_core.objects import Json
from podwire_nodeagent.proxy.model import SERVICE_NAME_LABEL, Model, NodeFacts

PROXY_PORT = 10256


class HealthChecks:
    """`ports`: by health check node port, the Service ("ns/name") and its ready endpoints on this node."""

    def __init__(self, node: str) -> None:
        self.ports: dict[int, tuple[str, int]] = {}
        self._node = node
        self._wanted: dict[str, int] = {}  # Service → its port

    def change(
        self,
        services: Mapping[str, Json | None],
        slices: Mapping[str, Json | None],
        all_services: Mapping[str, Json],
        all_slices: Mapping[str, Json],
    ) -> bool:
        """What changed, and everything as it is now. Whether `ports` is different."""
        for key, obj in services.items():
            port = _port(obj)
            if port:
                self._wanted[key] = port
            else:
                self._wanted.pop(key, None)
        moved = bool(services) or any(each is None or _of(each) in self._wanted for each in slices.values())
        if not (self._wanted and moved) and bool(self._wanted) == bool(self.ports):
            return False
        before, self.ports = self.ports, self._count(all_services, all_slices.values())
        return self.ports != before

    def _count(self, services: Mapping[str, Json], slices: Iterable[Json]) -> dict[int, tuple[str, int]]:
        model = Model(NodeFacts(self._node))
        for key in self._wanted:
            model.set_service(key, services.get(key))
        for number, each in enumerate(slices):
            if _of(each) in self._wanted:
                model.set_slice(str(number), each)
        model.refresh()
        found = {}
        for key, port in self._wanted.items():
            ready = {end.ip for each in model.ports.get(key, ()) for end in each.local if end.ready}
            found[port] = key, len(ready)
        return found


def _port(obj: Json | None) -> int:
    """The Service's health check port, 0 if it has none."""
    spec = (obj or {}).get("spec") or {}
    wanted = spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"
    return int(spec.get("healthCheckNodePort") or 0) if wanted else 0


def _of(endpoint_slice: Json) -> str:
    meta = endpoint_slice["metadata"]
    return f"{meta.get('namespace') or 'default'}/{(meta.get('labels') or {}).get(SERVICE_NAME_LABEL, '')}"
