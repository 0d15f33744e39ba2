"""Operations on ipsets and virtual services, and host addresses in bulk: parts of a transaction (datapath/configure.py), each
undone by its primitives when a later operation is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from podwire_core import ipset as core_ipset
from podwire_core import ipvs as core_ipvs
from podwire_core import netfilter as nf
from podwire_core import netlink
from podwire_core.collector import paused
from podwire_core.netlink import NetlinkError, Op
from podwire_nodeagent.datapath.fib import Route
from podwire_nodeagent.datapath.ipvs.schedulers import SCHEDULERS
from podwire_nodeagent.datapath.ipvs.servers import NUMBERS, Key, Server, Service
from podwire_nodeagent.datapath.netfilter.connection import DST_NAT
from podwire_nodeagent.datapath.netfilter.ipsets import Elements, LiveSet, lengths_of
from podwire_nodeagent.datapath.wire import address_bytes, address_text

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.change import Change
    from podwire_nodeagent.datapath.fib import Fib
    from podwire_nodeagent.datapath.links import Link

# --- host addresses --------------------------------


def addrs_update(change: Change, op: netlink.AddrsUpdate) -> None:
    if op.missing_ok and change.stack.links.get(op.dev) is None:
        return
    link = change.link(op.dev)
    fib = change.stack.fib
    add = dict.fromkeys(map(address_bytes, op.add))
    if op.replace:
        gone = {address for address, plen in link.addresses if plen == 8 * len(address)} - add.keys()
    else:
        gone = {address for address in map(address_bytes, op.delete) if has_host_address(fib, link, address)}
    fresh = [address for address in add if not has_host_address(fib, link, address)]
    for address in fresh:
        if address[0] >= 224 and len(address) == 4:
            raise NetlinkError("EINVAL", f"{address_text(address)} is no unicast address")
    kept = [item for item in link.addresses if item[0] not in gone or item[1] != 8 * len(item[0])] if gone else link.addresses
    change.set_addresses(link, [*kept, *((address, 8 * len(address)) for address in fresh)])
    for address in gone:
        for route in [r for r in fib.local.same_net(address, 8 * len(address)) if r.dev is link]:
            change.remove_route(route)
    for address in fresh:
        change.add_route(Route(address, 8 * len(address), link, src=address, proto="kernel", type="local", table="local"))
    if gone:  # routes whose preferred source nobody has any more
        for route in [r for r in fib.main if r.src in gone and not fib.is_local(r.src)]:
            change.remove_route(route)


def has_host_address(fib: Fib, link: Link, address: bytes) -> bool:
    """By its route: a search that doesn't grow with the addresses. An address with a shorter prefix counts, it is local too."""
    return any(r.dev is link and r.type == "local" for r in fib.local.same_net(address, 8 * len(address)))


# --- ipsets --------------------------------


def ipset_set(change: Change, op: netlink.IpsetSet) -> None:
    given, sets = op.set, change.stack.netfilter.ipsets
    core_ipset.check(given)
    live = sets.get(given.name)
    if live is None:
        live = LiveSet(given)
        change.put(sets, given.name, live)
    elif (live.type, live.family) != (given.type, given.family):
        raise NetlinkError("EINVAL", f"set {given.name} is there, of type {live.type}")
    elements: Elements = dict(live.key(element) for element in given.elements)
    check_size(live, len(elements), given.maxelem)
    change.set(live, "maxelem", given.maxelem)
    change.set(live, "elements", elements)
    change.set(live, "lengths", lengths_of(live, elements))


def ipset_update(change: Change, op: netlink.IpsetUpdate) -> None:
    live = change.stack.netfilter.ipsets.get(op.name)
    if live is None:
        raise NetlinkError("ENOENT", f"there is no set {op.name}")
    networks = bool(live.lengths) or core_ipset.TYPES[live.type][-1] == "net"
    for element in op.delete:
        key, _ = live.key(element)
        if key in live.elements:
            change.put(live.elements, key, None)
    for element in op.add:
        key, text = live.key(element)
        if key not in live.elements:
            change.put(live.elements, key, text)
    check_size(live, len(live.elements), live.maxelem)
    if networks:
        change.set(live, "lengths", lengths_of(live, live.elements))


def check_size(live: LiveSet, size: int, maximum: int) -> None:
    if size > maximum and not live.type.startswith("bitmap:"):
        raise NetlinkError("EMSGSIZE", f"set {live.name} is full: {size} elements, maxelem {maximum}")


def ipset_destroy(change: Change, op: netlink.IpsetDestroy) -> None:
    sets = change.stack.netfilter.ipsets
    if not op.name:
        change.afterwards.append(lambda: destroy_unused(change))
        return
    if op.name not in sets:
        if op.missing_ok:
            return
        raise NetlinkError("ENOENT", f"there is no set {op.name}")
    if op.name in used_sets(change):
        raise NetlinkError("EBUSY", f"set {op.name} is in use by a rule")
    change.put(sets, op.name, None)


def destroy_unused(change: Change) -> None:
    """The tables are what they will be."""
    sets = change.stack.netfilter.ipsets
    if sets:
        used = used_sets(change)
        for name in [name for name in sets if name not in used]:
            del sets[name]


def used_sets(change: Change) -> set[str]:
    tables = change.stack.netfilter.ruleset.tables.values()
    chains = (chain.body.rules for table in tables for chain in table.values())
    return {match.name for rules in chains for rule in rules for match in rule.source.matches if isinstance(match, nf.Set)}


# --- virtual services --------------------------------


def key_of(protocol: str, address: str, port: int) -> Key:
    if protocol not in NUMBERS:
        raise NetlinkError("EINVAL", f"unknown protocol {protocol!r}")
    if not 0 < port < 65536:
        raise NetlinkError("EINVAL", f"port {port} is not within 1 and 65535")
    return NUMBERS[protocol], address_bytes(address), port


def ipvs_set(change: Change, op: netlink.IpvsSet) -> None:
    set_service(change, op.service, op.graceful)


def set_service(change: Change, value: core_ipvs.VirtualService, graceful: bool) -> None:
    key, services = key_of(*value.key), change.stack.netfilter.ipvs.services
    if value.scheduler not in SCHEDULERS:
        raise NetlinkError("ENOENT", f"there is no scheduler {value.scheduler!r}")
    if unknown := set(value.flags) - set(core_ipvs.FLAGS):
        raise NetlinkError("EINVAL", f"unknown flag {min(unknown)!r}")
    service = services.get(key)
    if service is None:
        service = Service(key, value, SCHEDULERS[value.scheduler](value.flags))
        change.put(services, key, service)
    elif (service.value.scheduler, service.value.flags) != (value.scheduler, value.flags):
        change.set(service, "scheduler", SCHEDULERS[value.scheduler](value.flags))
    change.set(service, "value", value)
    set_servers(change, service, value.servers, graceful and value.protocol == "tcp")


def set_servers(change: Change, service: Service, given: tuple[core_ipvs.RealServer, ...], graceful: bool) -> None:
    """New ones stand before the others, as in Linux. Those not given terminate or go."""
    wanted = {(address_bytes(server.address), server.port): server for server in given}
    change.undo(lambda: service.scheduler.update(service.servers))
    kept: list[Server] = []
    for server in service.servers:
        value = wanted.pop((server.address, server.port), None)
        if value is not None:
            give_weight(change, server, value.weight)
            kept.append(server)
        elif graceful and not server.idle:
            if not server.terminating:
                change.set(server, "terminating", True)
                change.set(server, "weight", 0)
                change.afterwards.append(partial(terminate, change, service, server))
            kept.append(server)
        else:
            change.set(server, "available", False)
    fresh = [Server(address, port, check_weight(value.weight)) for (address, port), value in wanted.items()]
    change.set(service, "servers", [*reversed(fresh), *kept])
    service.scheduler.update(service.servers)


def terminate(change: Change, service: Service, server: Server) -> None:
    change.stack.netfilter.ipvs.terminating.append((service, server))


def give_weight(change: Change, server: Server, weight: int) -> None:
    change.set(server, "weight", check_weight(weight))
    change.set(server, "terminating", False)


def check_weight(weight: int) -> int:
    if not 0 <= weight <= core_ipvs.MAX_WEIGHT:
        raise NetlinkError("EINVAL", f"weight {weight} is not within 0 and {core_ipvs.MAX_WEIGHT}")
    return weight


def del_service(change: Change, service: Service) -> None:
    for server in service.servers:
        change.set(server, "available", False)
    change.put(change.stack.netfilter.ipvs.services, service.key, None)


def ipvs_del(change: Change, op: netlink.IpvsDel) -> None:
    service = change.stack.netfilter.ipvs.services.get(key_of(op.protocol, op.address, op.port))
    if service is not None:
        del_service(change, service)
    elif not op.missing_ok:
        raise NetlinkError("ESRCH", f"no such service: {op.protocol} {op.address}:{op.port}")


def ipvs_replace(change: Change, op: netlink.IpvsReplace) -> None:
    kept = {key_of(*value.key) for value in op.services}
    if len(kept) != len(op.services):
        raise NetlinkError("EEXIST", "a virtual service is given twice")
    for service in [service for key, service in change.stack.netfilter.ipvs.services.items() if key not in kept]:
        del_service(change, service)
    for value in op.services:
        set_service(change, value, op.graceful)
    if op.hand_over:
        change.afterwards.append(partial(hand_over, change))


def hand_over(change: Change) -> None:
    """What ip_vs did to packets of connections whose service is gone, NAT does: their answers' keys are the same."""
    services = change.stack.netfilter.ipvs.services
    for connection in change.stack.netfilter.conntrack.connections(change.now):
        served = connection.served
        if served is not None and services.get(served.service.key) is not served.service:
            served.end()
            connection.served = None
            connection.status |= DST_NAT
            connection.cause = served.service.value.origin
            connection.epoch += 1


def service_of(change: Change, op: netlink.IpvsServerSet | netlink.IpvsServerDel) -> Service:
    service = change.stack.netfilter.ipvs.services.get(key_of(op.protocol, op.address, op.port))
    if service is None:
        raise NetlinkError("ESRCH", f"no such service: {op.protocol} {op.address}:{op.port}")
    return service


def present(service: Service) -> dict[tuple[str, int], core_ipvs.RealServer]:
    """As values, the oldest first."""
    return {
        (address_text(s.address), s.port): core_ipvs.RealServer(address_text(s.address), s.port, s.weight)
        for s in reversed(service.servers)
    }


def ipvs_server_set(change: Change, op: netlink.IpvsServerSet) -> None:
    service, server = service_of(change, op), op.server
    servers = present(service)
    if (server.address, server.port) in servers and not op.replace:
        raise NetlinkError("EEXIST", f"destination {server.address}:{server.port} already exists")
    servers[server.address, server.port] = server
    set_servers(change, service, tuple(servers.values()), False)


def ipvs_server_del(change: Change, op: netlink.IpvsServerDel) -> None:
    service, server = service_of(change, op), op.server
    servers = present(service)
    if servers.pop((server.address, server.port), None) is None:
        if op.missing_ok:
            return
        raise NetlinkError("ENOENT", f"no such destination: {server.address}:{server.port}")
    set_servers(change, service, tuple(servers.values()), False)


def bulk(operation: Callable[[Change, Any], None]) -> Callable[[Change, Any], None]:
    """For operations that may bring tens of thousands of things at once."""

    def run(change: Change, op: Op) -> None:
        with paused():
            operation(change, op)

    return run


OPERATIONS: dict[type[Op], Callable[[Change, Any], None]] = {
    netlink.AddrsUpdate: bulk(addrs_update),
    netlink.IpsetSet: bulk(ipset_set),
    netlink.IpsetUpdate: ipset_update,
    netlink.IpsetDestroy: ipset_destroy,
    netlink.IpvsSet: ipvs_set,
    netlink.IpvsDel: ipvs_del,
    netlink.IpvsReplace: bulk(ipvs_replace),
    netlink.IpvsServerSet: ipvs_server_set,
    netlink.IpvsServerDel: ipvs_server_del,
}
