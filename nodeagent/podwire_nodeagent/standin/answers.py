"""What a stand-in says: HTTP/1, HTTP/2 with gRPC health, and plain TCP or UDP, told apart by a connection's first bytes.

Pure: bytes in, bytes out (h11 and h2 are sans-I/O too). Every answer says who answers and whom it saw, because that is what
a user of an emulated network wants to know. Rules: any HTTP path is 200, so that probes of unknown applications pass; the
few paths of agnhost's netexec (/hostname, /clientip, /echo) answer as that does; grpc.health.v1.Health says SERVING for
every service. Order to read: Identity, about, Conversation, page, Http1, Http2, Plain.
"""

from __future__ import annotations

import json
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h11
from msgspec import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"PATCH ", b"OPTIONS ", b"TRACE ", b"CONNECT ")
SERVING = b"\x00\x00\x00\x00\x02\x08\x01"  # gRPC frame: not compressed, 2 bytes, HealthCheckResponse{status: SERVING}


class Identity(Struct):
    """Who answers."""

    pod: str  # "namespace/name"
    node: str
    ip: str
    container: str = ""
    image: str = ""


class Peer(Struct):
    """The two ends of a connection as the pod's own kernel sees them."""

    client_ip: str
    client_port: int
    server_ip: str
    server_port: int


class Sender(Protocol):
    """A protocol's half of a conversation."""

    def receive(self, data: bytes) -> bytes: ...

    @property
    def finished(self) -> bool: ...


def about(identity: Identity, peer: Peer, **seen: str) -> dict[str, str]:
    """What every answer tells, in the order in which it is printed."""
    return {
        "pod": identity.pod,
        "node": identity.node,
        "address": _address(peer.server_ip, peer.server_port),
        "client": _address(peer.client_ip, peer.client_port),
        **seen,
    }


def _address(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def datagram(identity: Identity, peer: Peer, data: bytes) -> bytes:
    """The answer to a UDP datagram: one line about the pod, then the datagram itself."""
    return json.dumps(about(identity, peer, protocol="UDP")).encode() + b"\n" + data


class Conversation:
    """One TCP connection: decides the protocol by its first bytes, then hands over to it."""

    def __init__(self, identity: Identity, peer: Peer) -> None:
        self._identity, self._peer = identity, peer
        self._early = b""
        self._sender: Sender | None = None

    def receive(self, data: bytes) -> bytes:
        """Bytes to send for these bytes received. Never raises: what is no protocol of ours is plain TCP."""
        if self._sender is None:
            self._early += data
            if _undecided(self._early):
                return b""
            self._sender = self._choose(self._early)
            data = self._early
        return self._sender.receive(data)

    @property
    def finished(self) -> bool:
        """True when the connection is to be closed after what was returned last."""
        return self._sender is not None and self._sender.finished

    def _choose(self, early: bytes) -> Sender:
        if early.startswith(PREFACE):
            return Http2(self._identity, self._peer)
        if early.startswith(METHODS):
            return Http1(self._identity, self._peer)
        return Plain(self._identity, self._peer)


def _undecided(early: bytes) -> bool:
    """A strict prefix of something we know: wait for more."""
    return len(early) < len(PREFACE) and (PREFACE.startswith(early) or any(m.startswith(early) and m != early for m in METHODS))


def page(identity: Identity, peer: Peer, method: str, target: str, host: str, accept: str) -> tuple[str, bytes]:
    """(content type, body) of the answer to an HTTP request."""
    url = urlsplit(target)
    match url.path:
        case "/hostname" | "/hostName":
            return "text/plain", identity.pod.partition("/")[2].encode()
        case "/clientip":
            return "text/plain", _address(peer.client_ip, peer.client_port).encode()
        case "/echo":
            return "text/plain", parse_qs(url.query).get("msg", [""])[0].encode()
    facts = about(identity, peer, request=f"{method} {target}", host=host)
    if "json" in accept:
        return "application/json", json.dumps(facts).encode() + b"\n"
    return "text/plain", "".join(f"{name}: {value}\n" for name, value in facts.items()).encode()


class Http1:
    """HTTP/1.1 with keep-alive and pipelining, by h11."""

    def __init__(self, identity: Identity, peer: Peer) -> None:
        self._identity, self._peer = identity, peer
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=64 << 10)
        self._request: h11.Request | None = None
        self.finished = False

    def receive(self, data: bytes) -> bytes:
        out = b""
        try:
            self._connection.receive_data(data)
            while True:
                event = self._connection.next_event()
                if isinstance(event, h11.Request):
                    self._request = event
                    if self._connection.they_are_waiting_for_100_continue:
                        out += self._connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b""
                elif isinstance(event, h11.EndOfMessage):
                    out += self._answer()
                    if self._connection.our_state is h11.MUST_CLOSE:
                        self.finished = True
                        return out
                    self._connection.start_next_cycle()
                elif event is h11.NEED_DATA or event is h11.PAUSED:
                    return out
                elif isinstance(event, h11.ConnectionClosed):
                    self.finished = True
                    return out
        except h11.RemoteProtocolError as error:
            self.finished = True
            return out + self._refuse(error)

    def _answer(self) -> bytes:
        assert self._request is not None
        headers = {name.lower(): value.decode("latin-1") for name, value in self._request.headers}
        method, target = self._request.method.decode("latin-1"), self._request.target.decode("latin-1")
        kind, body = page(self._identity, self._peer, method, target, headers.get(b"host", ""), headers.get(b"accept", ""))
        return self._respond(200, kind, body, head=method == "HEAD")

    def _respond(self, status: int, kind: str, body: bytes, head: bool = False) -> bytes:
        send = self._connection.send
        headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Server", "podwire")]
        out = send(h11.Response(status_code=status, headers=headers)) or b""
        if not head:
            out += send(h11.Data(data=body)) or b""
        return out + (send(h11.EndOfMessage()) or b"")

    def _refuse(self, error: h11.RemoteProtocolError) -> bytes:
        if self._connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return b""
        return self._respond(error.error_status_hint or 400, "text/plain", f"{error}\n".encode())


class Http2:
    """HTTP/2 with prior knowledge (h2c), by h2: gRPC health checks, gRPC's UNIMPLEMENTED for the rest, pages for plain HTTP/2."""

    def __init__(self, identity: Identity, peer: Peer) -> None:
        self._identity, self._peer = identity, peer
        self._connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._connection.initiate_connection()
        self._requests: dict[int, dict[str, str]] = {}
        self.finished = False

    def receive(self, data: bytes) -> bytes:
        try:
            for event in self._connection.receive_data(data):
                self._handle(event)
        except h2.exceptions.ProtocolError:
            self.finished = True
        return self._connection.data_to_send()

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                self._requests[event.stream_id] = {str(name): str(value) for name, value in event.headers}
            case h2.events.DataReceived():
                self._connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                self._answer(event.stream_id, self._requests.pop(event.stream_id, {}))
            case h2.events.StreamReset():
                self._requests.pop(event.stream_id, None)
            case h2.events.ConnectionTerminated():
                self.finished = True

    def _answer(self, stream: int, request: dict[str, str]) -> None:
        path, method = request.get(":path", "/"), request.get(":method", "GET")
        if not request.get("content-type", "").startswith("application/grpc"):
            host, accept = request.get(":authority", ""), request.get("accept", "")
            kind, body = page(self._identity, self._peer, method, path, host, accept)
            self._connection.send_headers(
                stream, [(":status", "200"), ("content-type", kind), ("content-length", str(len(body)))]
            )
            self._connection.send_data(stream, b"" if method == "HEAD" else body, end_stream=True)
            return
        if path in ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"):
            self._connection.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
            self._connection.send_data(stream, SERVING)
            if path.endswith("Check"):
                self._connection.send_headers(stream, [("grpc-status", "0")], end_stream=True)
            return
        told = f"stand-in {self._identity.pod} on {self._identity.node} implements grpc.health.v1.Health only"
        status = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "12"), ("grpc-message", told)]
        self._connection.send_headers(stream, status, end_stream=True)


class Plain:
    """Any other TCP: one line about the pod, then everything the client sends comes back."""

    finished = False

    def __init__(self, identity: Identity, peer: Peer) -> None:
        self._greeting = json.dumps(about(identity, peer, protocol="TCP")).encode() + b"\n"

    def receive(self, data: bytes) -> bytes:
        greeting, self._greeting = self._greeting, b""
        return greeting + data
