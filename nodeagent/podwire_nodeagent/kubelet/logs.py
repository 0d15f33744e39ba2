"""Reading containers' logs: CRI files (shim/cri.py) as `podwire logs` shows them, from the end, with or without times, followed.

Parsing is pure (`Reader`); `stream` polls the file while somebody follows it, survives rotation, and ends with the container.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

POLL = 0.1  # seconds between looks at a followed file
CHUNK = 1 << 16


class Reader:
    """CRI records in, text out: P records are joined to the F record that ends the line. A record may come in pieces."""

    def __init__(self, timestamps: bool) -> None:
        self._timestamps = timestamps
        self._rest = b""
        self._within = False  # the last record written was a partial one

    def feed(self, data: bytes) -> list[bytes]:
        """The lines (or parts of lines) that are complete now."""
        *records, self._rest = (self._rest + data).split(b"\n")
        return [text for record in records if (text := self._text(record)) is not None]

    def _text(self, record: bytes) -> bytes | None:
        parts = record.split(b" ", 3)
        if len(parts) < 4:
            return None  # the disk was full, or somebody edited the file
        time, _, tag, text = parts
        prefix = time + b" " if self._timestamps and not self._within else b""
        self._within = tag == b"P"
        return prefix + text + (b"" if self._within else b"\n")


async def stream(
    path: Path, tail: int, timestamps: bool, follow: bool, running: Callable[[], bool], send: Callable[[bytes], Awaitable[None]]
) -> None:
    """`running` tells whether more may come. A missing file is an empty log."""
    reader = Reader(timestamps)
    file = _Tailed(path)
    try:
        first = reader.feed(file.read())
        if tail >= 0:
            first = list(deque(first, maxlen=tail))
        await _send_all(first, send)
        while follow:
            more_may_come = running()
            data = file.read()
            if data:
                await _send_all(reader.feed(data), send)
            elif not more_may_come:
                return
            else:
                await trio.sleep(POLL)
    finally:
        file.close()


async def _send_all(lines: list[bytes], send: Callable[[bytes], Awaitable[None]]) -> None:
    batch = b""
    for line in lines:
        batch += line
        if len(batch) >= CHUNK:
            await send(batch)
            batch = b""
    if batch:
        await send(batch)


class _Tailed:
    """A file read on from where we were; after a rotation, the new one from its start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._open()

    def read(self) -> bytes:
        if self._fd < 0 and not self._open():
            return b""
        data = bytearray()
        while chunk := os.read(self._fd, 1 << 20):
            data += chunk
        if not data and self._rotated():
            self.close()
            if self._open():
                return self.read()
        return bytes(data)

    def _open(self) -> bool:
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        return True

    def _rotated(self) -> bool:
        try:
            return os.stat(self._path).st_ino != os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
