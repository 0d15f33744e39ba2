"""The stand-in process of a node: listening sockets inside the pods' network namespaces, and a unix socket to control them.

Rules it keeps: it outlives the agent (a restarted agent lists what runs and goes on); starting a sandbox's stand-in
twice replaces it; a port that cannot be had fails that start as a whole, with the reason, and opens nothing.
Control messages are lines of JSON, a reply for each: {"op": "start", "sandbox", "netns", "ports": [["TCP", 80]], "identity"},
{"op": "stop", "sandbox"}, {"op": "list"}; {"ok": true, …} or {"error": "one line"}. Order to read: serve, Control, Sandbox.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any

import msgspec
import trio

from podwire_core import netns
from podwire_nodeagent.standin.answers import Conversation, Identity, Peer, datagram

BACKLOG = 512
READ = 65536
IP_PKTINFO = 8  # linux/in.h; the socket module names it since Python 3.14 only


async def serve(path: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve the control socket at `path` until cancelled."""
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if os.path.exists(path):
        os.unlink(path)
    await listener.bind(path)
    listener.listen(8)
    async with trio.open_nursery() as sandboxes, trio.open_nursery() as clients:
        control = Control(sandboxes)
        task_status.started()
        while True:
            client, _ = await listener.accept()
            clients.start_soon(control.converse, trio.SocketStream(client))


class Control:
    """The requests of the kubelet."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._sandboxes: dict[str, Sandbox] = {}

    async def converse(self, stream: trio.SocketStream) -> None:
        buffer = b""
        async with stream:
            try:
                async for chunk in stream:
                    *lines, buffer = (buffer + chunk).split(b"\n")
                    for line in lines:
                        await stream.send_all(json.dumps(self._reply(line)).encode() + b"\n")
            except trio.BrokenResourceError:
                return  # the agent is gone; the sandboxes stay

    def _reply(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            match request["op"]:
                case "start":
                    return self._start(request)
                case "stop":
                    return {"ok": True, "stopped": self._stop(request["sandbox"])}
                case "list":
                    return {"ok": True, "sandboxes": sorted(self._sandboxes)}
                case other:
                    return {"error": f"unknown op {other!r}"}
        except (ValueError, KeyError, TypeError, OSError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def _start(self, request: dict[str, Any]) -> dict[str, Any]:
        name = str(request["sandbox"])
        identity = msgspec.convert(request["identity"], Identity)
        self._stop(name)
        sandbox = Sandbox(identity, request["netns"], [(str(proto), int(port)) for proto, port in request["ports"]])
        self._sandboxes[name] = sandbox
        self._nursery.start_soon(sandbox.run)
        return {"ok": True}

    def _stop(self, name: str) -> bool:
        sandbox = self._sandboxes.pop(name, None)
        if sandbox is not None:
            sandbox.close()
        return sandbox is not None


class Sandbox:
    """The stand-in of one pod: its sockets and the tasks that answer on them."""

    def __init__(self, identity: Identity, namespace: str, ports: list[tuple[str, int]]) -> None:
        self._identity = identity
        self._scope = trio.CancelScope()
        self._sockets: list[tuple[str, trio.socket.SocketType]] = []
        try:
            with netns.in_netns(namespace):
                for proto, port in dict.fromkeys(ports):
                    self._sockets.append((proto, _listen(proto, port)))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Stop answering: listening sockets and open connections are closed."""
        self._scope.cancel()
        for _, sock in self._sockets:
            sock.close()

    async def run(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                for proto, sock in self._sockets:
                    nursery.start_soon(self._datagrams if proto == "UDP" else self._accept, sock)

    async def _accept(self, listener: trio.socket.SocketType) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    client, _ = await listener.accept()
                except trio.ClosedResourceError:
                    return
                except OSError:
                    continue  # the client left before it was accepted, or file descriptors are short: the next may do
                nursery.start_soon(self._converse, client)

    async def _converse(self, client: trio.socket.SocketType) -> None:
        with client:
            try:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                conversation = Conversation(self._identity, _peer(client.getpeername(), client.getsockname()))
                while data := await client.recv(READ):
                    await _send(client, conversation.receive(data))
                    if conversation.finished:
                        client.shutdown(socket.SHUT_WR)
                        return
            except OSError:
                return  # reset by the client: nobody is left to tell

    async def _datagrams(self, sock: trio.socket.SocketType) -> None:
        while True:
            try:
                sender: Any
                data, ancillary, _, sender = await sock.recvmsg(READ, socket.CMSG_SPACE(20))
                local = _local_address(ancillary) or self._identity.ip
                peer = _peer(sender, (local, sock.getsockname()[1]))
                await sock.sendto(datagram(self._identity, peer, data), sender)
            except trio.ClosedResourceError:
                return
            except OSError:
                continue  # an ICMP error for an earlier answer


def _listen(proto: str, port: int) -> trio.socket.SocketType:
    kind, number = {
        "TCP": (socket.SOCK_STREAM, 0),
        "UDP": (socket.SOCK_DGRAM, 0),
        "SCTP": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
    }[proto]
    sock = socket.socket(socket.AF_INET6, kind, number)
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        sock.bind(("::", port))
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"port {port}/{proto}: {os.strerror(error.errno or 0)}") from error
    return trio.socket.from_stdlib_socket(sock)


def _local_address(ancillary: list[tuple[int, int, bytes]]) -> str:
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            return socket.inet_ntoa(struct.unpack("=i4s4s", data[:12])[2])
    return ""


def _peer(remote: Any, local: Any) -> Peer:
    return Peer(_bare(remote[0]), remote[1], _bare(local[0]), local[1])


def _bare(ip: str) -> str:
    return ip.removeprefix("::ffff:")


async def _send(client: trio.socket.SocketType, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[await client.send(view) :]
