"""What a trace asks of the nodes."""

from podwire.cli.trace import Source, addresses_to_watch, outside


def node(number):
    addresses = [{"type": "InternalIP", "address": f"192.168.1.1{number}"}, {"type": "Hostname", "address": f"node{number}"}]
    return {
        "metadata": {"name": f"node{number}"},
        "spec": {"podCIDR": f"10.244.{number}.0/24"},
        "status": {"addresses": addresses},
    }


NODES = {f"node{number}": node(number) for number in (1, 2)}


def test_a_masqueraded_packet_is_asked_for_where_it_arrives():
    pod = "10.244.1.7"
    watched = addresses_to_watch(Source("pod", [pod], "node1", "default/a"), NODES)
    assert watched["node1"] == [pod, "192.168.1.12", "10.244.2.0", "10.244.2.1"]
    assert watched["node2"] == [pod, "192.168.1.11", "10.244.1.0", "10.244.1.1"]
    assert watched["edge"] == [pod, "192.168.1.11", "10.244.1.0", "10.244.1.1"]


def test_a_client_outside_is_no_node():
    watched = addresses_to_watch(outside(), NODES)
    assert "10.244.1.0" in watched["node2"]
    assert len(watched["edge"]) == 1
