"""Hops into passages into connections: across nodes, through translation, back again, and whatever order they come in."""

from hypothesis import given
from hypothesis import strategies as st

from podwire.journey import connections, join, totals
from podwire_core.trace import Digest, Hop, Step

CLIENT, SERVICE, BACKEND = "10.244.1.2", "10.96.0.7", "10.244.2.3"


def tcp(src, sport, dst, dport, flags="S", seq=1, **more):
    return Digest(src, dst, "tcp", sport, dport, flags=flags, seq=seq, length=60, **more)


def hop(node, time, entered, out=None, verdict="forwarded", **more):
    return Hop(node, 0, time, "veth", entered, more.pop("steps", []), verdict, out=out, **more)


def request():
    """A SYN through a Service to another node, and its answer."""
    translated = tcp(CLIENT, 4000, BACKEND, 80)
    back = tcp(BACKEND, 80, CLIENT, 4000, "SA", 9)
    dnat = Step("nat/PREROUTING", "dnat", evaluated=5)
    return [
        hop("node1", 1.0, tcp(CLIENT, 4000, SERVICE, 80), translated, tunnel_dst="192.168.1.12", steps=[dnat], ns=1000),
        hop("node2", 1.1, translated, translated, out_link="vethb"),
        hop("node2", 1.2, back, back, tunnel_dst="192.168.1.11"),
        hop("node1", 1.3, back, tcp(SERVICE, 80, CLIENT, 4000, "SA", 9), out_link="vetha"),
    ]


@given(st.permutations(range(4)))
def test_a_request_across_nodes_in_any_order(order):
    hops = request()
    passages = join([hops[i] for i in order])
    assert [[each.node for each in passage.hops] for passage in passages] == [["node1", "node2"], ["node2", "node1"]]
    [connection] = connections(passages)
    assert [passage.reply for passage in connection.passages] == [False, True]
    assert (connection.client, connection.client_port, connection.server, connection.server_port) == (CLIENT, 4000, SERVICE, 80)
    assert (connection.backend, connection.backend_port, connection.seen_as) == (BACKEND, 80, "")
    assert connection.opening() == passages


def test_totals():
    sums = totals(join(request()))
    assert (sums.packets, sums.hops, sums.rules, sums.tunnels, sums.datapath_ns) == (2, 4, 5, 2, 1000)
    assert abs(sums.seconds - 0.3) < 1e-9
    assert totals([]).packets == 0


def test_a_masqueraded_request_and_its_reply_are_one_connection():
    node, gateway = "192.168.1.11", "10.244.1.0"
    out = tcp(gateway, 5000, BACKEND, 80)
    back = tcp(BACKEND, 80, gateway, 5000, "SA", 9)
    hops = [
        hop("node1", 1.0, tcp(node, 4000, SERVICE, 80), out),
        hop("node2", 1.1, out, out),
        hop("node2", 1.2, back, back),
        hop("node1", 1.3, back, tcp(SERVICE, 80, node, 4000, "SA", 9)),
    ]
    [connection] = connections(join(hops))
    assert connection.seen_as == gateway
    assert [passage.reply for passage in connection.passages] == [False, True]


def test_a_retransmission_is_a_passage_of_its_own():
    first, second = request()[:2], [hop("node1", 2.0, *_ends(request()[0])), hop("node2", 2.1, *_ends(request()[1]))]
    passages = join(first + second)
    assert [[each.time for each in passage.hops] for passage in passages] == [[1.0, 1.1], [2.0, 2.1]]
    assert len(connections(passages)) == 1


def _ends(of):
    return of.entered, of.out


def test_what_was_dropped_has_no_successor():
    digest = tcp(CLIENT, 4000, BACKEND, 80)
    passages = join([hop("node1", 1.0, digest, verdict="dropped"), hop("node2", 1.1, digest, digest)])
    assert [passage.verdict for passage in passages] == ["dropped", "forwarded"]


def test_a_superframe_cut_on_the_way_is_still_joined():
    big = Digest(CLIENT, BACKEND, "tcp", 4000, 80, seq=100, flags="PA", length=60_000)
    cut = Digest(CLIENT, BACKEND, "tcp", 4000, 80, seq=100, flags="A", length=1450)
    [passage] = join([hop("node1", 1.0, big, big), hop("node2", 1.1, cut, cut)])
    assert [each.node for each in passage.hops] == ["node1", "node2"]


def test_echo_and_its_reply_are_one_connection():
    question = Digest(CLIENT, BACKEND, "icmp", 8, 0, ident=7, length=84)
    answer = Digest(BACKEND, CLIENT, "icmp", 0, 0, ident=9, length=84)
    [connection] = connections(join([hop("node1", 1.0, question, question), hop("node1", 1.1, answer, answer)]))
    assert [passage.reply for passage in connection.passages] == [False, True]


def test_an_icmp_error_belongs_to_the_connection_that_caused_it():
    syn = tcp(CLIENT, 4000, SERVICE, 80)
    error = Digest(SERVICE, CLIENT, "icmp", 3, 3, length=88)
    [connection] = connections(join([hop("node1", 1.0, syn, verdict="rejected"), hop("node1", 1.1, error, error)]))
    assert [passage.first.proto for passage in connection.passages] == ["tcp", "icmp"]


def test_two_connections_stay_two():
    hops = [hop("node1", 1.0 + port, tcp(CLIENT, port, SERVICE, 80), tcp(CLIENT, port, BACKEND, 80)) for port in (1, 2)]
    assert [each.client_port for each in connections(join(hops))] == [1, 2]


def test_arp_is_left_out():
    assert join([hop("node1", 1.0, Digest("a", "b", "arp"))]) == []


digests = st.builds(
    Digest,
    src=st.sampled_from(["a", "b"]),
    dst=st.sampled_from(["a", "b"]),
    proto=st.sampled_from(["tcp", "icmp", "arp"]),
    sport=st.integers(0, 11),
    seq=st.integers(0, 1),
)
hops_ = st.builds(
    Hop,
    node=st.sampled_from(["n1", "n2", "n3"]),
    seq=st.integers(0, 9),
    time=st.floats(0, 0.02),
    in_link=st.just("x"),
    entered=digests,
    steps=st.just([]),
    verdict=st.sampled_from(["forwarded", "dropped"]),
    out=st.none() | digests,
)


@given(st.lists(hops_, max_size=12))
def test_every_hop_is_in_exactly_one_passage_and_every_passage_in_one_connection(hops):
    passages = join(hops)
    ids = [id(each) for passage in passages for each in passage.hops]
    assert sorted(ids) == sorted(id(each) for each in hops if each.entered.proto != "arp")
    assert all(a.node != b.node for passage in passages for a, b in zip(passage.hops, passage.hops[1:], strict=False))
    found = connections(passages)
    assert sorted(id(p) for each in found for p in each.passages) == sorted(map(id, passages))
