"""What a Service port is to a node: the value that every proxy mode compiles from, and how a Service object becomes it.

Rules it keeps: one address family at a time (4 or 6), everything of the other family is left out; addresses are canonical; what
kube-proxy skips (headless, ExternalName, no ClusterIP of this family, another proxy's Services) yields no ports. Nothing here
knows of chains, maps or virtual servers.

Order to read: Endpoint, ServicePort, ports_of.
"""

from __future__ import annotations

from msgspec import Struct

from podwire_core.objects import LoadBalancerIngress, ObjectMeta, Service, ServiceSpec
from podwire_core.objects import ServicePort as PortSpec
from podwire_nodeagent.proxy.addresses import canonical, family_of, host_port, network

PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"


class Endpoint(Struct, frozen=True):
    """A backend of one Service port. `name` is "ip:port", what it is known by. `local`: on this node."""

    name: str
    ip: str
    port: int
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    local: bool = False
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()

    @property
    def lingering(self) -> bool:
        """Still answers while it terminates: used when nothing is ready."""
        return self.serving and self.terminating


class ServicePort(Struct, frozen=True):
    """One port of one Service as a node sees it.

    Endpoint classes, each sorted by name: `cluster` for traffic policy Cluster, `local` for Local, `reachable` their union;
    `has_endpoints`: whether there is a usable one anywhere in the cluster (then a missing local one is a drop, not a reject).
    """

    service: str  # "ns/name"
    name: str  # the port's, may be empty
    protocol: str  # tcp, udp, sctp
    port: int
    cluster_ip: str
    node_port: int = 0
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()  # those that are ours to serve: ipMode VIP
    source_ranges: tuple[str, ...] = ()  # loadBalancerSourceRanges
    affinity_seconds: int = 0  # sessionAffinity ClientIP; 0: None
    internal_local: bool = False  # internalTrafficPolicy: Local
    external_local: bool = False  # externalTrafficPolicy: Local, of a Service that has an outside
    health_check_port: int = 0
    cluster: tuple[Endpoint, ...] = ()
    local: tuple[Endpoint, ...] = ()
    reachable: tuple[Endpoint, ...] = ()
    has_endpoints: bool = False

    @property
    def full_name(self) -> str:
        """ "ns/name:port", kube-proxy's name of it."""
        return f"{self.service}:{self.name}" if self.name else self.service

    @property
    def external(self) -> bool:
        """Whether it can be reached by other addresses than the ClusterIP."""
        return bool(self.node_port or self.external_ips or self.load_balancer_ips)

    @property
    def uses_cluster(self) -> bool:
        """Policy Local needs the cluster's endpoints too if there is an outside, for pods and the node itself."""
        return not self.internal_local or self.external

    @property
    def uses_local(self) -> bool:
        return self.internal_local or (self.external_local and self.external)


# --- from a Service --------------------------------


def ignored(meta: ObjectMeta) -> bool:
    """Services and slices that another proxy serves, or nobody."""
    labels = meta.labels or {}
    return PROXY_NAME_LABEL in labels or HEADLESS_LABEL in labels


def cluster_ip_of(spec: ServiceSpec, family: int) -> str:
    """The ClusterIP of that family, "" if there is none."""
    for given in spec.cluster_ips or [spec.cluster_ip]:
        address = canonical(given)  # "None" is none
        if address is not None and family_of(address) == family:
            return address
    return ""


def ports_of(service: Service, family: int) -> tuple[ServicePort, ...]:
    """The ports a node serves of it, yet without endpoints; in the order of the Service."""
    spec, meta = service.spec, service.metadata
    cluster_ip = "" if spec.type == "ExternalName" or ignored(meta) else cluster_ip_of(spec, family)
    if not cluster_ip or not spec.ports:
        return ()
    common = {
        "external_ips": _addresses(spec.external_ips, family),
        "load_balancer_ips": _load_balancer_ips(service.status.load_balancer.ingress, family),
        "source_ranges": _networks(spec.load_balancer_source_ranges, family),
        "affinity_seconds": _affinity(spec),
        "internal_local": spec.internal_traffic_policy == "Local",
        "external_local": spec.external_traffic_policy == "Local" and _has_outside(spec),
        "health_check_port": _health_check_port(spec),
    }
    name = f"{meta.namespace or 'default'}/{meta.name}"

    def port(given: PortSpec) -> ServicePort:
        protocol = given.protocol.lower()
        return ServicePort(name, given.name, protocol, given.port, cluster_ip, given.node_port, **common)  # type: ignore[arg-type]

    return tuple(port(given) for given in spec.ports)


def _has_outside(spec: ServiceSpec) -> bool:
    return spec.type in ("LoadBalancer", "NodePort") or bool(spec.external_ips)


def _health_check_port(spec: ServiceSpec) -> int:
    wanted = spec.type == "LoadBalancer" and spec.external_traffic_policy == "Local"
    return spec.health_check_node_port if wanted else 0


def _affinity(spec: ServiceSpec) -> int:
    if spec.session_affinity != "ClientIP":
        return 0
    config = spec.session_affinity_config
    return config.client_ip.timeout_seconds if config and config.client_ip else 10800


def _addresses(given: list[str] | None, family: int) -> tuple[str, ...]:
    if not given:
        return ()
    found = (canonical(text) for text in given)
    return tuple(dict.fromkeys(a for a in found if a is not None and family_of(a) == family))


def _load_balancer_ips(ingress: list[LoadBalancerIngress] | None, family: int) -> tuple[str, ...]:
    """An address in mode Proxy belongs to a load balancer that terminates connections: packets to it must reach it."""
    return _addresses([entry.ip for entry in ingress or () if entry.ip and entry.ip_mode != "Proxy"], family)


def _networks(given: list[str] | None, family: int) -> tuple[str, ...]:
    if not given:
        return ()
    found = (network(text) for text in given)
    return tuple(dict.fromkeys(n for n in found if n is not None and family_of(n) == family))


def make_endpoint(ip: str, port: int) -> Endpoint:
    """A ready endpoint elsewhere: the usual one, for tests and generators."""
    return Endpoint(host_port(ip, port), ip, port)
