"""Services and EndpointSlices as one node sees them: the state of a proxy, kept up to date object by object.

Rules it keeps:

- Pure and independent of the mode: iptables, nftables, ipvs and ebpf are compiled from `Model.ports`.
- A change of a Service or slice recomputes that Service alone; `refresh` says which Services are now different.
- An object that cannot be decoded counts as absent and is named in `problems`; it never stops the others.
- One family per model; a dual-stack node has two.

Order to read: NodeFacts, Model. What a port is: ports.py; how endpoints are chosen: endpoints.py.
"""

from __future__ import annotations

from typing import TypeVar

from msgspec import Struct

from podwire_core.objects import DecodeError, EndpointSlice, Json, Node, Service, decode
from podwire_nodeagent.proxy.addresses import canonical, contains, family_of, network
from podwire_nodeagent.proxy.endpoints import merged, with_endpoints
from podwire_nodeagent.proxy.ports import ServicePort, ignored, ports_of

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
ZONE_LABEL = "topology.kubernetes.io/zone"
LOOPBACK = {4: "127.0.0.1", 6: "::1"}

K = TypeVar("K", Service, EndpointSlice)


class NodeFacts(Struct, frozen=True):
    """What a proxy needs to know of its node. `addresses`: of both families, InternalIPs first, then others the node has."""

    name: str
    zone: str = ""
    addresses: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()

    @classmethod
    def of(cls, node: Json, more: tuple[str, ...] = ()) -> NodeFacts:
        """From a Node object; `more`: addresses that only the node's interfaces know (its bridge's). Raises DecodeError."""
        typed = decode(Node, node)
        known = [a.address for a in typed.status.addresses or () if a.type in ("InternalIP", "ExternalIP")]
        addresses = (canonical(text) for text in [*known, *more])
        cidrs = (network(text) for text in typed.spec.pod_cidrs or [typed.spec.pod_cidr])
        return cls(
            typed.metadata.name,
            (typed.metadata.labels or {}).get(ZONE_LABEL, ""),
            tuple(dict.fromkeys(a for a in addresses if a is not None)),
            tuple(c for c in cidrs if c is not None),
        )

    def primary(self, family: int) -> str:
        """The node's first address of that family, "" if it has none."""
        return next((a for a in self.addresses if family_of(a) == family), "")

    def pod_cidr(self, family: int) -> str:
        return next((c for c in self.pod_cidrs if family_of(c) == family), "")

    def node_port_addresses(self, given: tuple[str, ...], family: int) -> tuple[str, ...] | None:
        """The addresses on which NodePorts are served by `nodePortAddresses`; None: on all."""
        if given == ("primary",):
            return (self.primary(family),) if self.primary(family) else ()
        if not given or any(net.endswith("/0") and family_of(net) == family for net in given):
            return None
        own = [a for a in (*self.addresses, LOOPBACK[family]) if family_of(a) == family]
        nets = [net for net in given if family_of(net) == family]
        return tuple(dict.fromkeys(a for a in own if any(contains(net, a) for net in nets)))


class Change(Struct, frozen=True):
    """A Service whose ports are different now; `old` or `new` empty: it came or went."""

    service: str
    old: tuple[ServicePort, ...]
    new: tuple[ServicePort, ...]


class Model:
    """`ports`: the ports of every Service that this node serves, by "ns/name"."""

    def __init__(self, node: NodeFacts, family: int = 4) -> None:
        self.node, self.family = node, family
        self.ports: dict[str, tuple[ServicePort, ...]] = {}
        self.problems: dict[str, str] = {}  # "Service ns/name" -> why it is not served
        self._services: dict[str, tuple[ServicePort, ...]] = {}  # without endpoints
        self._slices: dict[str, dict[str, EndpointSlice]] = {}  # by Service, by slice
        self._slice_service: dict[str, str] = {}
        self._dirty: set[str] = set()

    def set_service(self, key: str, obj: Json | None) -> None:
        """The Service "ns/name" is now this; None: gone."""
        service = self._decode(Service, f"Service {key}", obj)
        if service is None:
            self._services.pop(key, None)
        else:
            self._services[key] = ports_of(service, self.family)
        self._dirty.add(key)

    def set_slice(self, key: str, obj: Json | None) -> None:
        """The EndpointSlice "ns/name" is now this; None: gone."""
        typed = self._decode(EndpointSlice, f"EndpointSlice {key}", obj)
        name = "" if typed is None or ignored(typed.metadata) else (typed.metadata.labels or {}).get(SERVICE_NAME_LABEL, "")
        before = self._slice_service.pop(key, None)
        if before is not None:
            self._slices[before].pop(key)
            self._dirty.add(before)
        if typed is not None and name:
            service = f"{typed.metadata.namespace or 'default'}/{name}"
            self._slices.setdefault(service, {})[key] = typed
            self._slice_service[key] = service
            self._dirty.add(service)

    def set_node(self, node: NodeFacts) -> None:
        """A node's name or zone decides over every Service's endpoints."""
        if (node.name, node.zone) != (self.node.name, self.node.zone):
            self._dirty.update(self._services)
        self.node = node

    def refresh(self) -> list[Change]:
        """Brings `ports` up to date with everything set since; the Services that changed, by name."""
        changes = []
        for service in sorted(self._dirty):
            old, new = self.ports.get(service, ()), self._compute(service)
            if new != old:
                changes.append(Change(service, old, new))
            if new:
                self.ports[service] = new
            else:
                self.ports.pop(service, None)
            if not self._slices.get(service, True):
                del self._slices[service]
        self._dirty.clear()
        return changes

    def _compute(self, service: str) -> tuple[ServicePort, ...]:
        ports = self._services.get(service, ())
        slices = self._slices.get(service)
        if not ports or not slices:
            return ports
        endpoints = merged((slices[key] for key in sorted(slices)), self.node.name, self.family)
        return tuple(
            with_endpoints(port, endpoints.get((port.name, port.protocol), ()), self.node.name, self.node.zone) for port in ports
        )

    def _decode(self, shape: type[K], name: str, obj: Json | None) -> K | None:
        self.problems.pop(name, None)
        if obj is None:
            return None
        try:
            return decode(shape, obj)
        except DecodeError as error:
            self.problems[name] = str(error)
            return None
