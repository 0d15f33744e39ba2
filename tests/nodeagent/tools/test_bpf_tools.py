"""bpftool and cilium-dbg print what the real ones print for the same maps (bpftool 7, cilium-dbg 1.16)."""

from __future__ import annotations

import json

import pytest
from support.packets import SYN, tcp
from support.services import by_key, endpoint, endpoint_slice, port, service
from support.stacks import Cluster

from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.ebpf import Proxier
from podwire_nodeagent.proxy.model import NodeFacts
from podwire_nodeagent.tools.__main__ import call
from podwire_nodeagent.tools.common import ToolError


class Fake:
    """A client over a stack in memory."""

    def __init__(self) -> None:
        self.cluster = Cluster(1)
        node = self.cluster.nodes[0]
        proxier = Proxier(ProxyConfiguration("ebpf"), NodeFacts("node1", "", ("192.168.1.11",), ("10.244.1.0/24",)))
        web = service("web", "10.96.0.50", [port(80, nodePort=30080)], type="NodePort", sessionAffinity="ClientIP")
        slices = endpoint_slice("web", [endpoint("10.244.1.5", "node1"), endpoint("10.244.1.6", "node1")], [port(80, port=8080)])
        self.pod, self.other = node.add_pod("10.244.1.5"), node.add_pod("10.244.1.6")
        node.apply(*proxier.changes(by_key([web]), by_key([slices])))
        self.stack = node.stack

    def dump(self, what):
        return self.stack.dump(what, self.cluster.now)

    def apply(self, ops):
        raise AssertionError("these tools only read")


@pytest.fixture(scope="module")
def client():
    return Fake()


def run(client, words):
    name, *argv = words.split()
    return call(name, argv, client)


def test_bpftool_dumps_short_elements_in_one_line(client):
    text = run(client, "bpftool map dump name cilium_lb4_serv")
    assert text.startswith("key: 0a 60 00 32 00 50 00 00  06 00 00 00  value: 30 2a 00 00 02 00 01 00  10 00 00 00\n")
    assert text.endswith("Found 9 elements\n")
    assert text == run(client, "bpftool map dump pinned /sys/fs/bpf/tc/globals/cilium_lb4_services_v2")
    assert json.loads(run(client, "bpftool -j map dump id 3"))[0] == {
        "key": ["0x01", "0x00"],
        "value": ["0x0a", "0x60", "0x00", "0x32", "0x00", "0x50"],
    }


def test_bpftool_shows_and_looks_up(client):
    assert run(client, "bpftool map show name cilium_lb4_reverse_nat").startswith(
        "3: hash  name cilium_lb4_reve  flags 0x1\n\tkey 2B"
    )
    key = "hex 01 00"
    assert run(client, f"bpftool map lookup name cilium_lb4_reverse_nat key {key}") == "key: 01 00  value: 0a 60 00 32 00 50\n"
    assert "Not found" in run(client, "bpftool map lookup name cilium_lb4_reverse_nat key 9 9")
    for wrong in ("map dump name nothing", "map dump id 99", "prog show", "map lookup id 3 key 1"):
        with pytest.raises(ToolError):
            run(client, f"bpftool {wrong}")


def test_cilium_lists_services(client):
    assert run(client, "cilium-dbg service list").splitlines()[:3] == [
        "ID   Frontend                 Service Type   Backend",
        "1    10.96.0.50:80/TCP        ClusterIP      1 => 10.244.1.5:8080/TCP (active)",
        "                                             2 => 10.244.1.6:8080/TCP (active)",
    ]
    assert run(client, "cilium-dbg bpf lb list").splitlines()[1:3] == [
        "10.96.0.50:80/TCP (0)        0.0.0.0:0 (1) (0) [ClusterIP, sessionAffinity, non-routable]",
        "10.96.0.50:80/TCP (1)        10.244.1.5:8080/TCP (1) (1)",
    ]
    assert run(client, "cilium bpf lb list --revnat").splitlines()[1] == "1    10.96.0.50:80"
    assert json.loads(run(client, "cilium-dbg service list -o json"))[1]["type"] == "NodePort"


def test_cilium_lists_connections_and_translations(client):
    client.cluster.nodes[0].host.send(tcp("192.168.1.11", "10.96.0.50", 4001, 80, SYN, 1, 0))
    client.cluster.run()
    lines = run(client, "cilium-dbg bpf ct list global").splitlines()
    assert lines[0].startswith("TCP SVC 192.168.1.11:4001 -> 10.96.0.50:80 expires=60 Packets=0 Bytes=0 Flags=0x0000 RevNAT=1 ")
    assert lines[1].startswith("TCP OUT 10.244.1.1:4001 -> 10.244.1.")
    out, back = run(client, "cilium-dbg bpf nat list").splitlines()
    assert out.startswith("TCP OUT 192.168.1.11:4001 -> 10.244.1.")
    assert out.endswith("XLATE_SRC 10.244.1.1:4001 Created=0sec ago NeedsCT=0")
    assert "XLATE_DST 192.168.1.11:4001" in back
    assert "key:\n" in run(client, "bpftool map dump name cilium_ct4_global")
    with pytest.raises(ToolError):
        run(client, "cilium-dbg status")
