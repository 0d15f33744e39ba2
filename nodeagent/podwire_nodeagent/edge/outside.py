"""The outside: a network namespace with a real kernel, where clients of the cluster run, and which answers for the Internet.

Rules it keeps: its own address is a client's; packets for any other address end here too, so that pods' traffic to the outside is
answered and the source it came with can be seen (port 80 says it; other ports refuse, pings are answered). For that, packets that
come in look everything up as local, and packets that go out don't. Order to read: prepare, attach, serve.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import trio

from podwire_cni.macs import mac_of
from podwire_core import netns
from podwire_core.constants import OUTSIDE_CLIENT, OUTSIDE_GATEWAY, OUTSIDE_NETWORK
from podwire_nodeagent import httpd
from podwire_nodeagent.httpd import Answer, Request

DEV = "eth0"
OWN_TABLE = 100  # what is local to a packet that goes out
PORT = 80


def prepare(namespace: Path) -> None:
    """The namespace with its address and routes; what is there stays. Raises OSError."""
    if netns.is_mounted(namespace):
        return
    namespace.unlink(missing_ok=True)
    netns.create(namespace)


def attach(namespace: Path) -> int:
    """The TAP by which it is connected: a new one, or a new fd of the one that is there."""
    try:
        return netns.reattach_tap(namespace, DEV)
    except OSError:
        pass  # the first time
    fd = netns.create_tap(namespace, DEV, mac_of(OUTSIDE_CLIENT))
    try:
        _configure(namespace)
    except BaseException:
        with netns.configure(namespace) as net:
            net.delete_link(DEV)
        os.close(fd)
        raise
    return fd


def _configure(namespace: Path) -> None:
    length = OUTSIDE_NETWORK.partition("/")[2]
    with netns.configure(namespace) as net:
        net.set_link(DEV, up=True)
        net.add_address(DEV, f"{OUTSIDE_CLIENT}/{length}")
    netns.add_route(namespace, "default", via=OUTSIDE_GATEWAY, dev=DEV)
    _ip(
        namespace,
        f"route add local {OUTSIDE_CLIENT} dev {DEV} table {OWN_TABLE}",
        f"route add local 127.0.0.0/8 dev lo table {OWN_TABLE}",
        f"rule add pref 1 iif {DEV} lookup local",
        f"rule add pref 2 lookup {OWN_TABLE}",
        "rule del pref 0",
        "route add local default dev lo table local",
    )


def _ip(namespace: Path, *lines: str) -> None:
    with netns.in_netns(namespace):
        done = subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip in the outside namespace: {' '.join(done.stderr.split())}")


async def serve(namespace: Path, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """The web server of every address outside."""
    listener = httpd.listen(namespace, PORT)
    task_status.started()
    await httpd.serve(listener, answer)


def answer(request: Request) -> Answer:
    return Answer(200, f"{_text(request.server)}, outside the cluster, was asked for {request.path} by {_text(request.client)}\n")


def _text(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"
