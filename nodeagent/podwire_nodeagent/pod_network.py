"""Pods' attachment to the network: the kubelet's `Cni`, by real calls of CNI plugins, and their ports after a datapath's restart.

Rules it keeps: the network's configuration is a file in DIR/cni/net.d, written when the node has its podCIDR; what was attached
is known from the runtime's cache, so it survives the agent. Order to read: configure, add, delete, reattach.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import trio

from podwire_cni import attach, runtime
from podwire_cni.backends import flannel
from podwire_cni.runtime import Attachment, Network, Runtime
from podwire_core.netlink import LinkInfo, NetlinkError
from podwire_core.netlink_client import Netlink
from podwire_core.objects import Json

log = logging.getLogger(__name__)
CONFIGURATION = "10-flannel.conflist"


class PodNetwork:
    """`directory` is the node's run directory."""

    def __init__(self, directory: Path) -> None:
        self._folder, self._socket = directory / "cni", str(directory / "datapath.sock")
        self._runtime: Runtime | None = None

    def configure(self, node: Json) -> None:
        """Write the configuration for this node's podCIDR; pods can be attached from now on."""
        conf_dir, bin_dir = self._folder / "net.d", self._folder / "bin"
        conf_dir.mkdir(parents=True, exist_ok=True)
        conf = flannel.net_conf(node, self._socket, str(self._folder / "networks"))
        draft = conf_dir / "draft"
        draft.write_text(json.dumps(conf, indent=2) + "\n")
        draft.replace(conf_dir / CONFIGURATION)
        runtime.install(bin_dir)
        self._runtime = Runtime(Network.load(conf_dir), [bin_dir], self._folder / "cache")

    async def add(self, container_id: str, netns: str, ifname: str, args: dict[str, str]) -> list[str]:
        """ADD; the pod's addresses, primary first. Raises CniError."""
        result = await self._configured().add(Attachment(container_id, netns, ifname, args))
        return [str(ip["address"]).partition("/")[0] for ip in result.get("ips", ())]

    async def delete(self, container_id: str, netns: str, ifname: str, args: dict[str, str]) -> None:
        """DEL; again is fine. Raises CniError."""
        await self._configured().delete(Attachment(container_id, netns, ifname, args))

    async def reattach(self, links: Sequence[LinkInfo]) -> None:
        """Give the datapath, which has these links, the ports of all attached pods that it lacks."""
        if self._runtime is None and (self._folder / "net.d" / CONFIGURATION).exists():
            self._runtime = Runtime(Network.load(self._folder / "net.d"), [self._folder / "bin"], self._folder / "cache")
        if self._runtime is not None:
            attached = {link.name for link in links if link.attached}
            await trio.to_thread.run_sync(self._reattach, self._runtime, attached)

    def _reattach(self, network: Runtime, attached: set[str]) -> None:
        [conf] = network.network.plugins
        with Netlink(self._socket) as datapath:
            for a in network.attachments():
                port = attach.Port.of(conf, a.container_id, a.netns, a.ifname, dict(a.args))
                if port.link in attached:
                    continue
                try:
                    attach.reattach(port, datapath)
                except (OSError, NetlinkError) as error:
                    log.warning("%s cannot be given back to the datapath: %s", port.alias, error)

    def _configured(self) -> Runtime:
        if self._runtime is None:
            raise OSError("the node has no pod network yet")
        return self._runtime
