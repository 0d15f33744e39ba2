"""All pods of the node: the class the agent uses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from podwire_core.agentapi import EXEC_IN, EXEC_OUT, ExecStart, LogsChunk, LogsRequest
from podwire_core.objects import Json
from podwire_nodeagent.kubelet.config import Api, Cni, Getter, KubeletConfig, RecordEvent, Standins


class Kubelet:
    """`async with trio.open_nursery() as nursery: nursery.start_soon(kubelet.run)`; then `sync` on every change of the mirror."""

    def __init__(self, config: KubeletConfig, api: Api, cni: Cni, standins: Standins, record_event: RecordEvent) -> None: ...

    async def run(self) -> None:
        """Adopts what a former agent left, then works until cancelled. Cancelling stops nothing that runs in a pod."""

    def sync(self, pods: dict[str, Json], services: list[Json], config_map: Getter, secret: Getter) -> None:
        """The pods bound to this node (by key) as the API has them now, and what their environments are made of. Cheap;
        call it on every change. The first call ends adoption: pods that it does not name are removed."""

    async def exec(self, start: ExecStart, inputs: AsyncIterator[EXEC_IN], send: Callable[[EXEC_OUT], Awaitable[None]]) -> None:
        """One exec stream; the last message sent is ExecExit. Cancelling kills the command."""

    async def logs(self, request: LogsRequest, send: Callable[[LogsChunk], Awaitable[None]]) -> None:
        """Raises ApiError(404) for an unknown pod or container, ApiError(400) where a container must be named."""

    def standins_lost(self) -> None:
        """The stand-in process died: its containers have ended and are restarted. (For `StandinClient(on_restart=…)`.)"""
