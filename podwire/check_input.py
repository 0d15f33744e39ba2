"""What `podwire check` is asked: objects and flows, checked and made definite. All that is wrong is a ValueError of one line
that says where.

Rules it keeps: objects pass the API server's own validation, once addresses are spelt as it wants them (check_spelling.py);
names are resolved against the settled cluster; a flow that could mean two things is refused.

Order to read: prepared (objects), configuration, World, Reader (flows).
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from podwire.check_spelling import respell
from podwire.simulation.node import addresses_of
from podwire_apiserver import admission, validation
from podwire_apiserver.controllers.endpoints import target_port
from podwire_apiserver.controllers.settle import settle
from podwire_cni.backends import flannel
from podwire_core.kinds import Catalogue
from podwire_core.objects import Json, Node, decode, key_of
from podwire_nodeagent.proxy import modes
from podwire_nodeagent.proxy.config import KIND as PROXY_KIND
from podwire_nodeagent.proxy.config import ConfigurationError, ProxyConfiguration, load

CNIS = ("flannel",)
TOLERATED = {"$.spec.healthCheckNodePort"}  # given where an API server would refuse it; kube-proxy ignores it there
POLICIES = (
    "NetworkPolicy",
    "AdminNetworkPolicy",
    "BaselineAdminNetworkPolicy",
    "ClusterNetworkPolicy",
    "CiliumNetworkPolicy",
    "CiliumClusterwideNetworkPolicy",
)


# --- objects --------------------------------


def prepared(objects: Iterable[Json]) -> list[Json]:
    """Copies of all objects, lists flattened, each of the right shape."""
    found: list[Json] = []
    for number, obj in enumerate(objects):
        found += _flat(obj, f"objects[{number}]")
    return found


def _flat(obj: Any, where: str) -> list[Json]:
    if not isinstance(obj, dict) or not isinstance(obj.get("kind"), str) or not isinstance(obj.get("apiVersion"), str):
        raise ValueError(f"{where}: expected an object with apiVersion and kind")
    if obj["kind"].endswith("List") and isinstance(obj.get("items"), list):
        return [each for number, item in enumerate(obj["items"]) for each in _flat(item, f"{where}.items[{number}]")]
    if obj["kind"] == PROXY_KIND:
        return [obj]
    if not isinstance(obj.get("metadata"), dict) or not isinstance(obj["metadata"].get("name"), str):
        raise ValueError(f"{where} ({obj['kind']}): $.metadata.name: missing")
    copied = admission.copy_without_nulls(obj)
    respell(copied)
    _validate(copied, where)
    return [copied]


_CATALOGUE = Catalogue()


def _validate(obj: Json, where: str) -> None:
    info = _CATALOGUE.of(obj["apiVersion"], obj["kind"])
    if info is None:
        return
    causes = validation.type_problems(info, obj)
    if not causes:
        whole = admission.default(obj)
        if info.namespaced:
            whole["metadata"].setdefault("namespace", "default")
        causes = [cause for cause in validation.problems(info, whole) if cause.field not in TOLERATED]
    if causes:
        name = f"{obj['kind']} {key_of(obj)}"
        raise ValueError(f"{where} ({name}): {causes[0].field}: {causes[0].message}")


def configuration(objects: Sequence[Json], proxy: str | None) -> ProxyConfiguration:
    """kube-proxy's; `proxy` overrides its mode."""
    given = [obj for obj in objects if obj["kind"] == PROXY_KIND]
    if len(given) > 1:
        raise ValueError(f"objects: {len(given)} objects of kind {PROXY_KIND}, one is enough")
    mode = proxy or (given[0].get("mode") if given else None) or modes.MODES[0]
    if mode not in modes.MODES:
        raise ValueError(f"proxy: mode {mode!r} is not there; there are: {', '.join(modes.MODES)}")
    if not given:
        return ProxyConfiguration(mode=mode)
    try:
        return load({**given[0], "mode": mode})
    except ConfigurationError as error:
        raise ValueError(f"{PROXY_KIND}: {error}") from None


# --- the settled cluster --------------------------------


class World:
    """The objects as the controllers complete them, and where things are."""

    def __init__(self, objects: Iterable[Json], proxy: str | None, cni: str | None) -> None:
        if cni not in (None, *CNIS):
            raise ValueError(f"cni: {cni!r} is not there; there are: {', '.join(CNIS)}")
        given = prepared(objects)
        self.config = configuration(given, proxy)
        self.warnings = unheeded(given)
        self.kinds: dict[str, dict[str, Json]] = {}
        for obj in settle([each for each in given if each["kind"] != PROXY_KIND]):
            self.kinds.setdefault(obj["kind"], {})[key_of(obj)] = obj
        ranges = tuple(cidr for obj in self.of("ServiceCIDR").values() for cidr in obj["spec"].get("cidrs") or ())
        if ranges:
            self.config = msgspec.structs.replace(self.config, service_cidrs=ranges)
        self.nodes = {name: _published(node) for name, node in self.kinds["Node"].items()}
        for name, node in self.nodes.items():
            if not any(flannel.internal_ip(decode(Node, node), family) for family in flannel.FAMILIES):
                raise ValueError(f"Node {name}: $.status.addresses: no InternalIP")
            if not flannel.families(decode(Node, node)):
                raise ValueError(f"Node {name}: $.spec.podCIDRs: no network")
        self.owners = {ip: name for name, node in self.nodes.items() for ip in _node_ips(node)}
        self.pods = {key: pod for key, pod in self.kinds.get("Pod", {}).items() if self._attached(pod)}
        self.by_address: dict[str, str] = {}
        for key, pod in self.pods.items():
            for address in addresses_of(pod).values():
                if address in self.by_address:
                    raise ValueError(f"objects: pods {self.by_address[address]}, {key} share {address}")
                self.by_address[address] = key

    def of(self, kind: str) -> dict[str, Json]:
        return self.kinds.get(kind, {})

    def _attached(self, pod: Json) -> bool:
        """On the pod network, with an address of a family that its node has."""
        node = self.nodes.get(pod["spec"].get("nodeName") or "")
        if node is None or pod["spec"].get("hostNetwork") or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            return False
        return not set(addresses_of(pod)).isdisjoint(flannel.families(decode(Node, node)))

    def pods_of(self, node: str) -> list[Json]:
        return [pod for pod in self.pods.values() if pod["spec"]["nodeName"] == node]

    def listener(self, node: str, port: int, protocol: str) -> str | None:
        """The hostNetwork pod of the node that declares the port."""
        for key, pod in sorted(self.of("Pod").items()):
            if pod["spec"].get("hostNetwork") and pod["spec"].get("nodeName") == node:
                for each in _container_ports(pod):
                    if (each["containerPort"], each.get("protocol") or "TCP") == (port, protocol):
                        return key
        return None


def unheeded(objects: Iterable[Json]) -> list[str]:
    """Objects that would decide over packets if anything acted on them."""
    counted = Counter(obj["kind"] for obj in objects if obj["kind"] in POLICIES)
    return [f"{kind}: nothing acts on it yet; the verdict is that without the {count} given" for kind, count in counted.items()]


def _published(node: Json) -> Json:
    """With the annotations by which its agent would make it known."""
    notes = flannel.publish(node, _node_ips(node)[0] if _node_ips(node) else "")
    given = node["metadata"].get("annotations") or {}
    return {**node, "metadata": {**node["metadata"], "annotations": {**notes, **given}}}


def _node_ips(node: Json) -> list[str]:
    """A node's InternalIPs, IPv4 first."""
    decoded = decode(Node, node)
    return [ip for family in flannel.FAMILIES for ip in flannel.internal_ips(decoded, family)]


def _container_ports(pod: Json) -> list[Json]:
    return [port for container in pod["spec"].get("containers") or () for port in container.get("ports") or ()]


# --- flows --------------------------------


class Origin(NamedTuple):
    """`kind`: "pod", "host" (the node itself) or "outside" (arriving at the node). `addresses` by family; none: by the node's
    routes."""

    kind: str
    node: str
    pod: str = ""
    addresses: Mapping[int, str] = {}


class Flow(NamedTuple):
    id: Any
    origin: Origin
    targets: list[tuple[str, int]]
    protocol: str


class Reader:
    """Flows by the names of the settled cluster."""

    def __init__(self, world: World) -> None:
        self.world = world

    def read(self, flow: Any, where: str) -> Flow:
        if not isinstance(flow, dict):
            raise ValueError(f"{where}: expected an object, got {type(flow).__name__}")
        for field in ("from", "to", "port"):
            if field not in flow:
                raise ValueError(f"{where}.{field}: missing")
        protocol = flow.get("protocol", "TCP")
        if protocol not in ("TCP", "UDP", "SCTP"):
            raise ValueError(f"{where}.protocol: expected TCP, UDP or SCTP, got {protocol!r}")
        origin = self._origin(_end(flow["from"], ("pod", "node", "ip"), f"{where}.from"), f"{where}.from")
        to, port = _end(flow["to"], ("service", "pod", "node", "ip"), f"{where}.to"), flow["port"]
        if isinstance(port, bool) or not isinstance(port, int | str):
            raise ValueError(f"{where}.port: expected a number or a port's name, got {type(port).__name__}")
        if isinstance(port, int) and not 1 <= port <= 65535:
            raise ValueError(f"{where}.port: expected 1 to 65535, got {port}")
        return Flow(flow.get("id", where), origin, self._targets(to, port, protocol, where, self._families(origin)), protocol)

    # --- from --------------------------------

    def _origin(self, end: Json, where: str) -> Origin:
        if "pod" in end:
            return self._pod_origin(end["pod"], where)
        if "ip" not in end:
            return Origin("host", self._node(end["node"], where))
        address = _address(end["ip"], where)
        pod = self.world.by_address.get(address)
        at = self._node(end["node"], where) if "node" in end else None
        if pod is not None and at in (None, self.world.pods[pod]["spec"]["nodeName"]):
            return self._pod_origin(pod, where)
        at = at or self.world.owners.get(address) or (next(iter(self.world.nodes)) if len(self.world.nodes) == 1 else None)
        if at is None:
            raise ValueError(f"{where}.node: missing: at which node does a packet from {address} arrive?")
        return Origin("outside", at, addresses={6 if ":" in address else 4: address})

    def _pod_origin(self, key: str, where: str) -> Origin:
        pod = self._pod(key, where)
        if pod["spec"].get("hostNetwork"):
            return Origin("host", pod["spec"]["nodeName"])
        return Origin("pod", pod["spec"]["nodeName"], key_of(pod), addresses_of(pod))

    def _pod(self, key: str, where: str) -> Json:
        pod = self._known("Pod", key, f"{where}.pod")
        if key_of(pod) in self.world.pods or (pod["spec"].get("hostNetwork") and pod["spec"].get("nodeName")):
            return pod
        status = pod.get("status") or {}
        waiting = next((each.get("message") for each in status.get("conditions") or () if each["type"] == "PodScheduled"), "")
        raise ValueError(f"{where}.pod: {key} has no address ({status.get('phase')}{': ' + waiting if waiting else ''})")

    def _node(self, name: str, where: str) -> str:
        if name not in self.world.nodes:
            raise ValueError(f"{where}.node: no Node {name}")
        return name

    def _known(self, kind: str, key: str, where: str) -> Json:
        obj = self.world.of(kind).get(key if "/" in key else f"default/{key}")
        if obj is None:
            raise ValueError(f"{where}: no {kind} {key}")
        return obj

    # --- to --------------------------------

    def _targets(self, end: Json, port: int | str, protocol: str, where: str, families: Container[int]) -> list[tuple[str, int]]:
        if "service" in end:
            service = self._known("Service", end["service"], f"{where}.to.service")
            return self._service_targets(service, port, protocol, where, families)
        if "pod" in end:
            pod = self._pod(end["pod"], f"{where}.to")
            status = pod["status"]
            address = self._reachable(list(addresses_of(pod).values()), families) or status["hostIP"]
            return [(address, _pod_port(pod, port, protocol, f"{where}.port"))]
        if not isinstance(port, int):
            raise ValueError(f"{where}.port: {port!r}: a name needs a pod or a service to look it up in")
        if "ip" in end:
            return [(_address(end["ip"], f"{where}.to"), port)]
        node = self.world.nodes[self._node(end["node"], f"{where}.to")]
        return [(self._reachable(_node_ips(node), families), port)]

    @staticmethod
    def _reachable(addresses: list[str], families: Container[int]) -> str:
        """The first that the sender has an address of the family of, else the first."""
        usable = [address for address in addresses if (6 if ":" in address else 4) in families]
        return next(iter(usable or addresses), "")

    def _families(self, origin: Origin) -> Container[int]:
        """Those in which the sender can speak."""
        return origin.addresses or flannel.families(decode(Node, self.world.nodes[origin.node]))

    def _service_targets(
        self, service: Json, port: int | str, protocol: str, where: str, families: Container[int]
    ) -> list[tuple[str, int]]:
        spec, key = service["spec"], key_of(service)
        ports = [each for each in spec.get("ports") or () if port in (each.get("name"), each["port"])]
        ports = [each for each in ports if (each.get("protocol") or "TCP") == protocol] or ports
        if isinstance(port, str) and not ports:
            raise ValueError(f"{where}.port: Service {key} has no port {port!r}")
        if spec.get("type") == "ExternalName":
            raise ValueError(f"{where}.to.service: {key} is an ExternalName, which only DNS knows")
        if spec.get("clusterIP") not in (None, "", "None"):
            address = self._reachable(spec.get("clusterIPs") or [spec["clusterIP"]], families)
            return [(address, int(ports[0]["port"]) if ports else int(port))]
        return self._headless_targets(key, port, ports[0] if ports else None, families)

    def _headless_targets(
        self, key: str, port: int | str, service_port: Json | None, families: Container[int]
    ) -> list[tuple[str, int]]:
        """DNS gives the ready endpoints; a client uses one of them, with the port as given."""
        found: list[tuple[str, int]] = []
        for slice_ in self.world.of("EndpointSlice").values():
            labels, namespace = slice_["metadata"].get("labels") or {}, slice_["metadata"]["namespace"]
            if f"{namespace}/{labels.get('kubernetes.io/service-name')}" != key:
                continue
            if slice_.get("addressType") not in [f"IPv{family}" for family in flannel.FAMILIES if family in families]:
                continue
            named = (
                each for each in slice_.get("ports") or () if service_port and each.get("name") == service_port.get("name", "")
            )
            number = port if isinstance(port, int) else next((each["port"] for each in named), None)
            usable = [each for each in slice_.get("endpoints") or () if (each.get("conditions") or {}).get("ready") is not False]
            found += [(each["addresses"][0], int(number)) for each in usable if number]
        return sorted(set(found))


def _end(end: Any, kinds: tuple[str, ...], where: str) -> Json:
    if not isinstance(end, dict):
        raise ValueError(f"{where}: expected an object, got {type(end).__name__}")
    given = [kind for kind in kinds if kind in end]
    if given not in ([kind] for kind in kinds) and given != ["node", "ip"]:
        raise ValueError(f"{where}: expected one of {', '.join(kinds)}, got {', '.join(given) or 'none'}")
    for kind in given:
        if not isinstance(end[kind], str) or not end[kind]:
            raise ValueError(f"{where}.{kind}: expected a name, got {end[kind]!r}")
    return end


def _address(text: str, where: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f"{where}.ip: {text!r} is not an IP address") from None


def _pod_port(pod: Json, port: int | str, protocol: str, where: str) -> int:
    if isinstance(port, int):
        return port
    number = target_port(pod, {"port": 0, "targetPort": port, "protocol": protocol})
    if not number:
        raise ValueError(f"{where}: Pod {key_of(pod)} has no {protocol} port named {port!r}")
    return number
