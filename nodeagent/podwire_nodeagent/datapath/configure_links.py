"""Netlink operations on links and addresses, and the routes that addresses make (Linux' devinet.c and fib_frontend.c)."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from zlib import crc32

from podwire_core import netlink
from podwire_core.netlink import NetlinkError
from podwire_nodeagent.datapath.change import Change
from podwire_nodeagent.datapath.fib import Route, masked
from podwire_nodeagent.datapath.links import FD_KINDS, KINDS, Link
from podwire_nodeagent.datapath.wire import address_bytes, mac_bytes

CONNECTED6 = 256  # metric of the route that an IPv6 address makes


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
    if op.kind == "vxlan" and any(link is not old and link.kind == "vxlan" and same_tunnel(link, op) for link in links):
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


def same_tunnel(link: Link, op: netlink.LinkAdd) -> bool:
    """Two vxlan links may share a VNI if their tunnels' ends are of two families, as Flannel's two devices."""
    return link.vni == op.vni and len(link.local) == (len(address_bytes(op.local)) if op.local else 0)


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
    """Whether an earlier address has the same subnet. (IPv6 knows no such order: it matters for the subnet's route alone.)"""
    address, plen = addresses[index]
    return any(p == plen and len(a) == len(address) and masked(a, p) == masked(address, p) for a, p in addresses[:index])


def addr_add(change: Change, op: netlink.AddrAdd) -> None:
    link = change.link(op.dev)
    address, plen = interface(op.address)
    if (address, plen) in link.addresses:
        if op.replace:
            return
        raise NetlinkError("EEXIST", f"address {op.address} exists on {op.dev}")
    if (address[0] >= 224 and len(address) == 4) or address[0] == 0xFF:
        raise NetlinkError("EINVAL", f"{op.address} is no unicast address")
    addresses = [*link.addresses, (address, plen)]
    change.set_addresses(link, addresses)
    primary = address if not is_secondary(addresses, len(addresses) - 1) else first_of(addresses, address, plen)
    full = 8 * len(address)
    if not any(r.dev is link and r.type == "local" for r in change.stack.fib.local.same_net(address, full)):
        src = primary if full == 32 else b""
        change.add_route(Route(address, full, link, src=src, proto="kernel", type="local", table="local"))
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
        if full == 128:
            return [Route(network, plen, link, proto="kernel", metric=CONNECTED6)]
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
    if len(address) == 16:
        forget_subnet6(change, link, at)
    elif not is_secondary(link.addresses, at):  # its secondaries go with it (promote_secondaries=0)
        net = masked(address, plen)
        gone += [(a, p) for a, p in link.addresses[at + 1 :] if p == plen and len(a) == len(address) and masked(a, p) == net]
        for route in change.stack.fib.of_link(link):
            if route.proto == "kernel" and route.src == address and route.type != "local":
                change.remove_route(route)
    left = [item for item in link.addresses if item not in gone]
    change.set_addresses(link, left)
    for old, _ in gone:
        remove_local(change, link, old, left)


def forget_subnet6(change: Change, link: Link, at: int) -> None:
    """The connected route of an IPv6 address, unless another one has the same subnet."""
    address, plen = link.addresses[at]
    net = masked(address, plen)
    others = [*link.addresses[:at], *link.addresses[at + 1 :]]
    if not any(p == plen and len(a) == 16 and masked(a, p) == net for a, p in others):
        for route in list(change.stack.fib.main.same_net(net, plen)):
            if route.dev is link and route.proto == "kernel":
                change.remove_route(route)


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
