"""The netlink server of a datapath (messages: podwire_core.netlink): what daemons ask, answered between two batches of packets.

Rules it keeps:

- Any number of clients; a request is answered before the client's next one is read. A client that does not read its answers is
  not read from either, and a subscriber that is too slow loses records, counted in the next one (`lost`).
- Every malformed message is answered with EINVAL and the connection goes on; only a length beyond MAX_MESSAGE, which leaves
  nowhere to go on from, closes it.
- File descriptors belong to the request they came with. Those that no request takes are closed.
- A bug behind a request is answered with EIO, logged and counted as any bug of the loop.

Order to read: Server, Client: reading, answering, traces.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from contextlib import nullcontext

import msgspec

from podwire_core.collector import settled
from podwire_core.netlink import MAX_MESSAGE, Dump, NetlinkError, Reply, Subscribe, Traced
from podwire_core.trace import Digest, Hop
from podwire_nodeagent.datapath.kernel import Kernel
from podwire_nodeagent.datapath.loop import EPOLLIN, EPOLLOUT, Loop
from podwire_nodeagent.datapath.requests import UNDECODABLE, Apply, Request, decode

READ_SIZE = 1 << 18
MAX_FDS = 253
TRACE_BYTES = 1 << 22  # unsent traces of one subscriber
OUT_BYTES = 1 << 24  # unsent answers of one client, beyond which it is not read from

LARGE = 1 << 20  # a request that brings whole tables
_encoder = msgspec.msgpack.Encoder()
_seq_decoder = msgspec.msgpack.Decoder(dict)


class Server:
    """Listens on a unix socket; owns the clients and what they subscribed to."""

    def __init__(self, loop: Loop, kernel: Kernel, path: str) -> None:
        self.loop, self.kernel, self.path = loop, kernel, path
        self.clients: set[Client] = set()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._sock.bind(path)
        self._sock.listen(64)
        loop.register(self._sock.fileno(), self._accept)
        loop.on_wake = self.publish

    def close(self) -> None:
        for client in list(self.clients):
            client.close()
        self.loop.unregister(self._sock.fileno())
        self._sock.close()
        os.unlink(self.path)

    def _accept(self, _events: int) -> None:
        try:
            sock, _ = self._sock.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptors left: the client waits until another one goes
            self.loop.counters["control.accept_failed"] += 1
            self.loop.modify(self._sock.fileno(), 0)
            return
        sock.setblocking(False)
        self.clients.add(Client(self, sock))

    def gone(self, client: Client) -> None:
        self.clients.discard(client)
        self.loop.modify(self._sock.fileno(), EPOLLIN)
        if client.subscription is not None:
            self.subscribe()

    # traces

    def subscribe(self) -> None:
        """Tell the stack what all subscribers together want."""
        wanted = [client.subscription for client in self.clients if client.subscription is not None]
        self.kernel.stack.trace(_union(wanted) if wanted else None)

    def publish(self) -> None:
        """What the stack traced since the last time, to those who asked for it."""
        traced = self.kernel.stack.traced
        if not traced:
            return
        subscribers = [client for client in self.clients if client.subscription is not None]
        for client in subscribers:
            for hop in traced:
                if len(subscribers) == 1 or _matches(client.subscription, hop):
                    client.trace(hop)
        traced.clear()


class Client:
    """One connection. Bytes to send wait in `_out`; the fds of a message that is not complete yet in `_fds`."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.server, self.loop, self._sock = server, server.loop, sock
        self.subscription: Subscribe | None = None
        self._left = self._lost = 0
        self._in = bytearray()
        self._fds: deque[int] = deque()
        self._out: deque[memoryview] = deque()
        self._unsent = 0
        self._closed = False
        self.loop.register(sock.fileno(), self._handle)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.loop.unregister(self._sock.fileno())
            self._sock.close()
            self._close_fds()
            self.server.gone(self)

    def _close_fds(self) -> None:
        while self._fds:
            os.close(self._fds.popleft())

    # reading

    def _handle(self, events: int) -> None:
        if events & EPOLLOUT:
            self._flush()
        if events & ~EPOLLOUT and not self._closed:
            self._read()

    def _read(self) -> None:
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(READ_SIZE, socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        for level, kind, raw in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._fds.extend(array.array("i", raw[: len(raw) // 4 * 4]))
        if flags & socket.MSG_CTRUNC:
            self._close_fds()  # some were lost, so which is whose is lost too: the request will be refused
        if not data:
            self.close()
            return
        self._in += data
        self._messages()

    def _messages(self) -> None:
        """Take complete messages off the front of what was read, each once, whatever becomes of it."""
        at, data = 0, self._in
        while not self._closed and len(data) - at >= 4:
            size = int.from_bytes(data[at : at + 4], "big")
            if size > MAX_MESSAGE:
                self._send(Reply(0, "EMSGSIZE", f"a message of {size} bytes, at most {MAX_MESSAGE}"))
                self.close()
                return
            if len(data) - at - 4 < size:
                break
            at += 4 + size
            try:
                with settled() if size > LARGE else nullcontext():
                    self._message(bytes(data[at - size : at]), last=at == len(data))
            except Exception as error:
                self.loop.bug(error)
        del data[:at]
        if not data:
            self._close_fds()

    # answering

    def _message(self, body: bytes, last: bool) -> None:
        try:
            request = decode(body)
        except UNDECODABLE as error:
            self.loop.counters["control.malformed"] += 1
            self._send(Reply(_sequence(body), "EINVAL", f"malformed message: {error}"))
            return
        try:
            reply = self._answer(request, last)
        except NetlinkError as error:
            reply = Reply(request.seq, error.errno_name, error.message, error.failed)
        except Exception as error:
            self.loop.bug(error)
            reply = Reply(request.seq, "EIO", f"a bug in the datapath: {type(error).__name__}: {error}")
        self._send(reply)

    def _answer(self, request: Request, last: bool) -> Reply:
        if isinstance(request, Dump):
            return Reply(request.seq, data=self.server.kernel.dump(request.what))
        if isinstance(request, Apply):
            wanted = sum(1 for op in request.ops if getattr(op, "fd", False))
            count = len(self._fds) if last else min(wanted, len(self._fds))
            self.server.kernel.apply(request.ops, [self._fds.popleft() for _ in range(count)])
            return Reply(request.seq)
        self.subscription, self._left = request, request.limit
        self.server.subscribe()
        return Reply(request.seq)

    def _send(self, message: Reply | Traced) -> None:
        try:
            body = _encoder.encode(message)
        except (TypeError, OverflowError) as error:  # a dump that is no data is a bug of its maker
            self.loop.bug(error)
            body = _encoder.encode(Reply(getattr(message, "seq", 0), "EIO", f"a bug in the datapath: {error}"))
        self._out.append(memoryview(len(body).to_bytes(4, "big") + body))
        self._unsent += 4 + len(body)
        self._flush()

    def _flush(self) -> None:
        try:
            while self._out:
                sent = self._sock.send(self._out[0])
                self._unsent -= sent
                if sent < len(self._out[0]):
                    self._out[0] = self._out[0][sent:]
                else:
                    self._out.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        if not self._closed:
            self.loop.modify(self._sock.fileno(), (EPOLLIN if self._unsent < OUT_BYTES else 0) | (EPOLLOUT if self._out else 0))

    # traces

    def trace(self, hop: Hop) -> None:
        if self._left <= 0:
            return
        if self._unsent > TRACE_BYTES:
            self._lost += 1
            return
        self._left -= 1
        self._send(Traced(msgspec.to_builtins(hop), self._lost))
        self._lost = 0
        if self._left <= 0 and not self._closed:
            self.subscription = None
            self.server.subscribe()


def _sequence(body: bytes) -> int:
    """The number of a message that is otherwise wrong, 0 if even that cannot be read."""
    try:
        seq = _seq_decoder.decode(body).get("seq", 0)
    except (*UNDECODABLE, TypeError):
        return 0
    return seq if type(seq) is int and 0 <= seq < 1 << 63 else 0


def _union(wanted: list[Subscribe]) -> Subscribe:
    """One subscription that covers all; each then takes its own part (`_matches`)."""
    if len(wanted) == 1:
        return wanted[0]
    addresses = tuple({a for s in wanted for a in s.addresses}) if all(s.addresses for s in wanted) else ()
    ports = tuple({p for s in wanted for p in s.ports}) if all(s.ports for s in wanted) else ()
    protocols = {s.protocol for s in wanted}
    return Subscribe(0, addresses, ports, protocols.pop() if len(protocols) == 1 else "", max(s.limit for s in wanted))


def _matches(subscription: Subscribe | None, hop: Hop) -> bool:
    """Whether a record is of that subscription, by the packet as it came in and as it left."""
    if subscription is None:
        return False
    digests: list[Digest] = [hop.entered] + ([hop.out] if hop.out is not None else [])
    addresses = {address for d in digests for address in (d.src, d.dst)}
    ports = {port for d in digests for port in (d.sport, d.dport)}
    return (
        (not subscription.addresses or not addresses.isdisjoint(subscription.addresses))
        and (not subscription.ports or not ports.isdisjoint(subscription.ports))
        and subscription.protocol in ("", hop.entered.proto)
    )
