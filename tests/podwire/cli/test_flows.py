"""conntrack entries of several nodes, joined into flows."""

import msgspec

from podwire.cli.flows import join, text_of
from podwire_core.netlink import ConntrackInfo, TupleInfo


def entry(src, sport, dst, dport, reply_src, reply_sport, reply_dst, reply_dport, **more):
    original, reply = TupleInfo(src, dst, sport, dport), TupleInfo(reply_src, reply_dst, reply_sport, reply_dport)
    return ConntrackInfo("tcp", 100, original, reply, "ESTABLISHED", packets=(3, 2), bytes=(300, 200), **more)


def through_service():
    at_client = entry("10.244.1.2", 4000, "10.96.0.7", 80, "10.244.2.3", 8080, "10.244.1.2", 4000)
    at_server = entry("10.244.1.2", 4000, "10.244.2.3", 8080, "10.244.2.3", 8080, "10.244.1.2", 4000)
    return {"node1": [at_client], "node2": [at_server]}


def test_one_flow_of_two_entries():
    [flow] = join(through_service())
    assert flow.nodes == ["node1", "node2"]
    assert (flow.destination, flow.destination_port, flow.backend, flow.backend_port) == ("10.96.0.7", 80, "10.244.2.3", 8080)
    assert flow.seen_as == ""
    assert len(flow.entries) == 2


def test_masqueraded_on_the_way():
    tables = {
        "node1": [entry("192.168.1.11", 4000, "10.96.0.7", 80, "10.244.2.3", 80, "10.244.1.0", 5000)],
        "node2": [entry("10.244.1.0", 5000, "10.244.2.3", 80, "10.244.2.3", 80, "10.244.1.0", 5000)],
    }
    [flow] = join(tables)
    assert flow.seen_as == "10.244.1.0"
    assert flow.nodes == ["node1", "node2"]


def test_flows_of_one_node_are_not_joined_with_each_other():
    tables = {"node1": [*through_service()["node1"], *through_service()["node2"]]}
    assert len(join(tables)) == 2


def test_echo_requests_are_joined():
    original, reply = TupleInfo("a", "b", 8, 0, 7), TupleInfo("b", "a", 0, 0, 7)
    ping = ConntrackInfo("icmp", 30, original, reply)
    [flow] = join({"node1": [ping], "node2": [ConntrackInfo("icmp", 30, original, reply)]})
    assert flow.nodes == ["node1", "node2"]


def test_untranslated_flows_begin_at_the_clients_node():
    same = entry("10.244.2.2", 1, "10.244.1.3", 80, "10.244.1.3", 80, "10.244.2.2", 1)
    tables = {"node1": [same], "node2": [msgspec.structs.replace(same)]}
    assert [flow.nodes for flow in join(tables, {"10.244.2.2": "node2"})] == [["node2", "node1"]]
    assert [flow.nodes for flow in join(tables)] == [["node1", "node2"]]


def test_printed_with_names():
    text = text_of(join(through_service()), {"10.96.0.7": "Service default/web", "10.244.2.3": "pod default/web-0 on node2"})
    assert "10.96.0.7:80 (Service default/web)" in text
    assert "10.244.2.3:8080 (pod default/web-0)" in text
    assert "node1→node2" in text
