"""The programs in a cluster of stacks: every kind of client, both ways; choice, affinity, lifetimes, DSR, errors, traces."""

from __future__ import annotations

from collections import Counter

import pytest
from support import packets
from support.packets import ACK, FIN, PSH, RST, SYN, frame, tcp, udp
from support.services import by_key, endpoint, endpoint_slice, port, service
from support.stacks import Cluster

from podwire_core import ebpf
from podwire_core.netlink import BpfMapUpdate, BpfReplace, NeighAdd, NetlinkError, Subscribe
from podwire_nodeagent.proxy import modes
from podwire_nodeagent.proxy.config import EbpfSettings, ProxyConfiguration
from podwire_nodeagent.proxy.model import NodeFacts

VIP, OUTSIDE, ROUTER_MAC = "10.96.0.50", "203.0.113.9", "02:00:00:00:00:fe"
PORTS = [port(80, "web", nodePort=30080), port(80, "web-udp", "UDP", nodePort=30080)]


class Net:
    """A cluster of two nodes with a pod as client, and kube-proxy in mode ebpf on both."""

    def __init__(self, proxy="ebpf", **settings) -> None:
        self.cluster = Cluster(2)
        self.one, self.two = self.cluster.nodes
        self.client = self.one.add_pod("10.244.1.5")
        config = ProxyConfiguration(proxy, ebpf=EbpfSettings(**settings))
        self.proxies = [self.proxy(node, config) for node in self.cluster.nodes]
        self.cluster.ping(self.client, "192.168.1.12")

    def proxy(self, node, config):
        facts = NodeFacts(node.name, "", (node.ip, node.bridge_ip, node.vtep_ip), (f"10.244.{node.number}.0/24",))
        return modes.make(config, facts)

    def serve(self, *pods, name="web", **spec):
        """The Service with these pods behind it, on port 8080."""
        ports = [{**each, "port": 8080} for each in PORTS]
        slices = endpoint_slice(name, [endpoint(pod.address, pod.node.name) for pod in pods], ports)
        given = service(name, VIP, PORTS, **{"type": "NodePort", **spec})
        for node, proxy in zip(self.cluster.nodes, self.proxies, strict=True):
            node.apply(*proxy.changes(by_key([given]), by_key([slices])))

    def from_outside(self, packet, node=None):
        """A packet that a router gives to a node."""
        node = node or self.one
        self.cluster.wire.clear()
        self.cluster.push(node, "eth0", frame(node.mac, ROUTER_MAC, packet))
        self.cluster.run()

    def out(self):
        """What left by an uplink for the world outside."""
        return [(node, seen) for node, link, seen in self.cluster.wire if link == "eth0" and seen.kind == 0x800]

    def know_router(self):
        for node in self.cluster.nodes:
            node.apply(NeighAdd("192.168.1.1", ROUTER_MAC, "eth0", replace=True))


def tracked(net):
    """netfilter's connections, without the ping that taught addresses."""
    return [info for info in net.one.stack.dump("conntrack", net.cluster.now) if info.proto != "icmp"]


def exchange(net, client, server, to, dport, sport, expect_source=""):
    """A TCP handshake and a request with its answer, checked at both ends; the address the server saw."""
    cluster = net.cluster
    client.send(tcp(client.address, to, sport, dport, SYN, 100, 0))
    cluster.run()
    (syn,) = server.take()
    assert (syn.dst, syn.dport, syn.bad) == (server.address, 8080, [])
    here = (server.address, syn.src, 8080, syn.sport)
    direct = syn.src_mac if syn.src == client.address and server.node is client.node else ""
    server.send(tcp(*here, SYN | ACK, 500, 101), direct)
    cluster.run()
    (synack,) = client.take()
    assert (synack.src, synack.sport, synack.dst, synack.dport, synack.bad) == (to, dport, client.address, sport, [])
    for n in range(4):
        client.send(tcp(client.address, to, sport, dport, ACK | PSH, 101 + n, 501 + n, b"?"))
        cluster.run()
        assert [(s.payload, s.bad) for s in server.take()] == [(b"?", [])]
        server.send(tcp(*here, ACK | PSH, 501 + n, 102 + n, b"!"), direct)
        cluster.run()
        assert [(s.src, s.sport, s.payload, s.bad) for s in client.take()] == [(to, dport, b"!", [])]
    return syn.src


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("where", ["here", "there"])
def test_pod_to_service_both_ways_with_the_flow_cache_and_without(where, cached):
    net = Net()
    for node in net.cluster.nodes:
        node.stack.cache.enabled = cached
    server = net.one.add_pod("10.244.1.9") if where == "here" else net.two.add_pod("10.244.2.9")
    net.serve(server)
    assert exchange(net, net.client, server, VIP, 80, 40000) == net.client.address
    assert bool(net.one.stack.dump("counters", net.cluster.now)["cache.hits"]) == cached
    (entry,) = net.one.stack.lb.table.all(net.cluster.now)
    assert (entry.packets_original, entry.packets_reply) == (5, 5)
    net.client.send(udp(net.client.address, VIP, 5000, 80, b"query"))
    net.cluster.run()
    (query,) = server.take()
    server.send(udp(server.address, query.src, 8080, query.sport, b"reply"))
    net.cluster.run()
    assert [(s.src, s.sport, s.payload, s.bad) for s in net.client.take()] == [(VIP, 80, b"reply", [])]


def test_pod_reaches_itself_by_the_loopback_address():
    net = Net()
    net.serve(net.client)
    pod = net.client
    pod.send(tcp(pod.address, VIP, 40000, 80, SYN, 1, 0))
    net.cluster.run()
    (syn,) = pod.take()
    assert (syn.src, syn.dst, syn.dport, syn.bad) == (ebpf.LOOPBACK, pod.address, 8080, [])
    pod.send(tcp(pod.address, ebpf.LOOPBACK, 8080, syn.sport, SYN | ACK, 1, 2))
    net.cluster.run()
    (answer,) = pod.take()
    assert (answer.src, answer.sport, answer.dst, answer.dport, answer.bad) == (VIP, 80, pod.address, 40000, [])
    assert tracked(net) == []  # redirected: netfilter has not seen it


def test_host_has_the_address_that_the_route_to_the_backend_asks_for():
    net = Net()
    server = net.two.add_pod("10.244.2.9")
    net.serve(server)
    assert exchange(net, net.one.host, server, VIP, 80, 40000) == net.one.vtep_ip


@pytest.mark.parametrize("where", ["here", "there"])
def test_masquerade_all(where):
    net = Net()
    net.proxies = [net.proxy(node, ProxyConfiguration("ebpf", masquerade_all=True)) for node in net.cluster.nodes]
    server = net.one.add_pod("10.244.1.9") if where == "here" else net.two.add_pod("10.244.2.9")
    net.serve(server)
    assert exchange(net, net.client, server, VIP, 80, 40000) == (net.one.bridge_ip if where == "here" else net.one.vtep_ip)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("where", ["here", "there"])
def test_outside_by_a_node_port_is_snated_and_comes_back(where, cached):
    net = Net()
    net.know_router()
    for node in net.cluster.nodes:
        node.stack.cache.enabled = cached
    server = net.one.add_pod("10.244.1.9") if where == "here" else net.two.add_pod("10.244.2.9")
    net.serve(server)
    for n, flags in enumerate((SYN, ACK, ACK | PSH, ACK | PSH)):
        net.from_outside(tcp(OUTSIDE, "192.168.1.11", 40000, 30080, flags, 1 + n, 0))
        (seen,) = server.take()
        source = net.one.bridge_ip if where == "here" else net.one.vtep_ip
        assert (seen.src, seen.dst, seen.dport, seen.bad) == (source, server.address, 8080, [])
        net.cluster.wire.clear()
        answer = SYN | ACK if flags == SYN else ACK | PSH
        server.send(tcp(server.address, seen.src, 8080, seen.sport, answer, 9, 2))
        net.cluster.run()
        ((node, back),) = net.out()
        assert (node, back.src, back.sport, back.dst, back.dport) == ("node1", "192.168.1.11", 30080, OUTSIDE, 40000)
        assert back.bad == []
    assert tracked(net) == []
    assert bool(net.one.stack.dump("counters", net.cluster.now)["cache.hits"]) == cached
    state = net.one.stack.dump("bpf", net.cluster.now)
    assert [(i.kind, i.src, i.to) for i in state.snat] == [("OUT", OUTSIDE, source), ("IN", server.address, OUTSIDE)]


def test_policy_local_keeps_the_source_and_drops_where_nobody_is():
    net = Net()
    net.know_router()
    server = net.two.add_pod("10.244.2.9")
    net.serve(server, externalTrafficPolicy="Local")
    net.from_outside(tcp(OUTSIDE, "192.168.1.11", 40000, 30080, SYN, 1, 0))
    assert not server.take()
    assert net.one.stack.counters["drop.bpf_no_local_backend"] == 1
    net.from_outside(tcp(OUTSIDE, "192.168.1.12", 40000, 30080, SYN, 1, 0), net.two)
    (seen,) = server.take()
    assert (seen.src, seen.bad) == (OUTSIDE, [])
    net.cluster.wire.clear()
    server.send(tcp(server.address, OUTSIDE, 8080, 40000, SYN | ACK, 1, 2))
    net.cluster.run()
    assert [(n, s.src, s.sport, s.bad) for n, s in net.out()] == [("node2", "192.168.1.12", 30080, [])]


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_direct_server_return(proto):
    net = Net(mode="dsr")
    net.know_router()
    server = net.two.add_pod("10.244.2.9")
    net.serve(server)
    request = (
        tcp(OUTSIDE, "192.168.1.11", 40000, 30080, SYN, 1, 0) if proto == "tcp" else udp(OUTSIDE, "192.168.1.11", 40000, 30080)
    )
    net.from_outside(request)
    (seen,) = server.take()
    assert (seen.src, seen.dst, seen.dport, seen.bad) == (OUTSIDE, server.address, 8080, [])
    net.cluster.wire.clear()
    back = (server.address, OUTSIDE, 8080, 40000)
    server.send(tcp(*back, SYN | ACK, 1, 2) if proto == "tcp" else udp(*back, b"reply"))
    net.cluster.run()
    assert [(n, s.src, s.sport, s.dport, s.bad) for n, s in net.out()] == [("node2", "192.168.1.11", 30080, 40000, [])]
    if proto == "tcp":  # later packets carry no option
        net.from_outside(tcp(OUTSIDE, "192.168.1.11", 40000, 30080, ACK | PSH, 2, 2, b"more"))
        assert [(s.src, s.payload, s.bad) for s in server.take()] == [(OUTSIDE, b"more", [])]


def test_cluster_ip_is_not_for_outside_and_no_backend_is_refused():
    net = Net()
    net.know_router()
    net.serve()
    net.from_outside(tcp(OUTSIDE, VIP, 40000, 80, SYN, 1, 0))
    assert net.one.stack.counters["drop.bpf_is_cluster_ip"] == 1
    for proto in (tcp(net.client.address, VIP, 40000, 80, SYN, 1, 0), udp(net.client.address, VIP, 40000, 80)):
        net.client.send(proto)
        net.cluster.run()
        assert [s.icmp for s in net.client.take()] == [(3, 3)]
    assert net.one.stack.counters["reject.bpf_no_service"] == 2


def test_source_ranges_guard_the_load_balancer():
    net = Net()
    net.know_router()
    server = net.one.add_pod("10.244.1.9")
    status = {"loadBalancer": {"ingress": [{"ip": "198.51.100.7"}]}}
    net.serve(server, type="LoadBalancer", loadBalancerSourceRanges=["203.0.113.0/24"], status=status)
    for source, arrives in ((OUTSIDE, 1), ("203.0.112.9", 0)):
        net.from_outside(tcp(source, "198.51.100.7", 40000, 80, SYN, 1, 0))
        assert len(server.take()) == arrives
    assert net.one.stack.counters["drop.bpf_not_in_source_range"] == 1


# --- choice --------------------------------


def choices(net, count, sources=None):
    """Which backend each of so many new connections of the pod gets."""
    stack, link = net.one.stack, net.one.stack.link_index("veth1")
    for n in range(count):
        packet = udp(net.client.address, VIP, 1024 + n, 80)
        stack.receive(link, memoryview(frame(net.one.bridge_mac, net.client.mac, packet)), net.cluster.now)
    return Counter(entry.reply[:4] for entry in stack.lb.table.all(net.cluster.now))


def test_random_choice_is_uniform():
    net = Net()
    pods = [net.two.add_pod(f"10.244.2.{9 + n}") for n in range(7)]
    net.serve(*pods)
    found = choices(net, 10_000)
    assert set(found) == {packets.ip(pod.address) for pod in pods}
    expected = 10_000 / 7
    assert sum((seen - expected) ** 2 / expected for seen in found.values()) < 22.46  # chi square, 6 degrees, p = 0.001


def test_maglev_chooses_by_the_packet_and_is_the_same_on_every_node():
    def chosen(node_number):
        net = Net(algorithm="maglev", maglev_table_size=251)
        pods = [net.two.add_pod(f"10.244.2.{9 + n}") for n in range(5)]
        net.serve(*pods, externalIPs=["198.51.100.7"])
        node = net.cluster.nodes[node_number]
        for sport in range(1000, 1100):
            net.from_outside(udp(OUTSIDE, "198.51.100.7", sport, 80), node)
        return {e.original[8:10]: e.reply[:4] for e in node.stack.lb.table.all(net.cluster.now)}

    here, there = chosen(0), chosen(1)
    assert here == there
    assert (len(here), len(set(here.values()))) == (100, 5)


def test_affinity_lasts_its_timeout_and_dies_with_its_backend():
    net = Net()
    pods = [net.two.add_pod(f"10.244.2.{9 + n}") for n in range(8)]
    config = {"clientIP": {"timeoutSeconds": 100}}
    net.serve(*pods, sessionAffinity="ClientIP", sessionAffinityConfig=config)

    def chosen(sport):
        net.client.send(udp(net.client.address, VIP, sport, 80))
        net.cluster.run()
        (pod,) = [pod for pod in pods if pod.take()]
        return pod

    first = chosen(1)
    assert {chosen(n) for n in range(2, 12)} == {first}
    net.cluster.now += 99
    assert {chosen(n) for n in range(12, 20)} == {first}
    net.serve(*(pod for pod in pods if pod is not first), sessionAffinity="ClientIP", sessionAffinityConfig=config)
    second = chosen(21)
    assert second is not first
    assert chosen(22) is second
    seen = set()
    for n in range(30):
        net.cluster.now += 101
        seen.add(chosen(100 + n))
    assert len(seen) > 1


def test_udp_finds_another_backend_when_its_own_is_gone_and_tcp_goes_on():
    net = Net()
    here, there = net.one.add_pod("10.244.1.9"), net.two.add_pod("10.244.2.9")
    net.serve(there)
    net.client.send(udp(net.client.address, VIP, 1, 80))
    net.client.send(tcp(net.client.address, VIP, 1, 80, SYN, 1, 0))
    net.client.send(tcp(net.client.address, VIP, 1, 80, ACK, 2, 1))
    net.cluster.run()
    assert len(there.take()) == 3
    net.serve(here)
    net.client.send(udp(net.client.address, VIP, 1, 80))
    net.client.send(tcp(net.client.address, VIP, 1, 80, ACK | PSH, 2, 1, b"x"))
    net.cluster.run()
    assert ([s.proto for s in here.take()], [s.proto for s in there.take()]) == ([17], [6])


def test_udp_keeps_its_backend_when_the_agent_numbers_anew():
    net = Net()
    pods = [net.two.add_pod(f"10.244.2.{9 + n}") for n in range(4)]
    net.serve(*pods)

    def reached():
        net.client.send(udp(net.client.address, VIP, 1, 80))
        net.cluster.run()
        return [pod for pod in pods if pod.take()]

    chosen = reached()
    net.proxies = [net.proxy(node, ProxyConfiguration("ebpf")) for node in net.cluster.nodes]
    ports = [{**each, "port": 8080} for each in PORTS]
    slices = [
        endpoint_slice("first", [endpoint("10.244.2.200", "node2")], ports),  # another Service takes the first numbers
        endpoint_slice("web", [endpoint(pod.address, "node2") for pod in pods], ports),
    ]
    services = [service("first", "10.96.0.9", PORTS), service("web", VIP, PORTS)]
    net.one.apply(*net.proxies[0].changes(by_key(services), by_key(slices)))
    assert reached() == chosen


def test_lifetimes():
    net = Net()
    net.serve(net.two.add_pod("10.244.2.9"))
    table = net.one.stack.lb.table

    def left(*flags):
        now = net.cluster.now
        for each in flags:
            net.client.send(tcp(net.client.address, VIP, 1, 80, each, 1, 1))
        net.cluster.run()
        return [entry.expires - now for entry in table.all(now)]

    assert left(SYN) == [60]
    assert left(ACK) == [8000]
    assert left(FIN | ACK) == [8000]
    assert left(RST) == [10]
    assert left(SYN) == [60]  # the port is used anew
    net.cluster.now += 50
    assert left(ACK) == [8000]
    net.cluster.wait(20, 1.0)
    assert left(RST) == [10]
    net.cluster.wait(12, 1.0)
    assert (table.count, len(table.entries)) == (0, 0)  # closed entries do not wait for their old time
    assert left(SYN) == [60]
    net.cluster.wait(62, 1.0)
    assert table.count == 0


# --- around it --------------------------------


def test_icmp_errors_about_translated_packets_come_back_translated():
    net = Net()
    server = net.two.add_pod("10.244.2.9")
    net.serve(server)
    net.client.send(udp(net.client.address, VIP, 4000, 80, b"x" * 20))
    net.cluster.run()
    (seen,) = server.take()
    quoted = packets.ipv4(seen.src, server.address, 17, udp(seen.src, server.address, seen.sport, 8080, b"x" * 20)[20:])
    server.send(packets.icmp(server.address, seen.src, 3, 3, bytes(4), quoted[:28]))
    net.cluster.run()
    (error,) = net.client.take()
    assert (error.src, error.icmp, error.bad) == (VIP, (3, 3), [])
    assert error.payload[16:24] == packets.ip(VIP) + (4000).to_bytes(2, "big") + (80).to_bytes(2, "big")


def test_too_big_from_outside_is_told_to_the_client():
    net = Net()
    net.know_router()
    net.serve(net.two.add_pod("10.244.2.9"))
    net.from_outside(udp(OUTSIDE, "192.168.1.11", 4000, 30080, b"x" * 1460))
    ((_, error),) = net.out()
    assert (error.dst, error.icmp, error.bad) == (OUTSIDE, (3, 4), [])
    assert error.payload[12:20] == packets.ip(OUTSIDE) + packets.ip("192.168.1.11")


def test_a_trace_names_map_key_value_and_service():
    net = Net()
    server = net.two.add_pod("10.244.2.9")
    net.serve(server)
    net.one.stack.trace(Subscribe(0))
    net.client.send(tcp(net.client.address, VIP, 40000, 80, SYN, 1, 0))
    net.cluster.run()
    steps = [step for hop in net.one.stack.traced for step in hop.steps if step.stage == "ebpf/from-container"]
    assert [step.action for step in steps] == ["lookup", "select", "dnat"]
    assert steps[0].rule.startswith("cilium_lb4_services_v2[10.96.0.50:80/TCP scope 0 slot 0] = count 1 rev_nat_index ")
    assert steps[1].rule.endswith("= 10.244.2.9:8080/TCP flags 0x0")
    assert {step.origin for step in steps} == {"Service ns/web:web"}


def test_a_connection_outlives_a_change_of_modes_in_both_directions():
    for before, after in (("ebpf", "iptables"), ("iptables", "ebpf"), ("nftables", "ebpf"), ("ebpf", "nftables")):
        net = Net(before)
        server = net.two.add_pod("10.244.2.9")
        net.serve(server)
        exchange(net, net.client, server, VIP, 80, 40000)
        net.proxies = [net.proxy(node, ProxyConfiguration(after)) for node in net.cluster.nodes]
        net.serve(server)
        net.client.send(tcp(net.client.address, VIP, 40000, 80, ACK | PSH, 105, 505, b"still"))
        net.cluster.run()
        (seen,) = server.take()
        assert (seen.src, seen.payload, seen.bad) == (net.client.address, b"still", [])
        server.send(tcp(server.address, seen.src, 8080, seen.sport, ACK | PSH, 505, 110, b"yes"))
        net.cluster.run()
        assert [(s.src, s.payload) for s in net.client.take()] == [(VIP, b"yes")]
        exchange(net, net.client, server, VIP, 80, 41000)
        assert all(not m.elements for m in net.one.stack.dump("bpf.maps", 0.0) if m.name == ebpf.SERVICES) == (after != "ebpf")


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_a_client_that_goes_to_the_backend_itself_from_the_port_it_had_for_the_service(proto):
    net = Net()
    server = net.one.add_pod("10.244.1.9")
    net.serve(server)

    def ends(source, target, sport, dport, flags):
        return tcp(source, target, sport, dport, flags, 100, 101) if proto == "tcp" else udp(source, target, sport, dport)

    for to, dport in ((VIP, 80), (server.address, 8080)):
        net.client.send(ends(net.client.address, to, 40000, dport, SYN), server.mac if to == server.address else "")
        net.cluster.run()
        [seen] = server.take()
        server.send(ends(server.address, seen.src, 8080, seen.sport, SYN | ACK), net.client.mac)
        net.cluster.run()
        assert [(s.src, s.sport, s.dport, s.bad) for s in net.client.take()] == [(to, dport, 40000, [])]


def test_a_syn_sent_again_after_a_change_of_modes_goes_to_the_same_server_from_the_same_port():
    for before, after in (("ebpf", "iptables"), ("iptables", "ebpf"), ("ipvs", "ebpf"), ("ebpf", "ipvs"), ("ipvs", "nftables")):
        net = Net(before)
        servers = [net.two.add_pod(f"10.244.2.{9 + i}") for i in range(8)]
        net.serve(*servers)
        syn = tcp(net.client.address, VIP, 40000, 80, SYN, 100, 0)
        net.client.send(syn)
        net.cluster.run()
        [(server, first)] = [(server, seen) for server in servers for seen in server.take()]
        net.proxies = [net.proxy(node, ProxyConfiguration(after)) for node in net.cluster.nodes]
        net.serve(*servers)
        net.client.send(syn)
        net.cluster.run()
        [(other, again)] = [(server, seen) for server in servers for seen in server.take()]
        assert (other.address, again.src, again.sport) == (server.address, first.src, first.sport), (before, after)


def test_map_operations_are_all_or_nothing():
    net = Net()
    net.serve(net.client)
    before = net.one.stack.dump("bpf.maps", net.cluster.now)
    good = BpfMapUpdate(ebpf.BACKENDS, {b"\x09\0\0\0": bytes(12)}, (b"\x01\0\0\0",))
    for bad, name in (
        (BpfMapUpdate(ebpf.SERVICES, {b"short": bytes(12)}), "EINVAL"),
        (BpfMapUpdate(ebpf.SERVICES, {bytes(12): b""}), "EINVAL"),
        (BpfMapUpdate(ebpf.CT), "ENOENT"),
        (BpfReplace(None, {"nothing": {}}), "ENOENT"),
    ):
        with pytest.raises(NetlinkError) as error:
            net.one.apply(good, bad)
        assert (error.value.errno_name, error.value.failed) == (name, 1)
    after = net.one.stack.dump("bpf.maps", net.cluster.now)
    assert {m.name: m.elements for m in before} == {m.name: m.elements for m in after}
