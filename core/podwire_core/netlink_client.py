"""The blocking client of the datapath's netlink (messages: `netlink.py`), for the agent, the CNI plugin and the shims.

Rules it keeps:

- One request at a time on a connection; calls are short, so blocking is right (an async caller uses a thread). Not for several
  threads at once, except `close()`, which ends a `subscribe()` that another thread is iterating.
- A refused request raises `NetlinkError` and the connection goes on. A lost or late one raises `OSError` (`ConnectionError`,
  `TimeoutError`) and the connection is closed: it never reconnects by itself, since the caller must restate what it wants.
- File descriptors stay the caller's: they are duplicated into the datapath, close them when `apply` returned or raised.

Order to read: framing, Netlink.
"""

from __future__ import annotations

import array
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from podwire_core.netlink import DUMPS, MAX_MESSAGE, Apply, Dump, NetlinkError, Op, Subscribe, Traced

MAX_FDS = 253  # SCM_MAX_FD of Linux
_LENGTH = struct.Struct("!I")

# --- framing --------------------------------


class _Reply(Struct, tag_field="rep", tag="reply"):
    """`netlink.Reply` whose data stays undecoded until the type of the dump is known."""

    seq: int
    error: str = ""
    message: str = ""
    failed: int = -1
    data: Raw = Raw(b"\xc0")


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Reply | Traced)
_dump_decoders = {what: msgspec.msgpack.Decoder(kind) for what, kind in DUMPS.items()}


def send_message(sock: socket.socket, message: Struct, fds: Sequence[int] = ()) -> None:
    """Length, message, and the file descriptors beside the first byte."""
    if len(fds) > MAX_FDS:
        raise NetlinkError("EINVAL", f"{len(fds)} file descriptors in one request, at most {MAX_FDS}")
    body = _encoder.encode(message)
    data = memoryview(_LENGTH.pack(len(body)) + body)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sent = sock.sendmsg([data], rights)
    sock.sendall(data[sent:])


def _receive_exactly(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        n = sock.recv_into(view[got:])
        if n == 0:
            raise ConnectionResetError("the datapath closed the connection")
        got += n
    return data


def receive_message(sock: socket.socket) -> bytearray:
    """The body of the next message; ConnectionResetError at the end of the stream."""
    (size,) = _LENGTH.unpack(_receive_exactly(sock, 4))
    if size > MAX_MESSAGE:
        raise ConnectionError(f"a message of {size} bytes: not the datapath's netlink?")
    return _receive_exactly(sock, size)


# --- the client --------------------------------


class Netlink:
    """A connection to one datapath. `timeout` (seconds) bounds every request, not a subscription's silence."""

    def __init__(self, path: str, timeout: float = 30.0) -> None:
        self.path, self._timeout, self._seq = str(path), timeout, 0
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(timeout)
        try:
            self._sock.connect(self.path)
        except BaseException:
            self._sock.close()
            raise

    def apply(self, ops: Sequence[Op], fds: Sequence[int] = ()) -> None:
        """All operations or none; the n-th with `fd=True` takes the n-th of `fds`."""
        self._request(Apply(self._next(), tuple(ops)), fds)  # type: ignore[arg-type]

    def dump(self, what: str) -> Any:
        """One of `netlink.DUMPS`, decoded to its type there."""
        decoder = _dump_decoders.get(what)
        if decoder is None:
            raise NetlinkError("EINVAL", f"nothing called {what!r} to dump; there are {', '.join(DUMPS)}")
        return decoder.decode(self._request(Dump(self._next(), what)).data)

    def subscribe(self, subscription: Subscribe) -> Iterator[Traced]:
        """Tracing is on when this returns. The iterator ends when the datapath or `close()` ends the connection."""
        self._request(Subscribe(self._next(), *(getattr(subscription, f) for f in Subscribe.__struct_fields__[1:])))
        self._sock.settimeout(None)
        return self._traces()

    def close(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # already closed by the other side
        self._sock.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    def _traces(self) -> Iterator[Traced]:
        while True:
            try:
                message = _decoder.decode(receive_message(self._sock))
            except OSError:
                return
            if isinstance(message, Traced):
                yield message

    def _request(self, message: Apply | Dump | Subscribe, fds: Sequence[int] = ()) -> _Reply:
        try:
            send_message(self._sock, message, fds)
            reply = _decoder.decode(receive_message(self._sock))
        except (OSError, msgspec.MsgspecError):
            self.close()
            raise
        if not isinstance(reply, _Reply) or reply.seq not in (message.seq, 0):
            self.close()
            raise ConnectionError(f"an answer out of turn from {self.path}")
        if reply.error:
            raise NetlinkError(reply.error, reply.message, reply.failed)
        return reply
