"""A container's log in the CRI format: `<RFC 3339 time> stdout|stderr F|P <text>`, F ends a line, P goes on in the next record.

`CriLog` takes chunks as they come and writes whole records; a line longer than LINE is cut into P records. The file is rotated
once it exceeds LIMIT (`<name>.old` keeps the generation before), so a chatty container cannot fill the disk.
"""

from __future__ import annotations

import os
import time

LINE = 16 << 10
LIMIT = 10 << 20


class CriLog:
    def __init__(self, path: str, limit: int = LIMIT) -> None:
        self._path, self._limit = path, limit
        self._fd = self._open()
        self._size = os.fstat(self._fd).st_size
        self._pending = {"stdout": b"", "stderr": b""}

    def feed(self, stream: str, data: bytes, now: float) -> None:
        *lines, rest = (self._pending[stream] + data).split(b"\n")
        prefix = f"{stamp(now)} {stream} ".encode()
        records = [record for line in lines for record in _records(prefix, line)]
        while len(rest) >= LINE:
            records.append(prefix + b"P " + rest[:LINE] + b"\n")
            rest = rest[LINE:]
        self._pending[stream] = rest
        if records:
            self._write(b"".join(records))

    def close(self, now: float) -> None:
        """Writes what did not end with a newline."""
        for stream, rest in self._pending.items():
            if rest:
                self._write(f"{stamp(now)} {stream} P ".encode() + rest + b"\n")
        os.close(self._fd)

    def _open(self) -> int:
        return os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def _write(self, data: bytes) -> None:
        if self._size and self._size + len(data) > self._limit:
            os.close(self._fd)
            os.replace(self._path, f"{self._path}.old")
            self._fd, self._size = self._open(), 0
        self._size += os.write(self._fd, data)


def stamp(now: float) -> str:
    """RFC 3339 with nanoseconds, UTC."""
    whole = int(now)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int((now - whole) * 1e9):09d}Z"


def _records(prefix: bytes, line: bytes) -> list[bytes]:
    cut = [line[at : at + LINE] for at in range(0, len(line), LINE)] or [b""]
    return [prefix + b"P " + part + b"\n" for part in cut[:-1]] + [prefix + b"F " + cut[-1] + b"\n"]
