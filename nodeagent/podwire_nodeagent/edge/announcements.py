"""Which addresses of Services are served by which nodes, as speakers of a routing protocol on the nodes would announce them.

Rules it keeps: LoadBalancers' addresses (ipMode VIP) and externalIPs, IPv4, not those of the node network itself; by every node
that is ready and not excluded from load balancers; under externalTrafficPolicy Local only by those with a ready endpoint (or, if
the Service has none left, one that still serves while it terminates). Pure; a change costs what the changed Service costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network

from podwire_core.constants import NODE_NETWORK
from podwire_core.objects import DecodeError, EndpointSlice, Json, Node, Service, decode
from podwire_nodeagent.proxy.model import SERVICE_NAME_LABEL
from podwire_nodeagent.proxy.ports import ignored, ports_of

EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"
_NODES = ip_network(NODE_NETWORK)


class Announcements:
    """`change` with what is new; then `by_address` says it all."""

    def __init__(self) -> None:
        self._addresses: dict[str, tuple[str, ...]] = {}  # Service → its addresses
        self._hosts: dict[str, frozenset[str]] = {}  # Service with policy Local → nodes with endpoints
        self._nodes: frozenset[str] = frozenset()

    def change(
        self,
        services: Mapping[str, Json | None],
        slices: Mapping[str, Json | None],
        nodes: Mapping[str, Json | None],
        every: Mapping[str, Mapping[str, Json]],
    ) -> bool:
        """What is new or gone; `every`: all objects as they are now, by kind. Whether anything is announced differently."""
        before = self.by_address()
        for key, obj in services.items():
            self._learn(key, obj)
        moved = any(each is None or _service_of(each) in self._hosts for each in slices.values())
        if self._hosts and (moved or not self._hosts.keys().isdisjoint(services)):
            self._find_hosts(every["EndpointSlice"].values())
        if nodes:
            self._nodes = frozenset(name for name, node in every["Node"].items() if _serves(node))
        return self.by_address() != before

    def by_address(self) -> dict[str, tuple[str, ...]]:
        """The names of the nodes that serve each address, sorted; none: nobody does just now."""
        found: dict[str, set[str]] = {}
        for key, addresses in self._addresses.items():
            hosts = self._nodes & self._hosts[key] if key in self._hosts else self._nodes
            for address in addresses:
                found.setdefault(address, set()).update(hosts)
        return {address: tuple(sorted(hosts)) for address, hosts in found.items()}

    def _learn(self, key: str, obj: Json | None) -> None:
        self._addresses.pop(key, None)
        self._hosts.pop(key, None)
        try:
            service = decode(Service, obj) if obj is not None else None
        except DecodeError:
            return  # no node serves it either
        ports = ports_of(service, 4) if service is not None else ()
        addresses = [a for port in ports[:1] for a in (*port.load_balancer_ips, *port.external_ips)]
        if any(ip_address(address) not in _NODES for address in addresses):
            self._addresses[key] = tuple(address for address in addresses if ip_address(address) not in _NODES)
            if ports[0].external_local:
                self._hosts[key] = frozenset()

    def _find_hosts(self, slices: Iterable[Json]) -> None:
        ready: dict[str, set[str]] = {key: set() for key in self._hosts}
        lingering: dict[str, set[str]] = {key: set() for key in self._hosts}
        for each in slices:
            key = _service_of(each)
            if key in ready:
                _collect(each, ready[key], lingering[key])
        for key in self._hosts:
            self._hosts[key] = frozenset(ready[key] or lingering[key])


def _collect(obj: Json, ready: set[str], lingering: set[str]) -> None:
    try:
        typed = decode(EndpointSlice, obj)
    except DecodeError:
        return
    if typed.address_type != "IPv4" or ignored(typed.metadata):
        return
    for endpoint in typed.endpoints or ():
        conditions = endpoint.conditions
        if endpoint.node_name and conditions.ready is not False:
            ready.add(endpoint.node_name)
        elif endpoint.node_name and conditions.serving and conditions.terminating:
            lingering.add(endpoint.node_name)


def _service_of(obj: Json) -> str:
    meta = obj["metadata"]
    return f"{meta.get('namespace') or 'default'}/{(meta.get('labels') or {}).get(SERVICE_NAME_LABEL, '')}"


def _serves(obj: Json) -> bool:
    node = decode(Node, obj)
    ready = any(each.type == "Ready" and each.status == "True" for each in node.status.conditions or ())
    return ready and EXCLUDED not in (node.metadata.labels or {}) and not obj["metadata"].get("deletionTimestamp")
