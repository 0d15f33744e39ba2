"""The I/O edge in one process: socket pairs stand in for TAPs, loopback UDP for the underlay, a switch for the stack."""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Iterator

import pytest
from support.frames import reference, superframe
from support.switch import Switch

from podwire_core.netlink import (
    AddrAdd,
    FdbAdd,
    LinkAdd,
    LinkDel,
    LinkSet,
    NeighAdd,
    NetlinkError,
    RouteAdd,
    SysctlSet,
    UnderlaySet,
)
from podwire_nodeagent.datapath import kernel as kernel_module
from podwire_nodeagent.datapath import loop as loop_module
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.kernel import Kernel
from podwire_nodeagent.datapath.loop import BATCH, Backlog, Loop
from podwire_nodeagent.datapath.stack import Stack

A, B, FAR = "02:00:00:00:00:0a", "02:00:00:00:00:0b", "02:00:00:00:00:0f"
HERE, PEER = "127.0.76.1", "127.0.76.2"
VXLAN = bytes.fromhex("0800000000000100")


def frame_to(mac: str, payload: bytes = b"x" * 50) -> bytes:
    return bytes(10) + bytes.fromhex(mac.replace(":", "") + "020000000001" + "0800") + payload


class Edge:
    """A kernel with taps "a" and "b", and what its pods and its peer would read."""

    def __init__(self, stack=None) -> None:
        self.loop, self.switch = Loop(), stack if stack is not None else Switch()
        self.kernel = Kernel(self.loop, self.switch, "node1", HERE, 8472, 8473)
        self.pods: dict[str, socket.socket] = {}
        for name in "ab":
            self.pods[name] = self.tap(name)
        self.kernel.apply(
            [
                LinkAdd("flannel.1", "vxlan", vni=1), LinkAdd("eth0", "uplink"),
                UnderlaySet("192.168.1.12", FAR, PEER, 8473),
            ], [],
        )  # fmt: skip
        self.peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.peer.bind((PEER, 8472))
        self.peer_cable = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.peer_cable.bind((PEER, 8473))
        for sock in (self.peer, self.peer_cable):
            sock.settimeout(2)

    def tap(self, name: str) -> socket.socket:
        ours, pods = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.kernel.apply([LinkAdd(name, "tap", fd=True, replace=True)], [ours.detach()])
        pods.setblocking(False)
        return pods

    def turn(self, times: int = 3) -> None:
        for _ in range(times):
            self.loop.turn(0.05)

    def close(self) -> None:
        self.kernel.close()
        for sock in (self.peer, self.peer_cable, *self.pods.values()):
            sock.close()

    def read(self, name: str) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.pods[name].recv(70_000))
            except BlockingIOError:
                return found


@pytest.fixture
def edge() -> Iterator[Edge]:
    edge = Edge()
    edge.kernel.apply([FdbAdd(A, "a"), FdbAdd(B, "b"), FdbAdd(FAR, "flannel.1", dst="192.168.1.12")], [])
    yield edge
    edge.close()


# --- TAPs --------------------------------


def test_frames_and_superframes_pass_between_taps_untouched(edge: Edge) -> None:
    big = superframe(random.Random(1).randbytes(60_000), 1398)
    big[10:16] = bytes.fromhex(B.replace(":", ""))
    for frame in (frame_to(B), bytes(big)):
        edge.pods["a"].send(frame)
    edge.turn()
    assert edge.read("b") == [frame_to(B), bytes(big)]


def test_a_full_port_holds_frames_back_in_order_and_counts_what_it_drops(edge: Edge) -> None:
    edge.pods["b"].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    sent = 0
    for i in range(40 * BATCH):
        edge.pods["a"].send(frame_to(B, i.to_bytes(4, "big")))
        sent += 1
        edge.turn(1)
    got: list[bytes] = []
    while fresh := edge.read("b"):
        got += fresh
        edge.turn(1)
    numbers = [int.from_bytes(frame[-4:], "big") for frame in got]
    assert numbers == sorted(numbers)
    assert len(numbers) + edge.loop.counters["drop.tap_queue_full"] == sent
    assert edge.loop.counters["drop.tap_queue_full"] > 0
    assert len(numbers) > 512


def test_one_port_gets_a_bounded_batch(edge: Edge) -> None:
    edge.switch.keep = True
    edge.pods["a"].setblocking(True)
    edge.pods["b"].send(frame_to(FAR))
    count = 0
    edge.pods["a"].setblocking(False)
    while True:
        try:
            edge.pods["a"].send(frame_to("02:00:00:00:00:99"))
            count += 1
        except BlockingIOError:
            break
    batches = []
    while len(edge.switch.received) < count + 1:
        before = len(edge.switch.received)
        edge.loop.turn(0)
        batches.append(len(edge.switch.received) - before)
    assert max(batches) <= BATCH + 1


def test_a_new_fd_takes_the_old_ones_place_and_a_deleted_link_closes_it(edge: Edge) -> None:
    before = edge.pods["b"]
    edge.pods["b"] = edge.tap("b")
    with pytest.raises(OSError):
        before.send(b"x")
    edge.pods["a"].send(frame_to(B))
    edge.turn()
    assert edge.read("b") == [frame_to(B)]
    edge.kernel.apply([LinkDel("b")], [])
    with pytest.raises(OSError):
        edge.pods["b"].send(b"x")
    edge.pods["a"].send(frame_to(B))
    edge.turn()
    assert edge.loop.counters["drop.link_not_attached"] == 1


def test_refused_transactions_close_their_fds(edge: Edge) -> None:
    for ops, error in (
        ([LinkAdd("a", "tap", fd=True)], "EEXIST"),
        ([LinkAdd("c", "bridge", fd=True)], "EINVAL"),
        ([LinkAdd("c", "tap")], "EINVAL"),
        ([LinkAdd("c", "tap", fd=True), UnderlaySet("192.168.1.13", FAR, "not-an-address", 1)], "EINVAL"),
    ):
        ours, other = socket.socketpair()
        fd = ours.detach()
        with pytest.raises(NetlinkError) as caught:
            edge.kernel.apply(ops, [fd])
        assert caught.value.errno_name == error
        assert other.recv(1) == b""
        other.close()
    for path in (__file__, "/dev/null"):
        with pytest.raises(NetlinkError, match=r"EINVAL.*no TAP"):
            edge.kernel.apply([LinkAdd("c", "tap", fd=True)], [os.open(path, os.O_RDONLY)])
    assert set(edge.switch.links) == {"a", "b", "flannel.1", "eth0"}


def test_a_vanished_device_leaves_its_link_unattached(edge: Edge) -> None:
    ours, pods = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    edge.kernel.apply([LinkAdd("b", "tap", fd=True, replace=True)], [ours.detach()])
    pods.close()
    edge.turn()
    attached = {link.name: link.attached for link in edge.kernel.dump("links")}
    assert attached == {"a": True, "b": False, "flannel.1": True, "eth0": True}
    assert edge.kernel.dump("counters")["tap_lost"] == 1


# --- the underlay --------------------------------


def test_a_frame_leaves_as_vxlan_and_comes_back(edge: Edge) -> None:
    edge.pods["a"].send(frame_to(FAR))
    edge.turn()
    data, (host, port) = edge.peer.recvfrom(2000)
    assert data == VXLAN + frame_to(FAR)[10:]
    assert host == HERE
    assert 49152 <= port <= 65535
    edge.peer.sendto(VXLAN + frame_to(A)[10:], (HERE, 8472))
    edge.turn()
    assert edge.read("a") == [frame_to(A)]


def test_a_superframe_leaves_in_segments(edge: Edge) -> None:
    big = superframe(random.Random(1).randbytes(5000), 1398)
    big[10:16] = bytes.fromhex(FAR.replace(":", ""))
    edge.pods["a"].send(big)
    edge.turn()
    wanted = reference(bytes(big), VXLAN)
    assert [edge.peer.recv(2000) for _ in wanted] == wanted
    assert edge.loop.counters["tunnel_tx"] == len(wanted)


def test_segments_come_back_as_a_superframe(edge: Edge) -> None:
    big = superframe(random.Random(1).randbytes(50_000), 1398)
    big[10:16] = bytes.fromhex(A.replace(":", ""))
    segments = reference(bytes(big), VXLAN)
    step = len(segments[0]).to_bytes(2, "little")
    edge.peer.sendmsg([b"".join(segments)], [(17, 103, step)], 0, (HERE, 8472))
    edge.turn()
    (frame,) = edge.read("a")
    assert frame.endswith(bytes(big[-50_000:]))
    assert reference(frame, VXLAN) == segments


def test_the_cable_carries_frames_to_their_owner_and_floods_the_rest(edge: Edge) -> None:
    edge.kernel.apply([FdbAdd(FAR, "eth0"), FdbAdd("ff:ff:ff:ff:ff:ff", "eth0")], [])
    for mac in (FAR, "ff:ff:ff:ff:ff:ff"):
        edge.pods["a"].send(frame_to(mac))
        edge.turn()
        assert edge.peer_cable.recv(2000) == frame_to(mac)[10:]
    edge.peer_cable.sendto(frame_to(A)[10:], (HERE, 8473))
    edge.turn()
    assert edge.read("a") == [frame_to(A)]


def test_datagrams_of_strangers_and_unknown_networks_are_counted_drops(edge: Edge) -> None:
    stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stranger.bind(("127.0.76.99", 0))
    stranger.sendto(VXLAN + frame_to(A)[10:], (HERE, 8472))
    edge.peer.sendto(bytes.fromhex("0800000000000200") + frame_to(A)[10:], (HERE, 8472))
    edge.peer.sendto(bytes.fromhex("0000000000000100") + frame_to(A)[10:], (HERE, 8472))
    edge.peer.sendto(VXLAN[:5], (HERE, 8472))
    edge.peer.sendto(b"", (HERE, 8472))
    edge.turn()
    counters = edge.loop.counters
    assert counters["tunnel_rx"] == 5
    drops = {
        name: counters["drop." + name]
        for name in ("tunnel_unknown_peer", "vxlan_unknown_vni", "vxlan_no_vni_flag", "vxlan_short")
    }
    assert drops == {"tunnel_unknown_peer": 1, "vxlan_unknown_vni": 1, "vxlan_no_vni_flag": 1, "vxlan_short": 2}
    assert edge.read("a") == []
    stranger.close()


# --- nothing ends the loop --------------------------------


def test_a_bug_in_the_stack_is_counted_and_logged_once(edge: Edge, capfd) -> None:
    edge.switch.broken = True
    for _ in range(3):
        edge.pods["a"].send(frame_to(B))
    edge.turn()
    edge.switch.broken = False
    edge.pods["a"].send(frame_to(B))
    edge.turn()
    assert edge.read("b") == [frame_to(B)]
    assert [count for name, count in edge.loop.counters.items() if name.startswith("bug.switch.py:")] == [3]
    assert capfd.readouterr().err.count("RuntimeError: a bug in the stack\nTraceback") == 1


def mutated(rng: random.Random, seed: bytes) -> bytes:
    data = bytearray(seed)
    for _ in range(rng.randrange(1, 6)):
        match rng.randrange(4):
            case 0 if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
            case 1 if len(data) > 20:
                del data[rng.randrange(len(data)) :]
            case 2:
                at = rng.randrange(len(data) + 1)
                data[at : at + 2] = struct.pack("!H", rng.choice([0, 1, 0x7FFF, 0xFFFF, len(data)]))
            case 3:
                data += rng.randbytes(rng.randrange(60))
    return bytes(data) or b"\0"


def test_ten_thousand_mutated_frames_and_datagrams_raise_nothing() -> None:
    """Through the real stack; every frame that goes in is accounted for."""
    rng = random.Random(7)
    edge = Edge(Stack("node1", RandomChooser(random.Random(1))))
    edge.kernel.apply(
        [
            SysctlSet("net.ipv4.ip_forward", "1"),
            LinkAdd("cni0", "bridge", mac="02:00:0a:f4:01:01"),
            AddrAdd("cni0", "10.244.1.1/24"),
            LinkSet("a", master="cni0"),
            LinkSet("b", master="cni0"),
            RouteAdd("10.244.2.0/24", via="10.244.2.0", dev="flannel.1", onlink=True),
            NeighAdd("10.244.2.0", FAR, "flannel.1"),
            FdbAdd(FAR, "flannel.1", dst="192.168.1.12"),
        ],
        [],
    )
    seeds = [
        bytes(superframe(rng.randbytes(n), 100, udp=udp, v4=v4))
        for n in (10, 900)
        for udp in (False, True)
        for v4 in (False, True)
    ]
    seeds += [seed[:10] + bytes.fromhex("02000af40101") + seed[16:] for seed in seeds]  # to the bridge's own MAC: routed
    seeds += [frame_to(A), frame_to("ff:ff:ff:ff:ff:ff")]
    frames, datagrams, cable = 0, 0, 0
    try:
        for i in range(10_000):
            data = mutated(rng, rng.choice(seeds))
            match i % 4:
                case 0:
                    edge.pods["a"].send(data)
                    frames += 1
                case 1 | 2:
                    edge.peer.sendto(mutated(rng, VXLAN + data[10:]), (HERE, 8472))
                    datagrams += 1
                case 3:
                    edge.peer_cable.sendto(data[10:], (HERE, 8473))
                    cable += 1
            if i % 16 == 15:
                edge.loop.turn(0)
                edge.read("a"), edge.read("b")
        edge.turn()
        counters = edge.kernel.dump("counters")
        assert not [name for name in counters if name.startswith("bug.")]
        assert (counters["tunnel_rx"], counters["cable_rx"]) == (datagrams, cable)
        edge_drops = ("frame_short", "vxlan_short", "vxlan_no_vni_flag", "vxlan_unknown_vni")
        into_stack = frames + datagrams + cable - sum(counters.get("drop." + name, 0) for name in edge_drops)
        assert counters["frames.received"] == into_stack
        ends = sum(counters.get("frames." + end, 0) for end in ("forwarded", "delivered", "dropped", "rejected", "consumed"))
        assert ends == counters["frames.received"]
    finally:
        edge.close()


@pytest.mark.interpreted
def test_backlog_keeps_order_and_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "QUEUE_FRAMES", 3)
    loop, room, out = Loop(), [0], []
    reader, writer = os.pipe()
    loop.register(writer, lambda events: None, 0)

    def send(item: int) -> None:
        if room[0] == 0:
            raise BlockingIOError
        room[0] -= 1
        out.append(item)

    backlog = Backlog(loop, writer, send, "test", idle=0)
    for i in range(5):
        backlog.push(i, 10)
    backlog.flush()
    assert out == []
    room[0] = 2
    backlog.flush()
    assert (out, len(backlog)) == ([0, 1], 1)
    backlog.push(9, 10)
    backlog.push(10, 4 << 20)
    room[0] = 9
    backlog.flush()
    assert (out, loop.counters["drop.test_queue_full"]) == ([0, 1, 2, 9], 3)
    os.close(reader)
    os.close(writer)


def test_the_stack_is_what_the_edge_expects() -> None:
    stack: kernel_module.KernelStack = Stack("node1", RandomChooser(random.Random(1)))
    assert stack.traced == []
