"""Probes against real stand-ins and programs, from the node's host namespace."""

import pytest
import trio

from podwire_core import objects
from podwire_nodeagent.kubelet import prober

pytestmark = pytest.mark.root
SERVER = {"name": "c", "image": "acme/shop", "ports": [{"containerPort": 18080, "name": "web"}]}


def run_probe(world, probe, container=SERVER, port_taken=True):
    results = []

    async def main():
        async with world.running():
            if port_taken:
                await world.until_ready(world.pod("p", container, hostNetwork=True))
            shape = objects.decode(objects.Container, container)
            host = str(world.directory / "netns" / "host")
            results.append(await prober.run(objects.decode(objects.Probe, probe), shape, host, "127.0.0.1"))

    trio.run(main)
    return results[0]


@pytest.mark.parametrize(
    "probe",
    [
        {"httpGet": {"port": 18080, "path": "healthz?full=1", "httpHeaders": [{"name": "Host", "value": "shop"}]}},
        {"httpGet": {"port": "web"}},
        {"tcpSocket": {"port": "web"}},
        {"grpc": {"port": 18080}},
        {"grpc": {"port": 18080, "service": "shop.Cart"}},
    ],
)
def test_a_stand_in_passes(world, probe):
    assert run_probe(world, probe) == prober.Result(True)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ({"httpGet": {"port": 1, "path": "/x"}}, 'Get "http://127.0.0.1:1/x": dial tcp 127.0.0.1:1: connect: connection refused'),
        ({"tcpSocket": {"port": 1}}, "dial tcp 127.0.0.1:1: connect: connection refused"),
        (
            {"grpc": {"port": 1}},
            'error: failed to connect service at "127.0.0.1:1": dial tcp 127.0.0.1:1: connect: connection refused',
        ),
        ({}, "missing probe handler"),
    ],
)
def test_nobody_there(world, probe, message):
    assert run_probe(world, probe, port_taken=False) == prober.Result(False, message)


PYTHON_SERVER = """
import http.server
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response({"/bad": 503, "/moved": 302, "/away": 302}.get(self.path, 200))
        if self.path == "/moved": self.send_header("Location", "/bad")
        if self.path == "/away": self.send_header("Location", "http://elsewhere.example/")
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", 18081), H).serve_forever()
"""


@pytest.mark.parametrize(
    ("path", "ok", "message"),
    [
        ("/", True, ""),
        ("/bad", False, "HTTP probe failed with statuscode: 503"),
        ("/moved", False, "HTTP probe failed with statuscode: 503"),
        ("/away", True, ""),
    ],
)
def test_http_statuses_and_redirects(world, path, ok, message):
    probe = {"httpGet": {"port": 18081, "path": path}}
    container = {"name": "c", "image": "python:3", "command": ["python3", "-c", PYTHON_SERVER]}
    container["readinessProbe"] = {"tcpSocket": {"port": 18081}}
    assert run_probe(world, probe, container) == prober.Result(ok, message)


def test_readiness_follows_a_command_and_liveness_restarts(world):
    async def main():
        async with world.running():
            ready = {"exec": {"command": ["test", "-e", "/ready"]}, "periodSeconds": 1, "failureThreshold": 1}
            alive = {"exec": {"command": ["test", "!", "-e", "/dead"]}, "periodSeconds": 1, "failureThreshold": 1}
            command = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"]
            container = {"name": "c", "image": "debian", "command": command, "readinessProbe": ready, "livenessProbe": alive}
            key = world.pod("p", container)
            await world.until(lambda: world.status(key).get("phase") == "Running")
            assert world.condition(key, "Ready") == "False"
            await world.exec(key, "touch", "/ready")
            await world.until_ready(key)
            await world.exec(key, "rm", "/ready")
            await world.until(lambda: world.condition(key, "Ready") == "False")
            assert ("Unhealthy", "Readiness probe failed: command 'test -e /ready' exited with 1") in world.events
            await world.exec(key, "touch", "/dead")
            await world.until(lambda: world.container(key)["restartCount"] == 1)
            assert ("Killing", "Container c failed liveness probe, will be restarted") in world.events

    trio.run(main)


def test_a_startup_probe_holds_the_others_back(world):
    async def main():
        async with world.running():
            started = {"exec": {"command": ["test", "-e", "/started"]}, "periodSeconds": 1, "failureThreshold": 30}
            alive = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}
            container = {
                "name": "c",
                "image": "debian",
                "command": ["sleep", "1000"],
                "startupProbe": started,
                "livenessProbe": alive,
            }
            key = world.pod("p", container, terminationGracePeriodSeconds=0)
            await world.until(lambda: "Unhealthy" in world.reasons())
            assert world.container(key)["started"] is False
            await world.exec(key, "touch", "/started")
            await world.until(lambda: world.container(key)["restartCount"] == 1)
            assert ("Killing", "Container c failed liveness probe, will be restarted") in world.events

    trio.run(main)
