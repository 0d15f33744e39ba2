"""What image names mean, by tables."""

from pathlib import Path

import pytest

from podwire_core import objects
from podwire_nodeagent.kubelet.images import Missing, Place, Program, StandIn, resolve, short_name


def answer(image, installed="busybox curl nginx bash sh python3 iperf3", init=False, restarts=True, **fields):
    names = installed.split()
    place = Place("/py", Path("/run/n/api.sock"), Path("/run/n"), "10.244.1.2", lambda name: name if name in names else None)
    return resolve(objects.decode(objects.Container, {"name": "c", "image": image, **fields}), place, init, restarts)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("nginx", "nginx"),
        ("nginx:1.25", "nginx"),
        ("docker.io/library/nginx:1.25@sha256:00ff", "nginx"),
        ("registry.k8s.io/coredns/coredns:v1.11.1", "coredns/coredns"),
        ("localhost:5000/team/app:v1", "team/app"),
        ("localhost/app", "app"),
        ("team/app", "team/app"),
        ("busybox@sha256:00ff", "busybox"),
    ],
)
def test_short_names(image, name):
    assert short_name(image) == name


@pytest.mark.parametrize(
    ("image", "fields", "expected"),
    [
        ("busybox:1.38.0@sha256:fd", {}, Program(["sh"], busybox=True)),
        ("busybox", {"command": ["wget"], "args": ["-q", "x"]}, Program(["wget", "-q", "x"], busybox=True)),
        ("curlimages/curl:8.1", {"args": ["-s", "http://web"]}, Program(["curl", "-s", "http://web"])),
        ("curlimages/curl", {"command": ["sleep", "infinity"]}, Program(["sleep", "infinity"])),
        ("nicolaka/netshoot", {}, Program(["bash"])),
        ("nginx:1.25", {}, Program(["nginx", "-g", "daemon off;"])),
        ("python:3.12-slim", {"args": ["-c", "1"]}, Program(["-c", "1"])),  # as in Kubernetes: args replace cmd
        ("redis:alpine", {}, StandIn([("TCP", 6379)])),
        ("acme/python", {"command": ["python"]}, StandIn([])),
        (
            "acme/shop",
            {"ports": [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}]},
            StandIn([("TCP", 80), ("UDP", 53)]),
        ),
        ("acme/shop", {"readinessProbe": {"grpc": {"port": 8080}}}, StandIn([("TCP", 8080)])),
        ("registry.k8s.io/pause:3.9", {}, StandIn([])),
        (
            "registry.k8s.io/e2e-test-images/agnhost:2.40",
            {"args": ["netexec", "--http-port=80"]},
            StandIn([("TCP", 80), ("UDP", 8081)]),
        ),
        ("registry.k8s.io/e2e-test-images/agnhost:2.40", {"args": ["serve-hostname"]}, StandIn([("TCP", 9376)])),
        ("registry.k8s.io/e2e-test-images/agnhost:2.40", {"args": ["pause"]}, StandIn([])),
    ],
)
def test_images(image, fields, expected):
    assert answer(image, **fields) == expected


def test_coredns_is_podwires_own():
    found = answer("registry.k8s.io/coredns/coredns:v1.11.1", args=["-conf", "/etc/coredns/Corefile"])
    assert found.argv == [
        *("/py", "-m", "podwire_dns", "--corefile", "/etc/coredns/Corefile"),
        *("--api", "unix:/run/n/api.sock", "--listen", "10.244.1.2:53"),
    ]
    assert found.binds == ["/run/n"]


def test_what_is_not_installed():
    assert answer("nginx", installed="sh") == StandIn([("TCP", 80)])
    assert isinstance(answer("networkstatic/iperf3", installed="sh"), Missing)
    assert "apt install curl" in answer("curlimages/curl", installed="sh", command=["sh"]).message


def test_stand_ins_that_end():
    assert answer("acme/migrate", init=True, command=["migrate"]) == StandIn([], ends=True)
    assert answer("acme/job", restarts=False) == StandIn([], ends=True)
    assert answer("acme/job", restarts=False, ports=[{"containerPort": 1}]) == StandIn([("TCP", 1)])
    assert answer("registry.k8s.io/pause", restarts=False) == StandIn([])
