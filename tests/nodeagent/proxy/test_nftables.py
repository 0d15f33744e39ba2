"""The nftables mode: the rules of a port, the fixed part, names, and that differences lead where a whole compile does, in a real
datapath."""

from random import Random

import pytest
from hypothesis import given, settings
from nodeagent.proxy.test_iptables import CHANGES
from support.services import by_key, endpoint, endpoint_slice, port, service

from podwire_core import nft_text
from podwire_core import nftables as nft
from podwire_core.netlink import ConntrackDel, NftReplace, NftUpdate, SysctlSet, TablesReplace
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.stack import Stack
from podwire_nodeagent.proxy import modes, nftables
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.model import NodeFacts
from podwire_nodeagent.proxy.nftables import Proxier

HERE = NodeFacts("node1", "", ("192.168.1.11", "10.244.1.1"), ("10.244.1.0/24",))
CONFIG = ProxyConfiguration(mode="nftables", cluster_cidrs=("10.0.0.0/8",), service_cidrs=("172.30.0.0/16",))


def compiled(services=(), slices=(), config=CONFIG, here=HERE):
    """{chain: its rules as text}, {set or map: its elements as text}."""
    proxier = Proxier(config, here)
    proxier.changes(by_key(list(services)), by_key(list(slices)))
    return as_text(proxier.table())


def as_text(table):
    chains = {chain.name: [nft_text.rule(rule, 4) for rule in chain.rules] for chain in table.chains}
    return chains, {each.name: {nft_text.element(element) for element in each.elements} for each in table.sets}


def svc(name="svc1", namespace="ns1", ports=None, **more):
    return service(name, "172.30.0.41", ports, namespace, **more)


def slice_of(endpoints, name="svc1", namespace="ns1", ports=None):
    return endpoint_slice(name, endpoints, ports, namespace)


SERVICE = "service-ULMVA6XW-ns1/svc1/tcp/p80"
LOCAL, EXTERNAL, FIREWALL = (SERVICE.replace("service-", kind, 1) for kind in ("local-", "external-", "firewall-"))
ENDPOINT = "endpoint-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80"


def test_a_cluster_ip():
    chains, sets = compiled([svc()], [slice_of([endpoint("10.180.0.1")])])
    assert chains[SERVICE] == [
        "ip daddr 172.30.0.41 ip saddr != 10.0.0.0/8 jump mark-for-masquerade",
        f"numgen random mod 1 vmap {{ 0 : goto {ENDPOINT} }}",
    ]
    assert chains[ENDPOINT] == ["ip saddr 10.180.0.1 jump mark-for-masquerade", "meta l4proto tcp dnat to 10.180.0.1:80"]
    assert sets["service-ips"] == {f"172.30.0.41 . tcp . 80 : goto {SERVICE}"}
    assert sets["cluster-ips"] == {"172.30.0.41"}
    assert sets["nodeport-ips"] == {"192.168.1.11"}  # by default the primary address


def test_the_fixed_part():
    chains, _ = compiled()
    assert chains["services"] == [
        "ip daddr . meta l4proto . th dport vmap @service-ips",
        "ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports",
    ]
    assert chains["cluster-ips-check"] == [
        'ip daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"',
        'ip daddr 172.30.0.0/16 drop comment "Drop traffic to unallocated ClusterIPs"',
    ]
    assert chains["masquerading"] == [
        "meta mark & 0x00004000 == 0x00000000 return",
        "meta mark set meta mark ^ 0x00004000",
        "masquerade fully-random",
    ]
    assert chains["filter-input"] == ["ct state new jump nodeport-endpoints-check", "ct state new jump service-endpoints-check"]
    assert chains["reject-chain"] == ["reject"]


@pytest.mark.parametrize("everything", [("0.0.0.0/0",), ("0.0.0.0/0", "192.168.1.0/24")])
def test_node_ports_on_all_addresses_but_the_loopback(everything):
    chains, sets = compiled(config=ProxyConfiguration(mode="nftables", node_port_addresses=everything))
    assert "nodeport-ips" not in sets
    last = "ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @"
    assert chains["services"][-1] == f"fib daddr type local {last}service-nodeports"
    assert chains["nodeport-endpoints-check"] == [f"{last}no-endpoint-nodeports"]


def test_no_endpoints_reject_and_none_here_drop():
    outside = {"type": "NodePort", "externalIPs": ["192.0.2.1"], "ports": [port(80, nodePort=30080)]}
    _, sets = compiled([svc(**outside)])
    refused = 'comment "ns1/svc1:p80" : goto reject-chain'
    assert sets["no-endpoint-services"] == {f"{ip} . tcp . 80 {refused}" for ip in ("172.30.0.41", "192.0.2.1")}
    assert sets["no-endpoint-nodeports"] == {f"tcp . 30080 {refused}"}
    chains, sets = compiled([svc(**outside, externalTrafficPolicy="Local")], [slice_of([endpoint("10.180.0.1", "node2")])])
    assert sets["no-endpoint-services"] == {'192.0.2.1 . tcp . 80 comment "ns1/svc1:p80" : drop'}
    assert sets["service-nodeports"] == {f"tcp . 30080 : goto {EXTERNAL}"}
    assert chains[EXTERNAL] == [
        f'ip saddr 10.0.0.0/8 goto {SERVICE} comment "short-circuit pod traffic"',
        'fib saddr type local jump mark-for-masquerade comment "masquerade local traffic"',
        f'fib saddr type local goto {SERVICE} comment "short-circuit local traffic"',
    ]


def test_internal_traffic_policy_local():
    chains, sets = compiled(
        [svc(internalTrafficPolicy="Local")], [slice_of([endpoint("10.180.0.1", "node1"), endpoint("10.180.0.2", "node2")])]
    )
    assert sets["service-ips"] == {f"172.30.0.41 . tcp . 80 : goto {LOCAL}"}
    assert chains[LOCAL][-1] == f"numgen random mod 1 vmap {{ 0 : goto {ENDPOINT} }}"
    assert SERVICE not in chains


@pytest.mark.parametrize(
    ("ranges", "sources"),
    [(["203.0.113.0/25"], "203.0.113.0/25"), (["192.168.0.0/16", "10.0.0.0/8"], "{ 10.0.0.0/8, 192.168.0.0/16, 198.51.100.1 }")],
)
def test_source_ranges_guard_the_load_balancer(ranges, sources):
    given = {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}}
    spec = svc(type="LoadBalancer", loadBalancerSourceRanges=ranges, status=given)
    chains, sets = compiled([spec], [slice_of([endpoint("10.180.0.1")])])
    assert sets["firewall-ips"] == {f"198.51.100.1 . tcp . 80 : goto {FIREWALL}"}
    assert chains[FIREWALL] == [f"ip saddr != {sources} drop"]


def test_session_affinity():
    spec = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 61}}}
    proxier = Proxier(CONFIG, HERE)
    proxier.changes(by_key([svc(**spec)]), by_key([slice_of([endpoint("10.180.0.1")])]))
    chains, _ = as_text(proxier.table())
    affinity = ENDPOINT.replace("endpoint-", "affinity-")
    assert chains[SERVICE][1] == f"ip saddr @{affinity} goto {ENDPOINT}"
    assert chains[ENDPOINT][1] == f"update @{affinity} {{ ip saddr }}"
    (found,) = [each for each in proxier.table().sets if each.name == affinity]
    assert (found.dynamic, found.timeout) == (True, 61)


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        ({"masquerade_all": True}, "jump mark-for-masquerade"),
        ({"detect_local_mode": "NodeCIDR"}, "ip saddr != 10.244.1.0/24 jump mark-for-masquerade"),
        ({"detect_local_mode": "BridgeInterface", "bridge_interface": "cni0"}, 'iifname != "cni0" jump mark-for-masquerade'),
        (
            {"detect_local_mode": "InterfaceNamePrefix", "interface_name_prefix": "cn"},
            'iifname != "cn*" jump mark-for-masquerade',
        ),
        ({"cluster_cidrs": ()}, None),
    ],
)
def test_what_is_masqueraded_on_the_way_to_a_cluster_ip(config, rule):
    chains, _ = compiled([svc()], [slice_of([endpoint("10.180.0.1")])], ProxyConfiguration(mode="nftables", **config))
    assert chains[SERVICE][:-1] == ([f"ip daddr 172.30.0.41 {rule}"] if rule else [])


def test_long_names_are_cut():
    long = svc("s" * 63, "n" * 63, [port(80, "p" * 63)])
    chains, _ = compiled([long], [slice_of([endpoint("10.180.0.1")], "s" * 63, "n" * 63, [port(8080, "p" * 63)])])
    assert max(map(len, chains)) <= 240 + len("endpoint-")


# --- differences


def stack_of(proxier_ops):
    stack = Stack("node1", RandomChooser(Random(1)))
    stack.apply(proxier_ops, 0.0)
    return stack


def in_force(stack):
    """The datapath's table; the order in which things were made does not count."""
    (table,) = stack.dump("nftables", 0.0)
    chains = {chain.name: chain for chain in table.chains}
    sets = {each.name: (each.types, each.timeout, frozenset(each.elements)) for each in table.sets}
    return chains, sets


@settings(max_examples=80, deadline=None)
@given(CHANGES)
def test_differences_lead_where_a_whole_compile_does(rounds):
    proxier, objects = Proxier(CONFIG, HERE), ({}, {})
    stack = stack_of(proxier.restate())
    for specs, slices in rounds:
        services = {f"ns/{n}": s if s is None else service(n, f"172.30.0.{ord(n)}", **s) for n, s in specs.items()}
        ports = [port(80), port(53, "dns", "UDP")]
        changed = {f"ns/{n}-1": e if e is None else endpoint_slice(n, e, ports) for n, e in slices.items()}
        stack.apply(proxier.changes(services, changed), 0.0)
        for kept, new in zip(objects, (services, changed), strict=True):
            kept.update(new)
    fresh = Proxier(CONFIG, HERE)
    whole = fresh.changes(*({k: v for k, v in kept.items() if v is not None} for kept in objects))
    assert in_force(stack) == in_force(stack_of(whole))
    assert in_force(stack_of([NftReplace((nftables.compile(fresh.model, CONFIG),))])) == in_force(stack)


def test_one_service_more_touches_its_own_alone():
    proxier = Proxier(CONFIG, HERE)
    many = [service(f"s{i}", f"172.30.1.{i}") for i in range(200)]
    proxier.changes(by_key(many), by_key([endpoint_slice(f"s{i}", [endpoint("10.180.0.1")]) for i in range(200)]))
    (op,) = proxier.changes(by_key([svc()]), by_key([slice_of([endpoint("10.180.0.1")])]))
    assert isinstance(op, NftUpdate)
    assert {chain.name for chain in op.chains} == {SERVICE, ENDPOINT}
    assert {name: len(elements) for name, elements in op.elements.items()} == {"cluster-ips": 1, "service-ips": 1}
    assert not op.delete_elements
    assert not op.delete_chains
    assert not op.sets
    assert proxier.changes(by_key([svc()]), {}) == []
    (op,) = proxier.changes({"ns1/svc1": None}, {"ns1/svc1-1": None})
    assert set(op.delete_chains) == {SERVICE, ENDPOINT}


def test_an_affinity_timeout_that_changes():
    def affine(seconds):
        return svc(sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": seconds}})

    proxier, slices = Proxier(CONFIG, HERE), by_key([slice_of([endpoint("10.180.0.1")])])
    stack = stack_of(proxier.changes(by_key([affine(60)]), slices))
    stack.apply(proxier.changes(by_key([affine(90)]), {}), 0.0)
    whole = Proxier(CONFIG, HERE).changes(by_key([affine(90)]), slices)
    assert in_force(stack) == in_force(stack_of(whole))


def test_a_node_whose_addresses_change():
    proxier = Proxier(CONFIG, HERE)
    proxier.changes({}, {})
    (op,) = proxier.changes({}, {}, NodeFacts("node1", "", ("192.168.1.99",), ("10.244.1.0/24",)))
    assert op.delete_elements == {"nodeport-ips": (("192.168.1.11",),)}
    assert op.elements == {"nodeport-ips": (nft.Element(("192.168.1.99",)),)}


def test_udp_entries_of_an_endpoint_that_went():
    proxier, ports = Proxier(CONFIG, HERE), [port(53, "dns", "UDP")]
    proxier.changes(by_key([svc(ports=ports)]), by_key([slice_of([endpoint("10.180.0.1")], ports=ports)]))
    ops = proxier.changes({}, by_key([slice_of([], ports=ports)]))
    assert ConntrackDel("udp", "", "172.30.0.41", 53, "10.180.0.1") in ops


# --- beside other modes


def test_each_mode_clears_what_the_other_left():
    ours = modes.make(CONFIG, HERE)
    first = ours.changes({}, {})
    assert SysctlSet("net.ipv4.conf.all.route_localnet", "0") in first
    assert NftReplace() in modes.make(ProxyConfiguration(), HERE).changes({}, {})
    assert NftReplace() not in first
    assert any(isinstance(op, TablesReplace) for op in first)
    assert ours.changes({}, {}) == []
    assert ours.restate() == first
    stack = stack_of(first)
    stack.apply(modes.make(ProxyConfiguration(), HERE).changes({}, {}), 0.0)
    assert stack.dump("nftables", 0.0) == []
    stack.apply(ours.restate(), 0.0)
    names = {chain.name for dump in stack.dump("rules", 0.0) for chain in dump.table.chains}
    assert not [name for name in names if name.startswith("KUBE-")]
