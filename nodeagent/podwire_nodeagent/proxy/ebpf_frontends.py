"""One Service port as the frontends that an eBPF load balancer looks up: an address, a port, and who may be chosen behind it.

Rules it keeps (Cilium's, with kube-proxy's choice of endpoints): an external address whose traffic policy is Local has two
scopes, outside (this node's endpoints) and inside (all); the flag of a Local policy is set only while the Service has a usable
endpoint somewhere, so that a program tells "not here" (drop) from "nowhere" (reject).
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from msgspec import Struct

from podwire_core import ebpf
from podwire_nodeagent.proxy.ports import Endpoint, ServicePort


class Frontend(Struct, frozen=True):
    """`inside` None: one scope, `backends` serve everybody. `flags`, `flags2`: of struct lb4_service."""

    address: str
    port: int
    protocol: int
    origin: str  # "ns/name:port", of the Service
    backends: tuple[Endpoint, ...]
    inside: tuple[Endpoint, ...] | None = None
    flags: int = 0
    flags2: int = 0
    affinity_seconds: int = 0
    source_ranges: tuple[str, ...] = ()

    @property
    def key(self) -> bytes:
        return ebpf.pack_service_key(ip_address(self.address).packed, self.port, self.protocol)


def frontends(port: ServicePort, node_addresses: tuple[str, ...]) -> Iterator[Frontend]:
    """All of a port, in kube-proxy's order: what comes first has the address. `node_addresses` serve NodePorts."""
    local_scope = ebpf.INT_LOCAL_SCOPE if port.internal_local and port.has_endpoints else 0
    backends = port.local if port.internal_local else port.cluster
    yield _frontend(port, port.cluster_ip, port.port, backends, None, 0, local_scope)
    for address in port.external_ips:
        yield _external(port, address, port.port, ebpf.EXTERNAL_IP)
    for address in port.load_balancer_ips:
        yield _external(port, address, port.port, ebpf.LOADBALANCER, port.source_ranges)
    if port.node_port:
        for address in node_addresses:
            yield _external(port, address, port.node_port, ebpf.NODEPORT)


def _external(port: ServicePort, address: str, number: int, kind: int, ranges: tuple[str, ...] = ()) -> Frontend:
    flags = kind | ebpf.ROUTABLE | (ebpf.SOURCE_RANGE if ranges else 0)
    if not port.external_local:
        return _frontend(port, address, number, port.cluster, None, flags, 0, ranges)
    flags |= ebpf.EXT_LOCAL_SCOPE if port.has_endpoints else 0
    return _frontend(port, address, number, port.local, port.cluster, flags, ebpf.TWO_SCOPES, ranges)


def _frontend(
    port: ServicePort,
    address: str,
    number: int,
    backends: tuple[Endpoint, ...],
    inside: tuple[Endpoint, ...] | None,
    flags: int,
    flags2: int,
    ranges: tuple[str, ...] = (),
) -> Frontend:
    if port.affinity_seconds:
        flags |= ebpf.AFFINITY
    return Frontend(
        address,
        number,
        ebpf.PROTOCOLS[port.protocol],
        port.full_name,
        backends,
        inside,
        flags,
        flags2,
        port.affinity_seconds,
        ranges,
    )
