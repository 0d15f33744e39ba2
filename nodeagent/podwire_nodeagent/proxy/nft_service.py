"""One Service port in nftables mode, as kube-proxy writes it: its elements of the shared maps, its own chains and sets.

Rules it keeps: a function of the port and of `Settings` alone, so that a change of one Service recompiles one Service.

The chains of a port, from the outside in:

    @service-ips, @service-nodeports    which address and port
    @firewall-ips → firewall-           load balancer addresses with source ranges: who may not come in
    external-    any address but the ClusterIP: masquerade, or keep the source and use this node's endpoints
    service-     choose among the cluster's endpoints            local-    among this node's
    endpoint-    one endpoint: DNAT                              affinity- (a set) who was here before

Order to read: base_name, Settings, PortRules, compile_port.
"""

from __future__ import annotations

from base64 import b32encode
from hashlib import sha256

from msgspec import Struct

from podwire_core import nftables as nft
from podwire_nodeagent.proxy import nft_base as base
from podwire_nodeagent.proxy.addresses import contains
from podwire_nodeagent.proxy.nft_base import goto, jump
from podwire_nodeagent.proxy.ports import Endpoint, ServicePort

LONGEST = 240  # of a name behind its prefix
AFFINITY_SIZE = 65535  # what the kernel gives a set that packets update
MASQUERADE = jump(base.MARK_FOR_MASQUERADE)
FROM_LOCAL = nft.Fib("saddr")
DROP = nft.Verdict("drop")
Elements = dict[str, dict[tuple[str, ...], nft.Element]]  # by set, by key


def base_name(port: ServicePort, endpoint: Endpoint | None = None) -> str:
    """ "ULMVA6XW-ns1/svc1/tcp/p80", and for an endpoint "…__10.180.0.1/80": a hash of it, then itself."""
    name = f"{port.service}/{port.protocol}/{port.name}"
    if endpoint is not None:
        name += f"__{endpoint.ip.replace(':', '.')}/{endpoint.port}"
    name = f"{b32encode(sha256(name.encode()).digest()[:5]).decode()}-{name}"  # 5 bytes are 8 characters
    return name if len(name) <= LONGEST else name[: LONGEST - 3] + "..."


class Settings(Struct, frozen=True):
    """What the rules of all ports depend on besides the port."""

    family: int
    if_local: nft.AnyStatement | None = None  # traffic of this node's pods; None: cannot tell
    if_not_local: nft.AnyStatement | None = None
    masquerade_all: bool = False
    node_ip: str = ""


class PortRules(Struct, frozen=True):
    elements: tuple[tuple[str, nft.Element], ...] = ()  # with the set's name
    chains: tuple[nft.Chain, ...] = ()
    sets: tuple[nft.Set, ...] = ()


def compile_port(port: ServicePort, settings: Settings) -> PortRules:
    compiler = _Compiler(port, settings)
    return PortRules(tuple(compiler.elements()), tuple(compiler.chains()), tuple(compiler.sets()))


class _Compiler:
    """The names and counts that the parts below share."""

    def __init__(self, port: ServicePort, settings: Settings) -> None:
        self.port, self.settings = port, settings
        self.origin = f"Service {port.full_name}"
        name = base_name(port)
        self.service, self.local = f"service-{name}", f"local-{name}"
        self.external, self.firewall = f"external-{name}", f"firewall-{name}"
        self.endpoints = {each.name: f"endpoint-{base_name(port, each)}" for each in port.reachable}
        self.inside = port.has_endpoints and not (port.internal_local and not port.local)
        self.outside = port.has_endpoints and not (port.external_local and not port.local)
        self.guarded = bool(port.load_balancer_ips and port.source_ranges)

    def _rule(self, *statements: nft.AnyStatement, comment: str = "") -> nft.Rule:
        return nft.Rule(statements, comment, self.origin)

    # --- elements of the shared sets and maps

    def elements(self) -> list[tuple[str, nft.Element]]:
        port = self.port
        outer = (*port.external_ips, *port.load_balancer_ips)
        found = [(base.CLUSTER_IPS, nft.Element((port.cluster_ip,)))]
        if self.inside:
            found.append(self._to(base.SERVICE_IPS, port.cluster_ip, goto(self.local if port.internal_local else self.service)))
        else:
            found.append(self._to(base.NO_ENDPOINT_SERVICES, port.cluster_ip, self._refusal()))
        if port.has_endpoints:
            found += [self._to(base.SERVICE_IPS, ip, goto(self.external)) for ip in outer]
        if not self.outside:
            found += [self._to(base.NO_ENDPOINT_SERVICES, ip, self._refusal()) for ip in outer]
        if self.guarded:
            found += [self._to(base.FIREWALL_IPS, ip, goto(self.firewall)) for ip in port.load_balancer_ips]
        return found + (self._node_port() if port.node_port else [])

    def _to(self, where: str, address: str, verdict: nft.Verdict) -> tuple[str, nft.Element]:
        key = (address, self.port.protocol, str(self.port.port))
        return where, nft.Element(key, verdict, self._comment(where), self.origin)

    def _node_port(self) -> list[tuple[str, nft.Element]]:
        key, found = (self.port.protocol, str(self.port.node_port)), []
        if self.port.has_endpoints:
            found.append((base.SERVICE_NODE_PORTS, nft.Element(key, goto(self.external), origin=self.origin)))
        if not self.outside:
            where = base.NO_ENDPOINT_NODE_PORTS
            found.append((where, nft.Element(key, self._refusal(), self._comment(where), self.origin)))
        return found

    def _comment(self, where: str) -> str:
        return self.port.full_name if where in (base.NO_ENDPOINT_SERVICES, base.NO_ENDPOINT_NODE_PORTS) else ""

    def _refusal(self) -> nft.Verdict:
        """Nothing anywhere: say so. Something, but not here: silence, so that a load balancer's health check decides."""
        return DROP if self.port.has_endpoints else goto(base.REJECT_CHAIN)

    # --- its own chains

    def chains(self) -> list[nft.Chain]:
        port, found = self.port, []
        if port.external and port.has_endpoints:
            found.append(nft.Chain(self.external, self._external_rules()))
        if self.guarded:
            found.append(nft.Chain(self.firewall, (self._firewall_rule(),)))
        if port.cluster:
            found.append(nft.Chain(self.service, (*self._masquerade_rules(False), *self._choice(port.cluster))))
        if port.local:
            found.append(nft.Chain(self.local, (*self._masquerade_rules(True), *self._choice(port.local))))
        return found + [nft.Chain(self.endpoints[each.name], self._endpoint_rules(each)) for each in port.reachable]

    def _masquerade_rules(self, local: bool) -> tuple[nft.Rule, ...]:
        """ClusterIP traffic from outside the cluster must come back through this node."""
        if not self.inside or local != self.port.internal_local:
            return ()
        to_cluster_ip = nft.Address("daddr", (self.port.cluster_ip,))
        if self.settings.masquerade_all:
            return (self._rule(to_cluster_ip, MASQUERADE),)
        if self.settings.if_not_local is None:
            return ()
        return (self._rule(to_cluster_ip, self.settings.if_not_local, MASQUERADE),)

    def _external_rules(self) -> tuple[nft.Rule, ...]:
        rules = []
        if not self.port.external_local:
            rules.append(self._rule(MASQUERADE))
        else:
            if self.settings.if_local is not None:  # as if it went up to the load balancer and came back
                rules.append(self._rule(self.settings.if_local, goto(self.service), comment="short-circuit pod traffic"))
            rules.append(self._rule(FROM_LOCAL, MASQUERADE, comment="masquerade local traffic"))
            rules.append(self._rule(FROM_LOCAL, goto(self.service), comment="short-circuit local traffic"))
        if self.outside:
            rules.append(self._rule(goto(self.local if self.port.external_local else self.service)))
        return tuple(rules)

    def _firewall_rule(self) -> nft.Rule:
        """A node that may come in may also come from the load balancer's own address, which it takes where that is local."""
        port, node_ip = self.port, self.settings.node_ip
        allowed = port.source_ranges
        if node_ip and any(contains(net, node_ip) for net in port.source_ranges):
            allowed = (*allowed, *port.load_balancer_ips)
        return self._rule(nft.Address("saddr", allowed, invert=True), DROP)

    def _choice(self, endpoints: tuple[Endpoint, ...]) -> tuple[nft.Rule, ...]:
        """Clients that were here before first, then each endpoint with an equal chance."""
        chains = [self.endpoints[each.name] for each in endpoints]
        rules = []
        if self.port.affinity_seconds:
            rules = [self._rule(nft.InSet(("saddr",), _affinity(chain)), goto(chain)) for chain in chains]
        return (*rules, self._rule(nft.Random(tuple(map(goto, chains)))))

    def _endpoint_rules(self, endpoint: Endpoint) -> tuple[nft.Rule, ...]:
        itself = self._rule(nft.Address("saddr", (endpoint.ip,)), MASQUERADE)  # a pod that reaches itself
        remember = [self._rule(nft.Update(_affinity(self.endpoints[endpoint.name])))] if self.port.affinity_seconds else []
        return itself, *remember, self._rule(nft.L4Proto(self.port.protocol), nft.Dnat(endpoint.ip, endpoint.port))

    def sets(self) -> list[nft.Set]:
        seconds = self.port.affinity_seconds
        if not seconds:
            return []
        address = (f"ipv{self.settings.family}_addr",)
        names = (_affinity(self.endpoints[each.name]) for each in self.port.reachable)
        return [nft.Set(name, address, dynamic=True, timeout=seconds, size=AFFINITY_SIZE) for name in names]


def _affinity(endpoint_chain: str) -> str:
    return endpoint_chain.replace("endpoint-", "affinity-", 1)
