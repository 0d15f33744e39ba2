"""What an image name means on this machine. There is no image pull: a container is a program of the machine, or a stand-in.

Rules it keeps:

- An image of the table runs a program of the machine: the container's command if it has one, else the image's entrypoint and cmd,
  with the spec's args as Kubernetes combines them. If the entrypoint is not installed the answer is Missing, with how to mend it.
- Any other image is a stand-in, also if the container gives a command: whether that command means anything is known to the image
  only. So is a server image of the table (nginx) whose program is not installed.
- A stand-in listens on the declared ports, else on the ports its image is known to expose. A stand-in in an init container, or
  without ports in a pod that is not restarted (a Job's), does nothing and ends with success.

Order to read: the answers, the table, resolve, names.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from msgspec import Struct

from podwire_core.objects import Container, Probe
from podwire_nodeagent.kubelet.env import PATH

Ports = list[tuple[str, int]]


class Program(Struct):
    """Run `argv`. `busybox` puts its applets first in PATH; `binds` are machine paths the program needs at the same place."""

    argv: list[str]
    busybox: bool = False
    binds: list[str] = []


class StandIn(Struct):
    """Listen on `ports`. `ends`: exit with success at once."""

    ports: Ports
    ends: bool = False


class Missing(Struct):
    """The machine lacks the program; `message` says how to mend it."""

    message: str


Answer = Program | StandIn | Missing


def installed(program: str) -> str | None:
    """Where a container would find it."""
    return shutil.which(program, path=PATH)


class Place(Struct):
    """Where a container is: what the table's entries may need to know."""

    python: str
    api_socket: Path
    run_dir: Path
    pod_ip: str
    which: Callable[[str], str | None] = installed


class Image(Struct, frozen=True):
    """An entry of the table. `program` must be installed; `package` is what to install for it; `ports` makes the image a
    server for which a stand-in may answer."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    program: str = "sh"
    package: str = ""
    busybox: bool = False
    ports: tuple[tuple[str, int], ...] = ()


_SHELL = Image(cmd=("sh",))
_BASH = Image(cmd=("bash",), program="bash", package="bash")
_BUSYBOX = Image(cmd=("sh",), program="busybox", package="busybox", busybox=True)
_CURL = Image(entrypoint=("curl",), program="curl", package="curl")
_IPERF3 = Image(entrypoint=("iperf3",), program="iperf3", package="iperf3")
_PYTHON = Image(cmd=("python3",), program="python3", package="python3")
_NGINX = Image(cmd=("nginx", "-g", "daemon off;"), program="nginx", package="nginx", ports=(("TCP", 80),))

# By the image's name without registry, "library/", tag and digest.
TABLE = {
    **dict.fromkeys(("busybox", "alpine", "radial/busyboxplus", "e2e-test-images/busybox"), _BUSYBOX),
    **dict.fromkeys(("debian", "ubuntu", "fedora", "centos", "rockylinux", "almalinux", "amazonlinux", "buildpack-deps"), _BASH),
    **dict.fromkeys(("bash", "nicolaka/netshoot", "netshoot", "jonlabelle/network-tools", "wbitt/network-multitool"), _BASH),
    **dict.fromkeys(("e2e-test-images/jessie-dnsutils", "kubernetes-e2e-test-images/dnsutils", "tutum/dnsutils"), _SHELL),
    **dict.fromkeys(("curlimages/curl", "curl/curl", "curl", "alpine/curl"), _CURL),
    **dict.fromkeys(("networkstatic/iperf3", "iperf3", "taoyou/iperf3-alpine"), _IPERF3),
    "python": _PYTHON,
    "nginx": _NGINX,
}

# What well-known images expose, for stand-ins whose manifest declares no port.
EXPOSED: dict[str, tuple[tuple[str, int], ...]] = {
    "httpd": (("TCP", 80),),
    "caddy": (("TCP", 80),),
    "traefik/whoami": (("TCP", 80),),
    "containous/whoami": (("TCP", 80),),
    "kennethreitz/httpbin": (("TCP", 80),),
    "mccutchen/go-httpbin": (("TCP", 8080),),
    "hashicorp/http-echo": (("TCP", 5678),),
    "ealen/echo-server": (("TCP", 80),),
    "echoserver": (("TCP", 8080),),
    "redis": (("TCP", 6379),),
    "memcached": (("TCP", 11211),),
    "mysql": (("TCP", 3306),),
    "mariadb": (("TCP", 3306),),
    "postgres": (("TCP", 5432),),
    "mongo": (("TCP", 27017),),
    "rabbitmq": (("TCP", 5672),),
    "google-samples/hello-app": (("TCP", 8080),),
    "nginxinc/nginx-unprivileged": (("TCP", 8080),),
}


def resolve(container: Container, place: Place, init: bool = False, restarts: bool = True) -> Answer:
    """`init`: an init container that must end; `restarts`: the pod's restartPolicy is Always."""
    name = short_name(container.image)
    last = name.rpartition("/")[2]
    if name in ("coredns", "coredns/coredns"):
        return _coredns(container, place)
    image = TABLE.get(name)
    if image is not None:
        if place.which(image.program) is not None:
            return _program(image, container, place)
        if not image.ports:
            return Missing(_mend(container.image, image))
    ports = _declared(container)
    if not ports:
        ports = _agnhost(container) if last == "agnhost" else list(image.ports if image else EXPOSED.get(name, ()))
    stays = last in ("pause", "agnhost")
    return StandIn(ports, ends=init or (not restarts and not ports and not stays))


def _program(image: Image, container: Container, place: Place) -> Answer:
    """command replaces the entrypoint and drops cmd; args replace cmd."""
    if container.command:
        argv = [*container.command, *(container.args or [])]
    else:
        argv = [*image.entrypoint, *(container.args or image.cmd)]
    return Program(argv, busybox=image.busybox and place.which("busybox") is not None)


def _mend(image: str, entry: Image) -> str:
    hint = f"install it (apt install {entry.package})" if entry.package else "install it"
    return f'image "{image}" stands for the program {entry.program}, which this machine does not have: {hint}'


def _coredns(container: Container, place: Place) -> Answer:
    """podwire's own DNS server, told where the API is by a socket that exists on this node only."""
    words = [*(container.command or [])[1:], *(container.args or [])]
    corefile = "/etc/coredns/Corefile"
    for option, value in pairwise(words):
        if option.lstrip("-") == "conf":
            corefile = value
    host = f"[{place.pod_ip}]" if ":" in place.pod_ip else place.pod_ip
    api = ["--api", f"unix:{place.api_socket}", "--listen", f"{host}:53"]
    return Program([place.python, "-m", "podwire_dns", "--corefile", corefile, *api], binds=[str(place.run_dir)])


def _agnhost(container: Container) -> Ports:
    """The ports of agnhost's servers, from its arguments."""
    words = [*(container.command or []), *(container.args or [])]
    text = " ".join(words)

    def option(name: str, default: int) -> int:
        match = re.search(rf"--{name}[= ](\d+)", text)
        return int(match[1]) if match else default

    if "netexec" in words:
        return [("TCP", option("http-port", 8080)), ("UDP", option("udp-port", 8081))]
    if "serve-hostname" in words:
        return [("TCP", option("port", 9376))]
    if "porter" in words:
        return [("TCP", 80)]
    return []


def _declared(container: Container) -> Ports:
    """containerPorts, and ports that only probes name."""
    ports = [(port.protocol, port.container_port) for port in container.ports or []]
    for probe in (container.readiness_probe, container.liveness_probe, container.startup_probe):
        number = _probe_port(probe)
        if number and ("TCP", number) not in ports:
            ports.append(("TCP", number))
    return list(dict.fromkeys(ports))


def _probe_port(probe: Probe | None) -> int:
    if probe is None:
        return 0
    if probe.grpc is not None:
        return probe.grpc.port
    action = probe.http_get or probe.tcp_socket
    port = action.port if action is not None else 0
    return int(port) if isinstance(port, int) or port.isdigit() else 0


# --- names --------------------------------


def short_name(image: str) -> str:
    """ "docker.io/library/nginx:1.25@sha256:…" -> "nginx"; "registry.k8s.io/coredns/coredns:v1.11.1" -> "coredns/coredns"."""
    name = image.partition("@")[0]
    head, slash, rest = name.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost"):
        name = rest
    path, slash, last = name.rpartition("/")
    name = path + slash + last.partition(":")[0]
    return name.removeprefix("library/")
