"""kube-proxy's nftables mode: a model compiled to its table, whole or by difference.

Rules it keeps:

- Names, elements, order of rules and comments are kube-proxy's (1.31 to 1.35: chains of their own for endpoints).
- The same model gives the same table, whether compiled at once or reached by changes; only the order in which chains and sets
  were made may differ.
- A difference names the chains, sets and elements of changed Services, nothing else, however many others there are.
- Where two Services claim one key (an external address and port), the first by name has it, and the other when that is gone.
- iptables keeps what other daemons have there (`others`), and nothing of kube-proxy.

Order to read: nft_base.py and nft_service.py (what is compiled), then Proxier.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from podwire_core import netfilter as nf
from podwire_core import nftables as nft
from podwire_core.collector import paused
from podwire_core.netlink import AnyOp, NftReplace, NftUpdate, TablesReplace
from podwire_core.objects import Json
from podwire_nodeagent.proxy import nft_base as base
from podwire_nodeagent.proxy.compose import compose
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.conntrack import stale_entries
from podwire_nodeagent.proxy.model import Model, NodeFacts
from podwire_nodeagent.proxy.nft_service import PortRules, Settings, compile_port

Place = tuple[str, tuple[str, ...]]  # a set's name and a key
Compiled = tuple[PortRules, ...]


def settings_of(config: ProxyConfiguration, node: NodeFacts, family: int) -> Settings:
    def detector(invert: bool) -> nft.AnyStatement | None:
        match config.detect_local_mode:
            case "BridgeInterface":
                return nft.InInterface(config.bridge_interface, invert)
            case "InterfaceNamePrefix":
                return nft.InInterface(config.interface_name_prefix + "*", invert)
            case "NodeCIDR":
                cidr = node.pod_cidr(family)
            case _:
                cidr = config.cluster_cidr(family)
        return nft.Address("saddr", (cidr,), invert) if cidr else None

    return Settings(family, detector(False), detector(True), config.masquerade_all, node.primary(family))


class Elements:
    """Who claims which element. `claims`: by place, by Service; a Service counts once, however many of its ports say the same."""

    def __init__(self) -> None:
        self._claims: dict[Place, dict[str, nft.Element]] = {}

    def of(self, place: Place) -> nft.Element | None:
        claims = self._claims.get(place)
        return claims[min(claims)] if claims else None

    def set(self, service: str, place: Place, element: nft.Element | None) -> None:
        """None: the Service claims it no more."""
        claims = self._claims.setdefault(place, {})
        if element is not None:
            claims[service] = element
        else:
            claims.pop(service, None)
            if not claims:
                del self._claims[place]

    def by_set(self) -> dict[str, list[nft.Element]]:
        found: dict[str, list[nft.Element]] = {}
        for (name, _), claims in sorted(self._claims.items()):
            found.setdefault(name, []).append(claims[min(claims)])
        return found


class Proxier:
    """One node's kube-proxy in nftables mode, for one family. `others`: iptables tables of other daemons (compose.py)."""

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
        self._rules: dict[str, Compiled] = {}
        self._elements = Elements()
        self._settings = settings_of(config, self.model.node, family)
        self._node_ports = base.node_port_ips(config, self.model.node, family)
        self._stated = False
        self._recompile(self.model.ports)

    def changes(
        self, services: Mapping[str, Json | None], slices: Mapping[str, Json | None], node: NodeFacts | None = None
    ) -> list[AnyOp]:
        """Objects by "ns/name" as they are now (None: gone); the operations that bring the datapath there. The first call
        states everything."""
        for key, obj in services.items():
            self.model.set_service(key, obj)
        for key, obj in slices.items():
            self.model.set_slice(key, obj)
        if node is not None:
            self.model.set_node(node)
        changes = self.model.refresh()
        settings = settings_of(self.config, self.model.node, self.family)
        names = [change.service for change in changes] if settings == self._settings else sorted(self.model.ports | self._rules)
        self._settings = settings
        if not self._stated:
            with paused():
                self._recompile(names)
                return self.restate()
        return [*self._update(names), *stale_entries(changes)]

    def restate(self) -> list[AnyOp]:
        """The whole state as one replacement: at the start, and for a datapath that lost its tables."""
        self._stated = True
        self._node_ports = base.node_port_ips(self.config, self.model.node, self.family)
        empty = (nf.Table(name, self.family) for name in ("nat", "filter", "mangle"))
        return [TablesReplace(compose((*empty, *self.others))), NftReplace((self.table(),))]

    def table(self) -> nft.Table:
        ports = [rules for service in sorted(self._rules) for rules in self._rules[service]]
        elements = self._elements.by_set()
        fixed = base.base_sets(self.config, self.model.node, self.family)
        sets = [replace(each, elements=(*each.elements, *elements.get(each.name, ()))) for each in fixed]
        sets += [each for rules in ports for each in rules.sets]
        chains = [*base.base_chains(self.config, self.model.node, self.family), *(c for rules in ports for c in rules.chains)]
        return nft.Table(self.family, base.TABLE, base.COMMENT, tuple(sets), tuple(chains))

    # --- differences --------------------------------

    def _recompile(self, names: Iterable[str]) -> tuple[dict[str, tuple[Compiled, Compiled]], dict[Place, nft.Element | None]]:
        """The Services whose rules are different now, before and after; and the places whose claims changed, as they were."""
        different: dict[str, tuple[Compiled, Compiled]] = {}
        before: dict[Place, nft.Element | None] = {}
        for name in names:
            old = self._rules.get(name, ())
            new = tuple(compile_port(port, self._settings) for port in self.model.ports.get(name, ()))
            if new == old:
                continue
            different[name] = old, new
            if new:
                self._rules[name] = new
            else:
                del self._rules[name]
            claimed, wanted = _places(old), _places(new)
            for place in claimed.keys() | wanted.keys():
                if claimed.get(place) != wanted.get(place):
                    before.setdefault(place, self._elements.of(place))
                    self._elements.set(name, place, wanted.get(place))
        return different, before

    def _update(self, names: Iterable[str]) -> list[AnyOp]:
        different, before = self._recompile(names)
        delete: dict[str, list[tuple[str, ...]]] = {}
        add: dict[str, list[nft.Element]] = {}
        for (name, key), old in sorted(before.items(), key=lambda item: item[0]):
            _move(name, old, self._elements.of((name, key)), delete, add)
        self._move_node_ports(delete, add)
        chains, gone_chains = _parts(different, "chains")
        sets, gone_sets = _parts(different, "sets")
        update = NftUpdate(
            self.family,
            base.TABLE,
            {name: tuple(keys) for name, keys in delete.items()},
            tuple(sets),
            tuple(chains),
            {name: tuple(elements) for name, elements in add.items()},
            gone_chains,
            gone_sets,
        )
        return [] if update == NftUpdate(self.family, base.TABLE) else [update]

    def _move_node_ports(self, delete: dict[str, list[tuple[str, ...]]], add: dict[str, list[nft.Element]]) -> None:
        """The node's addresses changed."""
        old, new = self._node_ports, base.node_port_ips(self.config, self.model.node, self.family)
        self._node_ports = new
        for address in sorted({*(old or ())} ^ {*(new or ())}):
            there, gone = nft.Element((address,)), address in (old or ())
            _move(base.NODE_PORT_IPS, there if gone else None, None if gone else there, delete, add)


def _places(compiled: Compiled) -> dict[Place, nft.Element]:
    """A key that several ports of a Service have is the first one's."""
    found: dict[Place, nft.Element] = {}
    for rules in compiled:
        for name, element in rules.elements:
            found.setdefault((name, element.key), element)
    return found


def _move(
    name: str,
    old: nft.Element | None,
    new: nft.Element | None,
    delete: dict[str, list[tuple[str, ...]]],
    add: dict[str, list[nft.Element]],
) -> None:
    """From one element to the other, of the same key."""
    if old == new:
        return
    if old is not None:
        delete.setdefault(name, []).append(old.key)
    if new is not None:
        add.setdefault(name, []).append(new)


def _parts(different: dict[str, tuple[Compiled, Compiled]], what: str) -> tuple[list[Any], tuple[str, ...]]:
    """The chains or sets that are new or different now, and the names of those that are gone."""
    fresh, gone = [], []
    for old, new in different.values():
        before = {part.name: part for rules in old for part in getattr(rules, what)}
        after = {part.name: part for rules in new for part in getattr(rules, what)}
        fresh += [part for name, part in after.items() if before.get(name) != part]
        gone += [name for name in before if name not in after]
    return fresh, tuple(gone)


def compile(model: Model, config: ProxyConfiguration, others: Sequence[nf.Table] = ()) -> nft.Table:
    """The table of a model at once."""
    return Proxier(config, model.node, model.family, others, model).table()
