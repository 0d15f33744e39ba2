"""Flannel's VXLAN backend: what a node's kernel looks like, as a function of the Node objects.

Rules it keeps:

- Pure: the same Nodes give the same operations, all with `replace`, in an order that a fresh datapath accepts.
- A peer is known by its annotations, as Flannel's are (public IP, backend data with the VtepMAC); one that has not published them
  yet, or has no podCIDR, is left out until it has.
- Peers are reached by a route, a permanent neighbour and a permanent fdb entry each; nothing is learned or flooded.
- The iptables rules are Flannel's, in its own chains, as partial tables to be composed with kube-proxy's.

- Each family has its own VTEP (flannel.1, flannel-v6.1), annotations, routes and rules; a node has those of its podCIDRs. On the
  wire of the emulation IPv4 carries both, so both have IPv4's overhead.

Order to read: names, annotations (publish), Peer, desired, tables, net_conf.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from msgspec import Struct

from podwire_cni.macs import mac_of
from podwire_core import agentapi
from podwire_core import netfilter as nf
from podwire_core.constants import (
    CABLE_PORT,
    NODE_GATEWAY6,
    NODE_NETWORK,
    NODE_NETWORK6,
    POD_CIDR,
    POD_CIDR6,
    VXLAN_PORT,
    VXLAN_VNI,
)
from podwire_core.netlink import AddrAdd, AnyOp, FdbAdd, LinkAdd, NeighAdd, RouteAdd, UnderlaySet
from podwire_core.objects import Json, Node, decode

UPLINK, BRIDGE = "eth0", "cni0"
VTEPS = {4: f"flannel.{VXLAN_VNI}", 6: f"flannel-v6.{VXLAN_VNI}"}
FAMILIES = (4, 6)
FULL = {4: 32, 6: 128}
VTEP_MAC = {4: "02:f1", 6: "02:f6"}
BACKEND_DATA = {4: agentapi.FLANNEL_BACKEND_DATA, 6: agentapi.FLANNEL_BACKEND_DATA6}
PUBLIC_IP = {4: agentapi.FLANNEL_PUBLIC_IP, 6: agentapi.FLANNEL_PUBLIC_IP6}
MTU = 1500
OVERHEAD = 50  # outer Ethernet, IPv4, UDP, VXLAN
POD_MTU = MTU - OVERHEAD
MASQUERADE_MARK = 0x4000  # kube-proxy's: what it will masquerade must not be masqueraded twice
_MAC = re.compile("[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


# --- annotations --------------------------------


def publish(node: Json, underlay_host: str, cable_port: int = CABLE_PORT, agent_address: str = "") -> dict[str, str]:
    """The annotations by which a node tells its peers how to reach it; {} while it has no InternalIP."""
    addresses = {family: ip for family in FAMILIES if (ip := internal_ip(decode(Node, node), family))}
    if not addresses:
        return {}
    notes = {agentapi.FLANNEL_BACKEND_TYPE: "vxlan"}
    for family, address in addresses.items():
        backend = {"VNI": VXLAN_VNI, "VtepMAC": mac_of(address, VTEP_MAC[family])}
        notes[BACKEND_DATA[family]] = json.dumps(backend, separators=(",", ":"))
        notes[PUBLIC_IP[family]] = address
    return {
        **notes,
        agentapi.UNDERLAY_HOST: underlay_host,
        agentapi.UNDERLAY_CABLE_PORT: str(cable_port),
        agentapi.UPLINK_MAC: mac_of(next(iter(addresses.values()))),
    } | ({agentapi.AGENT_ADDRESS: agent_address} if agent_address else {})


class End(Struct, frozen=True):
    """Where one family's tunnels to a node end."""

    family: int
    node_ip: str
    pod_cidr: str
    vtep_mac: str

    @property
    def vtep_ip(self) -> str:
        """Flannel gives the VTEP the network's own address: 10.244.2.0."""
        return self.pod_cidr.partition("/")[0]


class Peer(Struct, frozen=True):
    """A node as its annotations describe it."""

    ends: tuple[End, ...]
    uplink_mac: str
    underlay_host: str
    cable_port: int

    @property
    def node_ip(self) -> str:
        """Of the preferred family."""
        return self.ends[0].node_ip

    @classmethod
    def of(cls, obj: Json) -> Peer | None:
        """None if the node has not published, or published what cannot be read."""
        node = decode(Node, obj)
        notes = node.metadata.annotations or {}
        try:
            ends = [
                End(family, notes[PUBLIC_IP[family]], pod_cidr(node, family), json.loads(notes[data])["VtepMAC"])
                for family, data in BACKEND_DATA.items()
                if data in notes
            ]
            peer = cls(
                tuple(ends),
                notes.get(agentapi.UPLINK_MAC, ""),
                notes.get(agentapi.UNDERLAY_HOST, ""),
                int(notes.get(agentapi.UNDERLAY_CABLE_PORT, CABLE_PORT)),
            )
            peer._check()
        except (KeyError, TypeError, ValueError):
            return None
        return peer

    def _check(self) -> None:
        """ValueError or TypeError. A datapath refuses what holds one wrong address as a whole."""
        if not self.ends:
            raise ValueError("no address")
        for end in self.ends:
            if ip_address(end.node_ip).version != end.family or not _MAC.fullmatch(end.vtep_mac):
                raise ValueError("not an address of the family, or not a MAC address")
        if not (_MAC.fullmatch(self.uplink_mac) or not self.underlay_host):
            raise ValueError("not a MAC address")
        if not 0 < self.cable_port < 1 << 16:
            raise ValueError("not a UDP port")


def internal_ip(node: Node, family: int = 4) -> str:
    """The first InternalIP of that family, "" if there is none."""
    return next(iter(internal_ips(node, family)), "")


def internal_ips(node: Node, family: int = 4) -> list[str]:
    given = [a.address for a in node.status.addresses or () if a.type == "InternalIP"]
    return [address for address in given if (":" in address) == (family == 6)]


def pod_cidr(node: Node, family: int = 4) -> str:
    """The podCIDR of that family, "" if there is none."""
    given = node.spec.pod_cidrs or [node.spec.pod_cidr]
    return next((cidr for cidr in given if cidr and (":" in cidr) == (family == 6)), "")


def families(node: Node) -> tuple[int, ...]:
    """Those that the node has pods of."""
    return tuple(family for family in FAMILIES if pod_cidr(node, family))


def has_tunnel(node: Node, family: int) -> bool:
    return bool(pod_cidr(node, family) and internal_ip(node, family))


# --- the node's links, addresses, routes --------------------------------


def desired(
    node: Json,
    nodes: Iterable[Json],
    *,
    node_network: str = NODE_NETWORK,
    gateway: str = "",
    cable: bool = True,
) -> list[AnyOp]:
    """The state of `node`'s kernel among `nodes` (which may contain it). `gateway`: next hop of a default route, none if empty.
    Pods' links and the host link are not part of it: they come with file descriptors, from who made their TAPs."""
    own = decode(Node, node)
    ops = _uplink(own, {4: node_network, 6: NODE_NETWORK6}, gateway)
    ops += _own_network(own)
    peers = [Peer.of(obj) for obj in nodes if obj["metadata"]["name"] != own.metadata.name]
    for peer in sorted((p for p in peers if p is not None), key=lambda p: p.node_ip):
        # A podCIDR given again after a node was deleted is ours before that node is gone: no route may lead away with it.
        own_cidrs = {end.family: pod_cidr(own, end.family) for end in peer.ends if has_tunnel(own, end.family)}
        tunnels = tuple(end.family for end in peer.ends if own_cidrs.get(end.family) not in (None, end.pod_cidr))
        ops += _peer(peer, tunnels, cable)
    return ops


def _uplink(node: Node, node_networks: dict[int, str], gateway: str) -> list[AnyOp]:
    """A family's first address brings the node network's prefix, others are the node's as they stand."""
    by_family = {family: ips for family in FAMILIES if (ips := internal_ips(node, family))}
    if not by_family:
        return []
    mac = mac_of(next(iter(by_family.values()))[0])
    ops: list[AnyOp] = [LinkAdd(UPLINK, "uplink", mac=mac, mtu=MTU, replace=True)]
    for family, addresses in by_family.items():
        lengths = [ip_network(node_networks[family]).prefixlen] + [FULL[family]] * (len(addresses) - 1)
        ops += [AddrAdd(UPLINK, f"{a}/{n}", replace=True) for a, n in zip(addresses, lengths, strict=True)]
        if gateway:
            via = gateway if family == 4 else NODE_GATEWAY6
            ops.append(RouteAdd("default", dev=UPLINK, via=via, src=addresses[0], onlink=True, replace=True))
    return ops


def _own_network(node: Node) -> list[AnyOp]:
    """The bridge with a gateway for each family, and each family's VTEP."""
    ops: list[AnyOp] = []
    tunnels: list[AnyOp] = []
    for family in families(node):
        network, node_ip, vtep = ip_network(pod_cidr(node, family)), internal_ip(node, family), VTEPS[family]
        gateway = str(network[1])
        if not ops:
            ops.append(LinkAdd(BRIDGE, "bridge", mac=mac_of(gateway), mtu=POD_MTU, replace=True))
        ops.append(AddrAdd(BRIDGE, f"{gateway}/{network.prefixlen}", replace=True))
        if has_tunnel(node, family):
            mac, local = mac_of(node_ip, VTEP_MAC[family]), node_ip
            tunnels += [
                LinkAdd(vtep, "vxlan", mac=mac, mtu=POD_MTU, vni=VXLAN_VNI, local=local, dstport=VXLAN_PORT, replace=True),
                AddrAdd(vtep, f"{network[0]}/{FULL[family]}", replace=True),
            ]
    return [*ops, *tunnels]


def _peer(peer: Peer, tunnels: tuple[int, ...], cable: bool) -> list[AnyOp]:
    ops: list[AnyOp] = []
    for end in peer.ends:
        vtep = VTEPS[end.family]
        if cable and peer.underlay_host:
            ops.append(UnderlaySet(end.node_ip, peer.uplink_mac, peer.underlay_host, peer.cable_port))
        if end.family in tunnels and end.pod_cidr:
            ops += [
                NeighAdd(end.vtep_ip, end.vtep_mac, vtep, replace=True),
                FdbAdd(end.vtep_mac, vtep, dst=end.node_ip, replace=True),
                RouteAdd(end.pod_cidr, dev=vtep, via=end.vtep_ip, onlink=True, proto="boot", replace=True),
            ]
    return ops


# --- its iptables rules --------------------------------


def tables(node: Json, family: int = 4) -> tuple[nf.Table, ...]:
    """Partial tables: pods may talk to each other, and to the outside as their node; pod to pod keeps its source."""
    own = pod_cidr(decode(Node, node), family)
    if not own:
        return ()
    cluster_cidr = POD_CIDR if family == 4 else POD_CIDR6
    masq, forward = nf.Comment("flanneld masq"), nf.Comment("flanneld forward")
    postrouting = nf.Chain("POSTROUTING", (nf.Rule((masq,), nf.Jump("FLANNEL-POSTRTG")),), "ACCEPT")
    forwarding = nf.Chain("FORWARD", (nf.Rule((forward,), nf.Jump("FLANNEL-FWD")),), "ACCEPT")
    accept = nf.Verdict("ACCEPT")
    allow = nf.Chain(
        "FLANNEL-FWD",
        (
            nf.Rule((nf.Source(cluster_cidr), forward), accept),
            nf.Rule((nf.Destination(cluster_cidr), forward), accept),
        ),
    )
    return (
        nf.Table("nat", family, (postrouting, nf.Chain("FLANNEL-POSTRTG", _masquerade_rules(own, cluster_cidr, masq)))),
        nf.Table("filter", family, (forwarding, allow)),
    )


def _masquerade_rules(own: str, cluster: str, comment: nf.Comment) -> tuple[nf.Rule, ...]:
    stop, masquerade = nf.Verdict("RETURN"), nf.Masquerade(random_fully=True)
    outside = nf.Source(cluster, invert=True)

    def rule(source: nf.Source, destination: nf.Destination, target: nf.AnyTarget) -> nf.Rule:
        return nf.Rule((source, destination, comment), target)

    return (
        nf.Rule((nf.Mark(MASQUERADE_MARK, MASQUERADE_MARK), comment), stop),
        rule(nf.Source(own), nf.Destination(cluster), stop),
        rule(nf.Source(cluster), nf.Destination(own), stop),
        rule(outside, nf.Destination(own), stop),  # what comes in for a pod of this node keeps its source
        rule(nf.Source(cluster), nf.Destination("ff00::/8" if ":" in own else "224.0.0.0/4", invert=True), masquerade),
        rule(outside, nf.Destination(cluster), masquerade),
    )


# --- the CNI configuration it writes --------------------------------


def net_conf(node: Json, datapath_socket: str, data_dir: str) -> Json:
    """The network configuration list for net.d (10-flannel.conflist); needs a podCIDR."""
    own = decode(Node, node)
    ranges = [[{"subnet": pod_cidr(own, family)}] for family in families(own)]
    routes = [{"dst": "0.0.0.0/0" if family == 4 else "::/0"} for family in families(own)]
    ipam = {"type": "host-local", "ranges": ranges, "dataDir": data_dir}
    plugin = {
        "type": "podwire",
        "bridge": BRIDGE,
        "mtu": POD_MTU,
        "hairpinMode": True,
        "isDefaultGateway": True,
        "dataplane": datapath_socket,
        "ipam": ipam | {"routes": routes},
    }
    return {"cniVersion": "1.1.0", "name": "cbr0", "plugins": [plugin]}
