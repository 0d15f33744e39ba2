"""Applying netlink operations: one transaction, all or none, with the kernel's errno names.

How: each operation is checked against the tables as the operations before it left them, then done by primitives that know
their own inverse; when an operation is refused, the inverses run backwards. Netfilter's tables are planned in a transaction
of their own, whose commit cannot fail, and connections are deleted last.

Order to read: Change (the primitives), then the operations in netlink.py's order, then `apply`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from zlib import crc32

from podwire_core import netlink
from podwire_core.netlink import NetlinkError, Op
from podwire_nodeagent.datapath.bridge import FdbEntry
from podwire_nodeagent.datapath.fib import Route, masked
from podwire_nodeagent.datapath.links import FD_KINDS, KINDS, Link, Links
from podwire_nodeagent.datapath.netfilter.listing import connection_filter
from podwire_nodeagent.datapath.wire import ZERO_MAC, address_bytes, mac_bytes

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.neigh import Neighbour
    from podwire_nodeagent.datapath.netfilter.ruleset import Transaction
    from podwire_nodeagent.datapath.stack import Stack

LINK_TYPES = ("blackhole", "unreachable", "prohibit")


class Change:
    """A transaction in the making."""

    def __init__(self, stack: Stack, now: float) -> None:
        self.stack, self.now = stack, now
        self._undo: list[Callable[[], Any]] = []
        self._netfilter: Transaction | None = None
        self.connections: list[netlink.ConntrackDel] = []
        self.sysctls = False

    # --- primitives, each with its inverse

    def set(self, target: Any, name: str, value: Any) -> None:
        old = getattr(target, name)
        setattr(target, name, value)
        self._undo.append(lambda: setattr(target, name, old))

    def put(self, mapping: dict[Any, Any], key: Any, value: Any) -> None:
        """Set a key of a dict; None removes it."""
        old = mapping.pop(key, None)
        if value is not None:
            mapping[key] = value

        def inverse() -> None:
            mapping.pop(key, None)
            if old is not None:
                mapping[key] = old

        self._undo.append(inverse)

    def add_link(self, link: Link) -> None:
        self.stack.links.insert(link)
        self._undo.append(lambda: self.stack.links.remove(link))

    def remove_link(self, link: Link) -> None:
        self.stack.links.remove(link)
        self._undo.append(lambda: self.stack.links.insert(link))

    def enslave(self, link: Link, master: Link | None) -> None:
        old = link.master
        Links.enslave(link, master)
        self._undo.append(lambda: Links.enslave(link, old))

    def add_route(self, route: Route) -> None:
        self.stack.fib.insert(route)
        self._undo.append(lambda: self.stack.fib.remove(route))

    def remove_route(self, route: Route) -> None:
        at = self.stack.fib.remove(route)
        self._undo.append(lambda: self.stack.fib.insert(route, at))

    def set_addresses(self, link: Link, addresses: list[tuple[bytes, int]]) -> None:
        self.set(link, "addresses", addresses)

    def remove_neighbour(self, entry: Neighbour) -> None:
        self.stack.neighbours.remove(entry.link, entry.ip)
        self._undo.append(lambda: self.stack.neighbours.put(entry))

    def add_neighbour(self, link: Link, ip: bytes, mac: bytes) -> None:
        old = self.stack.neighbours.remove(link, ip)
        self.stack.neighbours.insert_permanent(link, ip, mac, self.now)

        def inverse() -> None:
            self.stack.neighbours.remove(link, ip)
            if old is not None:
                self.stack.neighbours.put(old)

        self._undo.append(inverse)

    def put_fdb(self, link: Link, entry: FdbEntry) -> None:
        fdb = link.fdb
        assert fdb is not None
        old = fdb.remove(entry.mac)
        fdb.insert(entry)
        self._undo.append(lambda: fdb.insert(old) if old else fdb.remove(entry.mac))

    def remove_fdb(self, link: Link, mac: bytes) -> None:
        fdb = link.fdb
        assert fdb is not None
        old = fdb.remove(mac)
        if old is not None:
            self._undo.append(lambda: fdb.insert(old))

    def netfilter(self) -> Transaction:
        if self._netfilter is None:
            self._netfilter = self.stack.netfilter.begin()
        return self._netfilter

    # --- the end of it

    def rollback(self) -> None:
        for inverse in reversed(self._undo):
            inverse()
        self.stack.settings.reload()

    def commit(self) -> None:
        if self._netfilter is not None:
            self._netfilter.commit()
        if self.sysctls:
            self.stack.settings.reload()
            self.stack.netfilter.reconfigure()
        for which in self.connections:
            self.stack.netfilter.delete_conntrack(which, self.now)

    def link(self, name: str) -> Link:
        found = self.stack.links.get(name)
        if found is None:
            raise NetlinkError("ENODEV", f"cannot find device {name!r}")
        return found


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


# --- links --------------------------------


def link_add(change: Change, op: netlink.LinkAdd) -> None:
    if not 0 < len(op.name) <= 15 or any(c in "/:" or c.isspace() for c in op.name) or op.name in (".", ".."):
        raise NetlinkError("EINVAL", f"not a link name: {op.name!r}")
    if op.kind not in KINDS or op.kind == "loopback":
        raise NetlinkError("EOPNOTSUPP", f"unknown link kind {op.kind!r}")
    if not 68 <= op.mtu <= 65535:
        raise NetlinkError("EINVAL", f"mtu {op.mtu} is not within 68 and 65535")
    links = change.stack.links
    old = links.get(op.name)
    if old is not None and (not op.replace or old.kind != op.kind):
        raise NetlinkError("EEXIST", f"link {op.name} exists")
    if op.kind in ("host", "uplink") and any(link.kind == op.kind and link is not old for link in links):
        raise NetlinkError("EEXIST", f"there is a link of kind {op.kind} already")
    if op.kind == "vxlan" and any(link is not old and link.kind == "vxlan" and link.vni == op.vni for link in links):
        raise NetlinkError("EEXIST", f"there is a vxlan link with vni {op.vni} already")
    mac = mac_bytes(op.mac) if op.mac else old.mac if old else made_up_mac(change.stack.node, op.name)
    link = old or Link(links.new_index(), op.name, op.kind, mac, op.mtu)
    if old is None:
        change.add_link(link)
        link.attached = op.fd or op.kind not in FD_KINDS
    elif op.fd:
        change.set(link, "attached", True)
    change.set(link, "mac", mac)
    update_link(change, link, op)


def update_link(change: Change, link: Link, op: netlink.LinkAdd) -> None:
    """What may change in place."""
    if not 0 <= op.vni < 1 << 24:
        raise NetlinkError("EINVAL", f"vni {op.vni} is not within 24 bits")
    for name in ("mtu", "hairpin", "vni", "dstport", "learning", "alias"):
        change.set(link, name, getattr(op, name))
    change.set(link, "peer_mac", mac_bytes(op.peer_mac) if op.peer_mac else b"")
    change.set(link, "local", address_bytes(op.local) if op.local else b"")
    set_master(change, link, op.master)
    set_up(change, link, op.up)


def made_up_mac(node: str, name: str) -> bytes:
    """Locally administered, the same after a restart."""
    return b"\x02\x70" + crc32(f"{node}/{name}".encode()).to_bytes(4, "big")


def set_master(change: Change, link: Link, name: str) -> None:
    master = change.link(name) if name else None
    if master is not None and (master.kind != "bridge" or link.kind in ("bridge", "host", "loopback")):
        raise NetlinkError("EINVAL", f"{link.name} cannot be a port of {name}")
    if master is link.master:
        return
    if link.master is not None:
        forget_port(change, link)
    change.enslave(link, master)


def forget_port(change: Change, port: Link) -> None:
    bridge = port.master
    assert bridge is not None
    assert bridge.fdb is not None
    for entry in [e for e in bridge.fdb.entries.values() if e.port is port]:
        change.remove_fdb(bridge, entry.mac)


def set_up(change: Change, link: Link, up: bool) -> None:
    """Down takes the routes of the link and its neighbours away; up brings the connected routes back."""
    if up == link.up:
        return
    change.set(link, "up", up)
    if up:
        for index, (address, plen) in enumerate(link.addresses):
            if not is_secondary(link.addresses, index):
                add_connected(change, link, address, plen)
        return
    for route in change.stack.fib.of_link(link):
        if route.type != "local":
            change.remove_route(route)
    for entry in change.stack.neighbours.of_link(link):
        change.remove_neighbour(entry)


def link_del(change: Change, op: netlink.LinkDel) -> None:
    if op.missing_ok and change.stack.links.get(op.name) is None:
        return
    link = change.link(op.name)
    if link.kind == "loopback":
        raise NetlinkError("EOPNOTSUPP", "lo cannot be deleted")
    for port in list(link.ports):
        change.enslave(port, None)
    if link.master is not None:
        forget_port(change, link)
        change.enslave(link, None)
    for route in change.stack.fib.of_link(link):
        change.remove_route(route)
    for address, _ in link.addresses:
        remove_routes_from(change, address)
    for entry in change.stack.neighbours.of_link(link):
        change.remove_neighbour(entry)
    change.remove_link(link)


def link_set(change: Change, op: netlink.LinkSet) -> None:
    link = change.link(op.name)
    if op.mtu is not None:
        if not 68 <= op.mtu <= 65535:
            raise NetlinkError("EINVAL", f"mtu {op.mtu} is not within 68 and 65535")
        change.set(link, "mtu", op.mtu)
    if op.hairpin is not None:
        change.set(link, "hairpin", op.hairpin)
    if op.master is not None:
        set_master(change, link, op.master)
    if op.up is not None:
        set_up(change, link, op.up)


# --- addresses --------------------------------


def interface(text: str) -> tuple[bytes, int]:
    parsed = ipaddress.ip_interface(text)
    return parsed.ip.packed, parsed.network.prefixlen


def is_secondary(addresses: Sequence[tuple[bytes, int]], index: int) -> bool:
    """Whether an earlier address has the same subnet."""
    address, plen = addresses[index]
    return any(p == plen and len(a) == len(address) and masked(a, p) == masked(address, p) for a, p in addresses[:index])


def addr_add(change: Change, op: netlink.AddrAdd) -> None:
    link = change.link(op.dev)
    address, plen = interface(op.address)
    if (address, plen) in link.addresses:
        if op.replace:
            return
        raise NetlinkError("EEXIST", f"address {op.address} exists on {op.dev}")
    if address[0] >= 224 and len(address) == 4:
        raise NetlinkError("EINVAL", f"{op.address} is no unicast address")
    addresses = [*link.addresses, (address, plen)]
    change.set_addresses(link, addresses)
    primary = address if not is_secondary(addresses, len(addresses) - 1) else first_of(addresses, address, plen)
    full = 8 * len(address)
    if not any(r.dev is link and r.type == "local" for r in change.stack.fib.local.same_net(address, full)):
        change.add_route(Route(address, full, link, src=primary, proto="kernel", type="local", table="local"))
    if link.up and primary == address:
        add_connected(change, link, address, plen)


def first_of(addresses: Sequence[tuple[bytes, int]], address: bytes, plen: int) -> bytes:
    return next(a for a, p in addresses if p == plen and len(a) == len(address) and masked(a, p) == masked(address, p))


def connected(link: Link, address: bytes, plen: int) -> list[Route]:
    """The routes that a primary address makes besides its own."""
    full = 8 * len(address)
    network = masked(address, plen)
    routes = []
    if plen < full and any(network):
        routes.append(Route(network, plen, link, src=address, proto="kernel"))
        if full == 32 and plen < 31:
            last = (int.from_bytes(network, "big") | (1 << 32 - plen) - 1).to_bytes(4, "big")
            routes.append(Route(last, 32, link, src=address, proto="kernel", type="broadcast", scope="link", table="local"))
    return routes


def add_connected(change: Change, link: Link, address: bytes, plen: int) -> None:
    for route in connected(link, address, plen):
        change.add_route(route)


def addr_del(change: Change, op: netlink.AddrDel) -> None:
    if op.missing_ok and change.stack.links.get(op.dev) is None:
        return
    link = change.link(op.dev)
    address, plen = interface(op.address)
    if (address, plen) not in link.addresses:
        if op.missing_ok:
            return
        raise NetlinkError("EADDRNOTAVAIL", f"{op.dev} has no address {op.address}")
    at = link.addresses.index((address, plen))
    gone = [(address, plen)]
    if not is_secondary(link.addresses, at):  # its secondaries go with it (promote_secondaries=0)
        net = masked(address, plen)
        gone += [(a, p) for a, p in link.addresses[at + 1 :] if p == plen and len(a) == len(address) and masked(a, p) == net]
        for route in change.stack.fib.of_link(link):
            if route.proto == "kernel" and route.src == address and route.type != "local":
                change.remove_route(route)
    left = [item for item in link.addresses if item not in gone]
    change.set_addresses(link, left)
    for old, _ in gone:
        remove_local(change, link, old, left)


def remove_local(change: Change, link: Link, address: bytes, left: Sequence[tuple[bytes, int]]) -> None:
    if any(a == address for a, _ in left):
        return
    for route in list(change.stack.fib.local.same_net(address, 8 * len(address))):
        if route.dev is link and route.type == "local":
            change.remove_route(route)
    remove_routes_from(change, address)


def remove_routes_from(change: Change, address: bytes) -> None:
    """Routes whose preferred source is an address that no link has any more."""
    fib = change.stack.fib
    if not any(r.type == "local" for r in fib.local.same_net(address, 8 * len(address))):
        for route in [r for r in fib if r.src == address]:
            change.remove_route(route)


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
    fib.check_nexthop(route)
    same = [other for other in fib.table(table).same_net(dst, plen) if other.metric == op.metric]
    if same and not op.replace:
        raise NetlinkError("EEXIST", f"route {op.dst} exists")
    if same:
        change.remove_route(same[0])
    change.add_route(route)


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
    netlink.ChainsUpdate: chains_update,
    netlink.ConntrackDel: conntrack_del,
    netlink.SysctlSet: sysctl_set,
}
