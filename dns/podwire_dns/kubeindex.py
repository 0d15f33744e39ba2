"""What the kubernetes plugin knows: Services, their endpoints, pods and namespaces, indexed for questions.

Pure and incremental: `put(kind, key, object or None)` for every change, lookups are dictionary reads. A change of one object
touches the entries of that object only. Order to read: values, KubeIndex, _service, _endpoints.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from msgspec import Struct

from podwire_core import objects

Json = dict[str, Any]


class PortEntry(Struct, frozen=True):
    """A port of a Service or of its endpoints; names and protocol in lower case."""

    name: str
    proto: str
    port: int


class ServiceEntry(Struct, frozen=True):
    """A Service as DNS sees it. No `addresses` and no `external`: headless."""

    namespace: str
    name: str
    addresses: tuple[str, ...]
    ports: tuple[PortEntry, ...]
    external: str = ""
    publish_not_ready: bool = False
    labels: tuple[tuple[str, str], ...] = ()


class EndpointEntry(Struct, frozen=True):
    """One address of a Service's endpoints."""

    address: str
    hostname: str
    pod: str
    zone: str
    ready: bool
    ports: tuple[PortEntry, ...]


class KubeIndex:
    """Lookups by the names that occur in questions. `serial` grows with every change (the SOA's serial)."""

    def __init__(self) -> None:
        self.serial = 1
        self.namespaces: dict[str, Json] = {}
        self.services: dict[tuple[str, str], ServiceEntry] = {}
        self._slices: dict[tuple[str, str], dict[str, tuple[EndpointEntry, ...]]] = {}
        self._slice_owner: dict[str, tuple[str, str]] = {}
        self._by_cluster_ip: dict[str, dict[str, ServiceEntry]] = {}
        self._by_endpoint_ip: dict[str, dict[tuple[str, str], None]] = {}
        self._pods: dict[str, tuple[str, ...]] = {}
        self._by_pod_ip: dict[str, dict[str, Json]] = {}

    KINDS = ("Namespace", "Service", "EndpointSlice", "Pod")

    def put(self, kind: str, key: str, obj: Json | None) -> None:
        """Take over an object's new state, None if it is gone. Raises objects.DecodeError and then leaves it out."""
        self.serial += 1
        match kind:
            case "Namespace":
                self._set(self.namespaces, key, obj)
            case "Service":
                self._put_service(key, obj)
            case "EndpointSlice":
                self._put_slice(key, obj)
            case "Pod":
                self._put_pod(key, obj)

    def endpoints(self, namespace: str, name: str) -> list[EndpointEntry]:
        """All endpoints of a Service over its slices, an address once."""
        merged: dict[tuple[str, str], EndpointEntry] = {}
        for entries in self._slices.get((namespace, name), {}).values():
            for entry in entries:
                merged.setdefault((entry.address, entry.hostname), entry)
        return list(merged.values())

    def services_of_cluster_ip(self, ip: str) -> list[ServiceEntry]:
        return list(self._by_cluster_ip.get(ip, {}).values())

    def endpoints_of_ip(self, ip: str) -> list[tuple[ServiceEntry, EndpointEntry]]:
        """Every Service that has this address among its endpoints."""
        found = []
        for namespace, name in self._by_endpoint_ip.get(ip, {}):
            service = self.services.get((namespace, name))
            if service is not None:
                found += [(service, e) for e in self.endpoints(namespace, name) if e.address == ip]
        return found

    def pods_of_ip(self, ip: str) -> list[Json]:
        return list(self._by_pod_ip.get(ip, {}).values())

    # --- taking over objects --------------------------------

    def _put_service(self, key: str, obj: Json | None) -> None:
        namespace, _, name = key.partition("/")
        old = self.services.pop((namespace, name), None)
        for ip in old.addresses if old else ():
            self._drop(self._by_cluster_ip, ip, key)
        if obj is None:
            return
        entry = _service(obj)
        self.services[namespace, name] = entry
        for ip in entry.addresses:
            self._by_cluster_ip.setdefault(ip, {})[key] = entry

    def _put_slice(self, key: str, obj: Json | None) -> None:
        old_owner = self._slice_owner.pop(key, None)
        if old_owner is not None:
            old = self._slices[old_owner].pop(key)
            left = {e.address for entries in self._slices[old_owner].values() for e in entries}
            for entry in old:
                if entry.address not in left:
                    self._drop(self._by_endpoint_ip, entry.address, old_owner)
        if obj is None:
            return
        metadata = obj["metadata"]
        owner = (metadata.get("namespace", "default"), (metadata.get("labels") or {}).get("kubernetes.io/service-name", ""))
        entries = _endpoints(obj)
        self._slice_owner[key] = owner
        self._slices.setdefault(owner, {})[key] = entries
        for entry in entries:
            self._by_endpoint_ip.setdefault(entry.address, {})[owner] = None

    def _put_pod(self, key: str, obj: Json | None) -> None:
        for ip in self._pods.pop(key, ()):
            self._drop(self._by_pod_ip, ip, key)
        if obj is None:
            return
        pod = objects.decode(objects.Pod, obj)
        if pod.status.phase in ("Succeeded", "Failed") or pod.spec.host_network:
            return
        ips = dict.fromkeys([pod.status.pod_ip, *(p.ip for p in pod.status.pod_ips or [])])
        self._pods[key] = tuple(_canonical(ip) for ip in ips if ip)
        for ip in self._pods[key]:
            self._by_pod_ip.setdefault(ip, {})[key] = obj

    @staticmethod
    def _set(table: dict[str, Json], key: str, obj: Json | None) -> None:
        if obj is None:
            table.pop(key, None)
        else:
            table[key] = obj

    @staticmethod
    def _drop(table: dict[str, dict[Any, Any]], ip: str, key: Any) -> None:
        entries = table.get(ip, {})
        entries.pop(key, None)
        if not entries:
            table.pop(ip, None)


def _service(obj: Json) -> ServiceEntry:
    service = objects.decode(objects.Service, obj)
    spec, meta = service.spec, service.metadata
    ips = spec.cluster_ips or ([spec.cluster_ip] if spec.cluster_ip else [])
    external = spec.external_name if spec.type == "ExternalName" else ""
    return ServiceEntry(
        namespace=meta.namespace or "default",
        name=meta.name,
        addresses=() if external else tuple(_canonical(ip) for ip in ips if ip and ip != "None"),
        ports=tuple(PortEntry(p.name.lower(), p.protocol.lower(), p.port) for p in spec.ports or []),
        external=external,
        publish_not_ready=spec.publish_not_ready_addresses,
        labels=tuple((meta.labels or {}).items()),
    )


def _endpoints(obj: Json) -> tuple[EndpointEntry, ...]:
    slice_ = objects.decode(objects.EndpointSlice, obj)
    ports = tuple(PortEntry((p.name or "").lower(), p.protocol.lower(), p.port or 0) for p in slice_.ports or [])
    return tuple(
        EndpointEntry(
            address=_canonical(address),
            hostname=(endpoint.hostname or "").lower(),
            pod=endpoint.target_ref.name if endpoint.target_ref and endpoint.target_ref.kind == "Pod" else "",
            zone=(endpoint.zone or "").lower(),
            ready=endpoint.conditions.ready is not False,
            ports=ports,
        )
        for endpoint in slice_.endpoints or []
        for address in endpoint.addresses
    )


def _canonical(ip: str) -> str:
    try:
        return str(ipaddress.ip_address(ip))
    except ValueError:
        return ip  # whoever stored it; it will never be asked for
