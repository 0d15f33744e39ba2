"""Commands inside pods, and in the node's host namespace: `capture` for probes and hooks, `interact` for `podwire exec`
and `podwire node`.

Rules it keeps: the command is the shim's child (shim/main.py, modes join, transient and host) and dies with it, so a
caller that goes away leaves nothing behind. Output that the command wrote before it ended is delivered before its exit
code; what its background children write later is not waited for.
Order to read: capture, interact, terminals and pipes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import trio
from msgspec import Struct

from podwire_core.agentapi import EXEC_IN, EXEC_OUT, ExecExit, ExecInput, ExecOutput, ExecResize, ExecSignal, ExecStart
from podwire_nodeagent.kubelet import runtime
from podwire_nodeagent.kubelet.runtime import Spec

Send = Callable[[EXEC_OUT], Awaitable[None]]
LINGER = 0.2  # seconds for output that is still in the pipes when the command has ended


class Outcome(Struct):
    """`message` is set if the command could not be started."""

    code: int
    output: str = ""
    message: str = ""


async def capture(python: str, spec: Spec, limit: int = 10240) -> Outcome:
    """Run to the end; cancel it to kill it."""
    chunks: list[bytes] = []

    async def keep(message: EXEC_OUT) -> None:
        if isinstance(message, ExecOutput) and sum(map(len, chunks)) < limit:
            chunks.append(message.data)

    code, message = await _run(python, spec, False, None, keep)
    return Outcome(code, b"".join(chunks)[:limit].decode(errors="replace"), message)


async def interact(python: str, spec: Spec, start: ExecStart, inputs: AsyncIterator[EXEC_IN], send: Send) -> None:
    """The whole conversation, ExecExit included."""
    spec.tty, spec.rows, spec.columns = start.tty, start.rows, start.columns
    code, message = await _run(python, spec, start.stdin, inputs, send)
    await send(ExecExit(code, message))


async def _run(python: str, spec: Spec, stdin: bool, inputs: AsyncIterator[EXEC_IN] | None, send: Send) -> tuple[int, str]:
    """(exit code, message)."""
    channel = _Terminal() if spec.tty else _Pipes(stdin)
    read, write = os.pipe()
    spec.control, spec.terminal = write, channel.terminal
    document = _document(spec)
    control = trio.lowlevel.FdStream(read)
    try:
        process = runtime.launch(python, f"fd:{document}", [document, *channel.passed(write)], **channel.stdio())
    except BaseException:
        channel.close()
        await control.aclose()
        raise
    finally:
        for fd in (write, document):
            os.close(fd)
        channel.started()
    try:
        return await _converse(control, channel, inputs, send)
    finally:
        process.kill()  # and with it the command, if it still runs
        channel.close()
        with trio.CancelScope(shield=True):
            await control.aclose()
            while process.poll() is None:
                await trio.sleep(0.002)


async def _converse(
    control: trio.lowlevel.FdStream, channel: _Pipes | _Terminal, inputs: AsyncIterator[EXEC_IN] | None, send: Send
) -> tuple[int, str]:
    said = await runtime.read_line(control)
    if "pid" not in said:
        return int(said.get("code", 128)), str(said.get("error", "the shim died"))
    pidfd = _pidfd(said["pid"])
    drained = trio.Event()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_deliver, channel, send, drained)
            if inputs is not None:
                nursery.start_soon(_feed, inputs, channel, pidfd)
            ended = await runtime.read_line(control)
            with trio.move_on_after(LINGER):
                await drained.wait()
            nursery.cancel_scope.cancel()
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    return (int(ended["exit"]), "") if "exit" in ended else (137, "the command was killed")


def _pidfd(pid: int) -> int:
    """-1 if the command has already ended."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


async def _deliver(channel: _Pipes | _Terminal, send: Send, drained: trio.Event) -> None:
    async with trio.open_nursery() as nursery:
        for stream, fd in channel.outputs().items():
            nursery.start_soon(_deliver_one, stream, fd, send)
    drained.set()


async def _deliver_one(stream: int, fd: int, send: Send) -> None:
    while True:
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(fd)
            continue
        except OSError as error:
            if error.errno == errno.EIO:  # a terminal whose last holder closed it
                return
            raise
        if not data:
            return
        await send(ExecOutput(stream, data))


async def _feed(inputs: AsyncIterator[EXEC_IN], channel: _Pipes | _Terminal, pidfd: int) -> None:
    async for message in inputs:
        match message:
            case ExecInput(data=data, eof=eof):
                if data:
                    await channel.write(data)
                if eof:
                    await channel.end_input()
            case ExecResize(rows=rows, columns=columns):
                channel.resize(rows, columns)
            case ExecSignal(number=number) if pidfd >= 0 and number in signal.valid_signals():
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    signal.pidfd_send_signal(pidfd, number)


def _document(spec: Spec) -> int:
    """The spec in memory: environments don't belong in argument lists, nor on disks."""
    fd = os.memfd_create("podwire-exec", os.MFD_CLOEXEC)
    os.write(fd, json.dumps(runtime.as_json(spec)).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


# --- terminals and pipes --------------------------------


class _Pipes:
    terminal = -1

    def __init__(self, stdin: bool) -> None:
        self._in_read, self._in_write = os.pipe() if stdin else (-1, -1)
        self._out_read, self._out_write = os.pipe()
        self._err_read, self._err_write = os.pipe()
        for fd in (self._out_read, self._err_read):
            os.set_blocking(fd, False)
        if stdin:
            os.set_blocking(self._in_write, False)

    def passed(self, control: int) -> list[int]:
        return [control]

    def stdio(self) -> dict[str, Any]:
        stdin = self._in_read if self._in_read >= 0 else subprocess.DEVNULL
        return {"stdin": stdin, "stdout": self._out_write, "stderr": self._err_write}

    def started(self) -> None:
        for fd in (self._in_read, self._out_write, self._err_write):
            if fd >= 0:
                os.close(fd)

    def outputs(self) -> dict[int, int]:
        return {1: self._out_read, 2: self._err_read}

    async def write(self, data: bytes) -> None:
        try:
            await _write_all(self._in_write, data)
        except BrokenPipeError:
            await self.end_input()  # the command reads no more

    async def end_input(self) -> None:
        if self._in_write >= 0:
            trio.lowlevel.notify_closing(self._in_write)
            os.close(self._in_write)
            self._in_write = -1

    def resize(self, rows: int, columns: int) -> None:
        """Pipes have no size."""

    def close(self) -> None:
        for fd in (self._in_write, self._out_read, self._err_read):
            if fd >= 0:
                os.close(fd)
        self._in_write = -1


class _Terminal:
    """The command's terminal is made inside the pod; its master side comes to us through a socket pair."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        self.terminal = theirs.detach()
        self._master = -1

    def passed(self, control: int) -> list[int]:
        return [control, self.terminal]

    def stdio(self) -> dict[str, Any]:
        return {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

    def started(self) -> None:
        os.close(self.terminal)

    def outputs(self) -> dict[int, int]:
        return {1: self._take()}

    def _take(self) -> int:
        if self._master < 0:  # sent before the program was said to run, so this does not block
            self._master = socket.recv_fds(self._ours, 1, 1)[1][0]
            os.set_blocking(self._master, False)
        return self._master

    async def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # EIO: the command is gone, which its exit code tells
            await _write_all(self._take(), data)

    async def end_input(self) -> None:
        await self.write(b"\x04")

    def resize(self, rows: int, columns: int) -> None:
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._take(), termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        self._ours.close()
        if self._master >= 0:
            os.close(self._master)


async def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view and fd >= 0:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(fd)
