"""What the edge's kernel looks like, as a function of the nodes and of who serves which address. Pure.

Rules it keeps: eth0 is the cable, eth1 leads outside; whatever is not known goes outside, but private addresses and the pool's
unassigned ones do not. An address that several nodes serve has a next hop each, chosen by a hash of addresses and ports. What
comes from a node and would go back to a node is refused: it is for a Service address at a port that no Service has, and the
two would pass it to and fro until its TTL ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_network

from podwire_cni.backends.flannel import Peer
from podwire_cni.macs import mac_of
from podwire_core import netfilter as nf
from podwire_core.constants import (
    LOAD_BALANCER_POOL,
    NODE_GATEWAY,
    NODE_NETWORK,
    OUTSIDE_CLIENT,
    OUTSIDE_GATEWAY,
    OUTSIDE_NETWORK,
)
from podwire_core.netlink import AddrAdd, AnyOp, LinkAdd, NextHop, RouteAdd, SysctlSet, TablesReplace, UnderlaySet
from podwire_core.objects import Json

UPLINK, OUTSIDE = "eth0", "eth1"
UNROUTED = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", LOAD_BALANCER_POOL)
SYSCTLS = (SysctlSet("net.ipv4.ip_forward", "1"), SysctlSet("net.ipv4.fib_multipath_hash_policy", "1"))


def outside_link(fd: bool = False) -> LinkAdd:
    """The router's end of the outside; the TAP's fd goes with it when it is made."""
    return LinkAdd(
        OUTSIDE, "tap", mac=mac_of(OUTSIDE_GATEWAY), peer_mac=mac_of(OUTSIDE_CLIENT), fd=fd, replace=True, alias="outside"
    )


def desired(nodes: Iterable[Json], announced: Mapping[str, tuple[str, ...]], address: str = NODE_GATEWAY) -> list[AnyOp]:
    """Links, addresses, routes and peers, for network.reconcile. Of IPv4 alone: the world outside has no IPv6."""
    length = ip_network(OUTSIDE_NETWORK).prefixlen
    ops: list[AnyOp] = [
        LinkAdd(UPLINK, "uplink", mac=mac_of(address), replace=True),
        AddrAdd(UPLINK, f"{address}/{ip_network(NODE_NETWORK).prefixlen}", replace=True),
        outside_link(),
        AddrAdd(OUTSIDE, f"{OUTSIDE_GATEWAY}/{length}", replace=True),
        RouteAdd("default", dev=OUTSIDE, via=OUTSIDE_CLIENT, replace=True),
        *(RouteAdd(network, type="unreachable", replace=True) for network in UNROUTED),
    ]
    known = {node["metadata"]["name"]: peer for node in nodes if (peer := Peer.of(node)) is not None}
    peers = {name: peer for name, peer in known.items() if ":" not in peer.node_ip}
    ops += [
        UnderlaySet(peer.node_ip, peer.uplink_mac, peer.underlay_host, peer.cable_port)
        for peer in sorted(peers.values(), key=lambda peer: peer.node_ip)
        if peer.underlay_host
    ]
    for service_ip in sorted(ip for ip in announced if ":" not in ip):
        hops = sorted(peers[name].node_ip for name in announced[service_ip] if name in peers)
        ops += _route(service_ip, hops)
    return ops


def _route(service_ip: str, hops: list[str]) -> list[AnyOp]:
    dst = f"{service_ip}/32"
    if not hops:
        return [RouteAdd(dst, type="unreachable", replace=True)]
    if len(hops) == 1:
        return [RouteAdd(dst, dev=UPLINK, via=hops[0], replace=True)]
    return [RouteAdd(dst, nexthops=tuple(NextHop(hop, UPLINK) for hop in hops), replace=True)]


def rules() -> TablesReplace:
    """See the last rule at the head of the file."""
    back = nf.Rule(
        (nf.InInterface(UPLINK), nf.OutInterface(UPLINK), nf.Comment("no Service has this port")),
        nf.Reject("icmp-port-unreachable"),
    )
    chains = (nf.Chain("INPUT", (), "ACCEPT"), nf.Chain("FORWARD", (back,), "ACCEPT"), nf.Chain("OUTPUT", (), "ACCEPT"))
    return TablesReplace((nf.Table("filter", 4, chains),))
