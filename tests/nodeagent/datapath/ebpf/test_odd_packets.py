"""What is not an ordinary packet: fragments, options, mutated frames, taken ports; socket LB for pods, full tables."""

from __future__ import annotations

from random import Random

import pytest
from support import packets
from support.packets import SYN, frame, tcp, udp
from support.services import by_key, endpoint, endpoint_slice, port, service
from support.stacks import Cluster, Node, Pod

from podwire_core.netlink import Subscribe
from podwire_nodeagent.datapath.ebpf import lb, table
from podwire_nodeagent.proxy import modes
from podwire_nodeagent.proxy.config import EbpfSettings, ProxyConfiguration
from podwire_nodeagent.proxy.model import NodeFacts

VIP, OTHER, OUTSIDE = "10.96.0.50", "10.96.0.51", "203.0.113.9"


def made(**settings) -> tuple[Cluster, Node, Pod, Pod]:
    """Two Services with the same backend on the other node; client and server."""
    cluster = Cluster(2)
    node, far = cluster.nodes
    client, server = node.add_pod("10.244.1.5"), far.add_pod("10.244.2.9")
    facts = NodeFacts(node.name, "", (node.ip, node.bridge_ip, node.vtep_ip), ("10.244.1.0/24",))
    ports = [port(80, "udp", "UDP", nodePort=30080), port(80, nodePort=30081)]
    targets = [{**each, "port": 8080} for each in ports]
    services = [service("web", VIP, ports, type="NodePort"), service("other", OTHER, [port(80, "udp", "UDP")])]
    slices = [endpoint_slice(n, [endpoint(server.address, "node2")], targets) for n in ("web", "other")]
    proxy = modes.make(ProxyConfiguration("ebpf", ebpf=EbpfSettings(**settings)), facts)
    node.apply(*proxy.changes(by_key(services), by_key(slices)))
    cluster.ping(client, server.address)
    for pod in (client, server):
        pod.take()
    return cluster, node, client, server


def test_fragments_reach_one_backend_whole_and_answers_come_back():
    cluster, _, client, server = made()
    datagram = udp(client.address, VIP, 4000, 80, b"a" * 2000)[20:]
    first = packets.ipv4(client.address, VIP, 17, datagram[:1400], more=True, df=False)
    last = packets.ipv4(client.address, VIP, 17, datagram[1400:], offset=1400, df=False)
    client.send(last)
    client.send(first)
    cluster.run()
    pieces = server.take()
    assert {seen.dst for seen in pieces} == {server.address}
    answer = udp(server.address, client.address, 8080, 4000, b"b" * 2000)[20:]
    server.send(packets.ipv4(server.address, client.address, 17, answer[:1400], more=True, df=False))
    server.send(packets.ipv4(server.address, client.address, 17, answer[1400:], offset=1400, df=False))
    cluster.run()
    back = client.take()
    assert len(back) == 2
    assert {seen.src for seen in back} == {VIP}


def test_two_services_with_one_backend_and_one_client_port():
    """Their answers would look alike: the second connection gets another source port, and each its own answers."""
    cluster, _, client, server = made()
    for vip in (VIP, OTHER):
        client.send(udp(client.address, vip, 4000, 80, vip.encode()))
    cluster.run()
    seen = {each.payload.decode(): each.sport for each in server.take()}
    assert seen[VIP] == 4000 != seen[OTHER]
    for vip, sport in seen.items():
        server.send(udp(server.address, client.address, 8080, sport, vip.encode()))
    cluster.run()
    assert {(s.src, s.dport, s.payload.decode()) for s in client.take()} == {(VIP, 4000, VIP), (OTHER, 4000, OTHER)}


def test_socket_lb_for_pods_says_so():
    for setting, stage in (("all", "ebpf/connect4"), ("hostns", "ebpf/from-container")):
        cluster, node, client, _ = made(socket_lb=setting)
        node.stack.trace(Subscribe(0))
        client.send(tcp(client.address, VIP, 4000, 80, SYN, 1, 0))
        cluster.run()
        steps = [step for hop in node.stack.traced for step in hop.steps if step.action == "lookup"]
        assert [(step.stage, step.detail) for step in steps] == [(stage, "socket LB" if setting == "all" else "inside")]


@pytest.mark.interpreted
def test_full_tables_forget_the_oldest(monkeypatch):
    monkeypatch.setattr(table, "MAX_ENTRIES", 10)
    monkeypatch.setattr(lb, "MAX_AFFINITY", 10)
    cluster, node, client, _ = made()
    for sport in range(1000, 1050):
        client.send(udp(client.address, VIP, sport, 80))
    cluster.run()
    assert node.stack.lb.table.count == 10
    assert {e.original[8:10] for e in node.stack.lb.table.all(cluster.now)} == {n.to_bytes(2, "big") for n in range(1040, 1050)}


def test_mutated_frames_never_raise_and_counters_add_up():
    random = Random(5)
    cluster, node, client, server = made(mode="dsr")
    option = bytes((0x9A, 8)) + (30080).to_bytes(2, "big") + packets.ip(VIP)
    quoted = udp(server.address, client.address, 8080, 4000, b"x" * 20)
    whole = [
        ("veth1", frame(node.bridge_mac, client.mac, udp(client.address, VIP, 4000, 80, b"x" * 30))),
        ("veth1", frame(node.bridge_mac, client.mac, tcp(client.address, VIP, 4000, 80, SYN, 1, 0))),
        ("veth1", frame(node.bridge_mac, client.mac, packets.icmp(client.address, VIP, 3, 3, bytes(4), quoted[:28]))),
        ("flannel.1", frame(node.vtep_mac, node.vtep_mac, udp(server.address, client.address, 8080, 4000))),
        (
            "flannel.1",
            frame(node.vtep_mac, node.vtep_mac, packets.ipv4(OUTSIDE, client.address, 17, quoted[20:], options=option)),
        ),
        ("eth0", frame(node.mac, node.mac, udp(OUTSIDE, node.ip, 4000, 30080, b"x"))),
        ("eth0", frame(node.mac, node.mac, packets.icmp(OUTSIDE, node.ip, 3, 4, bytes(4), quoted[:28]))),
    ]
    for _ in range(6000):
        link, frame_ = random.choice(whole)
        data = bytearray(frame_)
        for _ in range(random.choice((0, 1, 1, 2, 8))):
            data[random.randrange(10, len(data))] = random.randrange(256)
        data = data[: random.choice((len(data), len(data), random.randrange(24, len(data))))]
        if random.random() < 0.7 and len(data) >= 44:  # a right header checksum lets it in
            size = (data[24] & 15) * 4
            data[34:36] = b"\0\0"
            data[34:36] = packets.inet(bytes(data[24 : 24 + size])).to_bytes(2, "big")
        node.stack.receive(node.stack.link_index(link), memoryview(data), cluster.now)
        cluster.now += 0.01
    found = node.stack.dump("counters", cluster.now)
    verdicts = ("forwarded", "delivered", "dropped", "rejected", "consumed")
    assert found["frames.received"] == sum(found.get(f"frames.{verdict}", 0) for verdict in verdicts)
