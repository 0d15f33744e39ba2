"""The cable: the node network's Ethernet, as bare frames in UDP between the nodes' datapaths.

Rules: a frame goes to the node that owns its destination MAC, or to every other node if that is a group address or unknown, as a
switch would do. Superframes are cut and coalesced as in tunnels. A frame is taken only from a known node's host.
"""

from __future__ import annotations

from collections.abc import Callable

from podwire_nodeagent.datapath.coalesce import Coalescer
from podwire_nodeagent.datapath.loop import BATCH, Loop
from podwire_nodeagent.datapath.offload import Cutter, complete
from podwire_nodeagent.datapath.udp import Address, UdpSocket
from podwire_nodeagent.datapath.underlay import Underlay
from podwire_nodeagent.datapath.wire import ETH, ETH_SIZE, VNET_SIZE, Buffer, Tunnel


class Cable:
    """`index` is the uplink's, 0 while there is none; who configures links keeps it."""

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
        self.index = 0
        self._socket = UdpSocket(loop, host, port, "cable", buffer, self._readable)

    @property
    def address(self) -> Address:
        return self._socket.address

    def close(self) -> None:
        self._socket.close()

    def overflow(self) -> int:
        return self._socket.overflow()

    def send(self, frame: Buffer, _tunnel: Tunnel | None = None) -> None:
        owner = self._underlay.cables.get(bytes(frame[ETH : ETH + 6]))
        peers = self._underlay.peers if owner is None else (owner,)
        if frame[1]:
            result = self._cutter.cut(frame, b"")
            if isinstance(result, str):
                self._loop.drop(result)
                return
            data, step = result
        else:
            reason = complete(frame) if frame[0] else ""
            if reason:
                self._loop.drop(reason)
                return
            data, step = memoryview(frame)[ETH:], len(frame) - ETH
        if not peers:
            self._loop.drop("cable_no_peer")
        for peer in peers:
            self._socket.send(data, step, peer)

    def _readable(self, _events: int) -> None:
        receive = self._socket.receive
        for _ in range(BATCH):
            got = receive()
            if got is None:
                return
            self.receive(*got)

    def receive(self, size: int, step: int, host: str) -> None:
        """Datagrams in the buffer, from `host`."""
        count = -(-size // step) if size else 1
        self._counters["cable_rx"] += count
        if host not in self._underlay.hosts:
            self._counters["drop.cable_unknown_peer"] += count
            return
        if not self.index:
            self._counters["drop.cable_no_uplink"] += count
            return
        if size == 0:
            self._loop.drop("frame_short")
            return
        for _, frame in self._coalescer.frames(self._buffer, size, step, 0):
            if len(frame) < VNET_SIZE + ETH_SIZE:
                self._loop.drop("frame_short")
            else:
                self._deliver(self.index, frame)
