"""Applying netlink operations: one transaction, all or none, with the kernel's errno names.

Each operation is checked against the tables as the operations before it left them, then done by the primitives of
change.py. Links and addresses are in configure_links.py; here are `apply`, the rest in netlink.py's order, and the list of
all.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from podwire_core import netlink
from podwire_core.netlink import NetlinkError, Op
from podwire_nodeagent.datapath import requests
from podwire_nodeagent.datapath.bridge import FdbEntry
from podwire_nodeagent.datapath.change import Change
from podwire_nodeagent.datapath.configure_links import addr_add, addr_del, link_add, link_del, link_set
from podwire_nodeagent.datapath.ebpf import configuring as bpf
from podwire_nodeagent.datapath.fib import Route
from podwire_nodeagent.datapath.ipvs import configure as ipvs_configure
from podwire_nodeagent.datapath.links import Link
from podwire_nodeagent.datapath.netfilter.listing import connection_filter
from podwire_nodeagent.datapath.wire import ZERO_MAC, address_bytes, mac_bytes

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.stack import Stack

LINK_TYPES = ("blackhole", "unreachable", "prohibit")


def apply(stack: Stack, ops: Sequence[Op], now: float) -> None:
    """See `Stack.apply`."""
    change = Change(stack, now)
    for index, op in enumerate(ops):
        try:
            OPERATIONS[type(op)](change, op)
        except NetlinkError as error:
            change.rollback()
            raise NetlinkError(error.errno_name, error.message, index) from None
        except ValueError as error:  # text that is no address, network or MAC
            change.rollback()
            raise NetlinkError("EINVAL", str(error), index) from None
    change.commit()


# --- routes --------------------------------


def destination(dst: str, via: str, src: str) -> tuple[bytes, int]:
    if dst in ("default", "all", "any"):
        return bytes(len(address_bytes(via or src or "0.0.0.0"))), 0
    network = ipaddress.ip_network(dst)
    return network.network_address.packed, network.prefixlen


def route_add(change: Change, op: netlink.RouteAdd) -> None:
    dst, plen = destination(op.dst, op.via, op.src)
    if op.type not in ("unicast", "local", *LINK_TYPES):
        raise NetlinkError("EINVAL", f"unknown route type {op.type!r}")
    table = "local" if op.type == "local" else "main"
    route = Route(
        dst,
        plen,
        change.link(op.dev) if op.dev else None,
        via=address_bytes(op.via) if op.via else b"",
        src=address_bytes(op.src) if op.src else b"",
        onlink=op.onlink,
        metric=op.metric,
        proto=op.proto,
        type=op.type,
        table=table,
    )
    if any(len(part) not in (0, len(dst)) for part in (route.via, route.src)):
        raise NetlinkError("EINVAL", f"route {op.dst}: addresses of two families")
    fib = change.stack.fib
    if op.nexthops:
        route.spread(next_hops(change, op, dst, plen))
    else:
        fib.check_nexthop(route)
    same = [other for other in fib.table(table).same_net(dst, plen) if other.metric == op.metric]
    if same and not op.replace:
        raise NetlinkError("EEXIST", f"route {op.dst} exists")
    if same:
        change.remove_route(same[0])
    change.add_route(route)


def next_hops(change: Change, op: netlink.RouteAdd, dst: bytes, plen: int) -> list[tuple[int, Route]]:
    """(weight, route) for each: as if it were the only one."""
    if op.via or op.dev or op.type != "unicast":
        raise NetlinkError("EINVAL", f"route {op.dst}: next hops, and via, dev or another type beside them")
    src, found = address_bytes(op.src) if op.src else b"", []
    for hop in op.nexthops:
        via = address_bytes(hop.via)
        if not 1 <= hop.weight <= 256 or len(via) != len(dst):
            raise NetlinkError("EINVAL", f"route {op.dst}: next hop {hop.via} weight {hop.weight} is not valid")
        dev = change.link(hop.dev) if hop.dev else None
        route = Route(dst, plen, dev, via=via, src=src, onlink=op.onlink, metric=op.metric, proto=op.proto)
        found.append((hop.weight, change.stack.fib.check_nexthop(route)))
    return found


def route_del(change: Change, op: netlink.RouteDel) -> None:
    dst, plen = destination(op.dst, op.via, "")
    fib = change.stack.fib
    via = address_bytes(op.via) if op.via else b""
    for route in [*fib.main.same_net(dst, plen), *fib.local.same_net(dst, plen)]:
        dev = route.dev.name if route.dev else ""
        if op.dev in ("", dev) and via in (b"", route.via) and op.metric in (0, route.metric):
            change.remove_route(route)
            return
    if not op.missing_ok:
        raise NetlinkError("ESRCH", f"no route {op.dst}")


# --- neighbours and forwarding database --------------------------------


def neigh_add(change: Change, op: netlink.NeighAdd) -> None:
    link, ip, mac = change.link(op.dev), address_bytes(op.dst), mac_bytes(op.lladdr)
    if change.stack.neighbours.get(link, ip) is not None and not op.replace:
        raise NetlinkError("EEXIST", f"neighbour {op.dst} exists on {op.dev}")
    change.add_neighbour(link, ip, mac)


def neigh_del(change: Change, op: netlink.NeighDel) -> None:
    link = change.stack.links.get(op.dev) if op.missing_ok else change.link(op.dev)
    entry = change.stack.neighbours.get(link, address_bytes(op.dst)) if link else None
    if entry is not None:
        change.remove_neighbour(entry)
    elif not op.missing_ok:
        raise NetlinkError("ENOENT", f"no neighbour {op.dst} on {op.dev}")


def fdb_link(change: Change, name: str) -> Link:
    """The link whose database holds entries of `name`: itself (vxlan) or its bridge."""
    link = change.link(name)
    owner = link if link.kind == "vxlan" else link.master
    if owner is None:
        raise NetlinkError("EOPNOTSUPP", f"{name} is neither a bridge port nor a vxlan link")
    return owner


def fdb_add(change: Change, op: netlink.FdbAdd) -> None:
    owner, mac = fdb_link(change, op.dev), mac_bytes(op.mac)
    assert owner.fdb is not None
    old = owner.fdb.entries.get(mac)
    entry = FdbEntry(mac, change.link(op.dev) if owner.kind == "bridge" else None, True, change.now)
    if owner.kind == "vxlan":
        if not op.dst:
            raise NetlinkError("EINVAL", f"fdb {op.mac} dev {op.dev}: dst is missing")
        remote = address_bytes(op.dst)
        entry.remotes = (remote,)
        if old is not None and mac == ZERO_MAC and remote not in old.remotes:  # the flood list grows
            entry.remotes = (*old.remotes, remote)
        elif old is not None and mac == ZERO_MAC and op.replace:
            return
        elif old is not None and not op.replace:
            raise NetlinkError("EEXIST", f"fdb {op.mac} exists on {op.dev}")
    elif old is not None and old.permanent and not op.replace:
        raise NetlinkError("EEXIST", f"fdb {op.mac} exists on {owner.name}")
    change.put_fdb(owner, entry)


def fdb_del(change: Change, op: netlink.FdbDel) -> None:
    if op.missing_ok and change.stack.links.get(op.dev) is None:
        return
    owner, mac = fdb_link(change, op.dev), mac_bytes(op.mac)
    assert owner.fdb is not None
    old = owner.fdb.entries.get(mac)
    remote = address_bytes(op.dst) if op.dst else b""
    if old is None or (remote and remote not in old.remotes):
        if op.missing_ok:
            return
        raise NetlinkError("ENOENT", f"no fdb {op.mac} {op.dst} on {op.dev}".replace("  ", " "))
    left = tuple(r for r in old.remotes if r != remote) if remote else ()
    change.remove_fdb(owner, mac)
    if left:
        entry = FdbEntry(mac, None, True, change.now)
        entry.remotes = left
        change.put_fdb(owner, entry)


# --- underlay, netfilter, settings --------------------------------


def underlay_set(change: Change, op: netlink.UnderlaySet) -> None:
    address_bytes(op.node_ip), mac_bytes(op.mac)
    change.put(change.stack.underlay, op.node_ip, op)


def underlay_del(change: Change, op: netlink.UnderlayDel) -> None:
    if op.node_ip not in change.stack.underlay and not op.missing_ok:
        raise NetlinkError("ENOENT", f"no underlay for {op.node_ip}")
    change.put(change.stack.underlay, op.node_ip, None)


def tables_replace(change: Change, op: netlink.TablesReplace) -> None:
    change.netfilter().replace(op.tables)


def chains_update(change: Change, op: netlink.ChainsUpdate) -> None:
    change.netfilter().update(op)


def nft_replace(change: Change, op: netlink.NftReplace) -> None:
    change.stack.netfilter.nftables.replace(op.tables, change)


def nft_update(change: Change, op: netlink.NftUpdate) -> None:
    change.stack.netfilter.nftables.update(op, change)


def conntrack_del(change: Change, op: netlink.ConntrackDel) -> None:
    connection_filter(op)  # refuses what cannot be read
    change.connections.append(op)


def sysctl_set(change: Change, op: netlink.SysctlSet) -> None:
    change.stack.settings.check(op.name, op.value)
    change.put(change.stack.settings.values, op.name, op.value)
    change.sysctls = True


OPERATIONS: dict[type[Op], Callable[[Change, Any], None]] = {
    netlink.LinkAdd: link_add,
    netlink.LinkDel: link_del,
    netlink.LinkSet: link_set,
    netlink.AddrAdd: addr_add,
    netlink.AddrDel: addr_del,
    netlink.RouteAdd: route_add,
    netlink.RouteDel: route_del,
    netlink.NeighAdd: neigh_add,
    netlink.NeighDel: neigh_del,
    netlink.FdbAdd: fdb_add,
    netlink.FdbDel: fdb_del,
    netlink.UnderlaySet: underlay_set,
    netlink.UnderlayDel: underlay_del,
    netlink.TablesReplace: tables_replace,
    requests.TablesReplace: tables_replace,
    netlink.ChainsUpdate: chains_update,
    netlink.NftReplace: nft_replace,
    requests.NftReplace: nft_replace,
    netlink.NftUpdate: nft_update,
    netlink.ConntrackDel: conntrack_del,
    netlink.SysctlSet: sysctl_set,
    **ipvs_configure.OPERATIONS,
    netlink.BpfReplace: bpf.replace,
    netlink.BpfMapUpdate: bpf.update,
}
