"""The stand-in process on real sockets: started, replaced, stopped, and restarted after a kill -9."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import trio
import trio.testing

from podwire_core import netns
from podwire_nodeagent.standin.answers import Identity
from podwire_nodeagent.standin.client import StandinClient, StandinError

WHO = Identity("default/web-0", "node1", "127.0.0.1")
pytestmark = pytest.mark.root


@pytest.fixture
def namespace(tmp_path):
    path = tmp_path / "ns"
    netns.create(path)
    yield str(path)
    netns.delete(path)


def ask(namespace: str, kind: socket.SocketKind, port: int, data: bytes) -> bytes:
    with netns.in_netns(namespace):
        sock = socket.socket(socket.AF_INET, kind)
    with sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", port))
        sock.send(data)
        return sock.recv(65536)


def with_client(folder: Path, body) -> None:
    async def main() -> None:
        restarts: list[None] = []
        with open(folder / "log", "ab") as log:
            client = StandinClient(str(folder / "s.sock"), log, lambda: restarts.append(None))
            try:
                with trio.fail_after(30):
                    await body(client, restarts)
            finally:
                if client.pid:
                    os.kill(client.pid, signal.SIGKILL)

    trio.run(main)


async def blocking(function, *args):
    return await trio.to_thread.run_sync(function, *args)


def test_it_answers_inside_the_namespace_on_all_its_ports(tmp_path, namespace):
    async def body(client: StandinClient, _: list[None]) -> None:
        await client.start("a", namespace, [("TCP", 80), ("UDP", 53)], WHO)
        http = await blocking(ask, namespace, socket.SOCK_STREAM, 80, b"GET /hostname HTTP/1.0\r\n\r\n")
        assert http.endswith(b"web-0")
        udp = await blocking(ask, namespace, socket.SOCK_DGRAM, 53, b"ping")
        line, _, rest = udp.partition(b"\n")
        assert (json.loads(line)["address"], rest) == ("127.0.0.1:53", b"ping")
        assert await client.running() == ["a"]
        await client.stop("a")
        assert await client.running() == []
        with pytest.raises(ConnectionRefusedError):
            await blocking(ask, namespace, socket.SOCK_STREAM, 80, b"x")

    with_client(tmp_path, body)


def test_a_port_that_is_taken_is_one_clear_error_and_opens_nothing(tmp_path, namespace):
    async def body(client: StandinClient, _: list[None]) -> None:
        await client.start("a", namespace, [("TCP", 80)], WHO)
        with pytest.raises(StandinError, match="port 80/TCP: Address already in use"):
            await client.start("b", namespace, [("TCP", 81), ("TCP", 80)], WHO)
        with pytest.raises(ConnectionRefusedError):
            await blocking(ask, namespace, socket.SOCK_STREAM, 81, b"x")
        await client.start("a", namespace, [("TCP", 80)], WHO)  # its own port it may take again

    with_client(tmp_path, body)


def test_a_killed_process_is_started_again_and_that_is_told(tmp_path, namespace):
    async def body(client: StandinClient, restarts: list[None]) -> None:
        await client.start("a", namespace, [("TCP", 80)], WHO)
        os.kill(client.pid, signal.SIGKILL)
        assert await client.running() == []
        assert len(restarts) == 1
        await client.start("a", namespace, [("TCP", 80)], WHO)
        assert await blocking(ask, namespace, socket.SOCK_STREAM, 80, b"hello")

    with_client(tmp_path, body)


def test_a_new_client_finds_what_runs(tmp_path, namespace):
    async def body(client: StandinClient, _: list[None]) -> None:
        await client.start("a", namespace, [("TCP", 80)], WHO)
        with open(tmp_path / "log", "ab") as log:
            other = StandinClient(str(tmp_path / "s.sock"), log)
            assert await other.running() == ["a"]
            assert other.pid == 0  # it did not start the process

    with_client(tmp_path, body)


def test_the_reply_to_a_cancelled_request_is_nobody_s(tmp_path, namespace):
    async def body(client: StandinClient, _: list[None]) -> None:
        for _again in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.stop, "web")
                await trio.testing.wait_all_tasks_blocked()  # it waits for its reply
                nursery.cancel_scope.cancel()
            assert await client.running() == []

    with_client(tmp_path, body)


def test_a_cancelled_start_leaves_no_process(tmp_path, monkeypatch):
    made: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)

    async def body(client: StandinClient, _: list[None]) -> None:
        with trio.move_on_after(0.01):
            await client.running()
        assert client.pid == 0

    with_client(tmp_path, body)
    assert [each.returncode for each in made] == [-signal.SIGKILL]
