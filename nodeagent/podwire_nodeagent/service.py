"""What the agent offers over gRPC ("podwire.Agent"): exec, logs, traces and dumps of its datapath.

Messages: `podwire_core.agentapi`. Order to read: handlers, then each method. The edge offers a part of it (edge/router.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import trio

from podwire_core import agentapi, rpc
from podwire_core.errors import ApiError
from podwire_core.netlink import DUMPS, Subscribe
from podwire_core.netlink_client import Netlink
from podwire_core.trace import Hop
from podwire_nodeagent.datapath_process import Dataplane
from podwire_nodeagent.kubelet.kubelet import Kubelet

TRACE_BATCH = 200


Exec = Callable[[agentapi.ExecStart, AsyncIterator[agentapi.EXEC_IN], rpc.Send], Awaitable[None]]


class AgentService:
    """The handlers; `handlers` is what `rpc.serve` takes."""

    def __init__(self, kubelet: Kubelet, dataplane: Dataplane) -> None:
        self._kubelet, self._datapath = kubelet, DatapathService(kubelet.exec, dataplane)

    def handlers(self) -> dict[str, rpc.Handler]:
        return self._datapath.handlers() | {"Logs": rpc.replies(agentapi.LogsRequest, self._kubelet.logs)}


class DatapathService:
    """What needs no pods."""

    def __init__(self, exec_: Exec, dataplane: Dataplane) -> None:
        self._run, self._dataplane = exec_, dataplane

    def handlers(self) -> dict[str, rpc.Handler]:
        return {
            "Exec": rpc.stream(agentapi.EXEC_IN, self._exec),
            "Trace": rpc.replies(agentapi.TraceRequest, self._trace),
            "Dump": rpc.unary(agentapi.DumpRequest, self._dump),
        }

    async def _exec(self, requests: AsyncIterator[agentapi.EXEC_IN], send: rpc.Send) -> None:
        try:
            start = await requests.__anext__()
        except StopAsyncIteration:
            raise ApiError(400, "an exec stream begins with its start message") from None
        if not isinstance(start, agentapi.ExecStart):
            raise ApiError(400, "an exec stream begins with its start message")
        await self._run(start, requests, send)

    async def _dump(self, request: agentapi.DumpRequest) -> agentapi.DumpReply:
        if request.what not in DUMPS:
            raise ApiError(400, f"nothing to dump by the name {request.what!r}; there are: {', '.join(DUMPS)}")
        try:
            return agentapi.DumpReply(await self._dataplane.dump(request.what))
        except OSError as error:
            raise ApiError(503, f"the datapath is away: {error}") from None

    async def _trace(self, request: agentapi.TraceRequest, send: rpc.Send) -> None:
        """Until the caller goes away: hops as the datapath reports them."""
        try:
            netlink = Netlink(self._dataplane.config.socket)
            traced = netlink.subscribe(
                Subscribe(0, tuple(request.addresses), tuple(request.ports), request.protocol, request.limit)
            )
        except OSError as error:
            raise ApiError(503, f"the datapath is away: {error}") from None
        await send(agentapi.TraceBatch())
        feed, hops = trio.open_memory_channel[agentapi.TraceBatch](TRACE_BATCH)

        def read() -> None:
            """In a thread: the datapath's messages, until the connection is closed below."""
            with feed:
                try:
                    for message in traced:
                        batch = agentapi.TraceBatch([msgspec.convert(message.hop, Hop)], message.lost)
                        trio.from_thread.run(feed.send, batch)
                except (OSError, trio.BrokenResourceError, trio.RunFinishedError):
                    return  # the caller is gone

        async with hops, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: trio.to_thread.run_sync(read, abandon_on_cancel=True))
            try:
                async for batch in hops:
                    await send(batch)
            finally:
                netlink.close()
