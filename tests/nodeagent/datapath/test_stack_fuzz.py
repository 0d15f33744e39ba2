"""Mutated frames: nothing raises, nothing is lost count of, and what comes out is well formed."""

from __future__ import annotations

from random import Random

import pytest
from support import packets
from support.packets import ACK, SYN, echo, frame, tcp, udp
from support.stacks import Cluster, pod_mac, service_rules

from podwire_core.netlink import Subscribe

A, B = "10.244.1.5", "10.244.1.6"
GATEWAY = "02:bb:00:00:00:01"
VERDICTS = ("forwarded", "delivered", "dropped", "rejected", "consumed")


def seeds() -> list[tuple[str, bytearray]]:
    """Good frames of every kind, and the link each comes in by."""
    a, b = pod_mac(A), pod_mac(B)
    big = udp(A, "10.244.2.6", 1, 2, b"x" * 2000)[20:]
    pieces = [
        packets.ipv4(A, "10.244.2.6", 17, big[i : i + 800], ident=9, df=False, more=i + 800 < len(big), offset=i)
        for i in range(0, len(big), 800)
    ]
    inner = udp("10.244.2.6", "192.168.1.12", 5, 6, b"data")
    from_pod = [
        tcp(A, "10.96.0.50", 1, 80, SYN, 1, 0),
        tcp(A, "10.96.0.51", 1, 80, SYN, 1, 0),
        tcp(A, "10.244.2.6", 2, 80, ACK, 1, 1, b"hello"),
        udp(A, "10.244.2.6", 1, 2, b"x" * 100, ttl=1),
        udp(A, "10.244.2.6", 1, 2, b"x" * 1460),
        udp(A, B, 1, 2, b"x"),
        echo(A, "10.244.1.1"),
        echo(A, "10.244.2.6", options=b"\x07\x07\x04\0\0\0\0\0"),
        packets.icmp("10.244.1.5", "10.244.2.6", 3, 3, bytes(4), inner),
        packets.ipv4(A, "10.244.2.6", 132, bytes(20)),
        *pieces,
    ]
    found = [("veth1", frame(GATEWAY, a, packet)) for packet in from_pod]
    found += [
        ("veth1", packets.ethernet(packets.BROADCAST, a, 0x806, packets.arp(1, a, A, "00:00:00:00:00:00", "10.244.1.1"))),
        ("veth2", packets.ethernet(GATEWAY, b, 0x806, packets.arp(2, b, B, GATEWAY, "10.244.1.1"))),
        ("veth2", frame(a, b, tcp(B, A, 80, 2, SYN | ACK, 1, 2))),
        ("veth1", frame(packets.BROADCAST, a, udp(A, "10.244.1.255", 68, 67))),
        ("veth1", packets.ethernet("33:33:00:00:00:02", a, 0x86DD, bytes(48))),
        ("flannel.1", frame("02:cc:00:00:00:01", "02:cc:00:00:00:02", tcp("10.244.2.6", A, 80, 2, ACK, 1, 2))),
        ("eth0", frame("02:aa:00:00:00:01", "02:aa:00:00:00:02", echo("192.168.1.12", "192.168.1.11"))),
        ("host0", frame("02:00:a9:fe:01:01", "02:00:00:00:00:99", tcp("192.168.1.11", "10.96.0.50", 1, 80, SYN, 1, 0))),
        ("host0", frame("02:00:a9:fe:01:01", "02:00:00:00:00:99", echo("192.168.1.11", "10.244.1.1"))),
    ]
    superframe = frame(GATEWAY, a, tcp(A, "10.244.2.6", 2, 80, ACK, 1, 1, bytes(6000)))
    superframe[:10] = bytes.fromhex("0101360018052200 1000".replace(" ", ""))
    return [*found, ("veth1", superframe)]


def mutate(random: Random, data: bytearray) -> bytearray:
    made = bytearray(data)
    for _ in range(random.choice((0, 1, 1, 2, 5))):
        kind = random.randrange(4)
        if kind == 0 and made:
            made[random.randrange(min(len(made), 64))] = random.choice((0, 1, 0xFF, random.randrange(256)))
        elif kind == 1 and made:
            made[random.randrange(len(made))] ^= 1 << random.randrange(8)
        elif kind == 2 and len(made) > 10:
            made = made[: random.randrange(10, len(made) + 1)]
        else:
            made += bytes(random.randrange(8))
    if random.random() < 0.5 and len(made) >= 44:  # the header checksum is right, so that more than its test is tested
        made[34:36] = b"\0\0"
        made[34:36] = packets.inet(bytes(made[24:44])).to_bytes(2, "big")
    return made


@pytest.mark.parametrize("traced", [False, True])
def test_ten_thousand_mutated_frames(traced):
    random = Random(7)
    cluster = Cluster(2)
    node = cluster.nodes[0]
    for address in (A, B):
        node.add_pod(address)
    node.apply(service_rules("10.96.0.50", 80, [("10.244.2.6", 8080), (B, 8080)]))
    if traced:
        node.stack.trace(Subscribe(1))
    good = seeds()
    for i in range(10_000 if not traced else 3_000):
        link, data = random.choice(good)
        if random.random() < 0.05:
            link = random.choice(("veth1", "veth2", "eth0", "flannel.1", "host0", "cni0"))
        made = mutate(random, data)
        cluster.now += random.choice((0, 0, 0, 0.01, 1))
        emits = node.stack.receive(node.stack.link_index(link), memoryview(made), cluster.now)
        for index, sent, tunnel in emits:
            assert index in node.stack.links.by_index
            assert len(sent) >= 24
            assert tunnel is None or 49152 <= tunnel.sport <= 65535
        if not i % 50:
            node.stack.tick(cluster.now)
    counters = node.stack.dump("counters", cluster.now)
    assert counters["frames.received"] == (10_000 if not traced else 3_000)
    assert counters["frames.received"] == sum(counters.get(f"frames.{verdict}", 0) for verdict in VERDICTS)
    drops = sum(number for name, number in counters.items() if name.startswith("drop."))
    assert drops == counters["frames.dropped"] + counters.get("frames.lost", 0)
    assert len([name for name in counters if name.startswith("drop.")]) > 20
    assert not traced or len(node.stack.traced) > 2000


def test_random_bytes():
    random = Random(3)
    cluster = Cluster(1)
    node = cluster.nodes[0]
    node.add_pod(A)
    for size in [*range(80), 1500, 65000]:
        for link in ("veth1", "eth0", "flannel.1", "host0"):
            node.stack.receive(node.stack.link_index(link), bytearray(random.randbytes(size)), cluster.now)
    assert node.stack.dump("counters", 0.0)["frames.received"] == 82 * 4


def test_frame_of_a_link_that_is_gone():
    stack = Cluster(1).nodes[0].stack
    assert stack.receive(99, bytearray(100), 0.0) == []
    assert stack.dump("counters", 0.0)["drop.no_such_link"] == 1
