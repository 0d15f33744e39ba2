"""The epoll loop of a datapath process: who may read and write when, and why nothing ends it.

Rules it keeps:

- One thread, one epoll set, level-triggered. A handler does a bounded batch and returns, so that one busy port starves neither
  the others nor the control socket; what is left wakes it again.
- A full TAP or socket holds frames back (Backlog, bounded, in order) rather than losing them at once; what does not fit is
  counted.
- Malformed input is a counted drop by reason. An exception out of a handler is a bug: logged with its traceback once a place,
  counted every time ("bug.<file>:<line>"), and the loop goes on.
- The clock is read once a wake-up (`now`, monotonic): a packet more in the batch is not worth a system call.

Order to read: Loop, Backlog.
"""

from __future__ import annotations

import select
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR, select.EPOLLHUP
BATCH = 64  # packets a port may bring in one wake-up
TICK = 1.0  # seconds between timers when nothing happens
BUSY_TICK = 0.1  # … and while packets move
QUEUE_FRAMES, QUEUE_BYTES = 512, 4 << 20  # held back for one port

Handler = Callable[[int], None]


class Loop:
    """File descriptors and their handlers. `on_wake` runs after each batch, `on_tick` when timers are due."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.counters: Counter[str] = Counter()
        self.clock = clock
        self.now = clock()
        self.on_wake: Callable[[], None] = lambda: None
        self.on_tick: Callable[[], None] = lambda: None
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._running = True
        self._ticked = self.now

    def register(self, fd: int, handler: Handler, events: int = EPOLLIN) -> None:
        """The file must be one that `can_wait`."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def can_wait(self, fd: int) -> bool:
        """Not for files on disk, /dev/null and the like."""
        try:
            self._epoll.register(fd, 0)
        except OSError:
            return False
        self._epoll.unregister(fd)
        return True

    def modify(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Before the fd is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def drop(self, reason: str) -> None:
        self.counters["drop." + reason] += 1

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        while self._running:
            self.turn(TICK)

    def turn(self, timeout: float) -> None:
        """One wake-up: what is ready, then timers."""
        events = self._epoll.poll(timeout, 256)
        self.now = self.clock()
        handlers = self._handlers
        for fd, event in events:
            handler = handlers.get(fd)
            if handler is None:
                continue  # closed by an earlier handler of this batch
            try:
                handler(event)
            except Exception as error:
                self.bug(error)
        self._guarded(self.on_wake)
        if self.now - self._ticked >= (BUSY_TICK if events else TICK * 0.9):
            self._ticked = self.now
            self._guarded(self.on_tick)

    def bug(self, error: Exception) -> None:
        """An exception that should not have been: where, how often, and once in full."""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"bug.{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
        self.counters[place] += 1
        if self.counters[place] == 1:
            print(f"{place}: {type(error).__name__}: {error}", file=sys.stderr)
            traceback.print_exception(error)
            sys.stderr.flush()

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self.bug(error)


class Backlog:
    """What an fd would not take now. `send` raises BlockingIOError while it is full; anything else it deals with itself. `idle`
    are the events that the fd is registered with otherwise."""

    def __init__(self, loop: Loop, fd: int, send: Callable[[Any], None], name: str, idle: int = EPOLLIN) -> None:
        self._loop, self._fd, self._send, self._name, self._idle = loop, fd, send, name, idle
        self._queue: deque[tuple[Any, int]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._queue)

    def push(self, item: Any, size: int) -> None:
        """`item` must not alias a buffer that is used again."""
        if len(self._queue) >= QUEUE_FRAMES or self._bytes + size > QUEUE_BYTES:
            self._loop.drop(f"{self._name}_queue_full")
            return
        if not self._queue:
            self._loop.modify(self._fd, self._idle | EPOLLOUT)
        self._queue.append((item, size))
        self._bytes += size

    def flush(self) -> None:
        while self._queue:
            item, size = self._queue[0]
            try:
                self._send(item)
            except BlockingIOError:
                return
            self._queue.popleft()
            self._bytes -= size
        self._loop.modify(self._fd, self._idle)
