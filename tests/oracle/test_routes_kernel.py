"""The kernel judges the FIB: the same `ip route add`s are accepted or refused with the same errno, and `ip route get` answers
the same for the same destinations."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
from ipaddress import ip_address
from pathlib import Path
from random import Random

import pytest

from podwire_core import netns
from podwire_core.netlink import AddrAdd, AddrDel, LinkAdd, LinkSet, NetlinkError, RouteAdd, RouteDel
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.stack import Stack

pytestmark = pytest.mark.root

BY_TEXT = {os.strerror(number): name for number, name in errno.errorcode.items()}
REFUSED = "refused"  # `ip` prints the kernel's sentence instead of the errno, where there is one
UNROUTABLE = {None: "ENETUNREACH", "blackhole": "EINVAL", "unreachable": "EHOSTUNREACH", "prohibit": "EACCES"}
SETUP = [
    LinkAdd("d0", "dummy"),
    AddrAdd("d0", "10.0.0.1/24"),
    AddrAdd("d0", "10.0.0.7/24"),
    LinkAdd("d1", "dummy"),
    AddrAdd("d1", "172.16.0.1/16"),
    AddrAdd("d1", "10.9.9.9/32"),
    LinkAdd("d2", "dummy", up=False),
    AddrAdd("d2", "10.3.0.1/16"),
]


class Kernel:
    """`ip` in a namespace of its own; links are TAPs whose fds are held, so that they have a carrier."""

    def __init__(self, path: Path) -> None:
        self._path = path
        netns.create(path)
        self._fds: list[int] = []
        try:
            for op in SETUP:
                self.apply(op)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        netns.delete(self._path)

    def ip(self, *words: str) -> str:
        """What it prints; raises the errno's name."""
        done = subprocess.run(["nsenter", f"--net={self._path}", "ip", *words], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        text = re.search(r"answers: (.*)", done.stderr)
        raise LookupError(BY_TEXT[text.group(1)] if text else REFUSED)

    def apply(self, op) -> str:
        """The errno's name, "" if accepted."""
        try:
            self._apply(op)
        except LookupError as error:
            return str(error)
        return ""

    def _apply(self, op) -> None:
        match op:
            case LinkAdd():
                self._fds.append(netns.create_tap(self._path, op.name))
                self.ip("link", "set", op.name, "up" if op.up else "down")
            case LinkSet():
                self.ip("link", "set", op.name, "up" if op.up else "down")
            case AddrAdd() | AddrDel():
                self.ip("addr", "add" if isinstance(op, AddrAdd) else "del", op.address, "dev", op.dev)
            case RouteAdd():
                words = ["replace" if op.replace else "add", *([op.type] if op.type != "unicast" else []), op.dst]
                pairs = (("via", op.via), ("dev", op.dev), ("src", op.src), ("metric", str(op.metric) if op.metric else ""))
                words += [word for pair in pairs if pair[1] for word in pair]
                self.ip("route", *words, *(["onlink"] if op.onlink else []))
            case RouteDel():
                self.ip("route", "del", op.dst)

    def get(self, dst: str) -> tuple:
        try:
            (answer,) = json.loads(self.ip("-j", "route", "get", dst))
        except LookupError as error:
            return (str(error),)
        return (answer.get("type", "unicast"), answer["dev"], answer.get("gateway", ""), answer["prefsrc"])


class Ours:
    def __init__(self) -> None:
        self.stack = Stack("n", RandomChooser(Random(1)))
        self.stack.apply(SETUP, 0.0)

    def apply(self, op) -> str:
        try:
            self.stack.apply([op], 0.0)
        except NetlinkError as error:
            return error.errno_name
        return ""

    def get(self, dst: str) -> tuple:
        route, source = self.stack.route_get(dst)
        if route is None or route.type in UNROUTABLE:
            return (UNROUTABLE[route.type if route else None],)
        dev = "lo" if route.type == "local" else route.dev.name
        return (route.type, dev, str(ip_address(route.gateway)) if route.gateway else "", str(ip_address(source)))


@pytest.fixture
def kernel(tmp_path):
    made = Kernel(tmp_path / "st-routes")
    yield made
    made.close()


NETS = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.128/25", "10.1.2.200/32", "172.16.5.0/24", "default"]
VIAS = ["", "", "10.0.0.2", "10.0.0.3", "172.16.0.9", "10.1.2.3", "10.0.0.1", "10.0.0.255", "10.3.0.2"]


def random_op(random: Random):
    dst = random.choice(NETS)
    kind = random.randrange(10)
    if kind == 0:
        return RouteDel(dst)
    if kind == 1:
        return RouteAdd(dst, type=random.choice(["blackhole", "unreachable", "prohibit"]), replace=random.random() < 0.5)
    if kind == 2:
        return random.choice([LinkSet("d1", up=False), LinkSet("d1", up=True), LinkSet("d2", up=True), LinkSet("d2", up=False)])
    if kind == 3:
        address = random.choice([("d0", "10.0.0.7/24"), ("d1", "10.1.2.1/24"), ("d1", "172.16.0.1/16"), ("d0", "10.1.2.99/32")])
        return random.choice([AddrAdd, AddrDel])(*address)
    return RouteAdd(
        dst,
        random.choice(["", "d0", "d1", "d2", "nope"]),
        random.choice(VIAS),
        random.choice(["", "", "10.0.0.7", "10.9.9.9", "1.2.3.4"]),
        onlink=random.random() < 0.2,
        metric=random.choice([0, 0, 0, 100, 200]),
        replace=random.random() < 0.2,
    )


LOCAL_QUERIES = ["10.0.0.1", "10.0.0.7", "10.0.0.255", "10.1.2.1", "10.1.2.99", "10.1.2.255", "10.3.0.1", "10.9.9.9", "127.0.0.1"]
QUERIES = [
    "10.0.0.5",
    "10.1.0.1",
    "10.1.2.130",
    "10.1.2.200",
    "10.3.4.5",
    "172.16.5.5",
    "172.16.200.1",
    "8.8.8.8",
    *LOCAL_QUERIES,
]


@pytest.mark.parametrize("seed", range(4))
def test_generated_tables(kernel, seed):
    random = Random(seed)
    ours = Ours()
    kernel.ip("link", "set", "lo", "up")
    for step in range(60):
        op = random_op(random)
        mine, linux = ours.apply(op), kernel.apply(op)
        assert mine == linux or (mine and linux == REFUSED), (step, op, mine, linux)
        for query in random.sample(QUERIES, 2) if step < 59 else QUERIES:
            assert ours.get(query) == kernel.get(query), (step, op, query)


def test_flannels_routes(kernel):
    """The very routes of a node."""
    ours = Ours()
    for op in (
        AddrAdd("d1", "10.244.1.0/32"),
        RouteAdd("10.244.2.0/24", "d1", "10.244.2.0", onlink=True),
        RouteAdd("default", "d0", "10.0.0.254"),
    ):
        assert (ours.apply(op), kernel.apply(op)) == ("", "")
    for query in ("10.244.2.0", "10.244.2.7", "10.244.1.0", "10.244.3.1", "10.96.0.1"):
        assert ours.get(query) == kernel.get(query)
