"""EndpointSlices to endpoints: merged over the slices of a Service, then divided by who may use them on this node.

Rules it keeps (kube-proxy's): missing conditions mean ready and serving; an address that several slices name is one endpoint,
the better state wins; hints count only if every ready endpoint has one and this node or zone has at least one; terminating
endpoints that still serve are used only when none is ready, for each class on its own.

Order to read: merged, then with_endpoints.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from podwire_core.objects import Endpoint as SliceEndpoint
from podwire_core.objects import EndpointHints, EndpointSlice
from podwire_nodeagent.proxy.addresses import canonical, family_of, host_port
from podwire_nodeagent.proxy.ports import Endpoint, ServicePort

PortKey = tuple[str, str]  # port name, protocol in lower case

# --- merging slices --------------------------------


def merged(slices: Iterable[EndpointSlice], node: str, family: int) -> dict[PortKey, tuple[Endpoint, ...]]:
    """The endpoints by port, each sorted by name."""
    found: dict[PortKey, dict[str, Endpoint]] = {}
    wanted = f"IPv{family}"
    for each in slices:
        if each.address_type != wanted:
            continue
        for port in each.ports or ():
            if port.port is not None:
                by_name = found.setdefault((port.name or "", port.protocol.lower()), {})
                _add(by_name, each.endpoints or (), port.port, node, family)
    return {key: tuple(by_name[name] for name in sorted(by_name)) for key, by_name in found.items()}


def _add(by_name: dict[str, Endpoint], given: Iterable[SliceEndpoint], port: int, node: str, family: int) -> None:
    for each in given:
        ip = canonical(each.addresses[0]) if each.addresses else None  # the API allows more, kube-proxy uses the first
        if ip is None or family_of(ip) != family:
            continue
        name = host_port(ip, port)
        endpoint = _endpoint(each, name, ip, port, node)
        other = by_name.get(name)
        if other is None or _rank(endpoint) > _rank(other):
            by_name[name] = endpoint


def _endpoint(given: SliceEndpoint, name: str, ip: str, port: int, node: str) -> Endpoint:
    conditions, hints = given.conditions, given.hints
    ready = conditions.ready is not False
    serving = ready if conditions.serving is None else conditions.serving
    local = given.node_name is not None and given.node_name == node
    zones, nodes = _hints(hints) if hints else ((), ())
    return Endpoint(name, ip, port, ready, serving, bool(conditions.terminating), local, zones, nodes)


def _hints(hints: EndpointHints) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(z.name for z in hints.for_zones or ()), tuple(n.name for n in hints.for_nodes or ())


def _rank(endpoint: Endpoint) -> tuple[bool, bool, bool]:
    return endpoint.local, endpoint.ready, endpoint.serving


# --- dividing them --------------------------------


def with_endpoints(port: ServicePort, endpoints: tuple[Endpoint, ...], node: str, zone: str) -> ServicePort:
    """The port with its endpoint classes filled in."""
    if not endpoints:
        return port
    ready = tuple(e for e in endpoints if e.ready)
    lingering = () if len(ready) == len(endpoints) else tuple(e for e in endpoints if e.lingering and not e.ready)
    cluster: tuple[Endpoint, ...] = ()
    local: tuple[Endpoint, ...] = ()
    if port.uses_cluster:
        cluster = _near(ready, node, zone) or lingering
    if port.uses_local:
        local = tuple(e for e in ready if e.local) or tuple(e for e in lingering if e.local)
    reachable = _union(cluster, local) if local else cluster
    return msgspec.structs.replace(
        port, cluster=cluster, local=local, reachable=reachable, has_endpoints=bool(ready or lingering)
    )


def _union(cluster: tuple[Endpoint, ...], local: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    names = {e.name for e in cluster}
    extra = [e for e in local if e.name not in names]
    return tuple(sorted([*cluster, *extra], key=lambda e: e.name)) if extra else cluster


def _near(ready: tuple[Endpoint, ...], node: str, zone: str) -> tuple[Endpoint, ...]:
    """Those that hints give to this node, else to this zone, else all."""
    if not ready or not (ready[0].node_hints or ready[0].zone_hints):
        return ready  # the usual case: one without a hint switches hints off
    if all(e.node_hints for e in ready):
        here = tuple(e for e in ready if node in e.node_hints)
        if here:
            return here
    if zone and all(e.zone_hints for e in ready):
        return tuple(e for e in ready if zone in e.zone_hints) or ready
    return ready
