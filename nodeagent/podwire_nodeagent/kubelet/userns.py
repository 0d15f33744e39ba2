"""Whether this process is an ordinary user's root: in a user namespace that knows one user only."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def inside() -> bool:
    words = Path("/proc/self/uid_map").read_text().split()
    return len(words) == 3 and words[2] == "1"
