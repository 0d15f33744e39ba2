"""A TAP port: the datapath's hold of one pod's (or the host namespace's) network device.

Rules: one read is one frame with its virtio header, in a buffer that all ports share, since every frame is written to its
destination (or copied) before the next is read. Frames are written as they are: superframes and partial checksums are the
receiver's kernel's to finish. A device that was deleted in its namespace gives its port up ("lost"); one that is down drops.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from podwire_nodeagent.datapath.loop import BATCH, EPOLLOUT, Backlog, Loop
from podwire_nodeagent.datapath.wire import ETH_SIZE, VNET_SIZE, Buffer, Tunnel

READ_SIZE = 70_000  # of the shared buffer: a 64 KB superframe and its headers
_REASONS = {errno.EIO: "tap_down", errno.EINVAL: "tap_refused", errno.EMSGSIZE: "tap_refused"}

_PASSING = (errno.EINTR, errno.ENOMEM, errno.ENOBUFS)  # of reading; anything else means that the device is gone


class TapPort:
    """`deliver(index, frame)` takes what comes in; `lost(index)` is called once if the device is gone."""

    def __init__(
        self,
        loop: Loop,
        fd: int,
        index: int,
        buffer: memoryview,
        deliver: Callable[[int, Buffer], None],
        lost: Callable[[int], None],
    ) -> None:
        self.fd, self.index = fd, index
        self._loop, self._buffer, self._deliver, self._lost = loop, buffer, deliver, lost
        self._into = [buffer]
        self._backlog = Backlog(loop, fd, self._write, "tap")
        os.set_blocking(fd, False)
        loop.register(fd, self.handle)

    def close(self) -> None:
        self._loop.unregister(self.fd)
        os.close(self.fd)

    def handle(self, events: int) -> None:
        if events & EPOLLOUT:
            self._backlog.flush()
        if events & ~EPOLLOUT:
            self.read()

    def read(self) -> None:
        fd, into, buffer, deliver, index = self.fd, self._into, self._buffer, self._deliver, self.index
        readv = os.readv
        for _ in range(BATCH):
            try:
                size = readv(fd, into)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _PASSING:
                    self._loop.drop("tap_read_error")
                else:
                    self._lost(index)
                return
            if size < VNET_SIZE + ETH_SIZE:
                if size == 0:  # a socket's end; TAPs have none
                    self._lost(index)
                    return
                self._loop.drop("frame_short")
                continue
            deliver(index, buffer[:size])

    def send(self, frame: Buffer, _tunnel: Tunnel | None = None) -> None:
        if self._backlog:
            self._backlog.push(bytes(frame), len(frame))
            return
        try:
            self._write(frame)
        except BlockingIOError:
            self._backlog.push(bytes(frame), len(frame))

    def _write(self, frame: Buffer) -> None:
        try:
            os.write(self.fd, frame)
        except BlockingIOError:
            raise
        except OSError as error:
            self._loop.drop(_REASONS.get(error.errno or 0, "tap_error"))
