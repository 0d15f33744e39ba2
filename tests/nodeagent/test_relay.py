"""The relay to the API server copies bytes both ways, and closes when there is none."""

from __future__ import annotations

import trio

from podwire_nodeagent import relay


async def echo(stream: trio.SocketStream) -> None:
    async for chunk in stream:
        await stream.send_all(chunk.upper())


async def exchange(target: str, folder) -> bytes:
    path = str(folder / "relay.sock")
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.serve, path, target)
        with trio.fail_after(5):
            async with await trio.open_unix_socket(path) as client:
                try:
                    await client.send_all(b"hello")
                    got = bytes(await client.receive_some())
                except trio.BrokenResourceError:
                    got = b""
        nursery.cancel_scope.cancel()
    return got


def test_it_leads_to_a_unix_socket(tmp_path):
    async def main() -> bytes:
        listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        await listener.bind(str(tmp_path / "api.sock"))
        listener.listen(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, echo, [trio.SocketListener(listener)])
            got = await exchange(f"unix:{tmp_path / 'api.sock'}", tmp_path)
            nursery.cancel_scope.cancel()
        return got

    assert trio.run(main) == b"HELLO"


def test_it_leads_to_a_host_and_port(tmp_path):
    async def main() -> bytes:
        async with trio.open_nursery() as nursery:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, echo, [listener])
            got = await exchange(f"127.0.0.1:{listener.socket.getsockname()[1]}", tmp_path)
            nursery.cancel_scope.cancel()
        return got

    assert trio.run(main) == b"HELLO"


def test_without_an_api_server_the_connection_closes_and_the_relay_goes_on(tmp_path):
    target = f"unix:{tmp_path / 'absent.sock'}"
    assert trio.run(exchange, target, tmp_path) == b""
    assert trio.run(exchange, target, tmp_path) == b""  # also over a socket file left behind
