"""Virtual services and packets: requests, answers, errors, persistence, real servers that come and go, counters."""

from __future__ import annotations

from collections import Counter

import pytest
from support import packets
from support.stacks import Cluster

from podwire_core.ipvs import RealServer, VirtualService
from podwire_core.netlink import (
    AddrsUpdate,
    ConntrackDel,
    IpvsDel,
    IpvsReplace,
    IpvsServerSet,
    IpvsSet,
    LinkAdd,
    LinkDel,
    SysctlSet,
)

VIP, PORT = "10.96.0.10", 80
SYN, ACK, FIN, RST = 2, 16, 1, 4
BACKENDS = ("10.244.1.6", "10.244.2.7")


class Net:
    """Two nodes, a client and a backend on the first, a backend on the second."""

    def __init__(self, **service) -> None:
        self.cluster = Cluster(2)
        self.node, self.other = self.cluster.nodes
        self.client = self.node.add_pod("10.244.1.5")
        self.backends = {a: n.add_pod(a) for a, n in zip(BACKENDS, self.cluster.nodes, strict=True)}
        self.node.apply(LinkAdd("kube-ipvs0", "dummy"), AddrsUpdate("kube-ipvs0", (VIP,)))
        self.node.apply(SysctlSet("net.ipv4.vs.expire_nodest_conn", "1"), SysctlSet("net.ipv4.vs.expire_quiescent_template", "1"))
        self.serve(**service)
        self.sport = 40000

    def serve(self, *servers, protocol="tcp", graceful=False, **more) -> None:
        chosen = servers or tuple(RealServer(a, 8080) for a in BACKENDS)
        service = VirtualService(protocol, VIP, PORT, servers=chosen, origin="Service default/web:http", **more)
        self.node.apply(IpvsSet(service, graceful))

    def syn(self, sport=0, source=None):
        """Whom a new connection reaches, and what of it; None if nobody."""
        self.sport += 1
        source = source or self.client
        source.send(packets.tcp(source.address, VIP, sport or self.sport, PORT, SYN, 1, 0))
        self.cluster.run()
        return self.arrived()

    def arrived(self):
        for address, pod in self.backends.items():
            for seen in pod.take():
                assert not seen.bad
                return address, seen
        return None

    def open(self, sport):
        """A whole handshake."""
        address, seen = self.syn(sport)
        self.answer(address, seen, SYN | ACK)
        self.send(sport, ACK)
        return address

    def answer(self, address, seen, flags, data=b""):
        pod = self.backends[address]
        pod.send(packets.tcp(address, seen.src, 8080, seen.sport, flags, 1, 2, data))
        self.cluster.run()
        got = self.client.take()
        pod.take()
        return got

    def send(self, sport, flags, data=b""):
        self.client.send(packets.tcp(self.client.address, VIP, sport, PORT, flags, 2, 2, data))
        self.cluster.run()
        return self.arrived()

    def server(self, address):
        (service,) = self.node.stack.dump("ipvs", self.cluster.now)
        return next(s for s in service.servers if s.address == address)


@pytest.fixture
def net():
    return Net()


# --- there and back


def test_requests_go_to_real_servers_in_turn(net):
    reached = [net.syn() for _ in range(10)]
    assert Counter(address for address, _ in reached) == {BACKENDS[0]: 5, BACKENDS[1]: 5}
    for address, seen in reached:
        assert (seen.src, seen.dst, seen.dport) == (net.client.address, address, 8080)


@pytest.mark.parametrize("address", BACKENDS)  # behind the same bridge, and behind a tunnel
def test_answers_come_from_the_virtual_address(net, address):
    reached = dict(net.syn() for _ in range(2))
    (seen,) = net.answer(address, reached[address], SYN | ACK)
    assert (seen.src, seen.sport, seen.dst, seen.bad) == (VIP, PORT, net.client.address, [])


def test_a_connection_keeps_its_server(net):
    address = net.open(5000)
    assert {net.send(5000, ACK, b"x")[0] for _ in range(5)} == {address}


def test_the_ttl_is_decremented_once_and_ends(net):
    _, seen = net.syn()
    assert seen.ttl in (63, 62)  # by the second node too
    net.client.send(packets.tcp(net.client.address, VIP, 6000, PORT, SYN, 1, 0, ttl=1))
    net.cluster.run()
    (error,) = net.client.take()
    assert error.icmp == (11, 0)
    assert packets.decode_ip(error.payload, packets.Seen()).dst == VIP  # what it had sent, not what became of it


def test_the_node_itself_is_served(net):
    net.node.host.send(packets.tcp(net.node.ip, VIP, 5001, PORT, SYN, 1, 0))
    net.cluster.run()
    address, seen = net.arrived()
    net.backends[address].send(packets.tcp(address, net.node.ip, 8080, seen.sport, SYN | ACK, 1, 2))
    net.cluster.run()
    (back,) = [s for s in net.node.host.take() if s.proto == 6]
    assert (back.src, back.sport, back.dport) == (VIP, PORT, 5001)


def test_a_real_server_that_is_the_node_itself(net):
    net.serve(RealServer(net.node.ip, 6443))
    net.client.send(packets.tcp(net.client.address, VIP, 5002, PORT, SYN, 1, 0))
    net.cluster.run()
    (seen,) = [s for s in net.node.host.take() if s.proto == 6]
    assert (seen.dst, seen.dport) == (net.node.ip, 6443)
    net.node.host.send(packets.tcp(net.node.ip, net.client.address, 6443, seen.sport, SYN | ACK, 1, 2))
    net.cluster.run()
    (back,) = net.client.take()
    assert (back.src, back.sport) == (VIP, PORT)


def test_an_icmp_error_about_a_request_reaches_the_client_as_its_own(net):
    address, seen = net.syn()
    error = packets.icmp(address, net.client.address, 3, 3, bytes(4), seen.packet[:40])
    net.backends[address].send(error)
    net.cluster.run()
    (got,) = net.client.take()
    quoted = packets.decode_ip(got.payload, packets.Seen())
    assert (got.src, got.icmp, quoted.dst, got.bad) == (VIP, (3, 3), VIP, [])


# --- refusals


def test_without_a_real_server_the_port_is_unreachable(net):
    net.node.apply(IpvsSet(VirtualService("tcp", VIP, PORT)))
    assert net.syn() is None
    (error,) = net.client.take()
    assert (error.icmp, error.src) == ((3, 3), VIP)


def test_a_packet_of_no_connection_is_reset(net):
    assert net.send(7000, ACK) is None
    (reset,) = net.client.take()
    assert reset.flags & RST
    assert reset.src == VIP


def test_other_ports_of_the_address_are_not_its_affair(net):
    net.client.send(packets.tcp(net.client.address, VIP, 7001, 81, SYN, 1, 0))
    net.cluster.run()
    assert [seen.dport for seen in net.node.host.take() if seen.proto == 6] == [81]


def test_a_deleted_service_is_no_more(net):
    net.node.apply(IpvsDel("tcp", VIP, PORT))
    assert net.syn() is None
    assert net.node.stack.dump("ipvs", 0) == []


# --- real servers come and go


def test_a_quiescent_server_keeps_its_connections_and_gets_no_new_ones(net):
    first, second = net.open(5000), net.open(5001)
    net.node.apply(IpvsServerSet("tcp", VIP, PORT, RealServer(first, 8080, 0), replace=True))
    assert {net.syn()[0] for _ in range(4)} == {second}
    assert net.send(5000, ACK, b"x")[0] == first


def test_a_deleted_server_ends_its_connections(net):
    first = net.open(5000)
    other = next(a for a in BACKENDS if a != first)
    net.serve(RealServer(other, 8080))
    assert net.send(5000, ACK, b"x") is None
    assert net.syn(5000)[0] == other  # the client tries again


def test_termination_waits_for_the_last_connection(net):
    first = net.open(5000)
    other = next(a for a in BACKENDS if a != first)
    net.serve(RealServer(other, 8080), graceful=True)
    server = net.server(first)
    assert (server.weight, server.terminating, server.active) == (0, True, 1)
    net.cluster.wait(120, 30)
    assert net.send(5000, ACK, b"x")[0] == first
    net.send(5000, RST)
    net.cluster.wait(180, 30)
    (service,) = net.node.stack.dump("ipvs", net.cluster.now)
    assert [s.address for s in service.servers] == [other]


def test_a_terminating_server_that_comes_back_is_as_new(net):
    first = net.open(5000)
    net.serve(RealServer(next(a for a in BACKENDS if a != first), 8080), graceful=True)
    net.serve(graceful=True)
    assert (net.server(first).weight, net.server(first).terminating) == (1, False)
    net.send(5000, RST)
    net.cluster.wait(180, 30)
    assert net.server(first).weight == 1


def test_idle_servers_go_at_once(net):
    net.serve(RealServer(BACKENDS[1], 8080), graceful=True)
    (service,) = net.node.stack.dump("ipvs", 0)
    assert [s.address for s in service.servers] == [BACKENDS[1]]


def test_replacing_the_table_keeps_what_stays(net):
    address = net.open(5000)
    same = VirtualService("tcp", VIP, PORT, servers=tuple(RealServer(a, 8080) for a in BACKENDS))
    net.node.apply(IpvsReplace((same,)))
    assert net.send(5000, ACK, b"x")[0] == address
    assert net.server(address).active == 1
    net.node.apply(IpvsReplace(()))
    assert net.node.stack.dump("ipvs", 0) == []


def test_connections_outlive_ip_vs_when_they_are_handed_over(net):
    """As another mode of kube-proxy takes over: the virtual address is nobody's any more."""
    reached = {sport: net.open(sport) for sport in (5000, 5001)}
    net.node.apply(IpvsReplace(hand_over=True), AddrsUpdate("kube-ipvs0", replace=True), LinkDel("kube-ipvs0"))
    for sport, address in reached.items():
        got, seen = net.send(sport, ACK, b"x")
        assert got == address
        (back,) = net.answer(address, seen, ACK, b"y")
        assert (back.src, back.sport, back.bad) == (VIP, PORT, [])
    assert net.node.stack.dump("ipvs.connections", net.cluster.now) == []


# --- persistence


def test_a_client_comes_back_to_its_server():
    net = Net(persistent=100)
    other = net.node.add_pod("10.244.1.9")
    mine = {net.syn()[0] for _ in range(4)}
    theirs = {net.syn(source=other)[0] for _ in range(4)}
    assert len(mine) == len(theirs) == 1
    assert mine != theirs


def test_a_client_is_forgotten_after_the_timeout_and_not_while_it_is_connected():
    net = Net(persistent=10)
    first, _ = net.syn()
    net.node.stack.apply([ConntrackDel()], net.cluster.now)
    net.cluster.wait(11, 1)
    assert net.syn()[0] != first
    second = net.open(9000)
    net.cluster.wait(30, 5)
    assert net.syn()[0] == second


def test_a_quiescent_or_deleted_server_is_forgotten():
    net = Net(persistent=100)
    first, _ = net.syn()
    net.node.apply(IpvsServerSet("tcp", VIP, PORT, RealServer(first, 8080, 0), replace=True))
    assert net.syn()[0] != first


# --- counters


def test_connections_are_counted_by_state(net):
    address, seen = net.syn(5000)
    assert (net.server(address).active, net.server(address).inactive) == (1, 0)
    net.answer(address, seen, SYN | ACK)
    net.send(5000, ACK)
    net.send(5000, FIN | ACK)
    assert (net.server(address).active, net.server(address).inactive) == (0, 1)
    net.node.stack.apply([ConntrackDel()], net.cluster.now)
    assert (net.server(address).active, net.server(address).inactive) == (0, 0)
    assert net.server(address).stats[0] == 1


def test_least_connections_follow_the_counters():
    net = Net(scheduler="lc")
    first, second = net.open(5000), net.open(5001)
    assert {first, second} == set(BACKENDS)
    net.send(5001, RST)
    assert net.syn()[0] == second


def test_udp_is_inactive():
    net = Net(protocol="udp")
    net.node.apply(IpvsDel("tcp", VIP, PORT, missing_ok=True))
    net.client.send(packets.udp(net.client.address, VIP, 5000, PORT, b"x"))
    net.cluster.run()
    address, _ = net.arrived()
    assert (net.server(address).active, net.server(address).inactive) == (0, 1)


def test_the_flow_cache_carries_and_counts_established_connections(net):
    address = net.open(5000)
    for _ in range(3):
        net.send(5000, ACK, b"data")
    before = net.server(address).stats
    hits = net.node.stack.all_counters()["cache.hits"]
    for _ in range(5):
        assert net.send(5000, ACK, b"data")[0] == address
    after = net.server(address).stats
    assert net.node.stack.all_counters()["cache.hits"] >= hits + 5
    assert (after[1], after[3]) == (before[1] + 5, before[3] + 5 * 44)


def test_connections_are_listed(net):
    address = net.open(5000)
    (entry,) = net.node.stack.dump("ipvs.connections", net.cluster.now)
    assert (entry.protocol, entry.state, entry.client, entry.client_port) == ("tcp", "ESTABLISHED", net.client.address, 5000)
    assert (entry.virtual, entry.virtual_port, entry.server, entry.server_port) == (VIP, PORT, address, 8080)


def test_rates_rise_and_fall(net):
    for _ in range(20):
        address, _ = net.syn()
    net.cluster.wait(2.5)
    assert net.server(address).rates[0] > 0
    net.cluster.wait(60, 1)
    assert net.server(address).rates == (0, 0, 0, 0, 0)
