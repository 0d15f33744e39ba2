"""What a kubelet is given: its place on this machine and in the cluster, and the four things it calls.

The protocols are exactly what the kubelet calls, no more; `rpc.Client` satisfies Api and `standin.client.StandinClient`
satisfies Standins. Tests pass fakes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct, field

from podwire_core.constants import CLUSTER_DOMAIN, DNS_IP
from podwire_core.objects import Json
from podwire_nodeagent.standin.answers import Identity


class Api(Protocol):
    """The API server, as far as pods go."""

    async def get(self, kind: str, name: str, namespace: str = "") -> Json: ...

    async def update(self, obj: Json, subresource: str = "") -> Json: ...

    async def delete(self, kind: str, name: str, namespace: str = "", *, grace: int | None = None, uid: str = "") -> object: ...


class Cni(Protocol):
    """The node's CNI runtime. `add` returns the pod's addresses, primary first. Both raise CniError or OSError."""

    async def add(self, container_id: str, netns: str, ifname: str, args: dict[str, str]) -> list[str]: ...

    async def delete(self, container_id: str, netns: str, ifname: str, args: dict[str, str]) -> None: ...


class Standins(Protocol):
    """The node's stand-in process; `sandbox` is a container's ID here, so that a pod may have several."""

    async def start(self, sandbox: str, netns: str, ports: Sequence[tuple[str, int]], identity: Identity) -> None: ...

    async def stop(self, sandbox: str) -> None: ...

    async def running(self) -> list[str]: ...


class RecordEvent(Protocol):
    """Event about an object, repeated ones counted. `field_path` is "spec.containers{web}" for a container's events."""

    def __call__(self, obj: Json, type_: str, reason: str, message: str, field_path: str = "") -> None: ...


Getter = Callable[[str, str], Json | None]  # (namespace, name) -> the object, or None


class KubeletConfig(Struct, frozen=True):
    """`run_dir` is the node's directory; network namespaces go to run_dir/netns, the rest to run_dir/pods."""

    node_name: str
    run_dir: Path
    internal_ip: str
    host_netns: str
    other_ips: tuple[str, ...] = ()  # the node's addresses of the other family
    cluster_domain: str = CLUSTER_DOMAIN
    dns_ip: str = DNS_IP
    machine_resolv_conf: Path = Path("/etc/resolv.conf")
    machine_hosts: Path = Path("/etc/hosts")
    python: str = field(default_factory=lambda: sys.executable)
    parallel_starts: int = 4  # sandboxes made at the same time
    allocatable: dict[str, str] = {}  # the node's, for resourceFieldRef without a limit
    cgroup_root: Path | None = Path("/sys/fs/cgroup")  # None: no limits

    @property
    def pods_dir(self) -> Path:
        return self.run_dir / "pods"

    @property
    def netns_dir(self) -> Path:
        return self.run_dir / "netns"

    @property
    def api_socket(self) -> Path:
        return self.run_dir / "api.sock"

    @property
    def datapath_socket(self) -> Path:
        return self.run_dir / "datapath.sock"

    @property
    def tools_dir(self) -> Path:
        return self.run_dir / "tools"
