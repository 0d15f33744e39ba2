"""The router's kernel: stated on a real stack it stays, changes move only what changed, and packets go where they should."""

from __future__ import annotations

import json
from random import Random

import pytest
from support import packets

from podwire_core import agentapi
from podwire_core.netlink import LinkAdd, NeighAdd, RouteAdd, RouteDel
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.stack import Stack
from podwire_nodeagent.edge.desired import SYSCTLS, desired, outside_link, rules
from podwire_nodeagent.network import DUMPED, gateway_peer, reconcile
from podwire_nodeagent.tools.common import Words
from podwire_nodeagent.tools.ip import Options
from podwire_nodeagent.tools.ip_route import route as ip_route

LB = "198.51.100.1"


def node(number):
    ip = f"192.168.1.{10 + number}"
    notes = {
        agentapi.FLANNEL_BACKEND_DATA: json.dumps({"VtepMAC": "02:f1:00:00:00:01"}),
        agentapi.FLANNEL_PUBLIC_IP: ip,
        agentapi.UPLINK_MAC: f"02:00:c0:a8:01:{10 + number:02x}",
        agentapi.UNDERLAY_HOST: f"127.0.0.{10 + number}",
    }
    return {"kind": "Node", "metadata": {"name": f"node{number}", "annotations": notes}, "spec": {}, "status": {}}


NODES = [node(1), node(2), node(3)]
BOTH = {LB: ("node1", "node2")}


class Edge:
    def __init__(self, announced=BOTH):
        self.stack = Stack("edge", RandomChooser(Random(1)))
        self.stack.apply([LinkAdd("host0", "host", "02:00:00:00:00:01"), outside_link(), *SYSCTLS, rules()], 0.0)
        self.state(announced)

    def state(self, announced, nodes=NODES):
        ops = self.missing(announced, nodes)
        self.stack.apply(ops, 0.0)
        return ops

    def missing(self, announced=BOTH, nodes=NODES):
        return reconcile(desired(nodes, announced), {what: self.stack.dump(what, 0.0) for what in DUMPED})

    def send(self, link, src, dst, sport=4000):
        """(link, packet) pairs that leave, to neighbours that are known."""
        known = [NeighAdd(f"192.168.1.{last}", f"02:00:c0:a8:01:{last:02x}", "eth0") for last in (11, 12, 13)]
        self.stack.apply([*known, NeighAdd("203.0.113.10", "02:00:cb:00:71:0a", "eth1")], 0.0)
        index = self.stack.link_index(link)
        mac = next(info.mac for info in self.stack.dump("links", 0.0) if info.name == link)
        names = {each.index: each.name for each in self.stack.links}
        frame = packets.frame(mac, "02:00:00:00:00:77", packets.udp(src, dst, sport, 80, b"x"))
        out = self.stack.receive(index, memoryview(frame), 1.0)
        return [(names[index], packets.decode(bytes(buffer))) for index, buffer, _ in out]

    def dump(self, what):
        return self.stack.dump(what, 0.0)


def test_stated_twice_is_stated_once():
    assert Edge().missing() == []


def test_a_change_moves_one_route():
    edge = Edge()
    [op] = edge.state({LB: ("node1", "node2", "node3")})
    assert isinstance(op, RouteAdd)
    gone, come = edge.state({LB: ("node3",)})
    assert isinstance(gone, RouteDel)
    assert (come.via, come.nexthops) == ("192.168.1.13", ())
    assert [op.type for op in edge.state({LB: ()}) if isinstance(op, RouteAdd)] == ["unreachable"]
    assert [type(op) for op in edge.state({})] == [RouteDel]
    assert edge.missing({}) == []


def test_a_lost_node_is_no_hop():
    edge = Edge({LB: ("node1", "node2", "node9")})
    assert edge.missing(BOTH) == []


@pytest.mark.parametrize(
    ("link", "src", "dst", "out"),
    [
        ("eth1", "203.0.113.10", "192.168.1.12", "eth0"),
        ("eth1", "203.0.113.10", LB, "eth0"),
        ("eth0", "192.168.1.12", "203.0.113.10", "eth1"),
        ("eth0", "192.168.1.12", "8.8.8.8", "eth1"),
    ],
)
def test_ways(link, src, dst, out):
    [(name, seen)] = Edge().send(link, src, dst)
    assert (name, seen.src, seen.dst) == (out, src, dst)


@pytest.mark.parametrize(
    ("link", "src", "dst", "code"),
    [
        ("eth0", "192.168.1.12", "10.96.7.7", 1),  # a ClusterIP that nobody has: host unreachable
        ("eth1", "203.0.113.10", "10.244.1.5", 1),
        ("eth1", "203.0.113.10", "198.51.100.9", 1),
        ("eth0", "192.168.1.12", LB, 3),  # it came from a node and would go back to one: port unreachable
    ],
)
def test_refusals(link, src, dst, code):
    [(name, seen)] = Edge().send(link, src, dst)
    assert (name, seen.dst, seen.icmp) == (link, src, (3, code))


def test_as_ip_route_prints_it():
    edge = Edge()
    text = ip_route(Words(["show", LB]), Options(), edge)
    assert (
        text
        == f"{LB} proto static \n\tnexthop via 192.168.1.11 dev eth0 weight 1 \n\tnexthop via 192.168.1.12 dev eth0 weight 1 \n"
    )
    [found] = json.loads(ip_route(Words(["show", LB]), Options(json=True), edge))
    assert found["nexthops"][1] == {"gateway": "192.168.1.12", "dev": "eth0", "weight": 1, "flags": []}
    assert f"{LB} via 192.168.1.11 dev eth0" in ip_route(Words(["get", LB]), Options(), edge)


def test_the_edge_as_a_nodes_peer():
    [op] = gateway_peer("127.3.0.1")
    assert (op.node_ip, op.host, op.cable_port) == ("192.168.1.1", "127.3.0.1", 8473)
    assert gateway_peer("127.3.0.1:99")[0].cable_port == 99
    assert gateway_peer("") == []
