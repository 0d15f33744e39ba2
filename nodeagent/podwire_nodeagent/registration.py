"""A node's own objects: its Node (as kubelet registers it) and the Lease that says it is alive.

Rules it keeps: what others wrote into the Node (podCIDR, taints, labels) stays; the Ready condition is written when it changes,
the Lease every ten seconds (https://kubernetes.io/docs/concepts/architecture/nodes/#node-heartbeats).
Order to read: NodeIdentity, node_object, register, report_ready, renew_lease.
"""

from __future__ import annotations

import datetime
import os
import platform
from typing import Any, Protocol

import trio
from msgspec import Struct

from podwire_core.constants import NODE_LEASE_NAMESPACE, NODE_LEASE_SECONDS
from podwire_core.errors import ApiError

Json = dict[str, Any]
RENEW_SECONDS = 10.0
RETRY_SECONDS = 1.0
VERSION = "v1.31.0-podwire"


class Api(Protocol):
    """The calls of `podwire_core.rpc.Client` that this file makes."""

    async def get(self, kind: str, name: str, namespace: str = "") -> Json: ...
    async def create(self, obj: Json) -> Json: ...
    async def patch(self, kind: str, name: str, namespace: str, patch: Json, subresource: str = "") -> Json: ...


class NodeIdentity(Struct, frozen=True):
    """`annotations` say where the node's agent and datapath are (podwire_core.agentapi, flannel.publish)."""

    name: str
    internal_ips: tuple[str, ...]
    annotations: dict[str, str]


def internal_addresses(ips: tuple[str, ...]) -> list[Json]:
    """As a Node's status has them."""
    return [{"type": "InternalIP", "address": ip} for ip in ips]


def now() -> str:
    """The time as Kubernetes writes it in conditions and status."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_now() -> str:
    """The time as a Lease writes it (MicroTime)."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def node_object(identity: NodeIdentity) -> Json:
    """The Node that a new node registers; the podCIDR is the API server's to give."""
    labels = {"kubernetes.io/hostname": identity.name}
    for prefix in ("", "beta."):  # a kubelet still sets the names of before 1.14, and manifests still select by them
        labels |= {f"{prefix}kubernetes.io/os": "linux", f"{prefix}kubernetes.io/arch": _architecture()}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": identity.name, "labels": labels, "annotations": identity.annotations},
        "spec": {},
        "status": status(identity),
    }


def status(identity: NodeIdentity) -> Json:
    """Addresses, capacity and versions of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 10
    # Containers are the machine's own processes and stand-ins cost next to nothing: what is scheduled is bounded by pods.
    resources = {"cpu": str(max(64, os.cpu_count() or 1)), "memory": f"{max(memory, 256 << 20)}Ki", "pods": "250"}
    return {
        "addresses": [*internal_addresses(identity.internal_ips), {"type": "Hostname", "address": identity.name}],
        "capacity": resources,
        "allocatable": resources,
        "nodeInfo": {
            "architecture": _architecture(),
            "containerRuntimeVersion": "podwire://0.1.0",
            "kernelVersion": platform.release(),
            "kubeletVersion": VERSION,
            "kubeProxyVersion": VERSION,
            "operatingSystem": "linux",
            "osImage": _os_image(),
        },
    }


async def register(api: Api, identity: NodeIdentity) -> Json:
    """Create the Node, or state this agent's part of it again. Retries until the API server answers; returns the Node."""
    while True:
        try:
            try:
                return await api.create(node_object(identity))
            except ApiError as error:
                if error.code != 409:
                    raise
            await api.patch("Node", identity.name, "", {"metadata": {"annotations": identity.annotations}})
            return await api.patch("Node", identity.name, "", {"status": status(identity)}, subresource="status")
        except ApiError as error:
            if error.code != 404 and error.code < 500:  # 404: deleted between the two
                raise
            await trio.sleep(RETRY_SECONDS)


async def report_ready(api: Api, name: str, ready: bool, reason: str, message: str) -> None:
    """Write the Ready condition (and the pressures, which an emulated node never has)."""
    conditions = [
        {"type": kind, "status": "False", "reason": f"KubeletHas{reason_}", "message": "", "lastTransitionTime": now()}
        for kind, reason_ in (
            ("MemoryPressure", "SufficientMemory"),
            ("DiskPressure", "NoDiskPressure"),
            ("PIDPressure", "SufficientPID"),
        )
    ]
    ready_ = {"type": "Ready", "status": str(ready), "reason": reason, "message": message, "lastTransitionTime": now()}
    await api.patch("Node", name, "", {"status": {"conditions": [*conditions, ready_]}}, subresource="status")


async def renew_lease(api: Api, name: str) -> None:
    """Renew the node's Lease for ever; an API server that is away is asked again soon."""
    while True:
        try:
            await _renew(api, name)
            await trio.sleep(RENEW_SECONDS)
        except ApiError as error:
            if error.code not in (404, 409) and error.code < 500:
                raise
            await trio.sleep(RETRY_SECONDS)


async def _renew(api: Api, name: str) -> None:
    spec = {"holderIdentity": name, "leaseDurationSeconds": NODE_LEASE_SECONDS, "renewTime": micro_now()}
    try:
        await api.patch("Lease", name, NODE_LEASE_NAMESPACE, {"spec": spec})
    except ApiError as error:
        if error.code != 404:
            raise
        metadata = {"name": name, "namespace": NODE_LEASE_NAMESPACE}
        await api.create({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec})


def _architecture() -> str:
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _os_image() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"
