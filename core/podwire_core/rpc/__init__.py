"""How podwire's processes talk: msgpack messages over gRPC. Services: "podwire.Api" (the API server), "podwire.Agent" (a node's).

An address is "unix:/path" or "host:port". Failures are `podwire_core.errors.ApiError`.

* `SyncClient(address)`: the API server, blocking; `SyncChannel` any other service.
* `connect(address)`: the same from trio; `connect_channel` any other service.
* `Mirror`: a live copy of objects. `serve`: a server, its handlers being trio tasks.

The parts that need trio are loaded at first use, so that the command starts fast. Order to read: messages.py, channel.py,
sync.py, client.py, server.py, mirror.py.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from podwire_core.errors import ApiError
from podwire_core.rpc.messages import (
    ADDED,
    API_SERVICE,
    BOOKMARK,
    CONFIGURED,
    CREATED,
    DELETED,
    MODIFIED,
    UNCHANGED,
    Applied,
    Listing,
    ResourceInfo,
    Selection,
    ServerInfo,
    WatchEvent,
)
from podwire_core.rpc.sync import SyncChannel, SyncClient, SyncStream

if TYPE_CHECKING:
    from podwire_core.rpc.client import Channel, Client, Stream, connect, connect_channel
    from podwire_core.rpc.mirror import Change, Mirror
    from podwire_core.rpc.server import Handler, ListenError, Send, replies, serve, stream, unary

_LATE = {
    "client": ("Channel", "Client", "Stream", "connect", "connect_channel"),
    "mirror": ("Change", "Mirror"),
    "server": ("Handler", "ListenError", "Send", "replies", "serve", "stream", "unary"),
}


def __getattr__(name: str) -> Any:
    for module, names in _LATE.items():
        if name in names:
            return getattr(import_module(f"podwire_core.rpc.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ADDED",
    "API_SERVICE",
    "BOOKMARK",
    "CONFIGURED",
    "CREATED",
    "DELETED",
    "MODIFIED",
    "UNCHANGED",
    "ApiError",
    "Applied",
    "Change",
    "Channel",
    "Client",
    "Handler",
    "ListenError",
    "Listing",
    "Mirror",
    "ResourceInfo",
    "Selection",
    "Send",
    "ServerInfo",
    "Stream",
    "SyncChannel",
    "SyncClient",
    "SyncStream",
    "WatchEvent",
    "connect",
    "connect_channel",
    "replies",
    "serve",
    "stream",
    "unary",
]
