"""The kernel judges routes with several next hops: how they are printed, and which part of the flows a weight gets."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from random import Random

import pytest

from podwire_core import netns
from podwire_core.netlink import AddrAdd, LinkAdd, NextHop, RouteAdd
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.fib import flow_hash
from podwire_nodeagent.datapath.netfilter.connection import make_key
from podwire_nodeagent.datapath.stack import Stack
from podwire_nodeagent.datapath.wire import address_bytes
from podwire_nodeagent.tools.common import Words
from podwire_nodeagent.tools.ip import Options
from podwire_nodeagent.tools.ip_route import route as ip_route

pytestmark = pytest.mark.root

SERVICE, FLOWS = "198.51.100.1", 600
WEIGHTS = {"10.0.0.11": 1, "10.0.0.12": 3, "10.0.0.13": 1}
HOPS = [word for hop, weight in WEIGHTS.items() for word in ("nexthop", "via", hop, "dev", "eth0", "weight", str(weight))]


@pytest.fixture
def kernel(tmp_path):
    path = tmp_path / "mp-kernel"
    netns.create(path)

    def ip(*words, stdin=""):
        command = ["nsenter", f"--net={path}", "ip", *words]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout

    fd = netns.create_tap(path, "eth0")  # held, so that it has a carrier
    try:
        ip("link", "set", "eth0", "up")
        ip("addr", "add", "10.0.0.1/24", "dev", "eth0")
        ip("route", "add", SERVICE, "proto", "static", *HOPS)
        netns.set_sysctl(path, "net.ipv4.fib_multipath_hash_policy", "1")
        yield ip
    finally:
        os.close(fd)
        netns.delete(path)


@pytest.fixture
def stack():
    made = Stack("edge", RandomChooser(Random(1)))
    nexthops = tuple(NextHop(via, "eth0", weight) for via, weight in WEIGHTS.items())
    ops = [LinkAdd("eth0", "dummy"), AddrAdd("eth0", "10.0.0.1/24"), RouteAdd(f"{SERVICE}/32", nexthops=nexthops)]
    made.apply(ops, 0.0)
    return made


class Client:
    def __init__(self, stack):
        self.stack = stack

    def dump(self, what):
        return self.stack.dump(what, 0.0)


@pytest.mark.parametrize("words", [["show", SERVICE], ["show"]])
def test_printed_as_iproute2_prints_it(kernel, stack, words):
    ours = ip_route(Words(list(words)), Options(), Client(stack))
    assert sorted(ours.splitlines()) == sorted(kernel("route", *words).splitlines())


def test_weights(kernel, stack):
    """A hop with weight 3 of 5 gets that part of the flows, in the kernel's hash as in ours (4 standard deviations)."""
    gets = "".join(f"route get {SERVICE} from 10.0.0.1 ipproto tcp sport {40000 + i} dport 80\n" for i in range(FLOWS))
    theirs = Counter(re.findall(rf"^{SERVICE} from \S+ via (\S+)", kernel("-batch", "-", stdin=gets), re.M))
    route = stack.fib.lookup(address_bytes(SERVICE))
    ours = Counter()
    for i in range(FLOWS):
        key = make_key(address_bytes("10.0.0.1"), address_bytes(SERVICE), 40000 + i, 80, 6)
        ours[".".join(map(str, route.towards(flow_hash(key)).via))] += 1
    for via, weight in WEIGHTS.items():
        part = weight / 5
        for counted in (ours, theirs):
            assert abs(counted[via] - FLOWS * part) < 4 * (FLOWS * part * (1 - part)) ** 0.5, counted
