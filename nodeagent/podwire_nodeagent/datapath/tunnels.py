"""The node's VXLAN tunnel ends on the wire: inner frames to datagrams and back.

Rules it keeps:

- One socket receives, on the tunnel port. The outer source port is the flow's hash in 49152…65535 (RFC 7348, so that networks
  can spread flows): a socket has one port, so there are SENDERS sockets bound to ports of that range and the hash picks one.
- A datagram is delivered if it comes from a known node's host, its header is right, and its VNI is one of our links'.
- Superframes are cut before, and coalesced after the wire; frames inside are otherwise untouched.

Order to read: send, receive.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from podwire_nodeagent.datapath import vxlan
from podwire_nodeagent.datapath.coalesce import Coalescer
from podwire_nodeagent.datapath.loop import BATCH, Loop
from podwire_nodeagent.datapath.offload import Cutter, complete
from podwire_nodeagent.datapath.udp import UdpSocket
from podwire_nodeagent.datapath.underlay import Underlay
from podwire_nodeagent.datapath.wire import ETH, NO_VNET, VNET_SIZE, Buffer, Tunnel

SENDERS = 8
FIRST_PORT, PORTS = 49152, 16384


class Tunnels:
    """`vnis` maps a VNI to its link's index; who configures links keeps it."""

    def __init__(
        self,
        loop: Loop,
        host: str,
        port: int,
        underlay: Underlay,
        buffer: memoryview,
        deliver: Callable[[int, Buffer], None],
    ) -> None:
        self._loop, self._underlay, self._buffer, self._deliver = loop, underlay, buffer, deliver
        self._counters = loop.counters
        self._cutter, self._coalescer = Cutter(), Coalescer()
        self.vnis: dict[int, int] = {}
        self.twins: dict[tuple[int, bytes], int] = {}  # where two links have a VNI: by the MAC that the inner frame is for
        self._receiver = UdpSocket(loop, host, port, "tunnel", buffer, self._readable)
        self._senders = [_sender(loop, host, i, buffer) for i in range(SENDERS)]

    def close(self) -> None:
        for socket in (self._receiver, *self._senders):
            socket.close()

    def overflow(self) -> int:
        """Datagrams that came faster than they were read."""
        return self._receiver.overflow()

    def send(self, frame: Buffer, tunnel: Tunnel | None) -> None:
        """Encapsulate and send. The frame may be a superframe; its virtio header is taken off."""
        if tunnel is None:
            self._loop.drop("tunnel_no_remote")
            return
        to = self._underlay.tunnel_end(tunnel.remote, tunnel.dport)
        if to is None:
            self._loop.drop("tunnel_unknown_remote")
            return
        sender = self._senders[tunnel.sport % SENDERS]
        header = vxlan.encode(tunnel.vni)
        if frame[1]:
            result = self._cutter.cut(frame, header)
            if isinstance(result, str):
                self._loop.drop(result)
            else:
                sender.send(result[0], result[1], to)
        elif reason := complete(frame) if frame[0] else "":
            self._loop.drop(reason)
        else:
            data = memoryview(frame)[ETH - vxlan.SIZE :]
            data[: vxlan.SIZE] = header  # in the place of the virtio header's end …
            sender.send(data, len(data), to)
            data[: vxlan.SIZE] = NO_VNET[: vxlan.SIZE]  # … which a flooded frame's next port needs again

    def _readable(self, _events: int) -> None:
        receive = self._receiver.receive
        for _ in range(BATCH):
            got = receive()
            if got is None:
                return
            self.receive(*got)

    def receive(self, size: int, step: int, host: str) -> None:
        """Datagrams in the buffer, from `host`."""
        count = -(-size // step) if size else 1
        self._counters["tunnel_rx"] += count
        if host not in self._underlay.hosts:
            self._counters["drop.tunnel_unknown_peer"] += count
            return
        if size == 0:
            self._loop.drop(vxlan.REASONS[vxlan.SHORT])
            return
        for head, frame in self._coalescer.frames(self._buffer, size, step, vxlan.SIZE):
            vni = vxlan.decode(head, len(head) + max(len(frame) - VNET_SIZE, 0))
            if vni < 0:
                self._loop.drop(vxlan.REASONS[vni])
                continue
            index = self.vnis.get(vni)
            if index is None:
                self._loop.drop("vxlan_unknown_vni")
                continue
            if self.twins:
                index = self.twins.get((vni, bytes(frame[ETH : ETH + 6])), index)
            self._deliver(index, frame)


def _sender(loop: Loop, host: str, slot: int, buffer: memoryview) -> UdpSocket:
    """A socket bound to the first free port ≡ slot (mod SENDERS) of the range."""
    for port in range(FIRST_PORT + slot, FIRST_PORT + PORTS, SENDERS):
        try:
            return UdpSocket(loop, host, port, "tunnel", buffer, None)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"no UDP port from {FIRST_PORT} on is free on {host}")
