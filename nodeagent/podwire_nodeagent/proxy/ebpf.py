"""kube-proxy's job done by eBPF maps, as Cilium does it: a model compiled to map elements, whole or by difference.

Rules it keeps:

- Maps, keys and values are Cilium's (podwire_core.ebpf). A backend has one id, whichever Services it is behind; a frontend keeps
  its rev_nat_index while it exists.
- A change touches the elements of changed Services only: its cost does not depend on how many Services there are.
- Whole and incremental compilation come to the same maps, up to the numbers given.
- An address and port that two Services claim is served for the one whose name comes first.
- iptables holds nothing but what other daemons put there (`others`).

Order to read: Proxier, _elements; what a Service port becomes: ebpf_frontends.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address

from podwire_core import ebpf
from podwire_core import netfilter as nf
from podwire_core.collector import paused
from podwire_core.netlink import AnyOp, BpfMapUpdate, BpfReplace, TablesReplace
from podwire_core.objects import Json
from podwire_nodeagent.proxy.compose import compose
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.conntrack import stale_entries
from podwire_nodeagent.proxy.ebpf_frontends import Frontend, frontends
from podwire_nodeagent.proxy.ebpf_ids import Ids
from podwire_nodeagent.proxy.model import LOOPBACK, Model, NodeFacts
from podwire_nodeagent.proxy.ports import Endpoint

Elements = dict[str, dict[bytes, bytes]]  # by map
BackendKey = tuple[str, int, int]  # address, port, protocol


class Proxier:
    """One node's load balancer, for one family. `problems`: what is not served, and why."""

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
        self.problems: dict[str, str] = {}
        self._indexes: Ids[bytes] = Ids(65535)  # by frontend
        self._backends: Ids[BackendKey] = Ids(0xFFFFFFFF)
        self._elements: dict[str, Elements] = {}  # by Service
        self._claims: dict[bytes, tuple[str, ...]] = {}  # frontend -> the Services that want it, by name
        self._wanted: dict[str, dict[bytes, Frontend]] = {}
        self._addresses = self._node_addresses()
        self._attached = self._lb_config()
        self._stated = False
        self._compile(sorted(self.model.ports))

    def changes(
        self, services: Mapping[str, Json | None], slices: Mapping[str, Json | None], node: NodeFacts | None = None
    ) -> list[AnyOp]:
        """See modes.Proxy. The first call replaces all maps, later ones update elements."""
        if not self._stated:
            with paused():
                return self._changes(services, slices, node)
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
        names = [change.service for change in changes]
        restated = False
        if node is not None:
            addresses = self._node_addresses()
            restated = self._lb_config() != self._attached
            if addresses != self._addresses:
                self._addresses = addresses
                names = sorted(self.model.ports | self._elements)
        ops = self._compile(names)
        if not self._stated or restated:
            return self.restate()
        return [*ops, *stale_entries(changes)]

    def restate(self) -> list[AnyOp]:
        self._stated = True
        self._attached = self._lb_config()
        bare = (nf.Table(name, self.family, ()) for name in ("nat", "filter", "mangle"))
        return [TablesReplace(compose((*bare, *self.others))), BpfReplace(self._attached, self.maps())]

    def maps(self) -> Elements:
        """Everything, by map."""
        whole: Elements = {name: {} for name, spec in ebpf.MAPS.items() if spec.of_agent}
        for elements in self._elements.values():
            for name, content in elements.items():
                whole[name].update(content)
        return whole

    def _lb_config(self) -> ebpf.LbConfig:
        config = self.config
        cidr = (
            self.model.node.pod_cidr(self.family) if config.detect_local_mode == "NodeCIDR" else config.cluster_cidr(self.family)
        )
        settings = config.ebpf
        return ebpf.LbConfig(
            settings.algorithm,
            settings.maglev_table_size,
            settings.mode,
            (cidr,) if cidr else (),
            settings.socket_lb,
            config.masquerade_all,
        )

    def _node_addresses(self) -> tuple[str, ...]:
        """The addresses that serve NodePorts."""
        node, loopback = self.model.node, LOOPBACK[self.family]
        chosen = node.node_port_addresses(self.config.node_port_addresses, self.family)
        if chosen is None:
            chosen = (*(a for a in node.addresses if (":" in a) == (self.family == 6)), loopback)
        return tuple(a for a in chosen if a != loopback or self.config.localhost_node_ports)

    # --- Services to elements --------------------------------

    def _compile(self, names: Iterable[str]) -> list[AnyOp]:
        """The elements of these Services anew, and of those with whom they share a frontend."""
        old: Elements = {}
        new: Elements = {}
        todo = dict.fromkeys(names)
        for name in list(todo):
            todo.update(dict.fromkeys(self._claim(name)))
        for name in todo:
            before = self._elements.get(name, {})
            for kind, content in before.items():
                old.setdefault(kind, {}).update(content)
            after = self._build(name)
            for kind, content in after.items():
                new.setdefault(kind, {}).update(content)
        shared = [key for key, value in old.get(ebpf.BACKENDS, {}).items() if self._held(key, value)]
        for key in shared:  # by a Service that stays as it is
            new.setdefault(ebpf.BACKENDS, {}).setdefault(key, old[ebpf.BACKENDS][key])
        return _difference(old, new)

    def _held(self, key: bytes, value: bytes) -> bool:
        """Whether a backend still has this id."""
        backend = ebpf.unpack_backend(value)
        number = self._backends.numbers.get((str(ip_address(backend.address)), backend.port, backend.proto))
        return number is not None and ebpf.pack_backend_key(number) == key

    def _claim(self, name: str) -> set[str]:
        """Note which frontends a Service wants now; the other Services which that concerns."""
        wanted: dict[bytes, Frontend] = {}
        for port in self.model.ports.get(name, ()):
            for frontend in frontends(port, self._addresses):
                wanted.setdefault(frontend.key, frontend)
        before = self._wanted.get(name, {})
        concerned: set[str] = set()
        for key in before.keys() - wanted.keys():
            left = tuple(other for other in self._claims[key] if other != name)
            concerned.update(left)
            if left:
                self._claims[key] = left
            else:
                del self._claims[key]
        for key in wanted.keys() - before.keys():
            others = self._claims.get(key, ())
            concerned.update(others)
            self._claims[key] = tuple(sorted((*others, name))) if others else (name,)
        if wanted:
            self._wanted[name] = wanted
        else:
            self._wanted.pop(name, None)
        return concerned

    def _build(self, name: str) -> Elements:
        """A Service's elements; takes the new numbers before it gives back the old ones, so that what stays keeps its own."""
        before = self._elements.pop(name, {})
        mine = {key: each for key, each in self._wanted.get(name, {}).items() if self._claims[key][0] == name}
        elements: Elements = {kind: {} for kind, spec in ebpf.MAPS.items() if spec.of_agent} if mine else {}
        self.problems.pop(name, None)
        for key, frontend in mine.items():
            index = self._indexes.take(key)
            if index:
                self._write(elements, frontend, index)
            else:
                self.problems[name] = f"no rev_nat_index is left for {frontend.address}:{frontend.port}"
        self._give_back(before)
        elements = {kind: content for kind, content in elements.items() if content}
        if elements:
            self._elements[name] = elements
        return elements

    def _write(self, elements: Elements, frontend: Frontend, index: int) -> None:
        address = ip_address(frontend.address).packed
        elements[ebpf.REVERSE_NAT][ebpf.pack_index(index)] = ebpf.pack_reverse_nat(address, frontend.port)
        elements[ebpf.NAMES][ebpf.pack_index(index)] = frontend.origin.encode()
        for network in frontend.source_ranges:
            elements[ebpf.SOURCE_RANGES][ebpf.pack_source_range(index, network)] = b"\x01"
        self._write_scope(elements, frontend, index, ebpf.SCOPE_EXT, frontend.backends)
        if frontend.inside is not None:
            self._write_scope(elements, frontend, index, ebpf.SCOPE_INT, frontend.inside)

    def _write_scope(
        self, elements: Elements, frontend: Frontend, index: int, scope: int, endpoints: tuple[Endpoint, ...]
    ) -> None:
        """The master, and a slot for each backend."""
        services, proto = elements[ebpf.SERVICES], frontend.protocol
        head, tail = frontend.key[:6], bytes((proto, scope, 0, 0))
        master = ebpf.Service(frontend.affinity_seconds, len(endpoints), index, frontend.flags, frontend.flags2)
        services[head + b"\0\0" + tail] = ebpf.pack_service(master)
        for slot, endpoint in enumerate(endpoints, 1):
            number = self._backend(elements, endpoint, proto)
            slotted = ebpf.Service(number, 0, index, frontend.flags, frontend.flags2)
            services[head + slot.to_bytes(2, "little") + tail] = ebpf.pack_service(slotted)
            if frontend.affinity_seconds:
                elements[ebpf.AFFINITY_MATCH][ebpf.pack_affinity_match(number, index)] = b"\0"

    def _backend(self, elements: Elements, endpoint: Endpoint, proto: int) -> int:
        """Its id; a Service holds one reference to each of its backends."""
        key = (endpoint.ip, endpoint.port, proto)
        number = self._backends.numbers.get(key, 0)
        if number and ebpf.pack_backend_key(number) in elements[ebpf.BACKENDS]:
            return number
        number = self._backends.take(key)
        value = ebpf.pack_backend(ebpf.Backend(ip_address(endpoint.ip).packed, endpoint.port, proto))
        elements[ebpf.BACKENDS][ebpf.pack_backend_key(number)] = value
        return number

    def _give_back(self, elements: Elements) -> None:
        """Numbers that a Service held."""
        for value in elements.get(ebpf.BACKENDS, {}).values():
            backend = ebpf.unpack_backend(value)
            self._backends.drop((str(ip_address(backend.address)), backend.port, backend.proto))
        for key in elements.get(ebpf.SERVICES, {}):
            if ebpf.unpack_service_key(key).slot == 0 and key[9] == ebpf.SCOPE_EXT:
                self._indexes.drop(key)


def _difference(old: Elements, new: Elements) -> list[AnyOp]:
    """Updates in an order in which no element names one that is not there yet (it is one transaction anyhow)."""
    ops: list[AnyOp] = []
    for name in reversed(ebpf.MAPS):
        before, after = old.get(name, {}), new.get(name, {})
        written = {key: value for key, value in after.items() if before.get(key) != value}
        gone = tuple(key for key in before if key not in after)
        if written or gone:
            ops.append(BpfMapUpdate(name, written, gone))
    return ops
