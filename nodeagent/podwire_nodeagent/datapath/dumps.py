"""What `Stack.dump` returns: the tables as netlink.py's Info records, in a stable order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from podwire_core import nftables as nft
from podwire_core.netlink import (
    AddrInfo,
    BpfMapInfo,
    BpfState,
    ConntrackInfo,
    FdbInfo,
    LinkInfo,
    NeighInfo,
    NetlinkError,
    NextHop,
    RouteInfo,
    TableDump,
    UnderlayInfo,
)
from podwire_nodeagent.datapath.ebpf import listing as bpf_listing
from podwire_nodeagent.datapath.ipvs import listing
from podwire_nodeagent.datapath.wire import address_text, mac_text

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.fib import Route
    from podwire_nodeagent.datapath.links import Link
    from podwire_nodeagent.datapath.stack import Stack

STATS = ("rx_packets", "rx_bytes", "rx_dropped", "tx_packets", "tx_bytes", "tx_dropped")


def dump(stack: Stack, what: str, now: float) -> Any:
    """See `Stack.dump`."""
    if what not in DUMPS:
        raise NetlinkError("EINVAL", f"nothing to dump that is called {what!r}")
    return DUMPS[what](stack, now)


def links(stack: Stack, _: float) -> list[LinkInfo]:
    return [link_info(link) for link in stack.links]


def link_info(link: Link) -> LinkInfo:
    return LinkInfo(
        index=link.index,
        name=link.name,
        kind=link.kind,
        mac=mac_text(link.mac),
        mtu=link.mtu,
        up=link.up,
        master=link.master.name if link.master else "",
        hairpin=link.hairpin,
        peer_mac=mac_text(link.peer_mac),
        vni=link.vni,
        local=address_text(link.local) if link.local else "",
        dstport=link.dstport,
        learning=link.learning,
        attached=link.attached,
        alias=link.alias,
        stats={name: getattr(link, name) for name in STATS},
    )


def addrs(stack: Stack, _: float) -> list[AddrInfo]:
    return [AddrInfo(link.name, f"{address_text(a)}/{plen}") for link in stack.links for a, plen in link.addresses]


def routes(stack: Stack, _: float) -> list[RouteInfo]:
    return [route_info(route) for route in stack.fib]


def route_info(route: Route) -> RouteInfo:
    plain = len(route.dst) == 4 or route.via or route.src
    dst = ("default" if plain else "::/0") if not route.plen else f"{address_text(route.dst)}/{route.plen}"
    return RouteInfo(
        dst=dst,
        dev=route.dev.name if route.dev and not route.hops else "",
        via=address_text(route.via) if route.via else "",
        src=address_text(route.src) if route.src else "",
        onlink=route.onlink,
        metric=route.metric,
        proto=route.proto,
        type=route.type,
        scope=route.scope,
        table=route.table,
        nexthops=next_hops(route),
    )


def next_hops(route: Route) -> tuple[NextHop, ...]:
    return tuple(NextHop(address_text(way.via), way.dev.name if way.dev else "", weight) for _, weight, way in route.hops)


def neighs(stack: Stack, now: float) -> list[NeighInfo]:
    found = []
    for entry in stack.neighbours:
        stale = entry.state == "REACHABLE" and now >= entry.deadline
        found.append(NeighInfo(address_text(entry.ip), mac_text(entry.mac), entry.link.name, "STALE" if stale else entry.state))
    return sorted(found, key=lambda info: (info.dev, info.dst))


def fdb(stack: Stack, now: float) -> list[FdbInfo]:
    found = []
    for link in stack.links:
        for entry in link.fdb.entries.values() if link.fdb else ():
            if link.kind == "vxlan":
                found += [FdbInfo(mac_text(entry.mac), link.name, address_text(remote)) for remote in entry.remotes]
            else:
                state, age = ("permanent", 0.0) if entry.permanent else ("dynamic", now - entry.used)
                dev = entry.port.name if entry.port else link.name
                found.append(FdbInfo(mac_text(entry.mac), dev, master=link.name, state=state, age=age))
    return sorted(found, key=lambda info: (info.dev, info.mac, info.dst))


def underlay(stack: Stack, _: float) -> list[UnderlayInfo]:
    return [UnderlayInfo(op.node_ip, op.mac, op.host, op.cable_port, op.tunnel_port) for op in stack.underlay.values()]


def counters(stack: Stack, _: float) -> dict[str, int]:
    return dict(sorted(stack.all_counters().items()))


def conntrack(stack: Stack, now: float) -> list[ConntrackInfo]:
    return stack.netfilter.dump_conntrack(now)


def rules(stack: Stack, _: float) -> list[TableDump]:
    return stack.netfilter.dump()


def nftables(stack: Stack, now: float) -> list[nft.Table]:
    return stack.netfilter.nftables.dump(now)


def bpf_maps(stack: Stack, now: float) -> list[BpfMapInfo]:
    return bpf_listing.maps(stack.lb, now)


def bpf_state(stack: Stack, now: float) -> BpfState:
    return bpf_listing.state(stack.lb, now)


def sysctls(stack: Stack, _: float) -> dict[str, str]:
    return dict(sorted(stack.settings.values.items()))


def info(stack: Stack, _: float) -> dict[str, Any]:
    return {"node": stack.node, "generation": stack.generation}


DUMPS: dict[str, Callable[[Stack, float], Any]] = {
    "links": links,
    "addrs": addrs,
    "routes": routes,
    "neighs": neighs,
    "fdb": fdb,
    "conntrack": conntrack,
    "underlay": underlay,
    "rules": rules,
    "nftables": nftables,
    "ipsets": listing.ipsets,
    "ipvs": listing.ipvs,
    "ipvs.connections": listing.connections,
    "bpf.maps": bpf_maps,
    "bpf": bpf_state,
    "sysctls": sysctls,
    "counters": counters,
    "info": info,
}
