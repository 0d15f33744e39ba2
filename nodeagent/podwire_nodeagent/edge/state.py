"""What the edge's datapath must hold, kept true: as node_state.py for a node, without kube-proxy and with the outside's link.

Rules it keeps: those of NodeState. Order to read: EdgeState.restate, then .take.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from podwire_core.netlink import LinkInfo, NetlinkError
from podwire_core.objects import Json
from podwire_core.rpc import Change
from podwire_nodeagent import network
from podwire_nodeagent.datapath_process import Dataplane
from podwire_nodeagent.edge import outside
from podwire_nodeagent.edge.announcements import Announcements
from podwire_nodeagent.edge.desired import OUTSIDE, SYSCTLS, desired, outside_link, rules
from podwire_nodeagent.node_state import KINDS, NodeState
from podwire_nodeagent.proxy.config import ProxyConfiguration

log = logging.getLogger(__name__)


class EdgeState(NodeState):
    """`objects` is the live copy (rpc.Mirror.objects)."""

    def __init__(
        self, dataplane: Dataplane, host_netns: Path, outside_netns: Path, objects: Mapping[str, Mapping[str, Json]]
    ) -> None:
        super().__init__("edge", dataplane, host_netns, ProxyConfiguration(), objects, _no_pods)
        self._outside = outside_netns
        self._announced = Announcements()

    async def restate(self) -> None:
        """Bring the datapath to the present state, whatever it holds. Raises OSError when it is gone."""
        async with self._lock:
            links: list[LinkInfo] = await self._dataplane.dump("links")
            await self._attach_host(links)
            await self._attach_outside(links)
            await self._dataplane.apply([*SYSCTLS, rules()])
            self._announced = Announcements()
            self._announced.change(self._objects["Service"], self._objects["EndpointSlice"], self._objects["Node"], self._objects)
            await self._route()
        self.networked.set()

    async def take(self, changes: Sequence[Change]) -> None:
        """Apply what these changes make different. Raises OSError when the datapath is gone."""
        if not self.networked.is_set():
            await self.restate()
            return
        by_kind: dict[str, dict[str, Json | None]] = {kind: {} for kind in KINDS}
        for change in changes:
            if change.kind in by_kind:
                by_kind[change.kind][change.key] = change.new
        try:
            async with self._lock:
                different = self._announced.change(by_kind["Service"], by_kind["EndpointSlice"], by_kind["Node"], self._objects)
                if different or by_kind["Node"]:
                    await self._route()
        except NetlinkError as error:
            log.error("the datapath refused an update, everything is stated again: %s", error)
            await self.restate()

    async def _route(self) -> None:
        wanted = desired(self._objects["Node"].values(), self._announced.by_address())
        dumps = {what: await self._dataplane.dump(what) for what in network.DUMPED}
        await self._dataplane.apply(network.reconcile(wanted, dumps))
        await self._configure_host(wanted)

    async def _attach_outside(self, links: Sequence[LinkInfo]) -> None:
        if any(link.name == OUTSIDE and link.attached for link in links):
            return
        fd = outside.attach(self._outside)
        try:
            await self._dataplane.apply([outside_link(fd=True)], [fd])
        finally:
            os.close(fd)


async def _no_pods(_: Sequence[LinkInfo]) -> None:
    """There are none here."""
