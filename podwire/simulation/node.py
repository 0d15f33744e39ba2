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


class PodEnd(NamedTuple):
    """The kernel in a pod: an interface with an address, and a default route by the node's bridge."""

    pod: str  # "namespace/name"
    address: str
    mac: bytes
    link: int  # the stack's end
    subnet: ipaddress.IPv4Network
    gateway: str

    def next_hop(self, destination: str) -> str:
        return destination if ipaddress.IPv4Address(destination) in self.subnet else self.gateway


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
        for family in flannel.families(decode(Node, self.object)):
            proxier = modes.make(config, facts_of(self.object), family, flannel.tables(self.object, family))
            self.stack.apply(proxier.changes(services, slices), 0.0)

    @property
    def uplink(self) -> int:
        return self.stack.link_index(flannel.UPLINK)

    @property
    def uplink_mac(self) -> bytes:
        return mac_bytes(mac_of(flannel.internal_ip(decode(Node, self.object))))

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

    # --- pods --------------------------------

    def _add_pods(self, pods: list[Json]) -> None:
        cidr = flannel.pod_cidr(decode(Node, self.object))
        if not cidr:
            return
        network_, conf = ipaddress.IPv4Network(cidr), flannel.net_conf(self.object, "memory", "memory")["plugins"][0]
        ops: list[AnyOp] = []
        ports = {}
        for pod in pods:
            names = {"K8S_POD_NAMESPACE": pod["metadata"]["namespace"], "K8S_POD_NAME": pod["metadata"]["name"]}
            port = Port.of(conf, pod["metadata"]["uid"], "", INTERFACE, names)
            ports[key_of(pod)] = port
            ops.append(port.operation())
            if ipaddress.IPv4Address(address_of(pod)) not in network_:
                ops.append(RouteAdd(f"{address_of(pod)}/32", dev=flannel.BRIDGE, replace=True))
        self.stack.apply(ops, 0.0)
        for pod in pods:
            address, link = address_of(pod), self.stack.link_index(ports[key_of(pod)].link)
            inside = ipaddress.IPv4Address(address) in network_
            subnet = network_ if inside else ipaddress.IPv4Network(f"{address}/32")
            end = PodEnd(key_of(pod), address, mac_bytes(mac_of(address)), link, subnet, str(network_[1]))
            self.pods[link] = end

    def _stray_routes(self, elsewhere: Iterable[Json]) -> Iterable[AnyOp]:
        """Pods of other nodes with addresses that their node's network does not hold."""
        peers = {node["metadata"]["name"]: flannel.Peer.of(node) for node in self.nodes}
        for pod in elsewhere:
            peer = peers.get(pod["spec"].get("nodeName") or "")
            end = next((each for each in peer.ends if each.family == 4 and each.pod_cidr), None) if peer else None
            if end and ipaddress.IPv4Address(address_of(pod)) not in ipaddress.IPv4Network(end.pod_cidr):
                yield RouteAdd(f"{address_of(pod)}/32", dev=flannel.VTEPS[4], via=end.vtep_ip, onlink=True, replace=True)

    def pod_end(self, pod: str) -> PodEnd | None:
        return next((end for end in self.pods.values() if end.pod == pod), None)

    def answer(self, end: PodEnd, frame: Buffer) -> bytearray | None:
        """What a pod's kernel sends back on ARP; it learns from replies."""
        arp = packets.read_arp(frame)
        if arp is None or arp.target != end.address:
            return None
        self.neighbours[end.link, arp.sender] = arp.sender_mac
        if arp.operation == ARP_REQUEST:
            return packets.arp_frame(ARP_REPLY, end.mac, end.address, arp.sender_mac, arp.sender)
        return None


class _Everything(NamedTuple):
    addresses: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    protocol: str = ""


EVERYTHING = _Everything()


def address_of(pod: Json) -> str:
    """The pod's IPv4 address, "" if it has none."""
    status = pod.get("status") or {}
    listed = [each["ip"] for each in status.get("podIPs") or () if each.get("ip")] or [status.get("podIP") or ""]
    return next((address for address in listed if "." in address), "")
