"""kube-proxy's iptables mode: a model compiled to the tables nat, filter and mangle, whole or by difference.

Rules it keeps:

- Chain names, their order in the built-in chains, comments, marks and probabilities are kube-proxy's (1.30 and later).
- The same model gives the same tables, whether compiled at once or reached by changes: Services stand in order of their names.
- A difference touches the chains of changed Services and, in the shared chains to which one of them contributes, its place
  (shared_chain.py); nothing else. A datapath that holds another chain there refuses it, and is to be restated.
- Built-in chains are written by `TablesReplace` alone, composed with what other daemons put there (`others`, compose.py).

Order to read: the fixed part (JUMPS, fixed_chains), Proxier, compile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from podwire_core import netfilter as nf
from podwire_core.collector import paused
from podwire_core.netlink import AnyOp, ChainSplice, ChainsUpdate, SysctlSet, TablesReplace
from podwire_core.objects import Json
from podwire_nodeagent.proxy.addresses import host_network
from podwire_nodeagent.proxy.compose import compose
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.conntrack import stale_entries
from podwire_nodeagent.proxy.model import LOOPBACK, Model, NodeFacts
from podwire_nodeagent.proxy.ports import ServicePort
from podwire_nodeagent.proxy.service_rules import ACCEPT, DROP, TO_LOCAL, PortRules, Settings, compile_port
from podwire_nodeagent.proxy.shared_chain import LAST, SharedChain

Ports = tuple[PortRules, ...]  # of one Service

LARGE_CLUSTER_ENDPOINTS = 1000
CANARY = nf.Chain("KUBE-PROXY-CANARY")  # kube-proxy watches it to learn that somebody flushed a table

# --- the fixed part --------------------------------

NEW = nf.ConntrackState(("NEW",))
_PORTALS, _FIREWALL = "kubernetes service portals", "kubernetes load balancer firewall"
_VISIBLE, _HEALTH = "kubernetes externally-visible service portals", "kubernetes health check service ports"


def _jump(chain: str, comment: str = "", *first: nf.AnyMatch) -> nf.Rule:
    return nf.Rule((*first, *((nf.Comment(comment),) if comment else ())), nf.Jump(chain))


JUMPS: dict[str, dict[str, tuple[nf.Rule, ...]]] = {
    "nat": {
        "PREROUTING": (_jump("KUBE-SERVICES", _PORTALS),),
        "OUTPUT": (_jump("KUBE-SERVICES", _PORTALS),),
        "POSTROUTING": (_jump("KUBE-POSTROUTING", "kubernetes postrouting rules"),),
    },
    "filter": {
        "INPUT": (
            _jump("KUBE-PROXY-FIREWALL", _FIREWALL, NEW),
            _jump("KUBE-NODEPORTS", _HEALTH),
            _jump("KUBE-EXTERNAL-SERVICES", _VISIBLE, NEW),
            _jump("KUBE-FIREWALL"),
        ),
        "FORWARD": (
            _jump("KUBE-PROXY-FIREWALL", _FIREWALL, NEW),
            _jump("KUBE-FORWARD", "kubernetes forwarding rules"),
            _jump("KUBE-SERVICES", _PORTALS, NEW),
            _jump("KUBE-EXTERNAL-SERVICES", _VISIBLE, NEW),
        ),
        "OUTPUT": (
            _jump("KUBE-PROXY-FIREWALL", _FIREWALL, NEW),
            _jump("KUBE-SERVICES", _PORTALS, NEW),
            _jump("KUBE-FIREWALL"),
        ),
    },
    "mangle": {},
}


def fixed_chains(table: str, config: ProxyConfiguration, family: int) -> tuple[nf.Chain, ...]:
    """Chains that no Service changes."""
    mark = config.masquerade_mark
    if table == "nat":
        return (
            nf.Chain("KUBE-MARK-MASQ", (nf.Rule((), nf.SetMark(mark, mark)),)),
            nf.Chain(
                "KUBE-POSTROUTING",
                (
                    nf.Rule((nf.Mark(mark, mark, invert=True),), nf.Verdict("RETURN")),
                    nf.Rule((), nf.SetMark(mark, 0)),  # a packet that comes by again must not be masqueraded again
                    nf.Rule((nf.Comment("kubernetes service traffic requiring SNAT"),), nf.Masquerade(random_fully=True)),
                ),
            ),
            CANARY,
        )
    if table == "filter":
        return (nf.Chain("KUBE-FIREWALL", _localnet_rules(family)), nf.Chain("KUBE-FORWARD", _forward_rules(config)), CANARY)
    return (CANARY,)


def _localnet_rules(family: int) -> tuple[nf.Rule, ...]:
    """route_localnet, which NodePorts on 127.0.0.1 need, would let neighbours reach what listens on localhost."""
    if family == 6:
        return ()
    matches: tuple[nf.AnyMatch, ...] = (
        nf.Source("127.0.0.0/8", invert=True),
        nf.Destination("127.0.0.0/8"),
        nf.Comment("block incoming localnet connections"),
        nf.ConntrackState(("RELATED", "ESTABLISHED", "DNAT"), invert=True),
    )
    return (nf.Rule(matches, DROP),)


def _forward_rules(config: ProxyConfiguration) -> tuple[nf.Rule, ...]:
    mark = config.masquerade_mark
    invalid = () if config.conntrack_tcp_be_liberal else (nf.Rule((nf.ConntrackState(("INVALID",)),), DROP),)
    return (
        *invalid,
        nf.Rule((nf.Comment("kubernetes forwarding rules"), nf.Mark(mark, mark)), ACCEPT),
        nf.Rule((nf.Comment("kubernetes forwarding conntrack rule"), nf.ConntrackState(("RELATED", "ESTABLISHED"))), ACCEPT),
    )


def node_port_rules(config: ProxyConfiguration, node: NodeFacts, family: int) -> tuple[nf.Rule, ...]:
    """The end of KUBE-SERVICES: which of the node's addresses serve NodePorts."""
    comment = nf.Comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain")
    target = nf.Jump("KUBE-NODEPORTS")
    localhost = family == 4 and config.localhost_node_ports
    addresses = node.node_port_addresses(config.node_port_addresses, family)
    if addresses is None:
        loopback = "127.0.0.0/8" if family == 4 else "::1/128"
        but: tuple[nf.AnyMatch, ...] = () if localhost else (nf.Destination(loopback, invert=True),)
        return (nf.Rule((*but, comment, TO_LOCAL), target),)
    served = [a for a in addresses if localhost or a != LOOPBACK[family]]
    return tuple(nf.Rule((nf.Destination(host_network(a)), comment), target) for a in served)


def settings_of(config: ProxyConfiguration, node: NodeFacts, family: int, comments: bool = True) -> Settings:
    def detector(invert: bool) -> nf.AnyMatch | None:
        match config.detect_local_mode:
            case "BridgeInterface":
                return nf.InInterface(config.bridge_interface, invert)
            case "InterfaceNamePrefix":
                return nf.InInterface(config.interface_name_prefix + "+", invert)
            case "NodeCIDR":
                cidr = node.pod_cidr(family)
            case _:
                cidr = config.cluster_cidr(family)
        return nf.Source(cidr, invert) if cidr else None

    return Settings(family, detector(False), detector(True), config.masquerade_all, node.primary(family), comments)


# --- the proxier --------------------------------

_SHARED = {  # (table, chain) -> the field of PortRules that contributes to it
    ("nat", "KUBE-SERVICES"): "services",
    ("nat", "KUBE-NODEPORTS"): "node_ports",
    ("filter", "KUBE-SERVICES"): "filter_services",
    ("filter", "KUBE-EXTERNAL-SERVICES"): "filter_external",
    ("filter", "KUBE-NODEPORTS"): "filter_node_ports",
    ("filter", "KUBE-PROXY-FIREWALL"): "firewall",
}


class Proxier:
    """One node's kube-proxy in iptables mode, for one family. `others`: partial tables of other daemons (compose.py)."""

    def __init__(
        self,
        config: ProxyConfiguration,
        node: NodeFacts,
        family: int = 4,
        others: Sequence[nf.Table] = (),
        model: Model | None = None,
    ) -> None:
        self.config, self.family, self.others = config, family, tuple(others)
        self.model = model or Model(node, family)
        self._rules: dict[str, Ports] = {}
        self._endpoints = sum(map(_count, self.model.ports.values()))
        self._settings = self._current_settings()
        self._shared = {key: SharedChain(key[1]) for key in _SHARED}
        self._stated = False
        self._update(self.model.ports)

    def changes(
        self, services: Mapping[str, Json | None], slices: Mapping[str, Json | None], node: NodeFacts | None = None
    ) -> list[AnyOp]:
        """Objects by "ns/name" as they are now (None: gone); the operations that bring the datapath there. The first call
        replaces whole tables, later ones update chains."""
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
        changes = self.model.refresh()
        self._endpoints += sum(_count(change.new) - _count(change.old) for change in changes)
        settings = self._current_settings()
        names = [change.service for change in changes] if settings == self._settings else sorted(self.model.ports | self._rules)
        self._settings = settings
        updates = self._update(names)
        return [*updates, *stale_entries(changes)] if self._stated else self.restate()

    def restate(self) -> list[AnyOp]:
        """The whole state as one replacement: at the start, and for a datapath that lost its tables."""
        self._stated = True
        ops: list[AnyOp] = [TablesReplace(self.tables())]
        if self.family == 4 and self.config.localhost_node_ports:
            ops.append(SysctlSet("net.ipv4.conf.all.route_localnet", "1"))
        return ops

    def tables(self) -> tuple[nf.Table, ...]:
        own = tuple(self._table(name) for name in JUMPS)
        return compose((*own, *self.others))

    def _table(self, name: str) -> nf.Table:
        builtin = [nf.Chain(chain, JUMPS[name].get(chain, ()), "ACCEPT") for chain in nf.BUILTIN_CHAINS[name]]
        shared = [chain.whole() for (table, _), chain in self._shared.items() if table == name]
        chains = [*builtin, *fixed_chains(name, self.config, self.family), *shared]
        if name == "nat":
            for service in sorted(self._rules):
                for rules in self._rules[service]:
                    chains.extend(rules.chains)
        return nf.Table(name, self.family, tuple(chains))

    def _current_settings(self) -> Settings:
        return settings_of(self.config, self.model.node, self.family, self._endpoints <= LARGE_CLUSTER_ENDPOINTS)

    def _recompile(self, names: Iterable[str]) -> dict[str, tuple[Ports, Ports]]:
        """The Services whose rules are different now: before and after."""
        different = {}
        for name in names:
            old = self._rules.get(name, ())
            new = tuple(compile_port(port, self._settings) for port in self.model.ports.get(name, ()))
            if new:
                self._rules[name] = new
            else:
                self._rules.pop(name, None)
            if new != old:
                different[name] = old, new
        return different

    def _update(self, names: Iterable[str]) -> list[AnyOp]:
        different = self._recompile(names)
        stated: dict[str, list[nf.Chain]] = {"nat": [], "filter": []}
        spliced: dict[str, list[ChainSplice]] = {"nat": [], "filter": []}
        for (table, name), chain in self._shared.items():
            given = {service: _gather(new, _SHARED[table, name]) for service, (_, new) in different.items()}
            if (table, name) == ("nat", "KUBE-SERVICES"):
                given[LAST] = node_port_rules(self.config, self.model.node, self.family)
            changed = chain.change(given)
            if isinstance(changed, nf.Chain):
                stated[table].append(changed)
            elif changed is not None:
                spliced[table].append(changed)
        gone: list[str] = []
        for old, new in different.values():
            before, after = _own_chains(old), _own_chains(new)
            stated["nat"] += [chain for name, chain in after.items() if before.get(name) != chain]
            gone += [name for name in before if name not in after]
        updates = [
            ChainsUpdate(table, self.family, tuple(stated[table]), tuple(gone) if table == "nat" else (), tuple(spliced[table]))
            for table in stated
        ]
        return [update for update in updates if update.chains or update.delete or update.splices]


def _count(ports: Iterable[ServicePort]) -> int:
    return sum(len(port.reachable) for port in ports)


def _gather(ports: Ports, field: str) -> tuple[nf.Rule, ...]:
    return tuple(rule for each in ports for rule in getattr(each, field))


def _own_chains(ports: Ports) -> dict[str, nf.Chain]:
    return {chain.name: chain for each in ports for chain in each.chains}


def compile(model: Model, config: ProxyConfiguration, others: Sequence[nf.Table] = ()) -> list[nf.Table]:
    """The tables of a model at once."""
    return list(Proxier(config, model.node, model.family, others, model).tables())
