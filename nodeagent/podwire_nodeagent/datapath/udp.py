"""A UDP socket of the underlay, with the kernel's offloads: UDP_SEGMENT out, UDP_GRO in.

Rules it keeps:

- Bound to one underlay address and not connected: peers send from ports of their own choice (a Linux vxlan device hashes them).
- Outer packets are not fragmented (RFC 7348): what is too big for the path is refused by the kernel and counted.
- Outer UDP checksums are on. RFC 7348 would rather have zero, but UDP_SEGMENT needs them (EINVAL with SO_NO_CHECK); the kernel
  leaves them to hardware, or to nobody over loopback, and receivers must accept either.
- Receives into the buffer it is given, HEADROOM bytes from its beginning.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys

from podwire_nodeagent.datapath.coalesce import HEADROOM
from podwire_nodeagent.datapath.loop import EPOLLERR, EPOLLIN, EPOLLOUT, Backlog, Handler, Loop
from podwire_nodeagent.datapath.offload import SEND_BYTES, SEND_SEGMENTS
from podwire_nodeagent.datapath.wire import Buffer

UDP_SEGMENT, UDP_GRO, SOL_UDP = 103, 104, 17
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2
IPV6_MTU_DISCOVER = 23
SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_MEMINFO = 32, 33, 55
SOCKET_BUFFER = 8 << 20  # a hundred superframes: less loses whole bursts while the loop is elsewhere

Address = tuple[str, int]
_Item = tuple[Buffer, int, Address]
_STEP = struct.Struct("=i")
_REASONS = {errno.EMSGSIZE: "too_big", errno.ENETUNREACH: "unreachable", errno.EHOSTUNREACH: "unreachable"}


class UdpSocket:
    """`name` begins the names of its counters."""

    def __init__(self, loop: Loop, host: str, port: int, name: str, buffer: memoryview, handler: Handler | None) -> None:
        self._loop, self._name, self._into, self._on_readable = loop, name, [buffer[HEADROOM:]], handler
        self._counters = loop.counters
        v6 = ":" in host
        self._sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._options(v6, receives=handler is not None)
            self._sock.bind((host, port))
        except BaseException:
            self._sock.close()
            raise
        self.address: Address = self._sock.getsockname()[:2]
        self._ancillary = socket.CMSG_SPACE(_STEP.size)
        idle = EPOLLIN if handler else 0
        self._backlog = Backlog(loop, self._sock.fileno(), self._send, name, idle)
        loop.register(self._sock.fileno(), self._handle, idle)

    def _options(self, v6: bool, receives: bool) -> None:
        if v6:
            self._sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_DO)
        else:
            self._sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        self._buffer_size(SO_SNDBUFFORCE, socket.SO_SNDBUF, SOCKET_BUFFER)
        if receives:
            self._buffer_size(SO_RCVBUFFORCE, socket.SO_RCVBUF, SOCKET_BUFFER)
            self._sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        else:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # the least there is: nobody reads it

    def _buffer_size(self, force: int, ordinary: int, size: int) -> None:
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, force, size)
        except PermissionError:  # an ordinary user gets what sysctl net.core.[rw]mem_max allows
            self._sock.setsockopt(socket.SOL_SOCKET, ordinary, size)

    def close(self) -> None:
        self._loop.unregister(self._sock.fileno())
        self._sock.close()

    def _handle(self, events: int) -> None:
        if events & EPOLLOUT:
            self._backlog.flush()
        if events & EPOLLERR:
            self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # reading it clears it
        if events & ~EPOLLOUT and self._on_readable is not None:
            self._on_readable(events)

    def overflow(self) -> int:
        """Datagrams that the kernel dropped because this socket's buffer was full (SK_MEMINFO_DROPS)."""
        return int.from_bytes(self._sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36)[32:36], sys.byteorder)

    def receive(self) -> tuple[int, int, str] | None:
        """Bytes in the buffer, bytes of each datagram but the last, and the sender's host; None if there is nothing."""
        try:
            size, ancillary, _, address = self._sock.recvmsg_into(self._into, self._ancillary)
        except BlockingIOError:
            return None
        except OSError:
            self._loop.drop(self._name + "_receive_error")
            return None
        return size, _STEP.unpack(ancillary[0][2][:4])[0] if ancillary else size, address[0]

    def send(self, data: Buffer | memoryview, step: int, to: Address) -> None:
        """Datagrams of `step` bytes (the last may be shorter), as many calls as needed."""
        most = step * min(SEND_SEGMENTS, max(SEND_BYTES // step, 1))
        for at in range(0, len(data), most):
            part = data[at : at + most] if len(data) > most else data
            if not self._backlog:
                try:
                    self._send((part, step, to))
                    continue
                except BlockingIOError:
                    pass
            self._backlog.push((bytes(part), step, to), len(part))

    def _send(self, item: _Item) -> None:
        data, step, to = item
        try:
            if len(data) > step:
                self._sock.sendmsg((data,), ((SOL_UDP, UDP_SEGMENT, step.to_bytes(2, "little")),), 0, to)
            else:
                self._sock.sendto(data, to)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise BlockingIOError from error
            self._loop.drop(f"{self._name}_{_REASONS.get(error.errno or 0, 'send_error')}")
        else:
            self._counters[self._name + "_tx"] += -(-len(data) // step)
