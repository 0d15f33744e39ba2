"""The node's network daemon: makes the datapath's links, addresses, routes, neighbours and tunnels what the CNI backend wants.

Rules it keeps:

- Pure: `reconcile` compares what a backend wants with dumps and returns operations; applying them and dumping again gives none.
- It owns links of the kinds uplink, bridge, vxlan and dummy (but kube-proxy's), what is configured on them, and the underlay.
  Pods' TAPs and the host link belong to who made them; dynamic neighbours, fdb entries and the kernel's own routes to the
  datapath.
- What must go goes before what must come, so that an address or a route can move.
- The host namespace sees the node's routes as a mirror (`host_batch`): all lead to the datapath, with the source and MTU that
  the datapath's own route would choose.

Order to read: reconcile, then host_link and host_batch. What is wanted: podwire_cni/backends/. Rules of several daemons in one
table: proxy/compose.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_interface, ip_network
from typing import Any

from msgspec import Struct

from podwire_cni.macs import mac_of
from podwire_core.constants import CABLE_PORT, GATEWAY_MAC, HOST_GATEWAY, HOST_GATEWAY6, NODE_GATEWAY
from podwire_core.netlink import (
    AddrAdd,
    AddrDel,
    AddrInfo,
    AnyOp,
    FdbAdd,
    FdbDel,
    FdbInfo,
    LinkAdd,
    LinkDel,
    LinkInfo,
    NeighAdd,
    NeighDel,
    NeighInfo,
    RouteAdd,
    RouteDel,
    RouteInfo,
    UnderlayDel,
    UnderlayInfo,
    UnderlaySet,
)

OWNED_KINDS = frozenset({"uplink", "bridge", "vxlan", "dummy"})
PROXY_LINK = "kube-ipvs0"  # kube-proxy's
DUMPED = ("links", "addrs", "routes", "neighs", "fdb", "underlay")  # what `reconcile` needs to see
HOST_LINK = "host0"
HOST_TAP_MAC = "02:00:a9:fe:01:02"

# --- reconciling --------------------------------

Dumps = Mapping[str, Sequence[Any]]


def reconcile(desired: Iterable[AnyOp], dumps: Dumps) -> list[AnyOp]:
    """The operations that lead from what is dumped (DUMPED) to what is desired."""
    wanted = _Wanted(desired)
    links = _Links(wanted, dumps["links"])
    remove: list[AnyOp] = []
    add: list[AnyOp] = list(links.additions())
    for differ in (_addresses, _routes, _neighbours, _fdb, _underlay):
        gone, missing = differ(wanted, dumps, links)
        remove += gone
        add += missing
    return [*remove, *links.removals(), *add]


class _Wanted:
    """The desired operations by kind and key."""

    def __init__(self, desired: Iterable[AnyOp]) -> None:
        self.links: dict[str, LinkAdd] = {}
        self.addresses: dict[tuple[str, str], AddrAdd] = {}
        self.routes: dict[tuple[str, str, str, int], RouteAdd] = {}
        self.neighbours: dict[tuple[str, str], NeighAdd] = {}
        self.fdb: dict[tuple[str, str, str], FdbAdd] = {}
        self.underlay: dict[str, UnderlaySet] = {}
        for op in desired:
            match op:
                case LinkAdd():
                    self.links[op.name] = op
                case AddrAdd():
                    self.addresses[op.dev, op.address] = op
                case RouteAdd():
                    self.routes[op.dst, op.dev, op.via, op.metric] = op
                case NeighAdd():
                    self.neighbours[op.dst, op.dev] = op
                case FdbAdd():
                    self.fdb[op.mac, op.dev, op.dst] = op
                case UnderlaySet():
                    self.underlay[op.node_ip] = op
                case _:
                    raise ValueError(f"a network is not made of {type(op).__name__}")


class _Links:
    """Which links stay, go and come. What is configured on one that goes, goes with it."""

    def __init__(self, wanted: _Wanted, present: Sequence[LinkInfo]) -> None:
        self._wanted = wanted.links
        self._present = {link.name: link for link in present}
        owned = [link for link in present if (link.kind in OWNED_KINDS and link.name != PROXY_LINK) or link.name in wanted.links]
        self._gone = [link.name for link in owned if not self._stays(link)]
        self.kept = {link.name for link in owned} - set(self._gone)

    def _stays(self, link: LinkInfo) -> bool:
        op = self._wanted.get(link.name)
        return op is not None and op.kind == link.kind

    def removals(self) -> Iterator[LinkDel]:
        return (LinkDel(name, missing_ok=True) for name in self._gone)

    def additions(self) -> Iterator[LinkAdd]:
        return (op for name, op in self._wanted.items() if name not in self.kept or not _is(self._present[name], op))


_COMPARED = ("mtu", "up", "master", "hairpin", "vni", "local", "dstport", "learning")


def _is(link: LinkInfo, op: LinkAdd) -> bool:
    fields = _COMPARED if op.kind == "vxlan" else _COMPARED[:4]
    same = all(getattr(link, field) == getattr(op, field) for field in fields)
    return same and (not op.mac or link.mac.lower() == op.mac.lower())


Difference = tuple[list[AnyOp], list[AnyOp]]


def _addresses(wanted: _Wanted, dumps: Dumps, links: _Links) -> Difference:
    present: list[AddrInfo] = [a for a in dumps["addrs"] if a.dev in links.kept]
    there = {(a.dev, a.address) for a in present}
    gone: list[AnyOp] = [
        AddrDel(dev, address, missing_ok=True) for dev, address in there if (dev, address) not in wanted.addresses
    ]
    return _sorted(gone), [op for key, op in wanted.addresses.items() if key not in there]


def _routes(wanted: _Wanted, dumps: Dumps, links: _Links) -> Difference:
    present: list[RouteInfo] = [r for r in dumps["routes"] if r.table == "main" and r.proto in ("static", "boot")]
    there = {(r.dst, r.dev, r.via, r.metric): r for r in present if not r.dev or r.dev in links.kept}
    gone: list[AnyOp] = [
        RouteDel(dst, dev=dev, via=via, metric=metric, missing_ok=True)
        for dst, dev, via, metric in there
        if (dst, dev, via, metric) not in wanted.routes
    ]
    missing = [op for key, op in wanted.routes.items() if key not in there or not _same_route(there[key], op)]
    return _sorted(gone), [*missing]


def _same_route(route: RouteInfo, op: RouteAdd) -> bool:
    """A source that was not asked for is the datapath's choice."""
    return (route.type, route.onlink, route.nexthops) == (op.type, op.onlink, op.nexthops) and op.src in ("", route.src)


def _neighbours(wanted: _Wanted, dumps: Dumps, links: _Links) -> Difference:
    present: list[NeighInfo] = [n for n in dumps["neighs"] if n.state == "PERMANENT" and n.dev in links.kept]
    there = {(n.dst, n.dev): n.lladdr.lower() for n in present}
    gone: list[AnyOp] = [NeighDel(dst, dev, missing_ok=True) for dst, dev in there if (dst, dev) not in wanted.neighbours]
    missing = [op for key, op in wanted.neighbours.items() if there.get(key) != op.lladdr.lower()]
    return _sorted(gone), [*missing]


def _fdb(wanted: _Wanted, dumps: Dumps, links: _Links) -> Difference:
    """Only entries with a remote end: the others are a bridge's own."""
    present: list[FdbInfo] = [f for f in dumps["fdb"] if f.dst and f.state == "permanent" and f.dev in links.kept]
    there = {(f.mac, f.dev, f.dst) for f in present}
    gone: list[AnyOp] = [FdbDel(mac, dev, dst, missing_ok=True) for mac, dev, dst in there if (mac, dev, dst) not in wanted.fdb]
    return _sorted(gone), [op for key, op in wanted.fdb.items() if key not in there]


def _underlay(wanted: _Wanted, dumps: Dumps, links: _Links) -> Difference:
    present: list[UnderlayInfo] = list(dumps["underlay"])
    there = {u.node_ip: UnderlaySet(u.node_ip, u.mac, u.host, u.cable_port, u.tunnel_port) for u in present}
    gone: list[AnyOp] = [UnderlayDel(node_ip) for node_ip in there if node_ip not in wanted.underlay]
    return _sorted(gone), [op for node_ip, op in wanted.underlay.items() if there.get(node_ip) != op]


def _sorted(ops: list[AnyOp]) -> list[AnyOp]:
    return sorted(ops, key=repr)


def gateway_peer(underlay: str) -> list[AnyOp]:
    """The edge as a peer on the cable, at `underlay` ("IP" or "IP:PORT"); nothing where there is none."""
    host, _, port = underlay.partition(":")
    return [UnderlaySet(NODE_GATEWAY, mac_of(NODE_GATEWAY), host, int(port or CABLE_PORT))] if host else []


# --- the host namespace --------------------------------


def host_link() -> LinkAdd:
    """The datapath's end of the host namespace's `eth0`; the TAP's fd goes with it."""
    return LinkAdd(
        HOST_LINK, "host", mac=GATEWAY_MAC, mtu=1500, peer_mac=HOST_TAP_MAC, fd=True, replace=True, alias="host namespace"
    )


def gateway_of(dst: str) -> str:
    return HOST_GATEWAY6 if ":" in dst else HOST_GATEWAY


class HostRoute(Struct, frozen=True, order=True):
    dst: str
    src: str = ""
    mtu: int = 0

    def command(self, verb: str, dev: str) -> str:
        options = (f" src {self.src}" if self.src else "") + (f" mtu {self.mtu}" if self.mtu else "")
        return f"route {verb} {self.dst} via {gateway_of(self.dst)} dev {dev} onlink{options}"


def host_batch(desired: Iterable[AnyOp], present: Sequence[Mapping[str, Any]] = (), dev: str = "eth0", mtu: int = 1500) -> str:
    """Text for `ip -batch -` in the host namespace: the node's addresses and routes as its programs see them. `present`: what
    `ip -json route show dev eth0` prints there, so that routes to what is gone are removed."""
    ops = list(desired)
    addresses = [ip_interface(op.address) for op in ops if isinstance(op, AddrAdd)]
    routes = sorted(_host_routes(ops, mtu))
    wanted = {route.dst for route in routes}
    there = {_host_dst(r): str(r["gateway"]) for r in present if r.get("gateway") in (HOST_GATEWAY, HOST_GATEWAY6)}
    lines = [
        f"link set {dev} up",
        *(f"addr replace {address.ip}/32 dev {dev}" for address in addresses if address.version == 4),
        *(f"addr replace {address.ip}/128 dev {dev} nodad noprefixroute" for address in addresses if address.version == 6),
        f"neigh replace {HOST_GATEWAY} lladdr {GATEWAY_MAC} dev {dev} nud permanent",
        *(  # a machine may have no IPv6 at all
            f"neigh replace {HOST_GATEWAY6} lladdr {GATEWAY_MAC} dev {dev} nud permanent"
            for _ in [address for address in addresses if address.version == 6][:1]
        ),
        *(route.command("replace", dev) for route in routes),
        *(f"route del {dst} via {gateway} dev {dev}" for dst, gateway in there.items() if dst not in wanted),
    ]
    return "".join(f"{line}\n" for line in lines)


def _host_dst(route: Mapping[str, Any]) -> str:
    """The destination as HostRoute has it: `ip` prints both default routes alike."""
    default = route["dst"] == "default" and route["gateway"] == HOST_GATEWAY6
    return "::/0" if default else str(route["dst"])


def _host_routes(ops: list[AnyOp], mtu: int) -> Iterator[HostRoute]:
    """One a destination, of both families."""
    for version in (4, 6):
        own = [op for op in ops if (":" in _subject(op)) == (version == 6) or isinstance(op, LinkAdd)]
        yield from _family_routes(own, mtu, version)


def _subject(op: AnyOp) -> str:
    """What says which family an operation is of."""
    if isinstance(op, RouteAdd):
        return op.dst if op.dst != "default" else op.via
    return op.address if isinstance(op, AddrAdd) else ""


def _family_routes(ops: list[AnyOp], mtu: int, version: int) -> Iterator[HostRoute]:
    default, full = ("default", 32) if version == 4 else ("::/0", 128)
    mtus = {op.name: op.mtu if op.mtu != mtu else 0 for op in ops if isinstance(op, LinkAdd)}
    first: dict[str, str] = {}  # the address that a link's routes prefer
    found: dict[str, HostRoute] = {}
    for op in ops:
        if isinstance(op, AddrAdd):
            address = ip_interface(op.address)
            first.setdefault(op.dev, str(address.ip))
            if address.network.prefixlen < full:
                dst = str(ip_network(address.network))
                found.setdefault(dst, HostRoute(dst, str(address.ip), mtus.get(op.dev, 0)))
    if first:
        found[default] = HostRoute(default, next(iter(first.values())))
    for op in ops:
        if isinstance(op, RouteAdd) and op.type == "unicast":
            dst = default if op.dst == "default" else op.dst
            found[dst] = HostRoute(dst, op.src or first.get(op.dev, ""), mtus.get(op.dev, 0))
    yield from found.values()
