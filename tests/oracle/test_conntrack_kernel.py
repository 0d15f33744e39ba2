"""The kernel's conntrack judges ours: the same packets are forwarded by a namespace between two TAPs and by our hooks; afterwards
`conntrack -L` and our table (printed by the shim) say the same of every flow.

Not compared: sequence numbers out of the window (the kernel is set to nf_conntrack_tcp_be_liberal; ours has no windows), and so a
RST whose sequence number is not the expected one, which the kernel mistrusts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.kernel_node import KernelNode

from podwire_core import netns
from podwire_core.netlink import AddrAdd, LinkAdd, NeighAdd
from podwire_nodeagent.tools.conntrack import line
from tests.support.hooks import Gate
from tests.support.packets import echo, frame, icmp, tcp, udp

pytestmark = pytest.mark.root

CLIENT, SERVER = "10.1.0.2", "10.2.0.2"
OPS = [
    LinkAdd("left", "tap", mac="02:00:00:00:01:01"),
    LinkAdd("right", "tap", mac="02:00:00:00:02:01"),
    AddrAdd("left", "10.1.0.1/24"),
    AddrAdd("right", "10.2.0.1/24"),
    NeighAdd(CLIENT, "02:00:00:00:01:02", "left"),
    NeighAdd(SERVER, "02:00:00:00:02:02", "right"),
]
RULES = "*filter\n-A FORWARD -m conntrack --ctstate INVALID -j ACCEPT\nCOMMIT\n"
FLAGS = {"S": 2, "SA": 18, "A": 16, "F": 17, "R": 4, "RA": 20, "PA": 24, "0": 0, "SF": 3}
TIMEOUT = re.compile(r"^(\w+ +\d+) (\d+) ")


class Kernel:
    def __init__(self, path) -> None:
        self.node = KernelNode(path, OPS)
        for name in ("tcp_be_liberal", "acct", "tcp_loose"):
            netns.set_sysctl(path, f"net.netfilter.nf_conntrack_{name}", "1")
        self.node.load(RULES, "legacy")

    def forward(self, data: bytes, to_server: bool) -> None:
        link, peer, own = ("left", "01:02", "01:01") if to_server else ("right", "02:02", "02:01")
        os.write(self.node._fds[link], frame(f"02:00:00:00:{own}", f"02:00:00:00:{peer}", data))

    def entries(self) -> list[str]:
        return sorted(entry.strip() for entry in self.node.run("conntrack", "-L").splitlines())

    def flush(self) -> None:
        self.node.run("conntrack", "-F")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> Iterator[Kernel]:
    made = Kernel(tmp_path_factory.mktemp("nf") / "netns")
    yield made
    made.node.close()


def without_timeout(entries: list[str]) -> dict[str, int]:
    """Each entry's text, and its seconds apart."""
    found = {}
    for entry in entries:
        match = TIMEOUT.match(entry)
        assert match, entry
        found[TIMEOUT.sub(r"\1 ", entry)] = int(match[2])
    return found


def compare(kernel: Kernel, packets: list[tuple[bool, bytes]], seconds: bool = True) -> None:
    """`packets`: (to the server?, packet)."""
    kernel.flush()
    gate = Gate()
    for to_server, data in packets:
        kernel.forward(data, to_server)
        gate.forward(data, *(("left", "right") if to_server else ("right", "left")))
    ours = without_timeout([line(entry, accounted=True, extended=False) for entry in gate.entries])
    theirs = without_timeout(kernel.entries())
    assert (ours.keys() - theirs.keys(), theirs.keys() - ours.keys()) == (set(), set())
    if seconds:
        assert {text: (ours[text], theirs[text]) for text in ours if abs(ours[text] - theirs[text]) > 3} == {}


def conversation(port: int, words: list[str]) -> list[tuple[bool, bytes]]:
    """A SYN has its side's first sequence number, also when it is sent again."""
    first = {">": 1000, "<": 9000}
    sequences = dict(first)
    packets = []
    for word in words:
        side, flags = word[0], FLAGS[word[1:]]
        to_server, other = side == ">", "<" if side == ">" else ">"
        ends = (CLIENT, SERVER, port, 80) if to_server else (SERVER, CLIENT, 80, port)
        sequence = first[side] if flags & 2 else sequences[side]
        packets.append((to_server, tcp(*ends, flags, sequence, sequences[other] if flags & 16 else 0)))
        sequences[side] = max(sequences[side], sequence + bool(flags & 3))
    return packets


words = st.lists(
    st.tuples(st.sampled_from("><"), st.sampled_from(["S", "SA", "A", "F", "PA", "0", "SF"])).map("".join), min_size=1, max_size=9
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(words, min_size=10, max_size=30))
def test_tcp_sequences(kernel, flows):
    compare(kernel, [packet for number, flow in enumerate(flows) for packet in conversation(2000 + number, flow)], seconds=False)


NORMAL = ">S <SA >A >PA <A >F <A <F >A >S"


@pytest.mark.parametrize("start", [NORMAL, ">S <SA >A <F >F <A", ">S <SA >A >F <F >A", ">A <A >PA <F >F <A", ">S <S >SA <SA >A"])
def test_every_prefix_of_a_conversation(kernel, start):
    """With timeouts, and each prefix once more cut short by a RST of either side."""
    whole = start.split()
    flows = [whole[:length] + end for length in range(1, len(whole) + 1) for end in ([], [">R"], ["<R"], ["<RA"])]
    compare(kernel, [packet for number, flow in enumerate(flows) for packet in conversation(3000 + number, flow)])


def test_udp_and_icmp(kernel):
    query, answer = udp(CLIENT, SERVER, 1000, 53, b"q"), udp(SERVER, CLIENT, 53, 1000, b"a")
    compare(
        kernel,
        [
            (True, query),
            (True, udp(CLIENT, SERVER, 1001, 53, b"q")),
            (False, answer),
            (True, query),
            (True, echo(CLIENT, SERVER, ident=5)),
            (False, echo(SERVER, CLIENT, ident=5, reply=True)),
            (True, echo(CLIENT, SERVER, ident=6)),
            (False, echo(SERVER, CLIENT, ident=7, reply=True)),
            (False, icmp(SERVER, CLIENT, 3, 3, bytes(4), query)),
        ],
    )
