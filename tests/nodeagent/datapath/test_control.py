"""The netlink server through its real socket: transactions with fds, bad messages, slow clients, subscriptions."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from support.switch import Switch

from podwire_core.netlink import MAX_MESSAGE, Apply, Dump, FdbAdd, LinkAdd, LinkDel, NetlinkError, Reply, Subscribe, Traced
from podwire_core.netlink_client import Netlink, receive_message, send_message
from podwire_core.trace import Digest, Hop
from podwire_nodeagent.datapath import control
from podwire_nodeagent.datapath.control import Server
from podwire_nodeagent.datapath.kernel import Kernel
from podwire_nodeagent.datapath.loop import Loop

REPLY = msgspec.msgpack.Decoder(Reply | Traced)


class Running:
    """A server whose loop runs in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.loop, self.switch = Loop(), Switch()
        self.kernel = Kernel(self.loop, self.switch, "node1", "127.0.75.1", 8472, 8473)
        self.server = Server(self.loop, self.kernel, self.path)
        self.thread = threading.Thread(target=self.run)
        self.stopping = False
        self.thread.start()

    def run(self) -> None:
        while not self.stopping:
            self.loop.turn(0.02)

    def raw(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(5)
        sock.connect(self.path)
        return sock

    def close(self) -> None:
        self.stopping = True
        self.thread.join()
        self.server.close()
        self.kernel.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path / "datapath.sock")
    yield running
    running.close()


def reply(sock: socket.socket) -> Reply:
    return REPLY.decode(receive_message(sock))


def test_apply_and_dump(running: Running) -> None:
    with Netlink(running.path) as nl, Netlink(running.path) as other:
        nl.apply([LinkAdd("cni0", "bridge")])
        assert [link.name for link in other.dump("links")] == ["cni0"]
        assert other.dump("info")["node"] == "node1"
        with pytest.raises(NetlinkError) as caught:
            other.apply([LinkAdd("x", "dummy"), LinkAdd("cni0", "bridge")])
        assert (caught.value.errno_name, caught.value.failed) == ("EEXIST", 1)


def test_fds_are_attached_and_frames_flow(running: Running) -> None:
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    mac = "02:00:00:00:00:0b"
    with Netlink(running.path) as nl:
        links = [LinkAdd("a", "tap", fd=True), LinkAdd("no", "dummy"), LinkAdd("b", "tap", fd=True), FdbAdd(mac, "b")]
        nl.apply(links, fds=[ours.fileno() for ours, _ in pairs])
        for ours, _ in pairs:
            ours.close()
        frame = bytes(10) + bytes.fromhex("02000000000b020000000001") + bytes(30)
        pairs[0][1].send(frame)
        pairs[1][1].settimeout(5)
        assert pairs[1][1].recv(100) == frame
        with pytest.raises(NetlinkError, match="1 file descriptors came for 0 links"):
            nl.apply([LinkAdd("c", "dummy")], fds=[pairs[0][1].fileno()])
        nl.apply([LinkDel("a")])
        with pytest.raises(OSError):
            pairs[0][1].send(frame)
    for _, pods in pairs:
        pods.close()


def test_malformed_messages_are_answered_and_the_connection_goes_on(running: Running) -> None:
    encode = msgspec.msgpack.encode
    bad = [
        b"", b"\xc1", b"\x93\x01", encode({"req": "apply"}), encode({"req": "nothing", "seq": 4}), encode([1, 2]),
        encode({"req": "apply", "seq": 5, "ops": [{"op": "link.add", "name": 7}]}), encode({"req": "dump", "seq": "x"}),
        b"\x91" * 5000,
    ]  # fmt: skip
    sock = running.raw()
    for body in bad:
        sock.sendall(len(body).to_bytes(4, "big") + body)
        assert reply(sock).error == "EINVAL"
    send_message(sock, Dump(9, "links"))
    assert reply(sock) == Reply(9, data=[])
    send_message(sock, Dump(10, "weather"))
    answer = reply(sock)
    assert (answer.seq, answer.error) == (10, "EINVAL")
    sock.close()


def test_requests_may_come_in_any_pieces(running: Running) -> None:
    sock = running.raw()
    data = b"".join(
        len(body).to_bytes(4, "big") + body for body in (msgspec.msgpack.encode(Dump(seq, "links")) for seq in range(20))
    )
    for i in range(0, len(data), 7):
        sock.sendall(data[i : i + 7])
    assert [reply(sock).seq for _ in range(20)] == list(range(20))
    sock.close()


def test_a_lost_framing_closes_the_connection(running: Running) -> None:
    sock = running.raw()
    sock.sendall((MAX_MESSAGE + 1).to_bytes(4, "big"))
    assert reply(sock).error == "EMSGSIZE"
    assert sock.recv(1) == b""
    sock.close()


def test_a_bug_behind_a_request_is_eio(running: Running, capfd) -> None:
    with Netlink(running.path) as nl:
        with pytest.raises(NetlinkError, match="EIO"):
            nl.apply([LinkDel("absent")])
        assert any(name.startswith("bug.switch.py") for name in nl.dump("counters"))
    assert "KeyError" in capfd.readouterr().err


def test_ten_thousand_mutated_messages(running: Running) -> None:
    rng = random.Random(3)
    apply = Apply(1, (LinkAdd("a", "tap", mac="02:00:00:00:00:01"), LinkDel("a", missing_ok=True)))
    seeds = [msgspec.msgpack.encode(message) for message in (apply, Dump(2, "links"), Dump(3, "nothing"))]
    sock, answers = running.raw(), []

    def read_all() -> None:
        answers.extend(reply(sock) for _ in range(10_000))

    reader = threading.Thread(target=read_all)
    reader.start()
    for _ in range(10_000):
        body = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(body) + 1)
            body[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        sock.sendall(len(body).to_bytes(4, "big") + body)
    reader.join(30)
    assert len(answers) == 10_000
    with Netlink(running.path) as nl:
        assert nl.dump("info")["node"] == "node1"
        assert nl.dump("counters")["control.malformed"] > 1000
    sock.close()


# --- subscriptions --------------------------------


def hop(number: int, src: str = "10.0.0.1") -> Hop:
    return Hop("node1", number, 1.0, "in", Digest(src, "10.0.0.2", "tcp", 1000, 80), [], "forwarded")


def publish(running: Running, hops: list[Hop], capfd=None) -> None:
    running.switch.traced.extend(hops)
    with Netlink(running.path) as nl:
        nl.dump("links")  # wakes the loop


def test_each_subscriber_gets_its_own_part(running: Running) -> None:
    one, two = Netlink(running.path), Netlink(running.path)
    first = one.subscribe(Subscribe(0, addresses=("10.0.0.1",)))
    second = two.subscribe(Subscribe(0, addresses=("10.0.0.9",), limit=2))
    assert running.switch.subscription is not None
    assert set(running.switch.subscription.addresses) == {"10.0.0.1", "10.0.0.9"}
    publish(running, [hop(1), hop(2, "10.0.0.9"), hop(3), hop(4, "10.0.0.9"), hop(5, "10.0.0.9")])
    assert [next(first).hop["seq"] for _ in range(2)] == [1, 3]
    assert [next(second).hop["seq"] for _ in range(2)] == [2, 4]
    one.close()
    two.close()
    with Netlink(running.path) as nl:
        for _ in range(100):
            nl.dump("links")
            if running.switch.subscription is None:
                break
    assert running.switch.subscription is None


@pytest.mark.interpreted
def test_a_slow_subscriber_loses_records_and_is_told(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "TRACE_BYTES", 2000)
    sock = running.raw()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    send_message(sock, Subscribe(1))
    assert reply(sock).error == ""
    publish(running, [hop(n) for n in range(5000)])
    got, lost = 0, 0
    while got + lost < 5000:
        sock.settimeout(0.3)
        try:
            traced = REPLY.decode(receive_message(sock))
        except TimeoutError:
            publish(running, [hop(5000)])
            sock.settimeout(5)
            traced = REPLY.decode(receive_message(sock))
        assert isinstance(traced, Traced)
        got, lost = got + 1, lost + traced.lost
    assert lost > 0
    assert got + lost == 5001
    sock.close()
