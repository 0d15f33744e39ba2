"""ClusterIPs and node ports: what is taken, and by whom. Pure: the server and `settle` both use it.

Rules it keeps: given values are kept, or refused if they are taken or out of range (with `as_given`, out of range is
accepted). Chosen values come from the upper band of the range first, as in Kubernetes, so that low addresses such as
10.96.0.10 and low ports stay free for those who ask for them. The choice begins at a hash of the Service's key, so the same
cluster gets the same addresses.
The object passed to `assign` is changed in place; nothing is held until `hold`.

Order to read: Pool, ServiceAllocator.
"""

from __future__ import annotations

import ipaddress
import zlib
from collections.abc import Sequence

from podwire_core.constants import NODE_PORT_RANGE, SERVICE_CIDR
from podwire_core.errors import Cause
from podwire_core.objects import Json, key_of


class Pool:
    """Numbers first…last, of which the first `band` are chosen last."""

    def __init__(self, first: int, last: int, band: int) -> None:
        self.first, self.last, self.band = first, last, band
        self.holders: dict[int, str] = {}

    def choose(self, key: str, besides: set[int]) -> int | None:
        """A free number for this key; None if all are taken."""
        for low, high in ((self.first + self.band, self.last), (self.first, self.first + self.band - 1)):
            size = high - low + 1
            start = zlib.crc32(key.encode()) % size if size > 0 else 0
            for step in range(size):
                number = low + (start + step) % size
                if number not in self.holders and number not in besides:
                    return number
        return None


def address_pool(cidr: str) -> Pool:
    """Without the network's own address and, in IPv4, its broadcast address."""
    network = ipaddress.ip_network(cidr)
    first, last = int(network.network_address) + 1, int(network.broadcast_address) - (network.version == 4)
    return Pool(first, last, min(max(16, network.num_addresses // 16), 256, max(0, last - first)))


def port_pool(ports: tuple[int, int]) -> Pool:
    size = ports[1] - ports[0] + 1
    return Pool(*ports, min(max(16, size // 32), 128, size - 1))


class ServiceAllocator:
    def __init__(
        self, cidrs: Sequence[str] = (SERVICE_CIDR,), ports: tuple[int, int] = NODE_PORT_RANGE, as_given: bool = False
    ) -> None:
        self._networks = [ipaddress.ip_network(cidr) for cidr in cidrs]
        self._addresses: dict[int, Pool] = {network.version: address_pool(str(network)) for network in self._networks}
        self._ports, self._as_given = port_pool(ports), as_given

    def hold(self, service: Json) -> None:
        """What this Service has is taken."""
        key = key_of(service)
        for address in _cluster_ips(service):
            pool = self._addresses.get(address.version)
            if pool:
                pool.holders.setdefault(int(address), key)
        for port in _node_ports(service):
            self._ports.holders.setdefault(port, key)

    def release(self, service: Json) -> None:
        key = key_of(service)
        for address in _cluster_ips(service):
            pool = self._addresses.get(address.version)
            if pool and pool.holders.get(int(address)) == key:
                del pool.holders[int(address)]
        for port in _node_ports(service):
            if self._ports.holders.get(port) == key:
                del self._ports.holders[port]

    def assign(self, service: Json, old: Json | None = None) -> list[Cause]:
        """Give a defaulted Service what its type needs and it lacks; what it had before (`old`) it keeps."""
        spec = service["spec"]
        if old is not None:
            _inherit(spec, old["spec"])
        if spec.get("type") == "ExternalName":
            for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
                spec.pop(field, None)
            return []
        return self._assign_addresses(service) + self._assign_ports(service)

    # --- addresses --------------------------------

    def _assign_addresses(self, service: Json) -> list[Cause]:
        spec, key = service["spec"], key_of(service)
        if spec.get("clusterIPs") and not spec.get("clusterIP"):
            spec["clusterIP"] = spec["clusterIPs"][0]
        families = self._families(spec)
        if not self._as_given and (refused := self._refused(spec)):
            return refused
        if spec.get("clusterIP") == "None":
            spec.update(clusterIPs=["None"], ipFamilies=families)
            spec.setdefault("ipFamilyPolicy", "SingleStack")
            return []
        given = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
        if spec.get("ipFamilyPolicy") == "SingleStack":  # one that was dual-stack gives its second address back
            given, families = given[:1], families[:1]
        causes = [cause for index, text in enumerate(given) for cause in self._check(text, key, f"$.spec.clusterIPs[{index}]")]
        if len(given) == 1:
            causes = [Cause("$.spec.clusterIP", cause.message) for cause in causes]
        if causes:
            return causes
        addresses = list(given)
        for family in families[len(given) :]:
            pool = self._addresses[int(family[-1])]
            number = pool.choose(key, set())
            if number is None:
                return [Cause("$.spec.clusterIP", f"no free {family} address is left in the service range")]
            addresses.append(str(ipaddress.IPv4Address(number) if family == "IPv4" else ipaddress.IPv6Address(number)))
        spec.update(clusterIP=addresses[0], clusterIPs=addresses)
        spec["ipFamilies"] = [f"IPv{ipaddress.ip_address(text).version}" for text in addresses]
        spec.setdefault("ipFamilyPolicy", "SingleStack" if len(addresses) == 1 else "RequireDualStack")
        return []

    def _refused(self, spec: Json) -> list[Cause]:
        """Families that this cluster does not have."""
        served = [f"IPv{network.version}" for network in self._networks]
        causes = [
            Cause(f"$.spec.ipFamilies[{index}]", f"{family} is not configured on this cluster, which has {', '.join(served)}")
            for index, family in enumerate(spec.get("ipFamilies") or [])
            if family not in served
        ]
        if spec.get("ipFamilyPolicy") == "RequireDualStack" and len(served) < 2:
            causes.append(Cause("$.spec.ipFamilyPolicy", "this cluster is not configured for dual-stack Services"))
        return causes

    def _families(self, spec: Json) -> list[str]:
        served = [f"IPv{network.version}" for network in self._networks]
        wanted = [family for family in spec.get("ipFamilies") or [] if family in served]
        if spec.get("ipFamilyPolicy") in ("PreferDualStack", "RequireDualStack"):
            return wanted + [family for family in served if family not in wanted]
        return wanted or served[:1]

    def _check(self, text: str, key: str, field: str) -> list[Cause]:
        address = ipaddress.ip_address(text)
        pool = self._addresses.get(address.version)
        inside = pool is not None and pool.first <= int(address) <= pool.last
        if not inside and not self._as_given:
            ranges = " or ".join(str(network) for network in self._networks)
            return [Cause(field, f"{text} is not in the service range {ranges}")]
        holder = pool.holders.get(int(address), key) if pool else key
        return [] if holder == key else [Cause(field, f"{text} is taken by Service {holder}")]

    # --- ports --------------------------------

    def _assign_ports(self, service: Json) -> list[Cause]:
        spec, key, causes = service["spec"], key_of(service), []
        exposed = spec.get("type") in ("NodePort", "LoadBalancer")
        chosen: dict[int, set[str]] = {}
        for index, port in enumerate(spec.get("ports") or []):
            number, protocol = port.get("nodePort"), port.get("protocol", "TCP")
            if not number:
                continue
            if protocol in chosen.setdefault(number, set()):
                causes.append(Cause(f"$.spec.ports[{index}].nodePort", f"{number}/{protocol} is there twice"))
            chosen[number].add(protocol)
            causes += self._check_port(number, key, f"$.spec.ports[{index}].nodePort")
        if exposed and not (spec["type"] == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is False):
            for index, port in enumerate(spec.get("ports") or []):
                if not port.get("nodePort"):
                    causes += self._choose_port(port, key, chosen, f"$.spec.ports[{index}].nodePort")
        if spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local":
            causes += self._health_check_port(spec, key, chosen)
        return causes

    def _check_port(self, number: int, key: str, field: str) -> list[Cause]:
        if not self._ports.first <= number <= self._ports.last and not self._as_given:
            return [Cause(field, f"{number} is not in the node port range {self._ports.first}-{self._ports.last}")]
        holder = self._ports.holders.get(number, key)
        return [] if holder == key else [Cause(field, f"{number} is taken by Service {holder}")]

    def _choose_port(self, port: Json, key: str, chosen: dict[int, set[str]], field: str) -> list[Cause]:
        """Ports that differ only in protocol share a node port, as Kubernetes lets them."""
        number = self._ports.choose(f"{key}:{port['port']}", set(chosen))
        if number is None:
            return [Cause(field, "no free node port is left")]
        port["nodePort"] = number
        chosen.setdefault(number, set()).add(port.get("protocol", "TCP"))
        return []

    def _health_check_port(self, spec: Json, key: str, chosen: dict[int, set[str]]) -> list[Cause]:
        if spec.get("healthCheckNodePort"):
            return self._check_port(spec["healthCheckNodePort"], key, "$.spec.healthCheckNodePort")
        number = self._ports.choose(f"{key}:health", set(chosen))
        if number is None:
            return [Cause("$.spec.healthCheckNodePort", "no free node port is left")]
        spec["healthCheckNodePort"] = number
        return []


def follow_address(spec: Json, old: Json) -> None:
    """A new clusterIP beside the clusterIPs of before (who sent it knows only the first field) is meant to be their first."""
    address, several = spec.get("clusterIP"), spec.get("clusterIPs")
    if isinstance(address, str) and address and several and several == old.get("clusterIPs") and address != several[0]:
        spec["clusterIPs"] = [address, *several[1:]]


def _inherit(spec: Json, old: Json) -> None:
    """An update that doesn't mention the addresses and node ports keeps them, unless the new type has none."""
    if spec.get("type") != "ExternalName" and old.get("clusterIP") and not spec.get("clusterIP"):
        for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if old.get(field) is not None and not spec.get(field):
                spec[field] = old[field]
    before = {(port["port"], port.get("protocol", "TCP")): port.get("nodePort") for port in old.get("ports") or []}
    exposed = spec.get("type") in ("NodePort", "LoadBalancer")
    was_exposed = old.get("type") in ("NodePort", "LoadBalancer")
    for port in spec.get("ports") or []:
        number = before.get((port["port"], port.get("protocol", "TCP")))
        if exposed and number and not port.get("nodePort"):
            port["nodePort"] = number
        elif was_exposed and not exposed and port.get("nodePort") == number:
            port.pop("nodePort", None)
    local = spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"
    if local and old.get("healthCheckNodePort"):
        spec.setdefault("healthCheckNodePort", old["healthCheckNodePort"])
    elif not local and spec.get("healthCheckNodePort") == old.get("healthCheckNodePort"):
        spec.pop("healthCheckNodePort", None)


def _cluster_ips(service: Json) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    spec = service.get("spec") or {}
    texts = spec.get("clusterIPs") or [spec.get("clusterIP")]
    return [ipaddress.ip_address(text) for text in texts if text and text != "None"]


def _node_ports(service: Json) -> list[int]:
    spec = service.get("spec") or {}
    ports = [port["nodePort"] for port in spec.get("ports") or [] if port.get("nodePort")]
    return ports + ([spec["healthCheckNodePort"]] if spec.get("healthCheckNodePort") else [])
