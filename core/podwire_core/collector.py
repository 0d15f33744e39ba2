"""Python's garbage collector, paused while something big is made: else it runs a hundred times over what is being made, and takes
most of the time. Nothing is lost: what is garbage then is found afterwards. What is made to stay is also spared being looked at
again and again (`settled`)."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc


@contextmanager
def paused() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def settled() -> Iterator[None]:
    """Paused, and all that is there afterwards is taken to stay: later collections pass over it (gc.freeze), where one over the
    tables of 20 000 Services would hold up packets for a fifth of a second and more. What stays goes all the same when nobody
    refers to it any more; only a circle would be kept. What the making itself needed goes back to the system."""
    with paused():
        yield
        gc.freeze()
    if _malloc_trim is not None:
        _malloc_trim(0)
