"""Python's garbage collector, paused while something big is made: else it runs a hundred times over what is being made, and takes
most of the time. Nothing is lost: what is garbage then is found afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
