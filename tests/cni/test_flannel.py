"""Flannel's VXLAN backend as tables: three nodes, what each kernel gets, its rules, and nodes that are not ready or wrong."""

from __future__ import annotations

import pytest

from podwire_cni.backends import flannel
from podwire_cni.runtime import Network
from podwire_core import agentapi
from podwire_core.iptables_save import print_tables
from podwire_core.netlink import AddrAdd, FdbAdd, LinkAdd, NeighAdd, RouteAdd, UnderlaySet


def node(number: int, cidr: str = "", published: bool = True) -> dict:
    addresses = [{"type": "Hostname", "address": f"node{number}"}, {"type": "InternalIP", "address": f"192.168.1.{10 + number}"}]
    cidr = cidr or f"10.244.{number}.0/24"
    obj = {"metadata": {"name": f"node{number}"}, "spec": {"podCIDR": cidr}, "status": {"addresses": addresses}}
    if published:
        obj["metadata"]["annotations"] = flannel.publish(obj, f"127.0.0.{10 + number}", agent_address=f"unix:/{number}")
    return obj


NODES = [node(1), node(2), node(3)]


def test_what_a_node_publishes():
    assert NODES[1]["metadata"]["annotations"] == {
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/backend-data": '{"VNI":1,"VtepMAC":"02:f1:c0:a8:01:0c"}',
        "flannel.alpha.coreos.com/public-ip": "192.168.1.12",
        "podwire.dev/underlay-host": "127.0.0.12",
        "podwire.dev/underlay-cable-port": "8473",
        "podwire.dev/uplink-mac": "02:00:c0:a8:01:0c",
        "podwire.dev/agent-address": "unix:/2",
    }
    assert flannel.publish({"metadata": {"name": "n"}}, "127.0.0.1") == {}


def own(n: int) -> list:
    return [
        LinkAdd("eth0", "uplink", mac=f"02:00:c0:a8:01:{10 + n:02x}", mtu=1500, replace=True),
        AddrAdd("eth0", f"192.168.1.{10 + n}/24", replace=True),
        RouteAdd("default", dev="eth0", via="192.168.1.1", src=f"192.168.1.{10 + n}", onlink=True, replace=True),
        LinkAdd("cni0", "bridge", mac=f"02:00:0a:f4:{n:02x}:01", mtu=1450, replace=True),
        AddrAdd("cni0", f"10.244.{n}.1/24", replace=True),
        LinkAdd(
            "flannel.1",
            "vxlan",
            mac=f"02:f1:c0:a8:01:{10 + n:02x}",
            mtu=1450,
            vni=1,
            local=f"192.168.1.{10 + n}",
            dstport=8472,
            replace=True,
        ),
        AddrAdd("flannel.1", f"10.244.{n}.0/32", replace=True),
    ]


def tunnel(n: int) -> list:
    mac = f"02:f1:c0:a8:01:{10 + n:02x}"
    return [
        NeighAdd(f"10.244.{n}.0", mac, "flannel.1", replace=True),
        FdbAdd(mac, "flannel.1", dst=f"192.168.1.{10 + n}", replace=True),
        RouteAdd(f"10.244.{n}.0/24", dev="flannel.1", via=f"10.244.{n}.0", onlink=True, proto="boot", replace=True),
    ]


def cable(n: int) -> list:
    return [UnderlaySet(f"192.168.1.{10 + n}", f"02:00:c0:a8:01:{10 + n:02x}", f"127.0.0.{10 + n}", 8473)]


@pytest.mark.parametrize(("number", "peers"), [(1, [2, 3]), (2, [1, 3]), (3, [1, 2])])
def test_the_state_of_each_of_three_nodes(number, peers):
    expected = own(number) + [op for peer in peers for op in cable(peer) + tunnel(peer)]
    assert flannel.desired(NODES[number - 1], NODES, gateway="192.168.1.1") == expected
    assert flannel.desired(NODES[number - 1], NODES[::-1], gateway="192.168.1.1") == expected  # whatever the order


def test_without_gateway_and_cable():
    ops = flannel.desired(NODES[0], NODES, cable=False)
    assert [op for op in ops if isinstance(op, UnderlaySet) or (isinstance(op, RouteAdd) and op.dst == "default")] == []


def test_a_node_without_pod_cidr_has_its_cable_only():
    bare = node(1)
    del bare["spec"]["podCIDR"]
    assert flannel.desired(bare, [bare, NODES[1]]) == own(1)[:2] + cable(2)
    assert flannel.desired({"metadata": {"name": "node1"}}, [NODES[1]]) == cable(2)


def test_a_peer_without_pod_cidr_has_no_tunnel():
    peer = node(2)
    del peer["spec"]["podCIDR"]
    assert flannel.desired(NODES[0], [peer]) == own(1)[:2] + own(1)[3:] + cable(2)


def test_the_first_ipv4_pod_cidr_counts():
    dual = node(2)
    dual["spec"] = {"podCIDR": "fd00::/64", "podCIDRs": ["fd00::/64", "10.244.2.0/24"]}
    assert flannel.desired(NODES[0], [dual]) == flannel.desired(NODES[0], [NODES[1]])


def test_more_addresses_of_a_node():
    several = node(1)
    several["status"]["addresses"] += [{"type": "InternalIP", "address": a} for a in ("fd00::1", "172.16.0.1")]
    addresses = [op.address for op in flannel.desired(several, []) if isinstance(op, AddrAdd) and op.dev == "eth0"]
    assert addresses == ["192.168.1.11/24", "172.16.0.1/32", "fd00::1/64"]


@pytest.mark.parametrize(
    "change",
    [
        {agentapi.FLANNEL_BACKEND_DATA: None},
        {agentapi.FLANNEL_BACKEND_DATA: "{"},
        {agentapi.FLANNEL_BACKEND_DATA: "[]"},
        {agentapi.FLANNEL_BACKEND_DATA: "{}"},
        {agentapi.FLANNEL_BACKEND_DATA: '{"VtepMAC":null}'},
        {agentapi.FLANNEL_BACKEND_DATA: '{"VtepMAC":"02:f1"}'},
        {agentapi.FLANNEL_PUBLIC_IP: None},
        {agentapi.FLANNEL_PUBLIC_IP: "node2"},
        {agentapi.FLANNEL_PUBLIC_IP: "fd00::2"},
        {agentapi.UNDERLAY_CABLE_PORT: "x"},
        {agentapi.UNDERLAY_CABLE_PORT: "0"},
        {agentapi.UNDERLAY_CABLE_PORT: "65536"},
        {agentapi.UPLINK_MAC: "x"},
    ],
)
def test_a_peer_that_published_nonsense_is_left_out(change):
    """One node's annotations must not keep the others from their network."""
    wrong = node(2)
    notes = wrong["metadata"]["annotations"] | change
    wrong["metadata"]["annotations"] = {key: value for key, value in notes.items() if value is not None}
    assert flannel.desired(NODES[0], [NODES[0], wrong, NODES[2]]) == flannel.desired(NODES[0], [NODES[2]])


def test_a_peer_that_has_not_published_is_left_out():
    assert flannel.desired(NODES[0], [node(2, published=False)]) == flannel.desired(NODES[0], [])


def test_a_peer_of_another_program_has_a_tunnel_and_no_cable():
    """Flannel's own annotations are enough for it."""
    peer = node(2)
    notes = peer["metadata"]["annotations"]
    peer["metadata"]["annotations"] = {key: value for key, value in notes.items() if key.startswith("flannel.")}
    assert flannel.desired(NODES[0], [peer]) == flannel.desired(NODES[0], []) + tunnel(2)


def test_a_peer_with_our_own_pod_cidr_has_no_tunnel():
    """For a moment, when a deleted node's podCIDR is given again; its route would take the place of our bridge's."""
    assert flannel.desired(NODES[0], [node(2, cidr="10.244.1.0/24")]) == flannel.desired(NODES[0], []) + cable(2)


# --- rules --------------------------------

RULES = """\
*nat
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.2.0/24 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.2.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.2.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
*filter
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
"""


def test_the_rules_are_flannels():
    lines = print_tables(flannel.tables(NODES[1])).splitlines()
    assert [line for line in lines if line[0] not in ":C"] == RULES.splitlines()
    assert {line for line in lines if line[0] == ":" and " ACCEPT " not in line} == {
        ":FLANNEL-POSTRTG - [0:0]",
        ":FLANNEL-FWD - [0:0]",
    }
    bare = node(1)
    del bare["spec"]["podCIDR"]
    assert flannel.tables(bare) == ()


# --- the configuration for pods --------------------------------


def test_the_network_configuration_for_pods():
    conf = flannel.net_conf(NODES[1], "/run/d.sock", "/var/ipam")
    network = Network.parse(conf)
    assert (network.name, network.version) == ("cbr0", "1.1.0")
    assert network.plugins == [
        {
            "type": "podwire",
            "bridge": "cni0",
            "mtu": 1450,
            "hairpinMode": True,
            "isDefaultGateway": True,
            "dataplane": "/run/d.sock",
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.244.2.0/24"}]],
                "dataDir": "/var/ipam",
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
    ]
