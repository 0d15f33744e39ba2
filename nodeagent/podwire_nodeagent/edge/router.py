"""The edge as a process: wires the router's parts together, as agent.py does a node's.

Rules it keeps: agent.py's (one live copy of the API's objects; everything is stated again when the process or its datapath
started; a datapath that lives keeps moving packets). Until the API server answers, the outside has its kernel but no way in.
Order to read: EdgeConfig, Edge.run.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import trio
from msgspec import Struct

from podwire_core import agentapi, netns, rpc
from podwire_core.errors import ApiError
from podwire_nodeagent import tools
from podwire_nodeagent.datapath_process import DatapathConfig, DatapathFailed, Dataplane
from podwire_nodeagent.edge import outside
from podwire_nodeagent.edge.state import EdgeState
from podwire_nodeagent.kubelet import exec as execution
from podwire_nodeagent.kubelet.parts import machine_spec
from podwire_nodeagent.service import DatapathService

log = logging.getLogger(__name__)
NAME = "edge"
RETRY_SECONDS = 0.5


class EdgeConfig(Struct, frozen=True):
    """As AgentConfig."""

    api: str
    directory: Path
    underlay: str
    tunnel_port: int
    cable_port: int
    listen: tuple[str, ...] = ()


class Edge:
    """`run` until cancelled. Cancelling stops the agent of the edge, not its datapath."""

    def __init__(self, config: EdgeConfig) -> None:
        self._config, self._dir = config, config.directory
        for folder in ("netns", "log", "tools"):
            (self._dir / folder).mkdir(parents=True, exist_ok=True)
        self._host, self._outside = self._dir / "netns" / "host", self._dir / "netns" / "outside"
        self._socket = self._dir / "datapath.sock"
        log_file = self._dir / "log" / "datapath.log"
        self._dataplane = Dataplane(
            DatapathConfig(NAME, str(self._socket), str(log_file), config.underlay, config.tunnel_port, config.cable_port)
        )

    async def run(self) -> None:
        """Raises DatapathFailed, rpc.ListenError or OSError when it cannot start."""
        if not netns.is_mounted(self._host):
            self._host.unlink(missing_ok=True)
            netns.create(self._host)
        outside.prepare(self._outside)
        tools.install(self._dir / "tools")
        await self._dataplane.connect()
        async with rpc.connect(self._config.api) as api, trio.open_nursery() as nursery:
            kinds = ("Node", "Service", "EndpointSlice")
            mirror = rpc.Mirror(api, [rpc.Selection(kind) for kind in kinds])
            state = EdgeState(self._dataplane, self._host, self._outside, mirror.objects)
            service = DatapathService(self._exec, self._dataplane)
            listen = [f"unix:{self._dir / 'agent.sock'}", *self._config.listen]
            await nursery.start(rpc.serve, agentapi.SERVICE, service.handlers(), listen)
            await nursery.start(outside.serve, self._outside)
            nursery.start_soon(mirror.run)
            nursery.start_soon(self._follow, mirror, state)
            nursery.start_soon(self._keep_datapath, state)

    async def _follow(self, mirror: rpc.Mirror, state: EdgeState) -> None:
        await mirror.synced()
        await self._until_done(state.restate)
        async for changes in mirror.changes():
            try:
                await state.take(changes)
            except OSError as error:
                log.warning("the datapath is away, its state will be stated when it is back: %s", error)

    async def _keep_datapath(self, state: EdgeState) -> None:
        """A datapath that dies is started again and told everything."""
        while True:
            await self._dataplane.died()
            log.warning("the datapath died and is started again")
            await self._until_done(self._dataplane.connect)  # here alone: it is this connection's death that `died` awaits
            await self._until_done(state.restate)

    async def _until_done(self, what: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await what()
                return
            except (OSError, DatapathFailed) as error:
                log.error("the datapath could not be brought to its state, trying again: %s", error)
                await trio.sleep(RETRY_SECONDS)

    async def _exec(self, start: agentapi.ExecStart, inputs: AsyncIterator[agentapi.EXEC_IN], send: rpc.Send) -> None:
        """A client's command outside, or the router's own (with tools that show the datapath)."""
        if not start.argv:
            raise ApiError(400, "you must specify a command")
        if start.pod:
            raise ApiError(400, "the edge has no pods")
        if start.outside:
            spec = machine_spec(start.argv, str(self._outside), "outside")
        else:
            about = {"PODWIRE_DATAPATH": str(self._socket), "PODWIRE_NODE": NAME}
            spec = machine_spec(start.argv, str(self._host), NAME, f"{self._dir / 'tools'}:", about)
        spec.env |= ({"TERM": "xterm"} if start.tty else {}) | start.env
        await execution.interact(sys.executable, spec, start, inputs, send)
