"""Files that change: looked at now and then, as CoreDNS does (a ConfigMap's file is replaced by renaming a link)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import trio


async def changes(path: str, interval: float) -> AsyncIterator[bytes]:
    """The content of a file, each time that it has changed since this began or was read last. A missing file is waited for."""
    seen, content = _signature(path), _read(path)
    while True:
        await trio.sleep(interval)
        now = _signature(path)
        if now is None or now == seen:
            continue
        seen, before, content = now, content, _read(path)
        if content is not None and content != before:
            yield content


def _signature(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None
