"""kube-proxy's IPVS mode: a model compiled to virtual services, ipsets, addresses of kube-ipvs0 and a few iptables rules.

Rules it keeps (kube-proxy's):

- Every ClusterIP, external and load balancer address is a host address of the dummy link kube-ipvs0 (unless the node has it
  anyway), so that packets for it reach ip_vs; NodePorts are virtual services on each of the node's addresses, never on loopback.
- Policy Local without an endpoint here: external addresses and NodePorts use the cluster's (the reply of a remote pod will not
  reach an outside client, as upstream); the ClusterIP has no real server then.
- All real servers have weight 1. Those of TCP that go are quiescent until their last connection has gone.
- What several ports contribute is counted, so that a difference costs what changed. Of two ports that claim one virtual service,
  the first by name has it.

Order to read: PortState and `compile_port` (one port), Proxier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from msgspec import Struct

from podwire_core import ipvs
from podwire_core import netfilter as nf
from podwire_core.collector import paused
from podwire_core.ipset import IpSet
from podwire_core.netlink import (
    AddrsUpdate,
    AnyOp,
    ChainsUpdate,
    IpsetSet,
    IpsetUpdate,
    IpvsDel,
    IpvsReplace,
    IpvsSet,
    LinkAdd,
    SysctlSet,
    TablesReplace,
)
from podwire_core.objects import Json
from podwire_nodeagent.proxy import ipvs_sets as sets
from podwire_nodeagent.proxy.addresses import contains
from podwire_nodeagent.proxy.compose import compose
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.conntrack import stale_entries
from podwire_nodeagent.proxy.iptables import settings_of
from podwire_nodeagent.proxy.model import LOOPBACK, Model, NodeFacts
from podwire_nodeagent.proxy.ports import Endpoint, ServicePort

LINK = "kube-ipvs0"
TABLES = ("nat", "filter", "mangle")
SYSCTLS = (
    SysctlSet("net.ipv4.vs.conntrack", "1"),
    SysctlSet("net.ipv4.vs.conn_reuse_mode", "1"),
    SysctlSet("net.ipv4.vs.expire_nodest_conn", "1"),
    SysctlSet("net.ipv4.vs.expire_quiescent_template", "1"),
)
Element = tuple[str, str]  # set, element
K = TypeVar("K")

# --- one port --------------------------------


class PortState(Struct, frozen=True):
    """What one port contributes."""

    services: tuple[ipvs.VirtualService, ...] = ()
    elements: tuple[Element, ...] = ()
    addresses: tuple[str, ...] = ()  # for kube-ipvs0


class Target(Struct, frozen=True):
    """What the compilation of every port depends on besides the port. `own`: the node's addresses; `node_ports`: those of
    them that serve NodePorts."""

    config: ProxyConfiguration
    own: frozenset[str]
    node_ports: tuple[str, ...]
    node_ip: str


def compile_port(port: ServicePort, target: Target) -> PortState:
    inside = port.local if port.internal_local else port.cluster
    outside = (port.local or port.cluster) if port.external_local else port.cluster
    addresses = [port.cluster_ip]
    found = [_service(port, target, port.cluster_ip, port.port, inside)]
    for address in (*port.external_ips, *port.load_balancer_ips):
        found.append(_service(port, target, address, port.port, outside))
        if address not in target.own:
            addresses.append(address)
    if port.node_port:
        found += [_service(port, target, address, port.node_port, outside) for address in target.node_ports]
    return PortState(tuple(found), tuple(dict.fromkeys(_elements(port, target))), tuple(dict.fromkeys(addresses)))


def _service(port: ServicePort, target: Target, address: str, number: int, endpoints: Iterable[Endpoint]) -> ipvs.VirtualService:
    scheduler = target.config.ipvs_scheduler
    return ipvs.VirtualService(
        protocol=port.protocol,
        address=address,
        port=number,
        scheduler=scheduler,
        persistent=port.affinity_seconds,
        flags=("mh-port",) if scheduler == "mh" else (),
        servers=tuple(ipvs.RealServer(e.ip, e.port) for e in endpoints),
        origin=f"Service {port.full_name}",
    )


def _elements(port: ServicePort, target: Target) -> Iterator[Element]:
    for endpoint in port.reachable:
        if endpoint.local:
            yield sets.LOOP_BACK, f"{endpoint.ip},{port.protocol}:{endpoint.port},{endpoint.ip}"
    yield sets.CLUSTER_IP, f"{port.cluster_ip},{port.protocol}:{port.port}"
    for address in port.external_ips:
        name = sets.EXTERNAL_IP_LOCAL if port.external_local else sets.EXTERNAL_IP
        yield name, f"{address},{port.protocol}:{port.port}"
    for address in port.load_balancer_ips:
        yield from _load_balancer(port, target, f"{address},{port.protocol}:{port.port}", address)
    if port.node_port and target.node_ports:
        numbers = [str(port.node_port)]
        if port.protocol in sets.HASH_NODE_PORTS:
            numbers = [f"{address},{port.protocol}:{port.node_port}" for address in target.node_ports]
        for name in (sets.NODE_PORT, *((sets.NODE_PORT_LOCAL,) if port.external_local else ())):
            yield from ((name[port.protocol], number) for number in numbers)
    if port.health_check_port:
        yield sets.HEALTH_CHECK, str(port.health_check_port)


def _load_balancer(port: ServicePort, target: Target, element: str, address: str) -> Iterator[Element]:
    yield sets.LOAD_BALANCER, element
    if port.external_local:
        yield sets.LOAD_BALANCER_LOCAL, element
    if port.source_ranges:
        yield sets.LOAD_BALANCER_FW, element
        yield from ((sets.LOAD_BALANCER_SOURCE_CIDR, f"{element},{net}") for net in _halved(port.source_ranges))
        if target.node_ip and any(contains(net, target.node_ip) for net in port.source_ranges):
            yield sets.LOAD_BALANCER_SOURCE_IP, f"{element},{address}"


def _halved(nets: Iterable[str]) -> Iterator[str]:
    """A set of networks has no /0; two halves say the same."""
    for net in nets:
        if net.endswith("/0"):
            yield from ("::/1", "8000::/1") if ":" in net else ("0.0.0.0/1", "128.0.0.0/1")
        else:
            yield net


# --- the proxier --------------------------------


class Proxier:
    """One node's kube-proxy in IPVS mode, for one family. `others`: partial tables of other daemons (compose.py)."""

    def __init__(self, config: ProxyConfiguration, node: NodeFacts, family: int = 4, others: Sequence[nf.Table] = ()) -> None:
        self.config, self.family, self.others = config, family, tuple(others)
        self.model = Model(node, family)
        self._states: dict[str, tuple[PortState, ...]] = {}
        self._claims: dict[ipvs.Key, dict[str, ipvs.VirtualService]] = {}  # by who claims it
        self._elements: Counter[Element] = Counter()
        self._sizes: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()
        self._target = self._current_target()
        self._stated = False

    def changes(
        self, services: Mapping[str, Json | None], slices: Mapping[str, Json | None], node: NodeFacts | None = None
    ) -> list[AnyOp]:
        """See modes.Proxy."""
        if self._stated:
            return self._changes(services, slices, node)
        with paused():
            return self._changes(services, slices, node)

    def _changes(
        self, services: Mapping[str, Json | None], slices: Mapping[str, Json | None], node: NodeFacts | None
    ) -> list[AnyOp]:
        for key, obj in services.items():
            self.model.set_service(key, obj)
        for key, obj in slices.items():
            self.model.set_slice(key, obj)
        if node is not None:
            self.model.set_node(node)
        changed = self.model.refresh()
        target = self._current_target()
        names = [change.service for change in changed] if target == self._target else sorted(self.model.ports | self._states)
        rules = self._chains()
        self._target = target
        difference = self._recompile(names)
        if not self._stated:
            return self.restate()
        return [*difference, *self._rule_updates(rules), *stale_entries(changed)]

    def restate(self) -> list[AnyOp]:
        """Everything again; a live connection keeps its real server."""
        self._stated = True
        by_set: dict[str, list[str]] = {name: [] for name in sets.SETS}
        for name, element in self._elements:
            by_set[name].append(element)
        by_set[sets.IPVS_IPS] = list(self._addresses)
        return [
            *SYSCTLS,
            LinkAdd(LINK, "dummy", mtu=1500, up=False, replace=True),  # its addresses count all the same
            AddrsUpdate(LINK, tuple(sorted(self._addresses)), replace=True),
            *(IpsetSet(self._set(name, elements)) for name, elements in by_set.items()),
            IpvsReplace(tuple(self._effective(key) for key in sorted(self._claims)), graceful=True),
            TablesReplace(self.tables()),
        ]

    def tables(self) -> tuple[nf.Table, ...]:
        own = self._chains()
        parts = []
        for name in TABLES:
            first = sets.jumps(name)
            builtin = [nf.Chain(chain, first.get(chain, ()), "ACCEPT") for chain in nf.BUILTIN_CHAINS[name]]
            parts.append(nf.Table(name, self.family, (*builtin, *own[name], nf.Chain("KUBE-PROXY-CANARY"))))
        return compose((*parts, *self.others))

    # --- parts

    def _current_target(self) -> Target:
        node, config = self.model.node, self.config
        own = frozenset(node.addresses)
        given = node.node_port_addresses(config.node_port_addresses, self.family)
        serving = node.addresses if given is None else given
        here = tuple(a for a in serving if a != LOOPBACK[self.family] and (":" in a) == (self.family == 6))
        return Target(config, own, here, node.primary(self.family))

    def _chains(self) -> dict[str, tuple[nf.Chain, ...]]:
        settings = settings_of(self.config, self.model.node, self.family)
        filled = frozenset(name for name, size in self._sizes.items() if size)
        return {name: sets.chains(name, self.config, settings, filled) for name in TABLES}

    def _set(self, name: str, elements: Iterable[str]) -> IpSet:
        return IpSet(sets.set_name(name, self.family), sets.SETS[name].type, self.family, tuple(elements))

    def _effective(self, key: ipvs.Key) -> ipvs.VirtualService:
        claims = self._claims[key]
        return claims[min(claims)] if len(claims) > 1 else next(iter(claims.values()))

    # --- differences

    def _recompile(self, names: Iterable[str]) -> list[AnyOp]:
        """Compile these Services again; the operations that follow."""
        keys: dict[ipvs.Key, ipvs.VirtualService | None] = {}
        elements: dict[Element, bool] = {}
        addresses: dict[str, bool] = {}
        for name in names:
            old = self._states.pop(name, ())
            new = tuple(compile_port(port, self._target) for port in self.model.ports.get(name, ()))
            if new:
                self._states[name] = new
            if new == old:
                continue
            self._count(old, -1, elements, addresses)
            self._count(new, 1, elements, addresses)
            self._claim(name, old, new, keys)
        return [*self._set_updates(elements, addresses), *self._service_updates(keys)]

    def _count(self, states: Iterable[PortState], by: int, elements: dict[Element, bool], addresses: dict[str, bool]) -> None:
        """`elements` and `addresses`: what is touched, and whether it was there before."""
        for state in states:
            for element in state.elements:
                elements.setdefault(element, self._elements[element] > 0)
                _add(self._elements, element, by)
            for address in state.addresses:
                addresses.setdefault(address, self._addresses[address] > 0)
                _add(self._addresses, address, by)

    def _claim(
        self,
        name: str,
        old: Iterable[PortState],
        new: Iterable[PortState],
        keys: dict[ipvs.Key, ipvs.VirtualService | None],
    ) -> None:
        for service in (service for state in old for service in state.services):
            keys.setdefault(service.key, self._effective(service.key))
            self._claims[service.key].pop(name, None)
            if not self._claims[service.key]:
                del self._claims[service.key]
        for service in (service for state in new for service in state.services):
            keys.setdefault(service.key, self._effective(service.key) if service.key in self._claims else None)
            self._claims.setdefault(service.key, {}).setdefault(name, service)

    def _set_updates(self, elements: Mapping[Element, bool], addresses: Mapping[str, bool]) -> Iterator[AnyOp]:
        by_set: dict[str, tuple[list[str], list[str]]] = {}
        for element, before in elements.items():
            after = self._elements[element] > 0
            if before != after:
                by_set.setdefault(element[0], ([], []))[before].append(element[1])
                self._sizes[element[0]] += 1 if after else -1
        come = tuple(address for address, before in addresses.items() if not before and self._addresses[address])
        gone = tuple(address for address, before in addresses.items() if before and not self._addresses[address])
        if come or gone:
            by_set[sets.IPVS_IPS] = list(come), list(gone)
            yield AddrsUpdate(LINK, come, gone)
        for name, (add, delete) in by_set.items():
            yield IpsetUpdate(sets.set_name(name, self.family), tuple(add), tuple(delete))

    def _service_updates(self, keys: Mapping[ipvs.Key, ipvs.VirtualService | None]) -> Iterator[AnyOp]:
        for key, before in keys.items():
            if key not in self._claims:
                yield IpvsDel(*key)
            elif (after := self._effective(key)) != before:
                yield IpvsSet(after, graceful=True)

    def _rule_updates(self, before: Mapping[str, tuple[nf.Chain, ...]]) -> Iterator[AnyOp]:
        """A set got its first element or lost its last."""
        for name, chains in self._chains().items():
            different = tuple(new for old, new in zip(before[name], chains, strict=True) if new != old)
            if different:
                yield ChainsUpdate(name, self.family, different)


def _add(counter: Counter[K], key: K, by: int) -> None:
    """Without keys that count nothing."""
    left = counter[key] + by
    if left:
        counter[key] = left
    else:
        del counter[key]
