"""Two or three stacks joined in memory, as a cluster is: pings, Services, traceroute, path MTU, fragments."""

from __future__ import annotations

import pytest
from support import packets
from support.packets import ACK, FIN, PSH, SYN, decode_ip, tcp, udp
from support.stacks import Cluster, Pod, service_rules

SERVICE = "10.96.0.50"


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(3)


def test_ping_on_one_node_crosses_the_bridge(cluster):
    a, b = cluster.nodes[0].add_pod("10.244.1.5"), cluster.nodes[0].add_pod("10.244.1.6")
    a.send(packets.echo(a.address, b.address), b.mac)
    cluster.run()
    (reply,) = a.take()
    assert (reply.icmp, reply.src, reply.ttl, reply.src_mac, reply.bad) == ((0, 0), b.address, 64, b.mac, [])


def test_ping_across_nodes_goes_through_vxlan(cluster):
    a, b = cluster.nodes[0].add_pod("10.244.1.5"), cluster.nodes[1].add_pod("10.244.2.6")
    (reply,) = cluster.ping(a, b.address)
    assert (reply.icmp, reply.src, reply.ttl, reply.bad) == ((0, 0), b.address, 62, [])
    assert [(node, link) for node, link, seen in cluster.wire if seen.kind == 0x800] == [
        ("node1", "flannel.1"),
        ("node2", "veth1"),
        ("node2", "flannel.1"),
        ("node1", "veth1"),
    ]


def test_ping_of_gateway_and_of_nodes(cluster):
    a = cluster.nodes[0].add_pod("10.244.1.5")
    for address in ("10.244.1.1", "192.168.1.11", "10.244.1.0", "10.244.2.0"):
        (reply,) = cluster.ping(a, address)
        assert (reply.icmp, reply.src) == ((0, 0), address)


def test_host_pings_pods_here_and_there(cluster):
    here, there = cluster.nodes[0].add_pod("10.244.1.5"), cluster.nodes[1].add_pod("10.244.2.5")
    host = cluster.nodes[0].host
    for pod, source in ((here, "10.244.1.1"), (there, "10.244.1.0")):
        host.take()
        host.send(packets.echo(source, pod.address))
        cluster.run()
        assert [(s.icmp, s.src, s.dst, s.bad) for s in host.take()] == [((0, 0), pod.address, source, [])]


def test_nodes_reach_each_other_over_the_cable(cluster):
    one, two = cluster.nodes[0].host, cluster.nodes[1].host
    one.send(packets.echo("192.168.1.11", "192.168.1.12"))
    cluster.run()
    assert [(s.icmp, s.src) for s in one.take()] == [((0, 0), "192.168.1.12")]
    assert [s.icmp for s in two.take()] == [(8, 0)]


def connect(cluster: Cluster, client: Pod, backends: list[Pod], sport=40000, target=8080) -> Pod:
    """A TCP handshake and one exchange with the Service; the backend that was chosen."""
    client.send(tcp(client.address, SERVICE, sport, 80, SYN, 100, 0))
    cluster.run()
    (server,) = [pod for pod in backends if pod.inbox]
    (syn,) = server.take()
    assert (syn.dst, syn.dport, syn.bad) == (server.address, target, [])
    answer = (server.address, syn.src, target, syn.sport)
    server.send(tcp(*answer, SYN | ACK, 500, 101), "" if server.node is not client.node else syn.src_mac)
    cluster.run()
    (synack,) = client.take()
    assert (synack.src, synack.sport, synack.flags, synack.ack, synack.bad) == (SERVICE, 80, SYN | ACK, 101, [])
    client.send(tcp(client.address, SERVICE, sport, 80, ACK, 101, 501))
    client.send(tcp(client.address, SERVICE, sport, 80, ACK | PSH, 101, 501, b"GET /"))
    cluster.run()
    assert [(s.payload, s.bad) for s in server.take()] == [(b"", []), (b"GET /", [])]
    server.send(tcp(*answer, ACK | PSH, 501, 106, b"200 OK"), "" if server.node is not client.node else syn.src_mac)
    cluster.run()
    (data,) = client.take()
    assert (data.src, data.sport, data.payload, data.bad) == (SERVICE, 80, b"200 OK", [])
    return server


def test_tcp_to_a_service_with_backends_on_all_nodes(cluster):
    client = cluster.nodes[0].add_pod("10.244.1.5")
    backends = [node.add_pod(f"10.244.{node.number}.9") for node in cluster.nodes]
    cluster.nodes[0].apply(service_rules(SERVICE, 80, [(pod.address, 8080) for pod in backends]))
    chosen = {connect(cluster, client, backends, 40000 + i).address for i in range(30)}
    assert chosen == {pod.address for pod in backends}


def test_service_backend_on_the_clients_own_bridge_answers_directly(cluster):
    """The answer goes from pod to pod over the bridge; br_netfilter gives it the Service's address."""
    client, server = cluster.nodes[0].add_pod("10.244.1.5"), cluster.nodes[0].add_pod("10.244.1.6")
    cluster.nodes[0].apply(service_rules(SERVICE, 80, [(server.address, 8080)]))
    server.take()
    connect(cluster, client, [server])
    # the first packet was routed, because nobody knew the backend's MAC; now it is known and packets are bridged
    client.send(tcp(client.address, SERVICE, 41000, 80, SYN, 1, 0))
    cluster.run()
    (syn,) = server.take()
    assert (syn.ttl, syn.src_mac) == (64, client.mac)


def test_without_br_netfilter_the_direct_answer_is_not_translated(cluster):
    from podwire_core.netlink import SysctlSet

    node = cluster.nodes[0]
    client, server = node.add_pod("10.244.1.5"), node.add_pod("10.244.1.6")
    node.apply(service_rules(SERVICE, 80, [(server.address, 8080)]), SysctlSet("net.bridge.bridge-nf-call-iptables", "0"))
    client.send(tcp(client.address, SERVICE, 40000, 80, SYN, 100, 0))
    cluster.run()
    server.take()
    server.send(tcp(server.address, client.address, 8080, 40000, SYN | ACK, 1, 101), client.mac)
    cluster.run()
    assert [s.src for s in client.take()] == [server.address]


def test_pod_reaches_itself_through_its_service(cluster):
    """Hairpin: the packet is masqueraded as the bridge and comes back by the port it left."""
    pod = cluster.nodes[0].add_pod("10.244.1.5")
    cluster.nodes[0].apply(service_rules(SERVICE, 80, [(pod.address, 8080)]))
    pod.send(tcp(pod.address, SERVICE, 40000, 80, SYN, 100, 0))
    cluster.run()
    (syn,) = pod.take()
    assert (syn.src, syn.dst, syn.dport, syn.bad) == ("10.244.1.1", pod.address, 8080, [])
    pod.send(tcp(pod.address, "10.244.1.1", 8080, syn.sport, SYN | ACK, 9, 101))
    cluster.run()
    (answer,) = pod.take()
    assert (answer.src, answer.dst, answer.sport, answer.dport) == (SERVICE, pod.address, 80, 40000)


def test_host_reaches_a_service_on_another_node(cluster):
    server = cluster.nodes[1].add_pod("10.244.2.6")
    cluster.nodes[0].apply(service_rules(SERVICE, 80, [(server.address, 8080)]))
    host = cluster.nodes[0].host
    host.send(tcp("192.168.1.11", SERVICE, 40000, 80, SYN, 1, 0))
    cluster.run()
    (syn,) = server.take()
    assert (syn.dst, syn.dport, syn.src) == (server.address, 8080, "192.168.1.11")
    server.send(tcp(server.address, syn.src, 8080, syn.sport, SYN | ACK, 9, 2))
    cluster.run()
    assert [(s.src, s.sport, s.bad) for s in host.take()] == [(SERVICE, 80, [])]


def test_host_reaches_its_own_endpoint_through_a_service(cluster):
    """OUTPUT translates to one of the node's own addresses: the packet is looped, and so is the answer."""
    host = cluster.nodes[0].host
    cluster.nodes[0].apply(service_rules(SERVICE, 443, [("192.168.1.11", 6443)]))
    host.send(tcp("192.168.1.11", SERVICE, 40000, 443, SYN, 1, 0))
    cluster.run()
    (syn,) = host.take()
    assert (syn.dst, syn.dport, syn.bad) == ("192.168.1.11", 6443, [])
    host.send(tcp("192.168.1.11", syn.src, 6443, syn.sport, SYN | ACK, 9, 2))
    cluster.run()
    assert [(s.src, s.sport, s.dst, s.dport) for s in host.take()] == [(SERVICE, 443, "192.168.1.11", 40000)]


def test_reject_without_endpoints_seems_to_come_from_the_service(cluster):
    client = cluster.nodes[0].add_pod("10.244.1.5")
    cluster.nodes[0].apply(service_rules(SERVICE, 80, [], reject=True))
    packet = tcp(client.address, SERVICE, 40000, 80, SYN, 100, 0)
    client.send(packet)
    cluster.run()
    (error,) = client.take()
    assert (error.icmp, error.src, error.bad) == ((3, 3), "10.244.1.1", [])
    quoted = decode_ip(error.payload, packets.Seen())
    assert (quoted.src, quoted.dst, quoted.dport) == (client.address, SERVICE, 80)
    host = cluster.nodes[0].host
    host.send(tcp("192.168.1.11", SERVICE, 40001, 80, SYN, 100, 0))
    cluster.run()
    assert [(s.icmp, s.dst) for s in host.take()] == [((3, 3), "192.168.1.11")]


def test_traceroute_shows_both_nodes(cluster):
    a, b = cluster.nodes[0].add_pod("10.244.1.5"), cluster.nodes[1].add_pod("10.244.2.6")
    hops = []
    for ttl in (1, 2, 3):
        a.send(udp(a.address, b.address, 40000, 33434 + ttl, b"x" * 32, ttl=ttl))
        cluster.run()
        hops += [(s.icmp, s.src, s.bad) for s in a.take()]
    assert hops == [((11, 0), "10.244.1.1", []), ((11, 0), "10.244.2.0", [])]
    assert [s.ttl for s in b.take()] == [1]


def test_path_mtu_is_told(cluster):
    a, b = cluster.nodes[0].add_pod("10.244.1.5"), cluster.nodes[1].add_pod("10.244.2.6")
    a.send(udp(a.address, b.address, 1, 2, b"x" * 1472))
    cluster.run()
    (error,) = a.take()
    assert (error.icmp, int.from_bytes(error.rest, "big"), error.bad) == ((3, 4), 1450, [])
    assert not b.take()


def test_large_packet_without_df_is_fragmented_and_put_together(cluster):
    """Fragments at the sender, reassembled before conntrack on each node; data and order are checked at the end."""
    a, b = cluster.nodes[0].add_pod("10.244.1.5"), cluster.nodes[1].add_pod("10.244.2.6")
    data = bytes(range(256)) * 10
    whole = udp(a.address, b.address, 1, 2, data)[20:]
    cluster.ping(a, b.address)
    b.take()
    for at in range(0, len(whole), 1400):
        piece = whole[at : at + 1400]
        more = at + 1400 < len(whole)
        a.send(packets.ipv4(a.address, b.address, 17, piece, ident=77, df=False, more=more, offset=at))
        cluster.run()
    got = sorted(b.take(), key=lambda s: s.offset)
    assert b"".join(s.payload for s in got) == whole
    assert max(len(s.packet) for s in got) <= 1420
    assert {s.ident for s in got} == {77}


def test_unknown_pod_on_another_node_is_unreachable_after_three_seconds(cluster):
    a = cluster.nodes[0].add_pod("10.244.1.5")
    a.send(udp(a.address, "10.244.2.77", 1, 2, b"hello"))
    cluster.run()
    assert not a.take()
    cluster.wait(4)
    (error,) = a.take()
    assert (error.icmp, error.src) == ((3, 1), "10.244.2.0")
    asked = [s for node, link, s in cluster.wire if node == "node2" and s.kind == 0x806 and s.dst == "10.244.2.77"]
    assert len(asked) == 0  # the bridge has no ports there


def test_arp_is_asked_three_times(cluster):
    a, b = cluster.nodes[0].add_pod("10.244.1.5"), cluster.nodes[1].add_pod("10.244.2.6")
    b.answers = False
    a.send(udp(a.address, b.address, 1, 2, b"hello"))
    cluster.run()
    cluster.wait(5)
    asked = [s for node, link, s in cluster.wire if node == "node2" and s.kind == 0x806 and s.dst == b.address]
    assert len(asked) == 3
    assert cluster.nodes[1].stack.dump("neighs", cluster.now)[0].state in ("FAILED", "PERMANENT")


def test_the_packet_that_waited_is_sent_when_the_neighbour_answers(cluster):
    a, b = cluster.nodes[0].add_pod("10.244.1.5"), cluster.nodes[1].add_pod("10.244.2.6")
    for i in range(5):
        a.send(udp(a.address, b.address, 1, 2, bytes([i])))
    cluster.run()
    assert [s.payload for s in b.take()][-1] == b"\4"


def test_end_of_connection(cluster):
    client, server = cluster.nodes[0].add_pod("10.244.1.5"), cluster.nodes[1].add_pod("10.244.2.6")
    cluster.nodes[0].apply(service_rules(SERVICE, 80, [(server.address, 8080)]))
    connect(cluster, client, [server])
    client.send(tcp(client.address, SERVICE, 40000, 80, FIN | ACK, 106, 507))
    cluster.run()
    assert [s.flags for s in server.take()] == [FIN | ACK]
    entry = [c for c in cluster.nodes[0].stack.dump("conntrack", cluster.now) if c.proto == "tcp"]
    assert [(c.state, c.original.dst, c.reply.src) for c in entry] == [("FIN_WAIT", SERVICE, server.address)]
