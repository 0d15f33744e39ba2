"""Tables of nftables in force: what is refused leaves nothing, sets forget in time, flows are cached, drops name their chain."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from support.packets import ACK, SYN, tcp
from support.services import by_key, endpoint, endpoint_slice, port, service
from support.stacks import Cluster

from podwire_core import nftables as nft
from podwire_core.netlink import Apply, LinkAdd, NetlinkError, NftReplace, NftUpdate
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.stack import Stack
from podwire_nodeagent.proxy import modes
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.model import NodeFacts
from podwire_nodeagent.proxy.nftables import Proxier

DROP, GOTO_A = nft.Verdict("drop"), nft.Verdict("goto", "a")
TO_ADDRESS = ("daddr", "l4proto", "dport")
VMAP = nft.Set("m", ("ipv4_addr", "inet_proto", "inet_service"), True)
PLAIN = nft.Set("s", ("ipv4_addr",))
BASE = nft.Chain("base", (nft.Rule((nft.Lookup(TO_ADDRESS, "m"),)),), hook=nft.Hook("filter", "forward", 0))
TABLE = nft.Table(4, "t", "", (VMAP, PLAIN), (BASE, nft.Chain("a"), nft.Chain("b", (nft.Rule((nft.Verdict("jump", "a"),)),))))


def element(verdict=GOTO_A, address="10.0.0.1"):
    return nft.Element((address, "tcp", "80"), verdict)


@pytest.fixture
def stack():
    stack = Stack("node1", RandomChooser(Random(1)))
    stack.apply([NftReplace((TABLE,))], 0.0)
    return stack


def rule(*statements):
    return (nft.Rule(statements),)


DEEP = (*(nft.Chain(f"d{i}", rule(nft.Verdict("jump", f"d{i + 1}"))) for i in range(20)), nft.Chain("d20"))
REFUSED = [
    ("ENOENT", NftUpdate(4, "other")),
    ("ENOENT", NftUpdate(6, "t")),
    ("ENOENT", NftUpdate(4, "t", delete_elements={"m": (("10.0.0.1", "tcp", "80"),)})),
    ("ENOENT", NftUpdate(4, "t", elements={"m": (element(nft.Verdict("goto", "gone")),)})),
    ("ENOENT", NftUpdate(4, "t", elements={"gone": (element(),)})),
    ("ENOENT", NftUpdate(4, "t", delete_chains=("gone",))),
    ("ENOENT", NftUpdate(4, "t", chains=(nft.Chain("c", rule(nft.InSet(("daddr",), "gone"), DROP)),))),
    ("EEXIST", NftUpdate(4, "t", sets=(PLAIN,))),
    ("EEXIST", NftUpdate(4, "t", elements={"m": (element(), element(DROP))})),
    ("EEXIST", NftUpdate(4, "t", chains=(nft.Chain("a", hook=nft.Hook("nat", "output", -100)),))),
    ("EBUSY", NftUpdate(4, "t", delete_chains=("a",))),
    ("EBUSY", NftUpdate(4, "t", delete_sets=("m",))),
    ("ELOOP", NftUpdate(4, "t", chains=(nft.Chain("a", rule(nft.Verdict("jump", "b"))),))),
    ("ELOOP", NftUpdate(4, "t", chains=(nft.Chain("a", rule(nft.Lookup(TO_ADDRESS, "m"))),), elements={"m": (element(),)})),
    ("EOPNOTSUPP", NftUpdate(4, "t", chains=(nft.Chain("a", rule(nft.Verdict("jump", "base"))),))),
    ("EOPNOTSUPP", NftUpdate(4, "t", chains=(nft.Chain("n", hook=nft.Hook("nat", "forward", 0)),))),
    ("EMLINK", NftUpdate(4, "t", chains=DEEP)),
    ("EINVAL", NftUpdate(4, "t", elements={"m": (element(None),)})),
    ("EINVAL", NftUpdate(4, "t", elements={"s": (nft.Element(("fd00::1",)),)})),
    ("EINVAL", NftUpdate(4, "t", elements={"s": (nft.Element(("10.0.0.256",)),)})),
    ("EINVAL", NftUpdate(4, "t", elements={"s": (nft.Element(("010.0.0.1",)),)})),
    ("EINVAL", NftUpdate(4, "t", elements={"m": (nft.Element(("10.0.0.1", "tcp", "65536"), DROP),)})),
    ("EINVAL", NftUpdate(4, "t", elements={"m": (nft.Element(("10.0.0.1", "tcp"), DROP),)})),
    ("EINVAL", NftUpdate(4, "t", sets=(nft.Set("x", ("ether_addr",)),))),
    ("EINVAL", NftUpdate(4, "t", chains=(nft.Chain("with space"),))),
    ("EINVAL", NftUpdate(4, "t", chains=(nft.Chain("a", rule()),))),
    ("EINVAL", NftUpdate(4, "t", chains=(nft.Chain("a", rule(DROP, DROP)),))),
    ("EINVAL", NftUpdate(4, "t", chains=(nft.Chain("a", rule(nft.Random(()))),))),
    ("EINVAL", NftUpdate(4, "t", chains=(nft.Chain("a", rule(nft.Update("s"))),))),
    ("EINVAL", NftUpdate(4, "t", chains=(nft.Chain("a", rule(nft.Lookup(("daddr",), "m"))),))),
    ("EINVAL", NftUpdate(4, "t", chains=(nft.Chain("a", rule(nft.L4Proto("gre"), DROP)),))),
    ("EINVAL", NftUpdate(4, "t", chains=(nft.Chain("a", rule(nft.Address("saddr", ("fd00::/8",)), DROP)),))),
    ("EINVAL", NftUpdate(4, "t", chains=(nft.Chain("a", rule(nft.Dnat("10.0.0.1", 0))),))),
    ("EINVAL", NftReplace((TABLE, TABLE))),
]  # fmt: skip


@pytest.mark.parametrize(("errno", "op"), REFUSED)
def test_what_is_refused_leaves_nothing(stack, errno, op):
    before = stack.dump("nftables", 0.0)
    good = NftUpdate(4, "t", chains=(nft.Chain("new"),), elements={"s": (nft.Element(("10.0.0.9",)),)})
    with pytest.raises(NetlinkError) as error:
        stack.apply([good, op], 0.0)
    assert (error.value.errno_name, error.value.failed) == (errno, 1)
    assert stack.dump("nftables", 0.0) == before
    stack.apply([good, LinkAdd("x", "dummy")], 0.0)  # and uses are counted as before
    if errno != "EBUSY":
        stack.apply([NftUpdate(4, "t", delete_chains=("b",)), NftUpdate(4, "t", delete_chains=("a",))], 0.0)


def test_messages_survive_the_socket():
    for _, op in REFUSED:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(Apply(1, (op,))), type=Apply).ops == (op,)


def test_what_is_used_by_an_element_goes_after_it(stack):
    key = ("10.0.0.1", "tcp", "80")
    stack.apply([NftUpdate(4, "t", elements={"m": (element(),)})], 0.0)
    stack.apply([NftUpdate(4, "t", delete_elements={"m": (key,)}, delete_chains=("b", "a"))], 0.0)
    (table,) = stack.dump("nftables", 0.0)
    assert [chain.name for chain in table.chains] == ["base"]


# --- packets


def cluster_of(affinity=0, **spec):
    """Two nodes, a Service with a pod on each."""
    cluster = Cluster(2)
    first, second = cluster.nodes
    client, near, far = first.add_pod("10.244.1.5"), first.add_pod("10.244.1.6"), second.add_pod("10.244.2.6")
    if affinity:
        spec |= {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": affinity}}}
    proxier = Proxier(ProxyConfiguration(mode="nftables"), NodeFacts("node1", "", (first.ip,)))
    web = service("web", "10.96.0.50", [port(80, "http")], **spec)
    ends = [endpoint("10.244.1.6", "node1"), endpoint("10.244.2.6", "node2")]
    first.apply(*proxier.changes(by_key([web]), by_key([endpoint_slice("web", ends, [port(8080, "http")])])))
    return cluster, client, (near, far)


def hit(cluster, client, pods, sport, to="10.96.0.50", number=80):
    """Which pods a SYN reaches."""
    client.send(tcp(client.address, to, sport, number, SYN, 1, 0))
    cluster.run()
    return [pod.address for pod in pods for _ in pod.take()]


def test_affinity_lasts_for_its_timeout_and_survives_a_restatement():
    cluster, client, pods = cluster_of(affinity=60)
    chosen = {tuple(hit(cluster, client, pods, 2000 + i)) for i in range(20)}
    assert len(chosen) == 1
    stack = cluster.nodes[0].stack
    held = [s for table in stack.dump("nftables", cluster.now) for s in table.sets if s.timeout and s.elements]
    assert [(e.key, e.expires) for s in held for e in s.elements] == [(("10.244.1.5",), 60.0)]
    (table,) = stack.dump("nftables", cluster.now)
    sets = tuple(msgspec.structs.replace(s, elements=()) if s.timeout else s for s in table.sets)
    bare = msgspec.structs.replace(table, sets=sets)
    stack.apply([NftReplace((bare,))], cluster.now)
    assert {tuple(hit(cluster, client, pods, 2100 + i)) for i in range(20)} == chosen
    cluster.wait(61)
    stack.netfilter.nftables.expire(cluster.now)
    assert not any(s.elements for s in stack.netfilter.nftables.tables[4, "kube-proxy"].sets.values() if s.source.timeout)


def test_established_flows_are_cached_and_counted():
    cluster, client, pods = cluster_of()
    node = cluster.nodes[0]
    client.send(tcp(client.address, "10.96.0.50", 4000, 80, SYN, 1, 0))
    cluster.run()
    (server,) = [pod for pod in pods if pod.take()]
    server.send(tcp(server.address, client.address, 8080, 4000, SYN | ACK, 1, 2))
    cluster.run()
    for _ in range(10):
        client.send(tcp(client.address, "10.96.0.50", 4000, 80, ACK, 2, 2))
        cluster.run()
    assert len(server.take()) == 10
    assert node.stack.dump("counters", cluster.now)["cache.hits"] > 0
    forward = node.stack.netfilter.nftables.tables[4, "kube-proxy"].chains["filter-forward"]
    assert forward.policy.packets == 12  # every packet, cached or not


def test_connections_last_when_the_node_changes_its_mode():
    cluster, client, pods = cluster_of()
    client.send(tcp(client.address, "10.96.0.50", 4000, 80, SYN, 1, 0))
    cluster.run()
    (server,) = [pod for pod in pods if pod.take()]
    server.send(tcp(server.address, client.address, 8080, 4000, SYN | ACK, 1, 2))
    cluster.run()
    node = cluster.nodes[0]
    node.apply(*modes.make(ProxyConfiguration(), NodeFacts("node1", "", (node.ip,))).changes({}, {}))
    for _ in range(3):  # in iptables mode, and without that Service
        client.send(tcp(client.address, "10.96.0.50", 4000, 80, ACK, 2, 2))
        cluster.run()
    assert len(server.take()) == 3
    assert hit(cluster, client, pods, 4001) == []


def test_nat_where_it_cannot_be_does_nothing():
    cluster = Cluster(1)
    (node,) = cluster.nodes
    client, server = node.add_pod("10.244.1.5"), node.add_pod("10.244.1.6")
    wrong = {"forward": nft.Dnat("10.0.0.1", 1), "prerouting": nft.Masquerade(), "postrouting": nft.Dnat("10.0.0.1", 1)}
    kinds = {"forward": "filter", "prerouting": "nat", "postrouting": "nat"}
    chains = tuple(nft.Chain(hook, rule(what), hook=nft.Hook(kinds[hook], hook, 0)) for hook, what in wrong.items())
    node.apply(NftReplace((nft.Table(4, "t", chains=chains),)))
    client.send(tcp(client.address, server.address, 1000, 80, SYN, 1, 0))
    cluster.run()
    assert [seen.src for seen in server.take()] == [client.address]


def test_drops_and_rejections_name_the_chain():
    cluster, client, pods = cluster_of()
    stack = cluster.nodes[0].stack
    assert hit(cluster, client, pods, 5000, to="10.96.0.99") == []
    assert hit(cluster, client, pods, 5001, number=81) == []
    counters = stack.dump("counters", cluster.now)
    assert counters["drop.nftables.filter-forward"] == 1
    assert counters["reject.nftables.filter-forward"] == 1
