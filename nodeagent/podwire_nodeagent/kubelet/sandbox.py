"""A pod's network: a namespace bound to run_dir/netns/<uid>, attached by the node's CNI plugin. A hostNetwork pod has the node's.

Rules it keeps: after a failure nothing is left, so that the next try starts clean; removal may be repeated. Namespaces
live in the kernel, held by their bind mount: an agent that comes back finds them as they were.
"""

from __future__ import annotations

import secrets

import trio

from podwire_cni import protocol
from podwire_cni.protocol import CniError
from podwire_core import netns
from podwire_core.objects import Json
from podwire_nodeagent.kubelet import userns
from podwire_nodeagent.kubelet.config import Cni, KubeletConfig
from podwire_nodeagent.kubelet.records import Sandbox

IFNAME = "eth0"


async def make(config: KubeletConfig, cni: Cni, pod: Json, host_network: bool) -> Sandbox:
    """Raises CniError or OSError."""
    if host_network:
        return Sandbox(config.host_netns, secrets.token_hex(32), [config.internal_ip, *config.other_ips])
    meta = pod["metadata"]
    path = config.netns_dir / meta["uid"]
    netns.delete(path)
    netns.create(path)
    sandbox = Sandbox(str(path), secrets.token_hex(32))
    try:
        netns.set_sysctl(path, "net.ipv4.ip_unprivileged_port_start", "0")  # as container runtimes do
        netns.set_sysctl(path, "net.ipv4.ping_group_range", "0 0" if userns.inside() else "0 2147483647")
        for sysctl in (pod["spec"].get("securityContext") or {}).get("sysctls") or []:
            if str(sysctl["name"]).startswith("net."):
                netns.set_sysctl(path, sysctl["name"], str(sysctl["value"]))
        sandbox.ips = await cni.add(sandbox.id, sandbox.netns, IFNAME, cni_args(pod, sandbox.id))
        if not sandbox.ips:
            raise CniError(protocol.DECODING, "the CNI plugin gave the pod no address")
    except BaseException:
        with trio.move_on_after(5) as undo:
            undo.shield = True  # also when we are cancelled: the address goes back
            await _detach(cni, pod, sandbox)
        netns.delete(path)
        raise
    return sandbox


async def remove(config: KubeletConfig, cni: Cni, pod: Json, sandbox: Sandbox) -> None:
    """Raises CniError or OSError; then it is to be tried again."""
    if not sandbox.netns or sandbox.netns == config.host_netns:
        return
    await cni.delete(sandbox.id, sandbox.netns, IFNAME, cni_args(pod, sandbox.id))
    netns.delete(sandbox.netns)


async def _detach(cni: Cni, pod: Json, sandbox: Sandbox) -> None:
    try:
        await cni.delete(sandbox.id, sandbox.netns, IFNAME, cni_args(pod, sandbox.id))
    except (CniError, OSError):
        pass  # what failed first is what is told


def lives(sandbox: Sandbox) -> bool:
    """False if the namespace is gone, as after a reboot."""
    return bool(sandbox.netns) and netns.is_mounted(sandbox.netns)


def cni_args(pod: Json, container_id: str) -> dict[str, str]:
    """CNI_ARGS as kubelet's runtimes give them."""
    meta = pod["metadata"]
    return {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": meta.get("namespace", "default"),
        "K8S_POD_NAME": meta["name"],
        "K8S_POD_INFRA_CONTAINER_ID": container_id,
        "K8S_POD_UID": meta["uid"],
    }
