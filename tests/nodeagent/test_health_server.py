"""kube-proxy's HTTP answers, over real sockets in the test's own namespace."""

from __future__ import annotations

import json
import socket

import pytest
import trio

from podwire_core import netns
from podwire_nodeagent import httpd
from podwire_nodeagent.edge import outside
from podwire_nodeagent.health_server import HealthServer
from podwire_nodeagent.httpd import Answer, Request
from podwire_nodeagent.proxy.health import HealthChecks

pytestmark = pytest.mark.root  # setns needs CAP_SYS_ADMIN, even to where one is
HERE = "/proc/self/ns/net"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def ask(port, text=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
    with trio.fail_after(5):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(text)
            return b"".join([part async for part in stream])


def with_server(handler, conversation):
    async def main():
        async with trio.open_nursery() as nursery:
            port = free_port()
            nursery.start_soon(httpd.serve, httpd.listen(HERE, port), handler)
            await conversation(port)
            nursery.cancel_scope.cancel()

    trio.run(main)


def hello(request: Request) -> Answer:
    return Answer(200, f"{request.path} {request.client[0]}", headers=(("X-A", "b"),))


def test_requests():
    async def conversation(port):
        head, _, body = (await ask(port, b"GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b"X-A: b" in head
        assert body == b"/a?b 127.0.0.1"
        assert not (await ask(port, b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")).partition(b"\r\n\r\n")[2]
        assert b"200 OK" in await ask(port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
        assert await ask(port, b"\x16\x03\x01 not HTTP\r\n\r\n") == b""
        assert b"200 OK" in await ask(port)  # it lives

    with_server(hello, conversation)


@pytest.mark.parametrize(("count", "status"), [(2, b"200 OK"), (0, b"503 Service Unavailable")])
def test_a_services_health(count, status, tmp_path):
    checks = HealthChecks("node1")
    checks.ports = {30000: ("ns/web", count)}

    async def conversation(port):
        head, _, body = (await ask(port)).partition(b"\r\n\r\n")
        assert status in head
        assert f"X-Load-Balancing-Endpoint-Weight: {count}".encode() in head
        told = {"service": {"namespace": "ns", "name": "web"}, "localEndpoints": count, "serviceProxyHealthy": True}
        assert json.loads(body) == told

    with_server(HealthServer(tmp_path, checks, dict)._service(30000), conversation)


TAINTED = {"metadata": {"name": "n"}, "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler"}]}}


@pytest.mark.parametrize(
    ("node", "path", "status"),
    [
        ({"metadata": {"name": "n"}}, "/healthz", 200),
        (TAINTED, "/healthz", 503),
        (TAINTED, "/livez", 200),
        (None, "/healthz", 503),
        ({"metadata": {"name": "n", "deletionTimestamp": "x"}}, "/healthz", 503),
        ({"metadata": {"name": "n"}}, "/", 404),
    ],
)
def test_the_proxys_own_health(node, path, status, tmp_path):
    server = HealthServer(tmp_path, HealthChecks("n"), lambda: node)
    assert server._own(Request(path, ("", 0), ("", 0))).status == status


def test_ports_come_and_go(tmp_path):
    checks = HealthChecks("node1")
    space = tmp_path / "host"
    netns.create(space)

    def connects(port):
        with netns.in_netns(space):
            probe = socket.socket()
        with probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    async def until(condition):
        with trio.fail_after(5):
            while not condition():
                await trio.sleep(0.01)

    async def main():
        async with trio.open_nursery() as nursery:
            server = HealthServer(space, checks, dict)
            nursery.start_soon(server.run)
            await until(lambda: connects(10256))
            checks.ports = {30000: ("ns/a", 1), 30001: ("ns/b", 0)}
            server.changed()
            await until(lambda: connects(30000) and connects(30001))
            checks.ports = {30001: ("ns/b", 0)}
            server.changed()
            await until(lambda: not connects(30000))
            assert connects(30001)
            nursery.cancel_scope.cancel()

    try:
        trio.run(main)
    finally:
        netns.delete(space)


def test_the_outside_says_whom_it_saw():
    answer = outside.answer(Request("/x", ("192.168.1.11", 4000), ("8.8.8.8", 80)))
    assert answer.body == "8.8.8.8:80, outside the cluster, was asked for /x by 192.168.1.11:4000\n"
