"""One simulated node: a Stack programmed as the node agent does it, with its pods and its host namespace.

Rules it keeps: operations come from the live code (flannel.desired, the CNI plugin's Port, kube-proxy's Proxier); what a
kernel in a pod would do (ARP, its one route) is here, and nothing else. A pod whose address is not of its node's network
gets a route of its own.

Order to read: SimulatedNode, then PodEnd.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from podwire.simulation import packets
from podwire_cni.attach import Port
from podwire_cni.backends import flannel
from podwire_cni.macs import mac_of
from podwire_core.netlink import AnyOp, RouteAdd
from podwire_core.objects import Json, Node, decode, key_of
from podwire_nodeagent import network
from podwire_nodeagent.datapath.chooser import Chooser
from podwire_nodeagent.datapath.stack import Stack
from podwire_nodeagent.datapath.wire import ARP_REPLY, ARP_REQUEST, Buffer, address_text, mac_bytes
from podwire_nodeagent.node_rules import facts_of, sysctls_of
from podwire_nodeagent.proxy import modes
from podwire_nodeagent.proxy.config import ProxyConfiguration

INTERFACE = "eth0"
OUTSIDE = "169.254.1.254"  # the next hop of nodes' default routes: the world outside, which no object describes


class Home(NamedTuple):
    """An address of a pod, and a default route by the node's bridge."""

    address: str
    subnet: ipaddress.IPv4Network | ipaddress.IPv6Network
    gateway: str

    def next_hop(self, destination: str) -> str:
        return destination if ipaddress.ip_address(destination) in self.subnet else self.gateway


class PodEnd(NamedTuple):
    """The kernel in a pod: an interface with an address of each family."""

    pod: str  # "namespace/name"
    mac: bytes
    link: int  # the stack's end
    homes: dict[int, Home]  # by family

    def owns(self, address: str) -> bool:
        return any(home.address == address for home in self.homes.values())


class SimulatedNode:
    """`pods` are this node's, with an address and a network of their own; `elsewhere` those of other nodes."""

    def __init__(
        self, node: Json, nodes: Sequence[Json], pods: Iterable[Json], elsewhere: Iterable[Json], chooser: Chooser
    ) -> None:
        self.name: str = node["metadata"]["name"]
        self.object, self.nodes = node, nodes
        self.stack = Stack(self.name, chooser, nanoseconds=lambda: 0)
        self.pods: dict[int, PodEnd] = {}  # by the stack's end of the link
        self.neighbours: dict[tuple[int, str], bytes] = {}  # what pods learned by ARP
        desired = flannel.desired(node, nodes, gateway=OUTSIDE)
        self.stack.apply([network.host_link(), *desired, *sysctls_of(node)], 0.0)
        self.host = self.stack.link_index(network.HOST_LINK)
        self._add_pods(list(pods))
        self.stack.apply(list(self._stray_routes(elsewhere)), 0.0)
        self.stack.trace(EVERYTHING)

    def program(self, config: ProxyConfiguration, services: Mapping[str, Json], slices: Mapping[str, Json]) -> None:
        """kube-proxy's rules, composed with the CNI backend's."""
        tables = {family: flannel.tables(self.object, family) for family in flannel.families(decode(Node, self.object))}
        for proxier in modes.make_all(config, facts_of(self.object), tables).values():
            self.stack.apply(proxier.changes(services, slices), 0.0)

    @property
    def uplink(self) -> int:
        return self.stack.link_index(flannel.UPLINK)

    @property
    def uplink_mac(self) -> bytes:
        node = decode(Node, self.object)
        return mac_bytes(mac_of(flannel.internal_ip(node) or flannel.internal_ip(node, 6)))

    def owns(self, address: str) -> bool:
        """Is it an address of the node itself?"""
        route, _ = self.stack.route_get(address)
        return route is not None and route.type == "local"

    def source_towards(self, destination: str) -> str:
        """The address that a program of the node would have as its own."""
        _, source = self.stack.route_get(destination)
        return address_text(source) if source else ""

    def forget_flows(self, now: float) -> None:
        """No connection, no session affinity: the next packet is the first."""
        self.stack.netfilter.forget(now)
        self.stack.lb.forget(now)

    # --- pods --------------------------------

    def _add_pods(self, pods: list[Json]) -> None:
        node = decode(Node, self.object)
        if not flannel.families(node):
            return
        conf = flannel.net_conf(self.object, "memory", "memory")["plugins"][0]
        ops: list[AnyOp] = []
        ends: list[tuple[str, Json, dict[int, Home]]] = []
        for pod in pods:
            names = {"K8S_POD_NAMESPACE": pod["metadata"]["namespace"], "K8S_POD_NAME": pod["metadata"]["name"]}
            port = Port.of(conf, pod["metadata"]["uid"], "", INTERFACE, names)
            homes = {family: _home(node, ip) for family, ip in addresses_of(pod).items() if flannel.pod_cidr(node, family)}
            ends.append((port.link, pod, homes))
            ops.append(port.operation())
            strays = [home for home in homes.values() if home.subnet.num_addresses == 1]
            ops += [RouteAdd(str(home.subnet), dev=flannel.BRIDGE, replace=True) for home in strays]
        self.stack.apply(ops, 0.0)
        for link, pod, homes in ends:
            index, mac = self.stack.link_index(link), mac_bytes(mac_of(next(iter(homes.values())).address))
            self.pods[index] = PodEnd(key_of(pod), mac, index, homes)

    def _stray_routes(self, elsewhere: Iterable[Json]) -> Iterable[AnyOp]:
        """Pods of other nodes with addresses that their node's network does not hold."""
        own = decode(Node, self.object)
        peers = {node["metadata"]["name"]: flannel.Peer.of(node) for node in self.nodes}
        for pod in elsewhere:
            peer = peers.get(pod["spec"].get("nodeName") or "")
            for end in peer.ends if peer else ():
                address = addresses_of(pod).get(end.family)
                if address is None or not end.pod_cidr or not flannel.has_tunnel(own, end.family):
                    continue
                if ipaddress.ip_address(address) not in ipaddress.ip_network(end.pod_cidr):
                    dst = str(ipaddress.ip_network(address))
                    yield RouteAdd(dst, dev=flannel.VTEPS[end.family], via=end.vtep_ip, onlink=True, replace=True)

    def pod_end(self, pod: str) -> PodEnd | None:
        return next((end for end in self.pods.values() if end.pod == pod), None)

    def answer(self, end: PodEnd, frame: Buffer) -> bytearray | None:
        """What a pod's kernel sends back on ARP and neighbour discovery; it learns from replies."""
        arp = packets.read_arp(frame)
        if arp is None or not end.owns(arp.target):
            return None
        self.neighbours[end.link, arp.sender] = arp.sender_mac
        if arp.operation == ARP_REQUEST:
            return packets.arp_frame(ARP_REPLY, end.mac, arp.target, arp.sender_mac, arp.sender)
        return None


class _Everything(NamedTuple):
    addresses: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    protocol: str = ""


EVERYTHING = _Everything()


def addresses_of(pod: Json) -> dict[int, str]:
    """The pod's first address of each family, IPv4 first."""
    status = pod.get("status") or {}
    listed = [each["ip"] for each in status.get("podIPs") or () if each.get("ip")] or [status.get("podIP") or ""]
    found = {family: [ip for ip in listed if ip and (":" in ip) == (family == 6)] for family in flannel.FAMILIES}
    return {family: given[0] for family, given in found.items() if given}


def _home(node: Node, address: str) -> Home:
    """In the node's network of that family, or alone."""
    own = ipaddress.ip_network(address)
    network_ = ipaddress.ip_network(flannel.pod_cidr(node, own.version))
    return Home(address, network_ if own.network_address in network_ else own, str(network_[1]))
