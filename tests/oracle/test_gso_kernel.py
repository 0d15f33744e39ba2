"""Our segmentation against the kernel's: the same superframes through a Linux bridge to a TAP without offloads."""

from __future__ import annotations

import fcntl
import os
import random
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.frames import pieces, superframe

from podwire_core import netns
from podwire_nodeagent.datapath.offload import Cutter
from podwire_nodeagent.datapath.wire import VNET_SIZE

pytestmark = pytest.mark.root
TUNSETOFFLOAD = 0x400454D0
PATH = Path("/run/netns/gso-oracle")
# The addresses that support.frames gives its frames: neither is the bridge's own, so it floods them.
COMMANDS = "link add br0 type bridge mcast_snooping 0\nlink set in master br0 up\nlink set out master br0 up\nlink set br0 up\n"


@pytest.fixture(scope="module")
def bridge() -> Iterator[tuple[int, int]]:
    """Two ports' file descriptors. What goes into the first comes out of the second as a port without offloads gets it."""
    if PATH.exists():
        netns.delete(PATH)  # of a run that was killed
    netns.create(PATH)
    try:
        netns.set_sysctl(PATH, "net.ipv6.conf.default.disable_ipv6", "1")
        into, out = netns.create_tap(PATH, "in", mtu=9000), netns.create_tap(PATH, "out", mtu=9000)
        fcntl.ioctl(out, TUNSETOFFLOAD, 0)
        with netns.in_netns(PATH):
            subprocess.run(["ip", "-batch", "-"], input=COMMANDS, text=True, check=True)
        yield into, out
        os.close(into)
        os.close(out)
    finally:
        netns.delete(PATH)


def segments_of_the_kernel(bridge: tuple[int, int], frame: bytearray, count: int) -> list[bytes]:
    into, out = bridge
    os.write(into, frame)
    found: list[bytes] = []
    while len(found) < count and select.select([out], [], [], 2)[0]:
        data = os.read(out, 65536)
        assert data[1] == 0, "the kernel left segmentation to us"
        found.append(data[VNET_SIZE:])
    return found


@settings(
    max_examples=150,
    phases=[Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_the_kernel_makes_the_same_segments(bridge: tuple[int, int], data: st.DataObject) -> None:
    v4, udp = data.draw(st.booleans()), data.draw(st.booleans())
    size = data.draw(st.integers(48, 1448))
    length = data.draw(st.integers(size + 1, min(60000, 64 * size)))
    frame = superframe(
        random.Random(length).randbytes(length), size, v4=v4, udp=udp,
        options=data.draw(st.sampled_from([b"", b"\1\1\x08\x0a" + bytes(range(8))])),
        ident=data.draw(st.integers(0, 65535)), seq=data.draw(st.integers(0, 0xFFFFFFFF)),
        flags=data.draw(st.sampled_from([0x10, 0x18, 0x19, 0x50, 0x90, 0x98])),
    )  # fmt: skip
    ours = Cutter().cut(bytearray(frame), b"")
    assert not isinstance(ours, str)
    expected = [bytes(piece) for piece in pieces(ours)]
    assert segments_of_the_kernel(bridge, frame, len(expected)) == expected
