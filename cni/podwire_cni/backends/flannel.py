"""Flannel's VXLAN backend: what a node's kernel looks like, as a function of the Node objects.

Rules it keeps:

- Pure: the same Nodes give the same operations, all with `replace`, in an order that a fresh datapath accepts.
- A peer is known by its annotations, as Flannel's are (public IP, backend data with the VtepMAC); one that has not published them
  yet, or has no podCIDR, is left out until it has.
- Peers are reached by a route, a permanent neighbour and a permanent fdb entry each; nothing is learned or flooded.
- The iptables rules are Flannel's, in its own chains, as partial tables to be composed with kube-proxy's.

IPv4; a node's IPv6 podCIDR is left alone. Order to read: names, annotations (publish), Peer, desired, tables, net_conf.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from msgspec import Struct

from podwire_cni.macs import mac_of
from podwire_core import agentapi
from podwire_core import netfilter as nf
from podwire_core.constants import CABLE_PORT, NODE_NETWORK, POD_CIDR, VXLAN_PORT, VXLAN_VNI
from podwire_core.netlink import AddrAdd, AnyOp, FdbAdd, LinkAdd, NeighAdd, RouteAdd, UnderlaySet
from podwire_core.objects import Json, Node, decode

UPLINK, BRIDGE, VTEP = "eth0", "cni0", f"flannel.{VXLAN_VNI}"
MTU = 1500
OVERHEAD = 50  # outer Ethernet, IPv4, UDP, VXLAN
POD_MTU = MTU - OVERHEAD
MASQUERADE_MARK = 0x4000  # kube-proxy's: what it will masquerade must not be masqueraded twice
_MAC = re.compile("[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


# --- annotations --------------------------------


def publish(node: Json, underlay_host: str, cable_port: int = CABLE_PORT, agent_address: str = "") -> dict[str, str]:
    """The annotations by which a node tells its peers how to reach it; {} while it has no InternalIP."""
    address = internal_ip(decode(Node, node))
    if not address:
        return {}
    backend = {"VNI": VXLAN_VNI, "VtepMAC": mac_of(address, "02:f1")}
    return {
        agentapi.FLANNEL_BACKEND_TYPE: "vxlan",
        agentapi.FLANNEL_BACKEND_DATA: json.dumps(backend, separators=(",", ":")),
        agentapi.FLANNEL_PUBLIC_IP: address,
        agentapi.UNDERLAY_HOST: underlay_host,
        agentapi.UNDERLAY_CABLE_PORT: str(cable_port),
        agentapi.UPLINK_MAC: mac_of(address),
    } | ({agentapi.AGENT_ADDRESS: agent_address} if agent_address else {})


class Peer(Struct, frozen=True):
    """A node as its annotations describe it."""

    node_ip: str
    pod_cidr: str
    vtep_mac: str
    uplink_mac: str
    underlay_host: str
    cable_port: int

    @property
    def vtep_ip(self) -> str:
        """Flannel gives the VTEP the network's own address: 10.244.2.0."""
        return self.pod_cidr.partition("/")[0]

    @classmethod
    def of(cls, obj: Json) -> Peer | None:
        """None if the node has not published, or published what cannot be read."""
        node = decode(Node, obj)
        notes = node.metadata.annotations or {}
        try:
            backend = json.loads(notes[agentapi.FLANNEL_BACKEND_DATA])
            peer = cls(
                notes[agentapi.FLANNEL_PUBLIC_IP],
                pod_cidr(node),
                backend["VtepMAC"],
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
        IPv4Address(self.node_ip)
        if not _MAC.fullmatch(self.vtep_mac) or not (_MAC.fullmatch(self.uplink_mac) or not self.underlay_host):
            raise ValueError("not a MAC address")
        if not 0 < self.cable_port < 1 << 16:
            raise ValueError("not a UDP port")


def internal_ip(node: Node) -> str:
    """The first IPv4 InternalIP, "" if there is none."""
    return next(iter(internal_ips(node)), "")


def internal_ips(node: Node) -> list[str]:
    given = [a.address for a in node.status.addresses or () if a.type == "InternalIP"]
    return [address for address in given if ":" not in address]


def pod_cidr(node: Node) -> str:
    """The IPv4 podCIDR, "" if there is none."""
    given = node.spec.pod_cidrs or [node.spec.pod_cidr]
    return next((cidr for cidr in given if cidr and ":" not in cidr), "")


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
    ops = _uplink(own, node_network, gateway)
    if pod_cidr(own):
        ops += _own_network(internal_ip(own), pod_cidr(own))
    peers = [Peer.of(obj) for obj in nodes if obj["metadata"]["name"] != own.metadata.name]
    for peer in sorted((p for p in peers if p is not None), key=lambda p: p.node_ip):
        # A podCIDR given again after a node was deleted is ours before that node is gone: no route may lead away with it.
        ops += _peer(peer, pod_cidr(own) not in ("", peer.pod_cidr), cable)
    return ops


def _uplink(node: Node, node_network: str, gateway: str) -> list[AnyOp]:
    """The first address brings the node network's prefix, others are the node's as they stand."""
    addresses = internal_ips(node)
    if not addresses:
        return []
    lengths = [IPv4Network(node_network).prefixlen] + [32] * (len(addresses) - 1)
    ops: list[AnyOp] = [LinkAdd(UPLINK, "uplink", mac=mac_of(addresses[0]), mtu=MTU, replace=True)]
    ops += [AddrAdd(UPLINK, f"{a}/{n}", replace=True) for a, n in zip(addresses, lengths, strict=True)]
    if gateway:
        ops.append(RouteAdd("default", dev=UPLINK, via=gateway, src=addresses[0], onlink=True, replace=True))
    return ops


def _own_network(node_ip: str, cidr: str) -> list[AnyOp]:
    network = IPv4Network(cidr)
    gateway = str(network[1])
    return [
        LinkAdd(BRIDGE, "bridge", mac=mac_of(gateway), mtu=POD_MTU, replace=True),
        AddrAdd(BRIDGE, f"{gateway}/{network.prefixlen}", replace=True),
        LinkAdd(
            VTEP,
            "vxlan",
            mac=mac_of(node_ip, "02:f1"),
            mtu=POD_MTU,
            vni=VXLAN_VNI,
            local=node_ip,
            dstport=VXLAN_PORT,
            replace=True,
        ),
        AddrAdd(VTEP, f"{network[0]}/32", replace=True),
    ]


def _peer(peer: Peer, tunnel: bool, cable: bool) -> list[AnyOp]:
    ops: list[AnyOp] = []
    if cable and peer.underlay_host:
        ops.append(UnderlaySet(peer.node_ip, peer.uplink_mac, peer.underlay_host, peer.cable_port))
    if tunnel and peer.pod_cidr:
        ops += [
            NeighAdd(peer.vtep_ip, peer.vtep_mac, VTEP, replace=True),
            FdbAdd(peer.vtep_mac, VTEP, dst=peer.node_ip, replace=True),
            RouteAdd(peer.pod_cidr, dev=VTEP, via=peer.vtep_ip, onlink=True, proto="boot", replace=True),
        ]
    return ops


# --- its iptables rules --------------------------------


def tables(node: Json, cluster_cidr: str = POD_CIDR) -> tuple[nf.Table, ...]:
    """Partial tables: pods may talk to each other, and to the outside as their node; pod to pod keeps its source."""
    own = pod_cidr(decode(Node, node))
    if not own:
        return ()
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
        nf.Table("nat", 4, (postrouting, nf.Chain("FLANNEL-POSTRTG", _masquerade_rules(own, cluster_cidr, masq)))),
        nf.Table("filter", 4, (forwarding, allow)),
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
        rule(nf.Source(cluster), nf.Destination("224.0.0.0/4", invert=True), masquerade),
        rule(outside, nf.Destination(cluster), masquerade),
    )


# --- the CNI configuration it writes --------------------------------


def net_conf(node: Json, datapath_socket: str, data_dir: str) -> Json:
    """The network configuration list for net.d (10-flannel.conflist); needs a podCIDR."""
    network = IPv4Network(pod_cidr(decode(Node, node)))
    ipam = {"type": "host-local", "ranges": [[{"subnet": str(network)}]], "dataDir": data_dir}
    plugin = {
        "type": "podwire",
        "bridge": BRIDGE,
        "mtu": POD_MTU,
        "hairpinMode": True,
        "isDefaultGateway": True,
        "dataplane": datapath_socket,
        "ipam": ipam | {"routes": [{"dst": "0.0.0.0/0"}]},
    }
    return {"cniVersion": "1.1.0", "name": "cbr0", "plugins": [plugin]}
