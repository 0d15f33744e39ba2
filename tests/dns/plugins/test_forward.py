"""forward, against upstreams on loopback that answer, are silent, truncate or fail."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dnslib
import pytest
import trio
import trio.testing

from podwire_dns.corefile import CorefileError, parse
from podwire_dns.kubeindex import KubeIndex
from podwire_dns.message import Query
from podwire_dns.plugin import Context
from podwire_dns.plugins import upstream as upstream_module
from podwire_dns.server import Server
from tests.dns.conftest import InMemory


class Stub:
    """One upstream on UDP and TCP of the same port. `silent`: says nothing; `big`: truncates over UDP."""

    def __init__(self, data: str) -> None:
        self.data, self.rcode, self.silent, self.big = data, 0, False, False
        self.asked: list[tuple[str, str]] = []  # transport, name
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.port = self.udp.getsockname()[1]
        self.tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.tcp.bind(("127.0.0.1", self.port))
        self.tcp.listen()
        self.last = dnslib.DNSRecord()

    def answer(self, data: bytes, transport: str) -> bytes:
        self.last = request = dnslib.DNSRecord.parse(data)
        self.asked.append((transport, str(request.q.qname)))
        reply = request.reply(aa=0)
        reply.header.rcode = self.rcode
        if self.big and transport == "udp":
            reply.header.tc = 1
        elif not self.rcode and request.q.qtype == 1:
            reply.add_answer(dnslib.RR(request.q.qname, 1, rdata=dnslib.A(self.data), ttl=30))
        return bytes(reply.pack())

    async def serve(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve_udp)
            nursery.start_soon(
                trio.serve_listeners, self._converse, [trio.SocketListener(trio.socket.from_stdlib_socket(self.tcp))]
            )

    async def _serve_udp(self) -> None:
        sock = trio.socket.from_stdlib_socket(self.udp)
        while True:
            data, sender = await sock.recvfrom(4096)
            reply = self.answer(data, "udp")
            if not self.silent:
                await sock.sendto(reply, sender)

    async def _converse(self, stream: trio.SocketStream) -> None:
        while size := await stream.receive_some(2):
            reply = self.answer(bytes(await stream.receive_some(struct.unpack("!H", size)[0])), "tcp")
            await stream.send_all(struct.pack("!H", len(reply)) + reply)

    def transports(self) -> list[str]:
        return [transport for transport, name in self.asked if name != "."]


class Forwarding:
    def __init__(self, options: str, count: int) -> None:
        self.stubs = [Stub(f"192.0.2.{number}") for number in range(1, count + 1)]
        self.options = options

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        to = " ".join(f"127.0.0.1:{stub.port}" for stub in self.stubs)
        text = f". {{\n forward . {to} {{\n {self.options}\n }}\n}}\n"
        self.context = Context(KubeIndex(), lambda: True, trio.current_time, random.Random(1))
        self.server = Server(parse(text), self.context)
        async with trio.open_nursery() as nursery:
            for stub in self.stubs:
                nursery.start_soon(stub.serve)
            nursery.start_soon(self.server.run)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(20):
                yield self.server
            nursery.cancel_scope.cancel()

    async def ask(self, name: str = "x.org.", tcp: bool = False) -> str:
        reply = await self.server.resolve(Query(name, 1, "10.0.0.1", tcp))
        return ",".join(str(r.rdata) for r in reply.answer) or dnslib.RCODE[reply.rcode]


def forwarded(options: str, count: int, script) -> Forwarding:
    """Run the script against so many upstreams."""
    forwarding = Forwarding(options, count)

    async def main() -> None:
        async with forwarding.running():
            await script(forwarding)

    trio.run(main)
    return forwarding


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("sequential", [1, 1, 1, 1, 1, 1]), ("round_robin", [2, 3, 1, 2, 3, 1])],
)
def test_policies(policy, expected):
    async def script(f: Forwarding) -> None:
        assert [await f.ask() for _ in expected] == [f"192.0.2.{n}" for n in expected]

    forwarded(f"policy {policy}", 3, script)


def test_random_asks_all():
    async def script(f: Forwarding) -> None:
        assert {await f.ask() for _ in range(30)} == {"192.0.2.1", "192.0.2.2", "192.0.2.3"}

    forwarded("", 3, script)


def test_a_silent_upstream_costs_its_time_limit_once(monkeypatch):
    monkeypatch.setattr(upstream_module, "READ_SECONDS", 0.3)

    async def script(f: Forwarding) -> None:
        f.stubs[0].silent = True
        assert [await f.ask() for _ in range(20)] == ["192.0.2.2"] * 20
        assert len(f.stubs[0].transports()) == 1

    forwarded("policy sequential\n health_check 10s", 2, script)


def test_an_upstream_comes_back_after_a_health_check(monkeypatch):
    monkeypatch.setattr(upstream_module, "READ_SECONDS", 0.1)
    monkeypatch.setattr(upstream_module, "CHECK_SECONDS", 0.05)

    async def script(f: Forwarding) -> None:
        f.stubs[0].silent = True
        assert await f.ask() == "192.0.2.2"
        first = f.server._plugins[0]._upstreams[0]
        while not first.down():
            await trio.sleep(0.01)
        f.stubs[0].silent = False
        while first.down() or first.checking:
            await trio.sleep(0.01)
        assert await f.ask() == "192.0.2.1"
        assert ("udp", "health.org.") in f.stubs[0].asked
        assert not f.stubs[0].last.header.rd or f.stubs[0].asked[-1][1] == "x.org."

    forwarded("policy sequential\n health_check 20ms no_rec domain health.org.", 2, script)


def test_a_refused_port_is_left_at_once():
    async def script(f: Forwarding) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        f.server._plugins[0]._upstreams[0].address = ("127.0.0.1", port)
        started = trio.current_time()
        assert await f.ask() == "192.0.2.2"
        assert trio.current_time() - started < upstream_module.READ_SECONDS

    forwarded("policy sequential", 2, script)


@pytest.mark.parametrize(
    ("options", "tcp", "big", "transports"),
    [
        ("", False, False, ["udp"]),
        ("", False, True, ["udp", "tcp"]),
        ("", True, False, ["tcp"]),
        ("prefer_udp", True, False, ["udp"]),
        ("prefer_udp", True, True, ["udp", "tcp"]),
        ("force_tcp", False, False, ["tcp"]),
    ],
)
def test_transports(options, tcp, big, transports):
    async def script(f: Forwarding) -> None:
        f.stubs[0].big = big
        assert await f.ask(tcp=tcp) == "192.0.2.1"

    assert forwarded(options, 1, script).stubs[0].transports() == transports


def test_connections_are_used_again():
    async def script(f: Forwarding) -> None:
        for _ in range(5):
            await f.ask()
            await f.ask(tcp=True)
        [upstream] = f.server._plugins[0]._upstreams
        assert (len(upstream._udp), len(upstream._tcp)) == (1, 1)

    forwarded("", 1, script)


def test_failover_and_the_last_answer():
    async def script(f: Forwarding) -> None:
        f.stubs[0].rcode = 2
        assert await f.ask() == "192.0.2.2"
        f.stubs[1].rcode = 5
        assert await f.ask() == "REFUSED"
        f.stubs[0].rcode = 3
        assert await f.ask() == "NXDOMAIN"

    forwarded("policy sequential\n failover SERVFAIL REFUSED", 2, script)


def test_more_questions_than_max_concurrent_are_refused():
    async def script(f: Forwarding) -> None:
        f.stubs[0].silent = True
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(f.ask)
            await trio.testing.wait_all_tasks_blocked()
            assert await f.ask() == "REFUSED"
            nursery.cancel_scope.cancel()
        assert b"coredns_forward_max_concurrent_rejects_total 1.0" in f.context.metrics.text()

    forwarded("max_concurrent 2", 1, script)


def test_all_upstreams_down(monkeypatch, caplog):
    monkeypatch.setattr(upstream_module, "READ_SECONDS", 0.05)

    async def script(f: Forwarding) -> None:
        f.stubs[0].silent = True
        assert await f.ask() == "SERVFAIL"
        f.server._plugins[0]._upstreams[0].fails = 9
        assert await f.ask() == "SERVFAIL"
        assert b"coredns_forward_healthcheck_broken_total 1.0" in f.context.metrics.text()

    forwarded("", 1, script)


def test_what_the_client_said_goes_along():
    async def script(f: Forwarding) -> None:
        query = Query("MiXed.org.", 1, "10.0.0.1", do=True, rd=False, options=((65001, b"abc"),))
        await f.server.resolve(query)
        last = f.stubs[0].last
        assert (str(last.q.qname), last.header.rd) == ("MiXed.org.", 0)
        [opt] = [r for r in last.ar if r.rtype == 41]
        assert (opt.ttl & 0x8000, [(o.code, o.data) for o in opt.rdata]) == (0x8000, [(65001, b"abc")])

    forwarded("", 1, script)


def test_zones_and_exceptions():
    dns = InMemory(". {\n forward org 127.0.0.1:1 {\n  except a.org\n }\n whoami\n}\n", [])
    assert [dns.ask(name).rcode for name in ("a.org.", "x.a.org.", "x.net.", "b.org.")] == ["NOERROR"] * 3 + ["SERVFAIL"]


@pytest.mark.parametrize(
    ("to", "option", "message"),
    [
        (" ".join(f"10.0.0.{n}" for n in range(16)), "", "2: plugin forward: more than 15 TOs configured: 16"),
        ("https://10.0.0.1", "", "2: plugin forward: https:// is not spoken, only dns://"),
        ("10.0.0.1:0", "", "2: plugin forward: '0' is not a port"),
        ("/nonexistent", "", "2: plugin forward: no file /nonexistent"),
        ("10.0.0.1", "tls_servername x", "3: plugin forward: tls_servername: upstreams are asked by address"),
        ("10.0.0.1", "policy best", "3: plugin forward: unknown or wrong option: policy best"),
        ("10.0.0.1", "failover NOPE", "3: plugin forward: failover: 'NOPE' is not a response code"),
        ("10.0.0.1", "health_check 1s what", "3: plugin forward: unknown or wrong option: health_check 1s what"),
        ("10.0.0.1", "expire soon", "3: plugin forward: 'soon' is not a duration such as 30s"),
    ],
)
def test_a_wrong_line_says_where(to, option, message):
    with pytest.raises(CorefileError) as raised:
        InMemory(f". {{\n forward . {to} {{\n {option}\n }}\n}}\n", [])
    assert str(raised.value).startswith(f"Corefile:{message}")


def test_addresses_of_all_kinds(tmp_path):
    (tmp_path / "resolv.conf").write_text("nameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver fd00::1\nsearch x\n")
    dns = InMemory(f". {{\n forward . {tmp_path}/resolv.conf 10.0.0.2:54 dns://10.0.0.3 [fd00::2]:55 fd00::3\n}}\n", [])
    assert [u.address for u in dns.context.plugins[0]._upstreams] == [
        ("10.0.0.1", 53), ("fe80::1%eth0", 53), ("fd00::1", 53), ("10.0.0.2", 54), ("10.0.0.3", 53),
        ("fd00::2", 55), ("fd00::3", 53),
    ]  # fmt: skip


def test_forward_to_the_next_forward(monkeypatch):
    async def main() -> None:
        first, second = Stub("192.0.2.1"), Stub("192.0.2.2")
        first.rcode = 3
        lines = f"forward . 127.0.0.1:{first.port} {{\n next NXDOMAIN\n }}\n forward . 127.0.0.1:{second.port}"
        context = Context(KubeIndex(), lambda: True, trio.current_time, random.Random(1))
        server = Server(parse(f". {{\n {lines}\n}}\n"), context)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.serve)
            nursery.start_soon(second.serve)
            with trio.fail_after(5):
                reply = await server.resolve(Query("x.org.", 1))
            assert [str(r.rdata) for r in reply.answer] == ["192.0.2.2"]
            nursery.cancel_scope.cancel()

    trio.run(main)
