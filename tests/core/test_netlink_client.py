"""The blocking netlink client against a scripted server: typed dumps, fds, errors, lost connections."""

from __future__ import annotations

import array
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from podwire_core.netlink import (
    Apply,
    ConntrackInfo,
    Dump,
    LinkAdd,
    NetlinkError,
    Reply,
    Subscribe,
    Traced,
    TupleInfo,
)
from podwire_core.netlink_client import MAX_FDS, Netlink

REQUEST = msgspec.msgpack.Decoder(Apply | Dump | Subscribe)


class Scripted:
    """Answers each request by `answer(request, fds) -> list of messages, or None to hang up`."""

    def __init__(self, path: Path, answer: Callable) -> None:
        self.answer = answer
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        sock, _ = self.listener.accept()
        with sock:
            while True:
                data, rights, _, _ = sock.recvmsg(4, socket.CMSG_SPACE(4 * MAX_FDS))
                if not data:
                    return
                fds = array.array("i")
                for _, _, raw in rights:
                    fds.frombytes(raw)
                body = sock.recv(int.from_bytes(data, "big"), socket.MSG_WAITALL)
                messages = self.answer(REQUEST.decode(body), list(fds))
                if messages is None:
                    return
                for message in messages:
                    raw = msgspec.msgpack.encode(message)
                    sock.sendall(len(raw).to_bytes(4, "big") + raw)


def test_dump_is_typed(tmp_path: Path) -> None:
    row = ConntrackInfo("tcp", 30, TupleInfo("10.0.0.1", "10.0.0.2", 1, 2), TupleInfo("10.0.0.2", "10.0.0.1", 2, 1), "SYN_SENT")
    Scripted(tmp_path / "s", lambda request, fds: [Reply(request.seq, data=[row])])
    with Netlink(str(tmp_path / "s")) as nl:
        assert nl.dump("conntrack") == [row]
        with pytest.raises(NetlinkError, match=r"EINVAL.*weather"):
            nl.dump("weather")


def test_file_descriptors_travel_beside_the_request(tmp_path: Path) -> None:
    seen: list = []

    def answer(request: Apply, fds: list[int]) -> list[Reply]:
        seen.append([op.name for op in request.ops])
        for fd in fds:
            os.write(fd, b"x")
            os.close(fd)
        return [Reply(request.seq)]

    Scripted(tmp_path / "s", answer)
    reader, writer = os.pipe()
    with Netlink(str(tmp_path / "s")) as nl:
        nl.apply([LinkAdd("veth1", "tap", fd=True), LinkAdd("veth2", "tap", fd=True)], fds=[writer, writer])
    assert os.read(reader, 10) == b"xx"
    assert seen == [["veth1", "veth2"]]
    os.close(reader)
    os.close(writer)


def test_a_refused_request_raises_and_the_connection_goes_on(tmp_path: Path) -> None:
    replies = iter([("EEXIST", "link veth1 exists", 0), ("", "", -1)])
    Scripted(tmp_path / "s", lambda request, fds: [Reply(request.seq, *next(replies))])
    with Netlink(str(tmp_path / "s")) as nl:
        with pytest.raises(NetlinkError) as caught:
            nl.apply([LinkAdd("veth1", "tap")])
        assert (caught.value.errno_name, caught.value.failed) == ("EEXIST", 0)
        nl.apply([])


def test_lost_and_late_answers_are_os_errors(tmp_path: Path) -> None:
    Scripted(tmp_path / "lost", lambda request, fds: None)
    with Netlink(str(tmp_path / "lost")) as nl, pytest.raises(ConnectionError):
        nl.dump("links")
    Scripted(tmp_path / "late", lambda request, fds: [])
    with Netlink(str(tmp_path / "late"), timeout=0.05) as nl, pytest.raises(TimeoutError):
        nl.dump("links")
    with pytest.raises(FileNotFoundError):
        Netlink(str(tmp_path / "absent"))


def test_subscribe_yields_until_the_end(tmp_path: Path) -> None:
    got: list[Subscribe] = []

    def answer(request: Subscribe, fds: list[int]) -> list:
        got.append(request)
        return [Reply(request.seq), Traced({"node": "a"}), Traced({"node": "b"}, lost=3)]

    Scripted(tmp_path / "s", answer)
    with Netlink(str(tmp_path / "s")) as nl:
        traces = nl.subscribe(Subscribe(0, addresses=("10.0.0.1",), ports=(80,), protocol="tcp", limit=2))
        assert [next(traces).hop["node"], next(traces).lost] == ["a", 3]
        assert got[0].addresses == ("10.0.0.1",)
        assert got[0].limit == 2
        threading.Timer(0.05, nl.close).start()
        assert list(traces) == []
