"""Kubernetes Events of a node's daemons, written in the background; a repeated event counts up instead of being new.

Rules: recording never blocks and never fails its caller; the queue is bounded (beyond it, events are lost and counted in the
log). Order to read: Recorder, _write.
"""

from __future__ import annotations

import logging
import math
import secrets
from typing import Any, Protocol

import trio
from msgspec import Struct

from podwire_core.errors import ApiError
from podwire_nodeagent.registration import now

log = logging.getLogger(__name__)
Json = dict[str, Any]
QUEUE = 1000
REMEMBERED = 2000
RETRY_SECONDS = 1.0


class Api(Protocol):
    async def create(self, obj: Json) -> Json: ...
    async def patch(self, kind: str, name: str, namespace: str, patch: Json, subresource: str = "") -> Json: ...


class _Seen(Struct):
    name: str
    namespace: str
    count: int


class Recorder:
    """`component` and `host` are the events' source. Start `run` in a nursery; call the recorder like a function."""

    def __init__(self, api: Api, component: str, host: str) -> None:
        self._api, self._component, self._host = api, component, host
        self._send, self._receive = trio.open_memory_channel[Json](QUEUE)
        self._seen: dict[tuple[str, ...], _Seen] = {}
        self._lost = 0

    def __call__(self, obj: Json, type_: str, reason: str, message: str, field_path: str = "") -> None:
        meta = obj["metadata"]
        involved = {"kind": obj.get("kind", ""), "apiVersion": obj.get("apiVersion", ""), "name": meta["name"]}
        involved |= {key: meta[key] for key in ("namespace", "uid", "resourceVersion") if meta.get(key)}
        if field_path:
            involved["fieldPath"] = field_path
        event = {"involvedObject": involved, "type": type_, "reason": reason, "message": message, "lastTimestamp": now()}
        try:
            self._send.send_nowait(event)
        except trio.WouldBlock:
            self._lost += 1
            if math.log2(self._lost).is_integer():
                log.warning("%d events lost: the API server is away or slow", self._lost)

    async def run(self) -> None:
        """Write what is recorded, for ever."""
        async for event in self._receive:
            while True:
                try:
                    await self._write(event)
                    break
                except ApiError as error:
                    if error.code < 500:  # such as an event in a namespace that is gone
                        log.info("event not written: %s", error)
                        break
                    await trio.sleep(RETRY_SECONDS)

    async def _write(self, event: Json) -> None:
        involved = event["involvedObject"]
        key = (
            involved["kind"],
            involved.get("uid", involved["name"]),
            involved.get("fieldPath", ""),
            event["reason"],
            event["message"],
        )
        seen = self._seen.get(key)
        if seen is not None:
            seen.count += 1
            patch = {"count": seen.count, "lastTimestamp": event["lastTimestamp"]}
            try:
                await self._api.patch("Event", seen.name, seen.namespace, patch)
                return
            except ApiError as error:
                if error.code != 404:
                    raise
        namespace = involved.get("namespace", "default")
        name = f"{involved['name']}.{secrets.token_hex(8)}"
        created = await self._api.create(self._event(event, name, namespace))
        if len(self._seen) >= REMEMBERED:
            self._seen.pop(next(iter(self._seen)))
        self._seen[key] = _Seen(created["metadata"]["name"], namespace, 1)

    def _event(self, event: Json, name: str, namespace: str) -> Json:
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            **event,
            "count": 1,
            "firstTimestamp": event["lastTimestamp"],
            "source": {"component": self._component, "host": self._host},
            "reportingComponent": self._component,
            "reportingInstance": self._host,
        }
