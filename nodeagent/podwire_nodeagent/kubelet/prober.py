"""One probe, once: an HTTP request, a TCP connection or a gRPC health check from the node's host namespace, so that it
crosses the dataplane as kubelet's own would. Messages are kubelet's. (exec probes: exec.py.)

Rules it keeps: nothing is retried, no failure is an exception: every outcome is a Result. HTTP is spoken by hand because a status
line is all that matters, and a hundred pods are probed every few seconds. Certificates are not verified, as in kubelet.
Order to read: Result, run, http, tcp, grpc.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urljoin, urlsplit

import trio
from msgspec import Struct

from podwire_core import netns
from podwire_core.objects import Container, HTTPGetAction, IntOrString, Probe

USER_AGENT = "kube-probe/1.33"
MAX_REDIRECTS = 10
REDIRECTS = (301, 302, 303, 307, 308)


class Result(Struct):
    ok: bool
    message: str = ""


async def run(probe: Probe, container: Container, host_netns: str, ip: str) -> Result:
    """`ip`: the pod's. The probe's own timeout applies."""
    timeout = max(1, probe.timeout_seconds)
    if probe.http_get is not None:
        get = probe.http_get
        url = f"{get.scheme.lower()}://{_join(get.host or ip, port_number(get.port, container))}{_path(get.path)}"
        return await _within(
            timeout,
            lambda: _http(host_netns, get, url, get.host or ip),
            f'Get "{url}": context deadline exceeded (Client.Timeout exceeded while awaiting headers)',
        )
    if probe.tcp_socket is not None:
        host, port = probe.tcp_socket.host or ip, port_number(probe.tcp_socket.port, container)
        return await _within(timeout, lambda: _tcp(host_netns, host, port), f"dial tcp {_join(host, port)}: i/o timeout")
    if probe.grpc is not None:
        service, number = probe.grpc.service, probe.grpc.port
        late = f'timeout: failed to connect service "{_join(ip, number)}" within {timeout}s'
        return await _within(timeout, lambda: _grpc(host_netns, ip, number, service), late)
    return Result(False, "missing probe handler")


def port_number(port: IntOrString, container: Container) -> int:
    """A number, or the port of that name; 0 if there is none."""
    if isinstance(port, int):
        return port
    named = next((p.container_port for p in container.ports or [] if p.name == port), 0)
    return int(port) if port.isdigit() else named


async def _within(seconds: float, attempt: Callable[[], Awaitable[Result]], late: str) -> Result:
    with trio.move_on_after(seconds):
        try:
            return await attempt()
        except OSError as error:
            return Result(False, error.strerror or str(error))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return Result(False, "read: connection reset by peer")
    return Result(False, late)


async def _connect(host_netns: str, host: str, port: int) -> trio.SocketStream:
    """A connection made inside the host namespace."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with netns.in_netns(host_netns):
        plain = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock = trio.socket.from_stdlib_socket(plain)
    try:
        await sock.connect((host, port))
    except OSError as error:
        sock.close()
        reason = errno.errorcode.get(error.errno or 0, "")
        text = {"EHOSTUNREACH": "no route to host", "ENETUNREACH": "network is unreachable"}.get(reason)
        raise OSError(
            error.errno, f"dial tcp {_join(host, port)}: connect: {text or os.strerror(error.errno or 0).lower()}"
        ) from None
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


# --- TCP --------------------------------


async def _tcp(host_netns: str, host: str, port: int) -> Result:
    async with await _connect(host_netns, host, port):
        return Result(True)


# --- HTTP --------------------------------


async def _http(host_netns: str, get: HTTPGetAction, url: str, connect_to: str) -> Result:
    """Redirects to the same host are followed; one to another host is a success, as kubelet has it."""
    here = url
    for _ in range(MAX_REDIRECTS):
        try:
            status, location = await _request(host_netns, get, here, connect_to)
        except OSError as error:
            return Result(False, f'Get "{here}": {error.strerror or error}')
        if status in REDIRECTS and location:
            target = urljoin(here, location)
            if urlsplit(target).hostname != urlsplit(here).hostname:
                return Result(True)
            here = target
            continue
        if 200 <= status < 400:
            return Result(True)
        return Result(
            False, f"HTTP probe failed with statuscode: {status}" if status else f'Get "{here}": malformed HTTP response'
        )
    return Result(False, f'Get "{here}": stopped after {MAX_REDIRECTS} redirects')


async def _request(host_netns: str, get: HTTPGetAction, url: str, connect_to: str) -> tuple[int, str]:
    """(status, Location); (0, "") if the answer is not HTTP."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    stream: trio.abc.Stream = await _connect(host_netns, connect_to, port)
    async with stream:
        if parts.scheme == "https":
            stream = _tls(stream, parts.hostname or "")
        await stream.send_all(_request_bytes(get, url))
        head = b""
        while b"\r\n\r\n" not in head and len(head) < 16384:
            chunk = await stream.receive_some(4096)
            if not chunk:
                break
            head += chunk
    return _parse_head(head)


def _request_bytes(get: HTTPGetAction, url: str) -> bytes:
    parts = urlsplit(url)
    headers = {"Host": parts.netloc, "User-Agent": USER_AGENT, "Accept": "*/*", "Connection": "close"}
    for header in get.http_headers or []:
        name = next((known for known in headers if known.lower() == header.name.lower()), header.name)
        headers[name] = header.value
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items() if value or name != "Accept")]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


def _parse_head(head: bytes) -> tuple[int, str]:
    first, *lines = head.partition(b"\r\n\r\n")[0].split(b"\r\n")
    match first.split(maxsplit=2):
        case [version, status, *_] if version.startswith(b"HTTP/") and status.isdigit():
            fields = (line.partition(b":") for line in lines)
            location = next((value for name, _, value in fields if name.lower() == b"location"), b"")
            return int(status), location.strip().decode("latin-1")
    return 0, ""


def _tls(stream: trio.abc.Stream, hostname: str) -> trio.abc.Stream:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return trio.SSLStream(stream, context, server_hostname=hostname, https_compatible=True)


# --- gRPC --------------------------------


async def _grpc(host_netns: str, ip: str, port: int, service: str) -> Result:
    """grpc.health.v1.Health/Check over HTTP/2 without TLS."""
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.exceptions import ProtocolError

    connection = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    name = service.encode()
    message = b"\x0a" + bytes([len(name)]) + name if name else b""  # HealthCheckRequest{service}
    try:
        stream = await _connect(host_netns, ip, port)
    except OSError as error:
        return Result(False, f'error: failed to connect service at "{_join(ip, port)}": {error.strerror}')
    async with stream:
        connection.initiate_connection()
        stream_id = connection.get_next_available_stream_id()
        connection.send_headers(stream_id, _grpc_headers(_join(ip, port)))
        connection.send_data(stream_id, b"\x00" + len(message).to_bytes(4, "big") + message, end_stream=True)
        try:
            await stream.send_all(connection.data_to_send())
            return await _grpc_reply(connection, stream)
        except ProtocolError as error:
            return Result(False, f"error: health rpc failed: {error}")


def _grpc_headers(authority: str) -> list[tuple[str, str]]:
    pseudo = [(":method", "POST"), (":scheme", "http"), (":path", "/grpc.health.v1.Health/Check"), (":authority", authority)]
    return [*pseudo, ("content-type", "application/grpc"), ("te", "trailers"), ("user-agent", USER_AGENT)]


async def _grpc_reply(connection: object, stream: trio.SocketStream) -> Result:
    from h2 import events
    from h2.connection import H2Connection

    assert isinstance(connection, H2Connection)
    body, headers = b"", dict[str, str]()
    while True:
        data = await stream.receive_some(16384)
        if not data:
            return Result(False, "error: health rpc failed: connection closed")
        for event in connection.receive_data(bytes(data)):
            if isinstance(event, events.DataReceived):
                body += event.data
            elif isinstance(event, events.ResponseReceived | events.TrailersReceived):
                headers |= {str(key): str(value) for key, value in event.headers or []}
            elif isinstance(event, events.StreamEnded | events.StreamReset | events.ConnectionTerminated):
                return _health(headers, body)
        await stream.send_all(connection.data_to_send())


_SERVING_STATUS = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}


def _health(headers: dict[str, str], body: bytes) -> Result:
    status = headers.get("grpc-status", "0")
    if status != "0" or len(body) < 5:
        return Result(False, f"error: health rpc failed: rpc error: code = {status} desc = {headers.get('grpc-message', '')}")
    value = body[6] if len(body) > 6 and body[5] == 0x08 else 0  # HealthCheckResponse{status}
    if value == 1:
        return Result(True)
    return Result(False, f'service unhealthy (responded with "{_SERVING_STATUS.get(value, value)}")')


# --- helpers --------------------------------


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _path(path: str) -> str:
    return path if path.startswith("/") else f"/{path}"
