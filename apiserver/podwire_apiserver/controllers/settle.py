"""What a cluster would make of a set of objects: admission, allocators and controllers in memory, to a fixed point.

Rules it keeps: given facts stay (podCIDRs, addresses, nodeNames, podIPs, ClusterIPs, node ports, EndpointSlices, conditions);
only what is missing is filled in, as live: pods get addresses of their node's network from .2 upward, run and are ready
unless they say otherwise; objects without Nodes get one; nodes without an address get the next free one of the node network.
The same objects give the same result. Nothing is deleted for being old or ownerless: a dump may be partial.

Order to read: settle, Settling (in the order of its steps), the kubelet's part.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Sequence

from podwire_apiserver import admission
from podwire_apiserver.allocators import ServiceAllocator
from podwire_core.constants import NODE_NETWORK, NODE_NETWORK6, POD_CIDR, POD_CIDR6, SERVICE_CIDR, SERVICE_CIDR6
from podwire_core.kinds import Catalogue
from podwire_core.objects import Json, key_of

from .actions import AnyAction
from .common import condition_of, finished, phase_of, with_condition
from .endpoints import addresses_of
from .engine import Controller
from .loadbalancer import LoadBalancerController
from .loadbalancer import addresses_of as addresses_outside
from .memory import Memory
from .nodes import NodeIpamController
from .registry import workload_controllers
from .view import Change, View, labels_of, namespace_of

NOW = 1_700_000_000.0  # a fixed time: the same objects give the same names
EVER = 0.0  # since when pods are ready: long enough for any minReadySeconds
SERVICE_CIDRS, POD_CIDRS = {4: SERVICE_CIDR, 6: SERVICE_CIDR6}, {4: POD_CIDR, 6: POD_CIDR6}
NODE_NETWORKS = {4: NODE_NETWORK, 6: NODE_NETWORK6}
FIRST_NODE = 11  # node 1 has 192.168.1.11
SERVICE_NAME = "kubernetes.io/service-name"


def settle(
    objects: Iterable[Json],
    now: float = NOW,
    *,
    cluster_cidr: str = "",
    node_mask: int = 24,
    service_cidrs: Sequence[str] = (),
) -> list[Json]:
    """All objects as they are when nothing is left to do. ValueError, in one line, if they contradict each other."""
    return Settling(objects, now, cluster_cidr, node_mask, service_cidrs).run()


class Sparing:
    """A controller that leaves alone what is given for some keys."""

    def __init__(self, controller: Controller, spared: Collection[str]) -> None:
        self.controller, self.spared = controller, spared
        self.name, self.kinds = controller.name, controller.kinds

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        return [key for key in self.controller.wakes(view, change) if key not in self.spared]

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        return self.controller.reconcile(view, key, now)


_ENDPOINTS = {"endpointslice-controller", "endpoints-controller", "endpointslicemirroring-controller"}


class Settling:
    def __init__(
        self, objects: Iterable[Json], now: float, cluster_cidr: str, node_mask: int, service_cidrs: Sequence[str]
    ) -> None:
        self.now = now
        self.given = [_placed(obj) for obj in objects]
        given_ranges = [
            cidr for obj in self.given if obj["kind"] == "ServiceCIDR" for cidr in (obj.get("spec") or {}).get("cidrs") or ()
        ]
        ranges = given_ranges or list(service_cidrs) or [SERVICE_CIDRS[family] for family in _families(self.given)]
        self.families = tuple(dict.fromkeys(ipaddress.ip_network(cidr).version for cidr in ranges))
        cluster_cidr = cluster_cidr or ",".join(POD_CIDRS[family] for family in self.families)
        spared = {key for obj in self.given if (key := _service_of(obj))}
        controllers = [
            Sparing(each, spared) if each.name in _ENDPOINTS else each for each in workload_controllers(cluster_cidr, node_mask)
        ]
        controllers.append(Sparing(LoadBalancerController(), _with_addresses(self.given)))
        self.networks = NodeIpamController(cluster_cidr, node_mask)
        self.memory = Memory(controllers, admit=admission.default)
        self.services = ServiceAllocator(ranges, as_given=True)
        self.said: set[str] = set()  # pods whose phase or readiness is given

    def run(self) -> list[Json]:
        self._create_namespaces()
        self._create_nodes()
        self._create_services([obj for obj in self.given if obj["kind"] == "Service"])
        for obj in self.given:
            if obj["kind"] not in ("Node", "Namespace", "Service"):
                self._create(obj)
        kubelets = Kubelets(self.memory, self.said, self.now)
        self.memory.run(self.now)
        while kubelets.start_pods():
            self.memory.run(self.now)
        view = self.memory.view
        return [view.all(kind)[key] for kind in view.kinds() for key in sorted(view.all(kind))]

    # --- creating what is given --------------------------------

    def _create_namespaces(self) -> None:
        for obj in self.given:
            if obj["kind"] == "Namespace":
                self._create(obj)
        for name in sorted({namespace_of(obj) for obj in self.given} - {""}):
            if self.memory.view.get("Namespace", name) is None:
                self._create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def _create_nodes(self) -> None:
        """With their networks, which tell where pods with addresses are. No other controller runs before all is there."""
        for node in self._addressed([obj for obj in self.given if obj["kind"] == "Node"]):
            self._create(node)
        for name in sorted(self.memory.view.all("Node")):
            for action in self.networks.reconcile(self.memory.view, name, self.now):
                self.memory.perform(action, self.now)

    def _create(self, obj: Json) -> None:
        if self.memory.view.get(obj["kind"], key_of(obj)) is not None:
            raise ValueError(f"{obj['kind']} {key_of(obj)} is there twice")
        if obj["kind"] == "Pod":
            obj = self._pod(obj)
        self.memory.create(obj, self.now)

    def _pod(self, pod: Json) -> Json:
        """A pod with an address is where that address is."""
        status, spec = pod.get("status") or {}, pod.get("spec") or {}
        if status.get("phase") or condition_of(pod, "Ready"):
            self.said.add(key_of(pod))
        address = status.get("podIP") or next((each["ip"] for each in status.get("podIPs") or ()), None)
        if address and not spec.get("nodeName"):
            spec = {**spec, **({"nodeName": name} if (name := self._home_of(address)) else {})}
        return {**pod, "spec": spec}

    def _home_of(self, address: str) -> str | None:
        ip = ipaddress.ip_address(address)
        for name, node in sorted(self.memory.view.all("Node").items()):
            if any(ip in ipaddress.ip_network(cidr, strict=False) for cidr in networks_of(node)):
                return name
        return None

    def _create_services(self, services: list[Json]) -> None:
        """Given addresses are held before any is chosen."""
        services = [admission.default(service) for service in services]
        for service in services:
            self.services.hold(service)
        for service in services:
            causes = self.services.assign(service)
            if causes:
                raise ValueError(f"Service {key_of(service)}: {causes[0].field}: {causes[0].message}")
            self.services.hold(service)
            self._create(service)

    def _addressed(self, nodes: list[Json]) -> list[Json]:
        """At least one node, each Ready if it says nothing, and with an InternalIP."""
        nodes = nodes or [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}}]
        given = {each["address"] for node in nodes for each in (node.get("status") or {}).get("addresses") or ()}
        free = [_free(NODE_NETWORKS[family], given) for family in self.families]
        return [_registered(node, free, self.now) for node in nodes]


def _free(network: str, given: Collection[str]) -> Iterator[str]:
    """Addresses for nodes, as `podwire up` gives them: in decimal digits, also in IPv6."""
    hosts = ipaddress.ip_network(network)
    for number in range(FIRST_NODE, 255):
        address = str(hosts[number if hosts.version == 4 else int(str(number), 16)])
        if address not in given:
            yield address


def _families(objects: Iterable[Json]) -> tuple[int, ...]:
    """Both, if a Service cannot do without IPv6."""
    specs = [obj.get("spec") or {} for obj in objects if obj["kind"] == "Service"]
    asked = any("IPv6" in (spec.get("ipFamilies") or ()) or spec.get("ipFamilyPolicy") == "RequireDualStack" for spec in specs)
    return (4, 6) if asked else (4,)


def _registered(node: Json, free: Sequence[Iterator[str]], now: float) -> Json:
    name = node["metadata"]["name"]
    status = dict(node.get("status") or {})
    if not any(each.get("type") == "InternalIP" for each in status.get("addresses") or ()):
        addresses = [next(each, None) for each in free]
        if None in addresses:
            raise ValueError(f"Node {name}: no address is left in {NODE_NETWORK}")
        own = [{"type": "InternalIP", "address": address} for address in addresses]
        status["addresses"] = [*own, *(status.get("addresses") or ())]
    if condition_of(node, "Ready") is None:
        status["conditions"] = with_condition(status.get("conditions"), "Ready", "True", "KubeletReady", "", now)
    labels = {"kubernetes.io/hostname": name, **labels_of(node)}
    return {**node, "metadata": {**node["metadata"], "labels": labels}, "status": status}


_CATALOGUE = Catalogue()


def _placed(obj: Json) -> Json:
    """In the namespace "default" if it is of a namespaced kind and names none."""
    info = _CATALOGUE.of(obj["apiVersion"], obj["kind"])
    if info is None or not info.namespaced or obj["metadata"].get("namespace"):
        return obj
    return {**obj, "metadata": {**obj["metadata"], "namespace": "default"}}


def _service_of(obj: Json) -> str | None:
    """The Service that a given slice (or Endpoints object) speaks for."""
    if obj["kind"] == "EndpointSlice" and SERVICE_NAME in labels_of(obj):
        return f"{namespace_of(obj)}/{labels_of(obj)[SERVICE_NAME]}"
    return None


def _with_addresses(objects: Iterable[Json]) -> set[str]:
    """Services whose status already says where they are reached from outside."""
    return {key_of(obj) for obj in objects if obj["kind"] == "Service" and addresses_outside(obj)}


def networks_of(node: Json) -> list[str]:
    spec = node.get("spec") or {}
    return list(spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else []))


# --- the kubelet's part --------------------------------


class Kubelets:
    """Addresses and readiness for the pods of all nodes."""

    def __init__(self, memory: Memory, said: set[str], now: float) -> None:
        self.memory, self.said, self.now = memory, said, now
        self.taken = {address for pod in memory.pods() for address in addresses_of(pod)}

    def start_pods(self) -> bool:
        """Starts what was bound since; False if there is nothing new."""
        started = [pod for pod in self.memory.pods() if pod["spec"].get("nodeName") and self._start(pod)]
        return bool(started)

    def _start(self, pod: Json) -> bool:
        status = self._status(pod, dict(pod.get("status") or {}))
        if status == (pod.get("status") or {}):
            return False
        self.memory.update_status({**pod, "status": status})
        return True

    def _status(self, pod: Json, status: Json) -> Json:
        node = self.memory.view.get("Node", pod["spec"]["nodeName"])
        waiting = key_of(pod) in self.said and phase_of(pod) == "Pending"
        if node is None or finished(pod) or waiting:
            return status
        own = next((each["address"] for each in node["status"]["addresses"] if each["type"] == "InternalIP"), "")
        status.setdefault("hostIP", own)
        if not addresses_of(pod):
            addresses = [own] if pod["spec"].get("hostNetwork") else self._chosen(node)
            status |= {"podIP": addresses[0], "podIPs": [{"ip": each} for each in addresses]} if addresses else {}
        if key_of(pod) not in self.said:
            status["phase"] = "Running"
        if condition_of(pod, "Ready") is None and status["phase"] == "Running":
            status["conditions"] = with_condition(status.get("conditions"), "Ready", "True", "", "", EVER)
        return status

    def _chosen(self, node: Json) -> list[str]:
        """The lowest free address of each of the node's networks, behind the bridge's own."""
        chosen = []
        for cidr in networks_of(node):
            network = ipaddress.ip_network(cidr, strict=False)
            hosts = (str(network[number]) for number in range(2, network.num_addresses - 1))
            address = next((host for host in hosts if host not in self.taken), None)
            if address is None:
                raise ValueError(f"Node {node['metadata']['name']}: no address is left in {cidr}")
            self.taken.add(address)
            chosen.append(address)
        return chosen
