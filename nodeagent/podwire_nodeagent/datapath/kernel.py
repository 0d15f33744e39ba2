"""A node's userspace kernel: the pure stack, with its links attached to the real world.

Rules it keeps:

- The stack decides, this file only connects: a link of kind tap or host to a TAP, vxlan to the tunnels, uplink to the cable.
  What is connected is derived from the stack's own dump after each change, so that the two cannot drift apart.
- A transaction with file descriptors is all or nothing too: a passed fd is either a link's, or closed.
- Frames go out in the order in which the stack emits them, each before the next frame is read (they may share a buffer).

Order to read: KernelStack (what is expected of the stack), Kernel: deliver, apply, dump.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from podwire_core.netlink import DUMPS, AnyOp, LinkAdd, LinkDel, LinkInfo, NetlinkError, Subscribe, UnderlayDel, UnderlaySet
from podwire_core.trace import Hop
from podwire_nodeagent import datapath
from podwire_nodeagent.datapath.cable import Cable
from podwire_nodeagent.datapath.coalesce import HEADROOM
from podwire_nodeagent.datapath.loop import Loop
from podwire_nodeagent.datapath.tap import READ_SIZE, TapPort
from podwire_nodeagent.datapath.tunnels import Tunnels
from podwire_nodeagent.datapath.underlay import Underlay, normal
from podwire_nodeagent.datapath.wire import Buffer, Emit, Tunnel, mac_bytes

FD_KINDS = ("tap", "host")
Send = Callable[[Buffer, Tunnel | None], None]


class KernelStack(Protocol):
    """The part of stack.Stack that is used here. `time_offset` makes wall-clock times of the loop's monotonic ones in traces."""

    traced: list[Hop]
    time_offset: float

    def apply(self, ops: Sequence[AnyOp], now: float) -> None: ...
    def dump(self, what: str, now: float) -> Any: ...
    def receive(self, link_index: int, frame: Buffer, now: float) -> list[Emit]: ...
    def tick(self, now: float) -> list[Emit]: ...
    def link_index(self, name: str) -> int: ...
    def trace(self, subscription: Subscribe | None) -> None: ...


class Kernel:
    """`host` is the underlay address; `started` (wall clock) and `node` are for `dump("info")`."""

    def __init__(self, loop: Loop, stack: KernelStack, node: str, host: str, tunnel_port: int, cable_port: int) -> None:
        self.loop, self.stack, self.node, self.started = loop, stack, node, time.time()
        self.underlay = Underlay()
        self.taps: dict[int, TapPort] = {}
        self._sends: dict[int, Send] = {}
        self._buffer = memoryview(bytearray(READ_SIZE + HEADROOM))
        self.tunnels = Tunnels(loop, host, tunnel_port, self.underlay, self._buffer, self.deliver)
        self.cable = Cable(loop, host, cable_port, self.underlay, self._buffer, self.deliver)
        stack.time_offset = time.time() - loop.clock()
        loop.on_tick = self.tick

    def close(self) -> None:
        for tap in self.taps.values():
            tap.close()
        self.tunnels.close()
        self.cable.close()

    # packets

    def deliver(self, index: int, frame: Buffer) -> None:
        """A frame that came in by link `index`; what the stack makes of it goes out."""
        try:
            self._emit(self.stack.receive(index, frame, self.loop.now))
        except Exception as error:
            self.loop.bug(error)

    def tick(self) -> None:
        self.stack.time_offset = time.time() - self.loop.clock()
        self._emit(self.stack.tick(self.loop.now))

    def _emit(self, emits: list[Emit]) -> None:
        sends = self._sends
        for index, frame, tunnel in emits:
            send = sends.get(index)
            if send is None:
                self.loop.drop("link_not_attached")
            else:
                send(frame, tunnel)

    def _lost(self, index: int) -> None:
        """A TAP's device is gone; the link stays, without carrier."""
        self.loop.counters["tap_lost"] += 1
        self.taps.pop(index).close()
        self._sends.pop(index, None)

    # configuration

    def apply(self, ops: Sequence[AnyOp], fds: Sequence[int]) -> None:
        """One transaction; owns `fds` from now on. NetlinkError if refused."""
        waiting = list(fds)
        try:
            takers = _takers(ops, fds)
            for name, fd in takers:
                if not self.loop.can_wait(fd):
                    raise NetlinkError("EINVAL", f"link {name}: its file descriptor is no TAP")
            _check(ops)
            self.stack.apply(ops, self.loop.now)
            for name, fd in takers:
                self._attach(name, fd)
                waiting.remove(fd)
        finally:
            for fd in waiting:
                os.close(fd)
            self._connect(ops)

    def _attach(self, name: str, fd: int) -> None:
        index = self.stack.link_index(name)
        if index in self.taps:
            self.taps.pop(index).close()
        self.taps[index] = TapPort(self.loop, fd, index, self._buffer, self.deliver, self._lost)

    def _connect(self, ops: Sequence[AnyOp]) -> None:
        """Bring the connections in step with the stack after these operations."""
        if any(isinstance(op, LinkAdd | LinkDel) for op in ops):
            links: list[LinkInfo] = self.stack.dump("links", self.loop.now)
            for index in self.taps.keys() - {link.index for link in links}:
                self.taps.pop(index).close()
            self._sends = {link.index: send for link in links if (send := self._send_of(link)) is not None}
            tunnels = [link for link in links if link.kind == "vxlan"]
            self.tunnels.vnis = {link.vni: link.index for link in reversed(tunnels)}
            twins = [link for link in tunnels if sum(other.vni == link.vni for other in tunnels) > 1]
            self.tunnels.twins = {(link.vni, mac_bytes(link.mac)): link.index for link in twins}
            self.cable.index = next((link.index for link in links if link.kind == "uplink"), 0)
        if any(isinstance(op, UnderlaySet | UnderlayDel) for op in ops):
            self.underlay.replace(self.stack.dump("underlay", self.loop.now), self.cable.address)

    def _send_of(self, link: LinkInfo) -> Send | None:
        if link.kind in FD_KINDS:
            return self.taps[link.index].send if link.index in self.taps else None
        by_kind: dict[str, Send] = {"vxlan": self.tunnels.send, "uplink": self.cable.send}
        return by_kind.get(link.kind)

    def dump(self, what: str) -> Any:
        """The stack's state, with what only this side knows: carriers, the loop's counters, the process."""
        if what not in DUMPS:
            raise NetlinkError("EINVAL", f"nothing called {what!r} to dump; there are {', '.join(DUMPS)}")
        data = self.stack.dump(what, self.loop.now)
        if what == "links":
            for link in data:
                link.attached = link.kind not in FD_KINDS or link.index in self.taps
        elif what == "counters":
            overflow = {"drop.tunnel_overflow": self.tunnels.overflow(), "drop.cable_overflow": self.cable.overflow()}
            data = {**data, **self.loop.counters, **{name: count for name, count in overflow.items() if count}}
        elif what == "info":
            data = {**data, "pid": os.getpid(), "version": 1, "started": self.started, "node": self.node}
            data["compiled"] = datapath.COMPILED is not None
        return data


def _takers(ops: Sequence[AnyOp], fds: Sequence[int]) -> list[tuple[str, int]]:
    """Which link takes which fd."""
    takers = [op for op in ops if isinstance(op, LinkAdd) and op.fd]
    for op in takers:
        if op.kind not in FD_KINDS:
            raise NetlinkError("EINVAL", f"link {op.name}: a {op.kind} takes no file descriptor", list(ops).index(op))
    if len(takers) != len(fds):
        raise NetlinkError("EINVAL", f"{len(fds)} file descriptors came for {len(takers)} links")
    return [(op.name, fd) for op, fd in zip(takers, fds, strict=True)]


def _check(ops: Sequence[AnyOp]) -> None:
    """What the stack need not know about but sending does: socket addresses must be addresses, ports must be ports."""
    for i, op in enumerate(ops):
        if isinstance(op, UnderlaySet):
            try:
                normal(op.host)
            except ValueError:
                raise NetlinkError("EINVAL", f"underlay of {op.node_ip}: {op.host!r} is not an IP address", i) from None
            if not (0 <= op.cable_port <= 65535 and 0 <= op.tunnel_port <= 65535):
                raise NetlinkError("EINVAL", f"underlay of {op.node_ip}: not a UDP port", i)
