"""Addresses for Services of type LoadBalancer: what a cloud's service controller does, or MetalLB's.

Rules it keeps: a Service with a loadBalancerClass is another implementation's; an address that a Service has is kept, whoever
gave it, while it is a LoadBalancer; the one asked for by spec.loadBalancerIP is given if it is free and in the pool, else the
lowest free one. Nothing is remembered: an address is taken while a Service's status names it, so it is free again when the
Service is gone or has another type. The edge (podwire_nodeagent.edge) leads the addresses to the nodes.

Order to read: LoadBalancerController (wakes, reconcile), addresses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from podwire_core.constants import LOAD_BALANCER_POOL
from podwire_core.objects import Json, key_of

from .actions import AnyAction
from .common import deleting, event, status_update
from .view import Change, View

NAME = "service-controller"


class LoadBalancerController:
    name = NAME
    kinds = ("Service",)

    def __init__(self, pool: str = LOAD_BALANCER_POOL) -> None:
        self.pool = ipaddress.ip_network(pool)

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        keys = [change.key] if change.new is not None else []
        if change.old is not None and set(addresses_of(change.old)) - set(addresses_of(change.new or {})):
            keys += (key for key, service in view.all("Service").items() if ours(service) and not addresses_of(service))
        return sorted(set(keys))  # those in want: an address came free

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        service = view.get("Service", key)
        if service is None or deleting(service):
            return []
        if service["spec"].get("type") != "LoadBalancer":
            return self._release(service)
        if not ours(service):
            return []
        asked, has = service["spec"].get("loadBalancerIP") or "", addresses_of(service)
        mine = [address for address in has if self._in_pool(address)]
        if (has and not asked) or asked in has or (has and not mine):
            return []
        address, trouble = self._choose(view, key, asked)
        if not address:
            return [event(service, "Warning", "SyncLoadBalancerFailed", trouble, NAME)]
        said = event(service, "Normal", "EnsuredLoadBalancer", f"Ensured load balancer: {address}", NAME)
        return [*self._write(service, [{"ip": address, "ipMode": "VIP"}]), said]

    def _release(self, service: Json) -> list[AnyAction]:
        if not addresses_of(service):
            return []
        return [*self._write(service, []), event(service, "Normal", "DeletedLoadBalancer", "Deleted load balancer", NAME)]

    def _write(self, service: Json, ingress: list[Json]) -> list[AnyAction]:
        status = {**(service.get("status") or {}), "loadBalancer": {"ingress": ingress} if ingress else {}}
        return status_update(service, status)

    def _choose(self, view: View, key: str, asked: str) -> tuple[str, str]:
        """An address, or why there is none."""
        taken = {
            address: key_of(other)
            for other in view.all("Service").values()
            for address in addresses_of(other)
            if key_of(other) != key
        }
        if asked:
            if not self._in_pool(asked):
                return "", f"spec.loadBalancerIP {asked} is not in the pool {self.pool}"
            if asked in taken:
                return "", f"spec.loadBalancerIP {asked} is taken by Service {taken[asked]}"
            return asked, ""
        free = next((str(address) for address in self.pool.hosts() if str(address) not in taken), "")
        return free, f"no address is left in the pool {self.pool}"

    def _in_pool(self, text: str) -> bool:
        try:
            return ipaddress.ip_address(text) in self.pool
        except ValueError:
            return False


def ours(service: Json) -> bool:
    """Of type LoadBalancer, without a class, and reachable by the pool's family."""
    spec = service["spec"]
    families = spec.get("ipFamilies") or ["IPv4"]
    return spec.get("type") == "LoadBalancer" and not spec.get("loadBalancerClass") and "IPv4" in families


def addresses_of(service: Json) -> list[str]:
    """Addresses and names in its status."""
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    return [each.get("ip") or each.get("hostname") or "" for each in ingress]
