"""The datapath process of a node, seen by its agent: found or started, connected to, and noticed when it dies.

Rules it keeps: a running datapath is never restarted because the agent was (packets go on); it runs in a session of its own and
its output goes to a log file; `Dataplane` is the one netlink connection of the agent and serialises its requests.
Order to read: Dataplane, start.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import trio
from msgspec import Struct

from podwire_core.netlink import Op
from podwire_core.netlink_client import Netlink

START_SECONDS = 15.0


class DatapathConfig(Struct, frozen=True):
    """How the process is started; `socket` is its netlink, `log` a file path."""

    node: str
    socket: str
    log: str
    underlay: str
    tunnel_port: int
    cable_port: int


class DatapathFailed(Exception):
    """The process could not be started; the message is its own last line."""


class Dataplane:
    """The agent's connection to its datapath. After `connect` all state must be stated again: the process may be a new one."""

    def __init__(self, config: DatapathConfig) -> None:
        self.config = config
        self._netlink: Netlink | None = None
        self._pidfd = -1
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = trio.Lock()
        self._lost = trio.Event()  # the present connection

    async def connect(self) -> None:
        """Connect to the running datapath, or start one. Raises DatapathFailed."""
        async with self._lock:
            try:
                await self._open()
            except OSError:
                self._child = await _start(self.config)
                await self._open()

    async def apply(self, ops: Sequence[Op], fds: Sequence[int] = ()) -> None:
        """One transaction. Raises NetlinkError (refused) or OSError (the datapath is gone)."""
        if ops:
            await self._request(lambda netlink: netlink.apply(ops, fds))

    async def dump(self, what: str) -> Any:
        """As Netlink.dump."""
        return await self._request(lambda netlink: netlink.dump(what))

    async def died(self) -> None:
        """Returns when the process that this is connected to has ended, or the connection was lost: then it may live, but what
        it was told last is not known."""
        async with trio.open_nursery() as nursery:

            async def first(wait: Callable[[], Awaitable[None]]) -> None:
                await wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(first, self._lost.wait)
            nursery.start_soon(first, partial(trio.lowlevel.wait_readable, self._pidfd))
        if self._child is not None:
            self._child.poll()  # not to leave a zombie

    async def _request(self, call: Callable[[Netlink], Any]) -> Any:
        async with self._lock:
            netlink = self._connected()
            try:
                return await trio.to_thread.run_sync(call, netlink)
            except OSError:
                self._lost.set()
                raise

    def _connected(self) -> Netlink:
        if self._netlink is None:
            raise ConnectionError("not connected to the datapath")
        return self._netlink

    async def _open(self) -> None:
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None
        netlink = Netlink(self.config.socket)
        pid = int((await trio.to_thread.run_sync(netlink.dump, "info"))["pid"])
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd = os.pidfd_open(pid)
        self._netlink, self._lost = netlink, trio.Event()


async def _start(config: DatapathConfig) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "podwire_nodeagent.datapath"]
    command += ["--node", config.node, "--socket", config.socket, "--underlay", config.underlay]
    command += ["--tunnel-port", str(config.tunnel_port), "--cable-port", str(config.cable_port)]
    with open(config.log, "ab") as log:
        start = log.tell()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
    assert process.stdout is not None
    with trio.move_on_after(START_SECONDS), process.stdout:
        line = await trio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
        if line.strip().startswith(b"ready"):
            return process
    process.kill()
    process.wait()
    with open(config.log, "rb") as log:
        log.seek(start)
        lines = log.read().decode(errors="replace").strip().splitlines()
    raise DatapathFailed(lines[-1] if lines else f"the datapath did not start within {START_SECONDS:.0f} s")
