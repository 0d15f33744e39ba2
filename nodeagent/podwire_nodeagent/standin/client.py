"""The kubelet's side of the stand-in process: starts it when it is not there, and asks it to start and stop stand-ins.

Rules it keeps: one request at a time; a lost process is started again, and `on_restart` tells the kubelet to start its stand-ins
anew. Errors of the process (a port that is taken) are `StandinError` with its one line.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import IO, Any

import msgspec
import trio

from podwire_nodeagent.standin.answers import Identity

START_SECONDS = 10.0
RETRIES, RETRY_SECONDS = 20, 0.05


class StandinError(Exception):
    """The stand-in process refused; one line says why."""


class StandinClient:
    """`log` receives the process's output; it is started in a session of its own, so that it outlives the agent."""

    def __init__(self, path: str, log: IO[Any], on_restart: Callable[[], None] = lambda: None) -> None:
        self._path, self._log, self._on_restart = path, log, on_restart
        self._stream: trio.SocketStream | None = None
        self._lock = trio.Lock()
        self._buffer = b""
        self._seen = False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that this client started, 0 if it found one."""
        return self._process.pid if self._process is not None else 0

    async def start(self, sandbox: str, netns: str, ports: Sequence[tuple[str, int]], identity: Identity) -> None:
        """Listen on these (protocol, port) inside the namespace; replaces what this sandbox had. Raises StandinError."""
        await self._ask(
            {"op": "start", "sandbox": sandbox, "netns": netns, "ports": list(ports), "identity": msgspec.to_builtins(identity)}
        )

    async def stop(self, sandbox: str) -> None:
        """Close this sandbox's sockets; nothing happens if it has none."""
        await self._ask({"op": "stop", "sandbox": sandbox})

    async def running(self) -> list[str]:
        """The sandboxes that have a stand-in."""
        return list((await self._ask({"op": "list"}))["sandboxes"])

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        async with self._lock:
            reply = await self._exchange_or_retry(request)
        if "error" in reply:
            raise StandinError(reply["error"])
        return reply

    async def _exchange_or_retry(self, request: dict[str, Any]) -> dict[str, Any]:
        """A process that has just been killed may still accept a connection, so one more try is not always enough."""
        for _ in range(RETRIES):
            try:
                return await self._exchange(request)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
                self._stream = None
                await trio.sleep(RETRY_SECONDS)
            except trio.Cancelled:
                self._stream = None  # a reply that nobody reads must not be taken for the next one's
                raise
        raise StandinError(f"the stand-in process at {self._path} does not answer")

    async def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._stream is None:
            self._stream, self._buffer = await self._connect(), b""
        await self._stream.send_all(json.dumps(request).encode() + b"\n")
        while b"\n" not in self._buffer:
            chunk = await self._stream.receive_some()
            if not chunk:
                raise EOFError("the stand-in process closed the connection")
            self._buffer += bytes(chunk)
        line, _, self._buffer = self._buffer.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    async def _connect(self) -> trio.SocketStream:
        try:
            stream = await self._open()
        except (FileNotFoundError, ConnectionRefusedError):
            await self._spawn()
            stream = await self._open()
            if self._seen:
                self._on_restart()
        self._seen = True
        return stream

    async def _open(self) -> trio.SocketStream:
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await sock.connect(self._path)
        except OSError:
            sock.close()
            raise
        return trio.SocketStream(sock)

    async def _spawn(self) -> None:
        if self._process is not None:
            self._process.wait()  # the one before has ended; not to leave a zombie
        command = [sys.executable, "-m", "podwire_nodeagent.standin", "--socket", self._path]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log, start_new_session=True
        )
        assert process.stdout is not None
        try:
            with trio.move_on_after(START_SECONDS):
                line = await trio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
                if line.strip() == b"ready":
                    self._process = process
                    return
        finally:
            if self._process is not process:  # cancelled, or not ready in time: nobody would know of it
                process.kill()
                process.wait()
        raise StandinError(f"the stand-in process did not start: {' '.join(command)}")
