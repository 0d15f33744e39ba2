"""What a node agent offers to the command (as kubelet does on port 10250): exec, logs, traces, dumps of its datapath.

Messages of the gRPC service "podwire.Agent"; how they travel is in `rpc.py`. Order to read: exec, logs, trace, dump,
SERVICE.
An agent's address is in its Node's annotation `podwire.dev/agent-address` ("unix:/run/podwire/c1/node1/agent.sock"
or "host:port").
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from podwire_core.trace import Hop

AGENT_ADDRESS = "podwire.dev/agent-address"  # gRPC target of the agent
UNDERLAY_HOST = "podwire.dev/underlay-host"  # the socket address its tunnels and cable are bound to
UNDERLAY_CABLE_PORT = "podwire.dev/underlay-cable-port"
UPLINK_MAC = "podwire.dev/uplink-mac"
FLANNEL_BACKEND_DATA = "flannel.alpha.coreos.com/backend-data"  # {"VNI":1,"VtepMAC":"…"}, as Flannel writes it
FLANNEL_BACKEND_TYPE = "flannel.alpha.coreos.com/backend-type"
FLANNEL_PUBLIC_IP = "flannel.alpha.coreos.com/public-ip"
FLANNEL_BACKEND_DATA6 = "flannel.alpha.coreos.com/backend-v6-data"
FLANNEL_PUBLIC_IP6 = "flannel.alpha.coreos.com/public-ipv6"


class ExecStart(Struct, tag="start"):
    """First message of an exec stream. Without `pod` the command runs in the node's host namespace (`podwire node
    NAME -- …`), or at the edge in its `outside` namespace."""

    argv: list[str]
    pod: str = ""  # "namespace/name"
    container: str = ""
    tty: bool = False
    stdin: bool = False
    rows: int = 24
    columns: int = 80
    env: dict[str, str] = {}
    outside: bool = False


class ExecInput(Struct, tag="stdin"):
    """`data` b"" with `eof` closes the command's standard input."""

    data: bytes = b""
    eof: bool = False


class ExecResize(Struct, tag="resize"):
    rows: int
    columns: int


class ExecSignal(Struct, tag="signal"):
    number: int


class ExecOutput(Struct, tag="output"):
    """`stream` 1 or 2; with a TTY always 1."""

    stream: int
    data: bytes


class ExecExit(Struct, tag="exit"):
    """Last message. 128+n if ended by signal n; 126/127 with `message` if it could not be started."""

    code: int
    message: str = ""


class LogsRequest(Struct):
    pod: str
    container: str = ""
    follow: bool = False
    previous: bool = False
    tail: int = -1
    timestamps: bool = False


class LogsChunk(Struct):
    data: bytes


class TraceRequest(Struct):
    """As `podwire_core.netlink.Subscribe`; the stream ends when the caller cancels it. The first message is an empty
    TraceBatch
    and means that tracing is on."""

    addresses: list[str] = []
    ports: list[int] = []
    protocol: str = ""
    limit: int = 10_000


class TraceBatch(Struct):
    hops: list[Hop] = []
    lost: int = 0


class DumpRequest(Struct):
    """`what`: a name of `netlink.DUMPS`."""

    what: str


class DumpReply(Struct):
    data: Any


SERVICE = "podwire.Agent"
EXEC_IN = ExecStart | ExecInput | ExecResize | ExecSignal
EXEC_OUT = ExecOutput | ExecExit
