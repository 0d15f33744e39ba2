"""Running a command through an agent, with this terminal at its end.

The agent's Exec stream carries standard input, output, window sizes and signals (`podwire_core.agentapi`). With a TTY the local
terminal is raw, so that every key reaches the remote one; without, SIGINT and SIGTERM are passed on as signals. Order to read:
run, input, the terminal.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from podwire_core.agentapi import EXEC_OUT, SERVICE, ExecExit, ExecInput, ExecOutput, ExecResize, ExecSignal, ExecStart

if TYPE_CHECKING:
    from podwire_core.rpc.sync import SyncChannel, SyncStream

Write = Callable[[int, bytes], None]
CHUNK = 64 << 10


def run(agent: SyncChannel, start: ExecStart, write: Write | None = None) -> ExecExit:
    """Runs to the end. `write(stream, data)` gets the output; by default this process's own. Raises ApiError."""
    with agent.stream(SERVICE, "Exec", EXEC_OUT) as stream:
        if start.tty:
            size = shutil.get_terminal_size()
            start.rows, start.columns = size.lines, size.columns
        stream.send(start)
        with _raw(start.tty), _signals(stream, start.tty), _stdin(stream, start.stdin):
            return _drain(stream, write or _to_own)


def capture(agent: SyncChannel, start: ExecStart) -> tuple[int, bytes, bytes]:
    """Exit status, standard output, standard error."""
    parts: dict[int, list[bytes]] = {1: [], 2: []}
    done = run(agent, start, lambda number, data: parts[number].append(data))
    return done.code, b"".join(parts[1]), b"".join(parts[2])


def _drain(stream: SyncStream[Any], write: Write) -> ExecExit:
    for message in stream:
        if isinstance(message, ExecOutput):
            write(message.stream, message.data)
        else:
            return message if isinstance(message, ExecExit) else ExecExit(1, f"unexpected {type(message).__name__}")
    return ExecExit(1, "the agent ended the stream without an exit status")


def _to_own(number: int, data: bytes) -> None:
    target = (sys.stderr if number == 2 else sys.stdout).buffer
    target.write(data)
    target.flush()


# --- input --------------------------------


@contextmanager
def _stdin(stream: SyncStream[Any], wanted: bool) -> Iterator[None]:
    """A thread that sends what is typed. It waits on a pipe too, so that it ends with the command and takes no key after it."""
    if not wanted:
        yield
        return
    reading, writing = os.pipe()
    thread = threading.Thread(target=_pump, args=(stream, sys.stdin.fileno(), reading), daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(writing)
        thread.join()
        os.close(reading)


def _pump(stream: SyncStream[Any], source: int, stop: int) -> None:
    poll = select.poll()
    poll.register(source, select.POLLIN)
    poll.register(stop, select.POLLIN)
    while True:
        ready = [fd for fd, _ in poll.poll()]
        if stop in ready:
            return
        data = os.read(source, CHUNK)
        stream.send(ExecInput(data, eof=not data))
        if not data:
            return


@contextmanager
def _signals(stream: SyncStream[Any], has_tty: bool) -> Iterator[None]:
    """With a TTY the keys are data and only the window's size is ours; without one, signals go to the remote command."""
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        wanted = [signal.SIGWINCH] if has_tty else [signal.SIGINT, signal.SIGTERM]
        for number in wanted:
            handlers[number] = signal.signal(number, lambda caught, _: _pass_on(stream, caught))
    try:
        yield
    finally:
        for caught, handler in handlers.items():
            signal.signal(caught, handler)


def _pass_on(stream: SyncStream[Any], number: int) -> None:
    if number == signal.SIGWINCH:
        size = shutil.get_terminal_size()
        stream.send(ExecResize(size.lines, size.columns))
    else:
        stream.send(ExecSignal(number))


@contextmanager
def _raw(wanted: bool) -> Iterator[None]:
    """The local terminal in raw mode, and back again however the block ends."""
    if not wanted or not sys.stdin.isatty():
        yield
        return
    saved = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)
