"""kube-proxy's HTTP ports on a node: one for each Service with a health check node port, and 10256 for kube-proxy itself.

Rules it keeps: sockets are the host namespace's, so a probe comes in over the node's datapath and its INPUT rules; a port that is
taken is said in the log and tried again with the next change. The answers are those of pkg/proxy/healthcheck.
Order to read: HealthServer, then the answers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import trio

from podwire_core.objects import Json
from podwire_nodeagent import httpd
from podwire_nodeagent.httpd import Answer, Request
from podwire_nodeagent.proxy.health import PROXY_PORT, HealthChecks

log = logging.getLogger(__name__)
RETIRING = "ToBeDeletedByClusterAutoscaler"  # the taint of a node that the autoscaler takes away


class HealthServer:
    """`node` gives the Node object as it is now; `updated` when the rules were last brought up to date."""

    def __init__(self, host_netns: Path, checks: HealthChecks, node: Callable[[], Json | None]) -> None:
        self._netns, self._checks, self._node = host_netns, checks, node
        self._serving: dict[int, trio.CancelScope] = {}
        self._woken = trio.Event()
        self.updated = _now()

    def changed(self) -> None:
        """The checks' ports may be different now."""

        self.updated = _now()
        self._woken.set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            self._open(nursery, PROXY_PORT, self._own)
            while True:
                await self._woken.wait()
                self._woken = trio.Event()
                wanted = set(self._checks.ports)
                for port in set(self._serving) - wanted - {PROXY_PORT}:
                    self._serving.pop(port).cancel()
                for port in wanted - set(self._serving):
                    self._open(nursery, port, self._service(port))

    def _open(self, nursery: trio.Nursery, port: int, handler: httpd.Handler) -> None:
        try:
            listener = httpd.listen(self._netns, port)
        except OSError as error:
            log.warning("health check port %d cannot be served: %s", port, error.strerror or error)
            return
        scope = self._serving[port] = trio.CancelScope()

        async def serve() -> None:
            with scope:
                await httpd.serve(listener, handler)

        nursery.start_soon(serve)

    # --- the answers --------------------------------

    def _service(self, port: int) -> httpd.Handler:
        def answer(_request: Request) -> Answer:
            service, count = self._checks.ports.get(port, ("/", 0))
            namespace, _, name = service.partition("/")
            body = {"service": {"namespace": namespace, "name": name}, "localEndpoints": count, "serviceProxyHealthy": True}
            weight = ("X-Load-Balancing-Endpoint-Weight", str(count))
            return _json(200 if count else 503, body, "\t", weight)

        return answer

    def _own(self, request: Request) -> Answer:
        path = request.path.partition("?")[0]
        if path not in ("/healthz", "/livez"):
            return Answer(404, "404 page not found\n")
        eligible = path == "/livez" or not _leaving(self._node())
        body = {"lastUpdated": self.updated, "currentTime": _now(), "nodeEligible": eligible}
        return _json(200 if eligible else 503, body, None)


def _leaving(node: Json | None) -> bool:
    if node is None or node["metadata"].get("deletionTimestamp"):
        return True
    return any(taint.get("key") == RETIRING for taint in (node.get("spec") or {}).get("taints") or ())


def _json(status: int, body: Json, indent: str | None, *headers: tuple[str, str]) -> Answer:
    text = json.dumps(body, indent=indent)
    return Answer(status, text, "application/json", (("X-Content-Type-Options", "nosniff"), *headers))


def _now() -> str:
    return str(datetime.now(UTC))
