"""The generic half of rpc: calls and streams between a trio server and both clients, errors, cancellation, lost servers."""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import suppress

import pytest
import trio
from msgspec import Struct

from podwire_core import rpc
from podwire_core.errors import ApiError, Cause

SERVICE = "podwire.Test"


class Text(Struct):
    text: str
    data: bytes = b""


async def echo(request: Text) -> Text:
    return Text(request.text.upper(), request.data)


async def refuse(request: Text) -> Text:
    raise ApiError(409, request.text, "AlreadyExists", [Cause(f"$.spec[{i}]", "é" * 50) for i in range(300)])


async def crash(request: Text) -> Text:
    raise KeyError(request.text)


async def count(request: Text, send: rpc.Send) -> None:
    for i in range(int(request.text)):
        await send(Text(str(i)))


async def converse(requests, send: rpc.Send) -> None:
    async for request in requests:
        if request.text == "fail":
            raise ApiError(404, "no such pod")
        await send(Text(request.text[::-1]))
    await send(Text("bye"))


class Endless:
    """A stream that goes on until its caller leaves, and says so."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.sent = 0

    async def run(self, request: Text, send: rpc.Send) -> None:
        try:
            while True:
                await send(Text("x", bytes(65_536)))
                self.sent += 1
        finally:
            self.ended.set()


def serving(test, tmp_path, address: str = ""):
    """Run `test(address, endless)` beside a server."""
    address = address or f"unix:{tmp_path}/s.sock"

    async def main() -> None:
        endless = Endless()
        handlers = {
            "Echo": rpc.unary(Text, echo),
            "Refuse": rpc.unary(Text, refuse),
            "Crash": rpc.unary(Text, crash),
            "Count": rpc.replies(Text, count),
            "Converse": rpc.stream(Text, converse),
            "Endless": rpc.replies(Text, endless.run),
        }
        async with trio.open_nursery() as nursery:
            [bound] = await nursery.start(rpc.serve, SERVICE, handlers, [address])
            with trio.fail_after(20):
                await test(bound, endless)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_unary_calls_over_unix_and_tcp_are_binary_safe_and_large(tmp_path):
    async def test(address, _):
        async with rpc.connect_channel(address) as channel:
            big = bytes(range(256)) * 40_000  # above gRPC's default of 4 MB
            reply = await channel.call(SERVICE, "Echo", Text("ping", big), Text)
            assert reply == Text("PING", big)

    serving(test, tmp_path)
    serving(test, tmp_path, "127.0.0.1:0")


def test_an_error_arrives_whole_however_many_causes_it_has(tmp_path):
    async def test(address, _):
        async with rpc.connect_channel(address) as channel:
            with pytest.raises(ApiError) as caught:
                await channel.call(SERVICE, "Refuse", Text("taken"), Text)
            error = caught.value
            assert (error.code, error.reason, error.message, len(error.causes)) == (409, "AlreadyExists", "taken", 300)
            assert error.causes[299] == Cause("$.spec[299]", "é" * 50)

    serving(test, tmp_path)


def test_a_handlers_exception_is_the_callers_500_and_the_server_goes_on(tmp_path, caplog):
    async def test(address, _):
        async with rpc.connect_channel(address) as channel:
            with pytest.raises(ApiError, match="internal error: KeyError: 'oops'") as caught:
                await channel.call(SERVICE, "Crash", Text("oops"), Text)
            assert caught.value.code == 500
            assert (await channel.call(SERVICE, "Echo", Text("still"), Text)).text == "STILL"

    serving(test, tmp_path)
    assert "crash failed" in caplog.text
    assert "Traceback" in caplog.text


def test_a_malformed_request_is_refused(tmp_path):
    async def test(address, _):
        async with rpc.connect_channel(address) as channel:
            with pytest.raises(ApiError, match="malformed message") as caught:
                await channel.call(SERVICE, "Echo", {"text": 5}, Text)
            assert caught.value.code == 400
            with pytest.raises(ApiError) as caught:
                await channel.call(SERVICE, "Absent", Text(""), Text)
            assert caught.value.code == 405

    serving(test, tmp_path)


def test_streams_both_ways(tmp_path):
    async def test(address, _):
        async with rpc.connect_channel(address) as channel:
            numbers = [reply.text async for reply in channel.replies(SERVICE, "Count", Text("1000"), Text)]
            assert numbers == [str(i) for i in range(1000)]
            async with channel.stream(SERVICE, "Converse", Text) as talk:
                await talk.send(Text("abc"))
                assert (await talk.__anext__()).text == "cba"
                await talk.close_send()
                assert [reply.text async for reply in talk] == ["bye"]
            async with channel.stream(SERVICE, "Converse", Text) as talk:
                await talk.send(Text("fail"))
                with pytest.raises(ApiError, match="no such pod"):
                    await talk.__anext__()

    serving(test, tmp_path)


def test_the_blocking_client_does_the_same(tmp_path):
    def blocking(address: str) -> None:
        with rpc.SyncChannel(address) as channel:
            assert channel.call(SERVICE, "Echo", Text("a"), Text).text == "A"
            with pytest.raises(ApiError, match="taken"):
                channel.call(SERVICE, "Refuse", Text("taken"), Text)
            assert len(list(channel.replies(SERVICE, "Count", Text("100"), Text))) == 100
            with channel.stream(SERVICE, "Converse", Text) as talk:
                talk.send(Text("abc"))
                talk.close_send()
                assert [reply.text for reply in talk] == ["cba", "bye"]

    async def test(address, _):
        await trio.to_thread.run_sync(blocking, address)

    serving(test, tmp_path)


def test_leaving_a_stream_ends_its_handler_and_its_thread(tmp_path):
    async def test(address, endless):
        async with rpc.connect_channel(address) as channel:
            async for _ in channel.replies(SERVICE, "Endless", Text(""), Text):
                break
            await endless.ended.wait()
            with trio.move_on_after(0.05):
                async for _ in channel.replies(SERVICE, "Endless", Text(""), Text):
                    pass
        while any(thread.name == "rpc stream" for thread in threading.enumerate()):
            await trio.sleep(0.01)

    serving(test, tmp_path)


def test_a_reader_that_does_not_read_makes_the_sender_wait(tmp_path):
    async def test(address, endless):
        async with rpc.connect_channel(address) as channel, channel.replies(SERVICE, "Endless", Text(""), Text) as stream:
            await stream.__anext__()
            sent = -1
            while sent != endless.sent:
                sent = endless.sent
                await trio.sleep(0.2)
            assert 0 < sent < 1_000  # gRPC's own window holds some

    serving(test, tmp_path)


def test_a_lost_server_is_503_and_is_found_again(tmp_path):
    address = f"unix:{tmp_path}/s.sock"

    async def main() -> None:
        async with rpc.connect_channel(address) as channel:
            with pytest.raises(ApiError) as caught:
                await channel.call(SERVICE, "Echo", Text("x"), Text)
            assert caught.value.code == 503
            assert address in caught.value.message
            async with trio.open_nursery() as nursery:
                await nursery.start(rpc.serve, SERVICE, {"Echo": rpc.unary(Text, echo)}, [address])
                with trio.fail_after(3):
                    while True:
                        try:
                            assert (await channel.call(SERVICE, "Echo", Text("x"), Text)).text == "X"
                            break
                        except ApiError:
                            await trio.sleep(0.02)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_addresses_that_cannot_be_served_say_why(tmp_path):
    async def listen(address: str) -> str:
        try:
            with trio.move_on_after(5):
                await rpc.serve(SERVICE, {}, [address])
        except rpc.ListenError as error:
            return str(error)
        return ""

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        message = trio.run(listen, f"127.0.0.1:{taken.getsockname()[1]}")
        assert "address already in use; choose another address or stop the program" in message
    assert "at most 107 bytes" in trio.run(listen, f"unix:/{'x' * 200}")
    assert "no such file or directory" in trio.run(listen, f"unix:{tmp_path}/absent/s.sock")

    async def second(address, _):
        assert "another server is listening there" in await listen(address)

    serving(second, tmp_path)


def relay(listener: socket.socket, path: str, after: float) -> None:
    """One connection, accepted late, its bytes passed on to the socket at `path` and back."""
    time.sleep(after)  # the server's slowness is what is tested
    client, _ = listener.accept()
    with client, socket.socket(socket.AF_UNIX) as server, suppress(ConnectionError):  # the caller has left
        server.connect(path)
        other = {client: server, server: client}
        while True:
            for ready in select.select([client, server], [], [])[0]:
                data = ready.recv(65_536)
                if not data:
                    return
                other[ready].sendall(data)


def test_a_server_may_be_slow_to_greet_a_connection(tmp_path):
    def call(slow: str) -> Text:
        with rpc.SyncChannel(slow) as channel:
            return channel.call(SERVICE, "Echo", Text("late"), Text)

    async def test(address: str, endless: Endless) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{tmp_path}/slow.sock")
            listener.listen()
            thread = threading.Thread(target=relay, args=(listener, address.removeprefix("unix:"), 0.5), daemon=True)
            thread.start()
            reply = await trio.to_thread.run_sync(call, f"unix:{tmp_path}/slow.sock")
            await trio.to_thread.run_sync(thread.join)
        assert reply.text == "LATE"

    serving(test, tmp_path)
