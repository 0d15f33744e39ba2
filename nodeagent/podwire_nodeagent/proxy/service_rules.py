"""The rules of one Service port in iptables mode, as kube-proxy writes them: its part of the shared chains, and its own chains.

Rules it keeps: a function of the port and of `Settings` alone, so that a change of one Service recompiles one Service; matches
stand in the order in which iptables-save prints them (-s, -d, -i, -p, then modules as kube-proxy names them).

The chains of a port, from the outside in (hash: names.py):

    KUBE-SERVICES, KUBE-NODEPORTS   which address and port
    KUBE-FW-    load balancer addresses with source ranges: who may come in
    KUBE-EXT-   any address but the ClusterIP: masquerade, or keep the source and use this node's endpoints
    KUBE-SVC-   choose among the cluster's endpoints         KUBE-SVL-   among this node's
    KUBE-SEP-   one endpoint: DNAT

Order to read: Settings, PortRules, compile_port.
"""

from __future__ import annotations

from msgspec import Struct

from podwire_core import netfilter as nf
from podwire_nodeagent.proxy.addresses import contains, host_network
from podwire_nodeagent.proxy.names import endpoint_chain, port_hash
from podwire_nodeagent.proxy.ports import Endpoint, ServicePort

Matches = tuple[nf.AnyMatch, ...]

MARK_MASQ = nf.Jump("KUBE-MARK-MASQ")
DROP = nf.Verdict("DROP")
ACCEPT = nf.Verdict("ACCEPT")
REJECT = {4: nf.Reject("icmp-port-unreachable"), 6: nf.Reject("icmp6-port-unreachable")}
FROM_LOCAL = nf.AddrType(src_type="LOCAL")
TO_LOCAL = nf.AddrType(dst_type="LOCAL")
PROTOCOLS = {name: nf.Protocol(name) for name in ("tcp", "udp", "sctp")}


class Settings(Struct, frozen=True):
    """What the rules of all ports depend on besides the port."""

    family: int
    if_local: nf.AnyMatch | None = None  # traffic of this node's pods; None: cannot tell
    if_not_local: nf.AnyMatch | None = None
    masquerade_all: bool = False
    node_ip: str = ""
    comments: bool = True  # on the rules of single endpoints; kube-proxy leaves them out in large clusters


class PortRules(Struct, frozen=True):
    """What one port contributes to each shared chain, and its own chains of table nat."""

    services: tuple[nf.Rule, ...] = ()
    node_ports: tuple[nf.Rule, ...] = ()
    filter_services: tuple[nf.Rule, ...] = ()
    filter_external: tuple[nf.Rule, ...] = ()
    filter_node_ports: tuple[nf.Rule, ...] = ()
    firewall: tuple[nf.Rule, ...] = ()
    chains: tuple[nf.Chain, ...] = ()


def compile_port(port: ServicePort, settings: Settings) -> PortRules:
    return _Compiler(port, settings).rules()


def _placed(given: nf.AnyMatch | None) -> tuple[Matches, Matches]:
    """An address or interface match goes to its place: (before -d, after -d)."""
    if given is None:
        return (), ()
    return ((given,), ()) if isinstance(given, nf.Source) else ((), (given,))


def _source(net: str) -> Matches:
    """Anywhere is no condition, and is printed as none."""
    return () if net.endswith("/0") else (nf.Source(net),)


class _Compiler:
    """The names and counts that the parts below share."""

    def __init__(self, port: ServicePort, settings: Settings) -> None:
        self.port, self.settings = port, settings
        self.name, self.origin = port.full_name, f"Service {port.full_name}"
        self.proto = PROTOCOLS.get(port.protocol) or nf.Protocol(port.protocol)
        digest = port_hash(self.name, port.protocol)
        self.svc, self.svl, self.ext, self.fw = (f"KUBE-{kind}-{digest}" for kind in ("SVC", "SVL", "EXT", "FW"))
        self.inside = port.has_endpoints and not (port.internal_local and not port.local)
        self.outside = port.has_endpoints and not (port.external_local and not port.local)
        self.internal_chain = self.svl if port.internal_local else self.svc
        self.guarded = port.has_endpoints and bool(port.load_balancer_ips and port.source_ranges)

    def rules(self) -> PortRules:
        port = self.port
        if not port.external:
            services = (self._cluster_ip(),)
            return PortRules(services, chains=self._chains()) if self.inside else PortRules(filter_services=services)
        inside = (self._cluster_ip(),)
        return PortRules(
            services=(inside if self.inside else ()) + self._external_addresses(),
            node_ports=self._node_port(),
            filter_services=() if self.inside else inside,
            filter_external=() if self.outside else self._refusals(),
            filter_node_ports=self._health_check(),
            firewall=self._firewall_drops() if self.guarded else (),
            chains=self._chains() if port.has_endpoints else (),
        )

    def _rule(self, matches: Matches, target: nf.AnyTarget) -> nf.Rule:
        return nf.Rule(matches, target, self.origin)

    def _to(self, address: str, comment: str) -> Matches:
        """Packets for that address and the port."""
        return (nf.Destination(host_network(address)), *self._to_port(self.port.port, comment))

    def _to_port(self, port: int, comment: str) -> Matches:
        return self.proto, nf.Comment(comment), nf.DestinationPort(self.port.protocol, port, port)

    # --- what the shared chains get

    def _cluster_ip(self) -> nf.Rule:
        port = self.port
        if self.inside:
            return self._rule(self._to(port.cluster_ip, f"{self.name} cluster IP"), nf.Jump(self.internal_chain))
        comment, target = self._refusal()
        return self._rule(self._to(port.cluster_ip, comment), target)

    def _refusal(self) -> tuple[str, nf.AnyTarget]:
        """Nothing anywhere: say so. Something, but not here: silence, so that a load balancer's health check decides."""
        if self.port.has_endpoints:
            return f"{self.name} has no local endpoints", DROP
        return f"{self.name} has no endpoints", REJECT[self.settings.family]

    def _external_addresses(self) -> tuple[nf.Rule, ...]:
        if not self.port.has_endpoints:
            return ()
        comments = f"{self.name} external IP", f"{self.name} loadbalancer IP"
        to_balancer = nf.Jump(self.fw if self.guarded else self.ext)
        return (
            *(self._rule(self._to(ip, comments[0]), nf.Jump(self.ext)) for ip in self.port.external_ips),
            *(self._rule(self._to(ip, comments[1]), to_balancer) for ip in self.port.load_balancer_ips),
        )

    def _node_port(self) -> tuple[nf.Rule, ...]:
        if not (self.port.node_port and self.port.has_endpoints):
            return ()
        return (self._rule(self._to_port(self.port.node_port, self.name), nf.Jump(self.ext)),)

    def _refusals(self) -> tuple[nf.Rule, ...]:
        comment, target = self._refusal()
        port = self.port
        rules = [self._rule(self._to(ip, comment), target) for ip in (*port.external_ips, *port.load_balancer_ips)]
        if port.node_port:
            proto, text, to_port = self._to_port(port.node_port, comment)
            rules.append(self._rule((proto, text, TO_LOCAL, to_port), target))
        return tuple(rules)

    def _health_check(self) -> tuple[nf.Rule, ...]:
        number = self.port.health_check_port
        if not number:
            return ()
        comment = nf.Comment(f"{self.name} health check node port")
        return (self._rule((PROTOCOLS["tcp"], comment, nf.DestinationPort("tcp", number, number)), ACCEPT),)

    def _firewall_drops(self) -> tuple[nf.Rule, ...]:
        """Whoever KUBE-FW- did not let in still has the load balancer's address as destination."""
        comment = f"{self.name} traffic not accepted by {self.fw}"
        return tuple(self._rule(self._to(ip, comment), DROP) for ip in self.port.load_balancer_ips)

    # --- its own chains

    def _chains(self) -> tuple[nf.Chain, ...]:
        port = self.port
        chains = []
        if port.external:
            chains.append(nf.Chain(self.ext, self._external_rules()))
        if self.guarded:
            chains.append(nf.Chain(self.fw, self._source_range_rules()))
        if port.cluster:
            chains.append(nf.Chain(self.svc, self._masquerade_rules(self.svc) + self._choice(port.cluster)))
        if port.local:
            chains.append(nf.Chain(self.svl, self._masquerade_rules(self.svl) + self._choice(port.local)))
        chains += [nf.Chain(self._endpoint_chain(e), self._endpoint_rules(e)) for e in port.reachable]
        return tuple(chains)

    def _masquerade_rules(self, chain: str) -> tuple[nf.Rule, ...]:
        """ClusterIP traffic from outside the cluster must come back through this node."""
        if not (self.inside and chain == self.internal_chain):
            return ()
        sources: tuple[Matches, Matches] = (), ()
        if not self.settings.masquerade_all:
            if self.settings.if_not_local is None:
                return ()
            sources = _placed(self.settings.if_not_local)
        address, *rest = self._to(self.port.cluster_ip, f"{self.name} cluster IP")
        return (self._rule((*sources[0], address, *sources[1], *rest), MARK_MASQ),)

    def _external_rules(self) -> tuple[nf.Rule, ...]:
        port, to = self.port, f"{self.name} external destinations"
        rules = []
        if not port.external_local:
            rules.append(self._rule((nf.Comment(f"masquerade traffic for {to}"),), MARK_MASQ))
        else:
            to_cluster = nf.Jump(self.svc)
            if self.settings.if_local is not None:  # as if it went up to the load balancer and came back
                rules.append(self._rule((self.settings.if_local, nf.Comment(f"pod traffic for {to}")), to_cluster))
            rules.append(self._rule((nf.Comment(f"masquerade LOCAL traffic for {to}"), FROM_LOCAL), MARK_MASQ))
            rules.append(self._rule((nf.Comment(f"route LOCAL traffic for {to}"), FROM_LOCAL), to_cluster))
        if self.outside:
            rules.append(self._rule((), nf.Jump(self.svl if port.external_local else self.svc)))
        return tuple(rules)

    def _source_range_rules(self) -> tuple[nf.Rule, ...]:
        """A node that may come in may also come from the load balancer's own address, which it takes where that is local."""
        port, comment = self.port, nf.Comment(f"{self.name} loadbalancer IP")
        allowed = list(port.source_ranges)
        node_ip = self.settings.node_ip
        if node_ip and any(contains(net, node_ip) for net in port.source_ranges):
            allowed += [host_network(ip) for ip in port.load_balancer_ips]
        rules = [self._rule((*_source(net), comment), nf.Jump(self.ext)) for net in allowed]
        last = nf.Comment(f"other traffic to {self.name} will be dropped by KUBE-PROXY-FIREWALL")
        return (*rules, self._rule((last,), nf.NoTarget()))

    def _endpoint_chain(self, endpoint: Endpoint) -> str:
        return endpoint_chain(self.name, self.port.protocol, endpoint.name)

    def _endpoint_comment(self, text: str) -> Matches:
        return (nf.Comment(text),) if self.settings.comments else ()

    def _choice(self, endpoints: tuple[Endpoint, ...]) -> tuple[nf.Rule, ...]:
        """Clients that were here before first, then each endpoint with an equal chance."""
        rules, chosen, left = [], [], len(endpoints)
        for endpoint in endpoints:
            chain, comment = self._endpoint_chain(endpoint), self._endpoint_comment(f"{self.name} -> {endpoint.name}")
            target = nf.Jump(chain)
            if self.port.affinity_seconds:
                recent = nf.Recent(chain, rcheck=True, seconds=self.port.affinity_seconds, reap=True)
                rules.append(self._rule((*comment, recent), target))
            if left > 1:
                comment = (*comment, nf.Statistic(round(1 / left, 10)))
            chosen.append(self._rule(comment, target))
            left -= 1
        return (*rules, *chosen)

    def _endpoint_rules(self, endpoint: Endpoint) -> tuple[nf.Rule, ...]:
        comment = self._endpoint_comment(self.name)
        remember = (nf.Recent(self._endpoint_chain(endpoint), set=True),) if self.port.affinity_seconds else ()
        return (
            self._rule((nf.Source(host_network(endpoint.ip)), *comment), MARK_MASQ),  # a pod that reaches itself
            self._rule((self.proto, *comment, *remember), nf.Dnat(endpoint.ip, endpoint.port)),
        )
