"""The IPVS mode: virtual services, sets, addresses and rules of ports, and that differences lead where a whole compile does."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.services import by_key, endpoint, endpoint_slice, port, service

from podwire_core import netfilter as nf
from podwire_core.iptables_save import parse, print_tables, rule_words
from podwire_core.netlink import ChainsUpdate, ConntrackDel, IpsetUpdate, IpvsSet, LinkAdd, SysctlSet
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.stack import Stack
from podwire_nodeagent.proxy import modes
from podwire_nodeagent.proxy.config import ConfigurationError, ProxyConfiguration, load
from podwire_nodeagent.proxy.ipvs import Proxier
from podwire_nodeagent.proxy.model import NodeFacts

HERE = NodeFacts("node1", "", ("192.168.1.11", "10.244.1.1"), ("10.244.1.0/24",))
CONFIG = ProxyConfiguration(mode="ipvs", cluster_cidrs=("10.0.0.0/8",))


def applied(*batches, stack=None):
    """The state of a datapath that got these operations."""
    stack = stack or Stack("node1", RandomChooser(Random(1)))
    for ops in batches:
        stack.apply(ops, 0.0)
    return stack


def state(stack):
    """What a mode has made, comparably: order says nothing in sets and lists of addresses."""
    services = {
        (s.protocol, s.address, s.port): (
            s.scheduler,
            s.persistent,
            s.flags,
            s.origin,
            [(r.address, r.port, r.weight) for r in s.servers],
        )
        for s in stack.dump("ipvs", 0)
    }
    sets = {s.name: (s.type, frozenset(s.elements)) for s in stack.dump("ipsets", 0)}
    addresses = {a.address for a in stack.dump("addrs", 0) if a.dev == "kube-ipvs0"}
    rules = [dump.table for dump in stack.dump("rules", 0)]
    return services, sets, addresses, rules


def compiled(services, slices=(), config=CONFIG, node=HERE):
    return state(applied(Proxier(config, node).changes(by_key(list(services)), by_key(list(slices)))))


def servers(services, *key):
    return [f"{address}:{number}" for address, number, weight in services[key][4] if weight == 1]


def svc(**spec):
    return service("web", "172.30.0.41", **spec)


SLICE = endpoint_slice("web", [endpoint("10.180.0.1", "node1"), endpoint("10.180.2.1", "node2")])
BOTH, LOCAL = ["10.180.0.1:80", "10.180.2.1:80"], ["10.180.0.1:80"]
BALANCED = {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}


def rules(tables, table, chain):
    (found,) = [c.rules for t in tables for c in t.chains if (t.name, c.name) == (table, chain)]
    return [rule_words(nf.Rule(tuple(m for m in r.matches if not isinstance(m, nf.Comment)), r.target)) for r in found]


def test_a_cluster_ip():
    services, sets, addresses, tables = compiled([svc()], [SLICE])
    assert services == {("tcp", "172.30.0.41", 80): ("rr", 0, (), "Service ns/web:p80", [(a.split(":")[0], 80, 1) for a in BOTH])}
    assert addresses == {"172.30.0.41/32"}
    assert sets["KUBE-CLUSTER-IP"] == ("hash:ip,port", {"172.30.0.41,tcp:80"})
    assert sets["KUBE-LOOP-BACK"] == ("hash:ip,port,ip", {"10.180.0.1,tcp:80,10.180.0.1"})
    assert sets["KUBE-IPVS-IPS"] == ("hash:ip", {"172.30.0.41"})
    assert rules(tables, "nat", "KUBE-SERVICES") == [
        "-s 127.0.0.0/8 -j RETURN",
        "! -s 10.0.0.0/8 -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ",
        "-m addrtype --dst-type LOCAL -j KUBE-NODE-PORT",
        "-m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT",
    ]
    assert rules(tables, "nat", "KUBE-POSTROUTING")[0] == "-m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE"


def test_a_service_of_every_kind_in_kube_proxys_order():
    everything = svc(
        type="LoadBalancer",
        ports=[port(80, nodePort=30080), port(53, protocol="UDP", nodePort=30053), port(9, protocol="SCTP", nodePort=30009)],
        externalIPs=["192.168.99.11"],
        loadBalancerSourceRanges=["203.0.113.0/25", "192.168.1.0/24", "0.0.0.0/0"],
        status=BALANCED,
    )
    services, sets, addresses, tables = compiled([everything], [SLICE])
    assert addresses == {f"{a}/32" for a in ("172.30.0.41", "192.168.99.11", "1.2.3.4")}
    assert {key for key in services if key[2] > 30000} == {
        (proto, address, number)
        for proto, number in (("tcp", 30080), ("udp", 30053), ("sctp", 30009))
        for address in HERE.addresses
    }
    assert sets["KUBE-NODE-PORT-TCP"] == ("bitmap:port", {"30080"})
    assert sets["KUBE-NODE-PORT-SCTP-HASH"] == ("hash:ip,port", {f"{a},sctp:30009" for a in HERE.addresses})
    assert {e for e in sets["KUBE-LOAD-BALANCER-SOURCE-CIDR"][1] if ",tcp:80," in e} == {
        f"1.2.3.4,tcp:80,{net}" for net in ("203.0.113.0/25", "192.168.1.0/24", "0.0.0.0/1", "128.0.0.0/1")
    }
    assert "1.2.3.4,tcp:80,1.2.3.4" in sets["KUBE-LOAD-BALANCER-SOURCE-IP"][1]  # the node may come in
    assert rules(tables, "nat", "KUBE-SERVICES")[1:] == [
        "-m set --match-set KUBE-LOAD-BALANCER dst,dst -j KUBE-LOAD-BALANCER",
        "! -s 10.0.0.0/8 -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ",
        "-m set --match-set KUBE-EXTERNAL-IP dst,dst -j KUBE-MARK-MASQ",
        "-m set --match-set KUBE-EXTERNAL-IP dst,dst -m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL -j ACCEPT",
        "-m set --match-set KUBE-EXTERNAL-IP dst,dst -m addrtype --dst-type LOCAL -j ACCEPT",
        "-m addrtype --dst-type LOCAL -j KUBE-NODE-PORT",
        "-m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT",
        "-m set --match-set KUBE-LOAD-BALANCER dst,dst -j ACCEPT",
    ]
    assert rules(tables, "nat", "KUBE-NODE-PORT") == [
        "-p tcp -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ",
        "-p udp -m set --match-set KUBE-NODE-PORT-UDP dst -j KUBE-MARK-MASQ",
        "-p sctp -m set --match-set KUBE-NODE-PORT-SCTP-HASH dst,dst -j KUBE-MARK-MASQ",
    ]
    assert rules(tables, "filter", "KUBE-PROXY-FIREWALL") == [
        "-m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -j KUBE-SOURCE-RANGES-FIREWALL"
    ]
    assert rules(tables, "filter", "KUBE-SOURCE-RANGES-FIREWALL") == [
        "-m set --match-set KUBE-LOAD-BALANCER-SOURCE-CIDR dst,dst,src -j RETURN",
        "-m set --match-set KUBE-LOAD-BALANCER-SOURCE-IP dst,dst,src -j RETURN",
        "-j DROP",
    ]
    assert [r.rpartition(" ")[2] for r in rules(tables, "filter", "INPUT")] == [
        "KUBE-IPVS-FILTER",
        "KUBE-PROXY-FIREWALL",
        "KUBE-NODE-PORT",
    ]


def test_external_traffic_policy_local():
    local = svc(
        type="LoadBalancer",
        ports=[port(80, nodePort=30080)],
        externalTrafficPolicy="Local",
        externalIPs=["192.168.99.11"],
        healthCheckNodePort=30000,
        status=BALANCED,
    )
    services, sets, _, tables = compiled([local], [SLICE])
    assert servers(services, "tcp", "172.30.0.41", 80) == BOTH
    for key in (("192.168.99.11", 80), ("1.2.3.4", 80), ("192.168.1.11", 30080)):
        assert servers(services, "tcp", *key) == LOCAL
    assert sets["KUBE-EXTERNAL-IP"][1] == set()
    assert sets["KUBE-EXTERNAL-IP-LOCAL"][1] == {"192.168.99.11,tcp:80"}
    assert sets["KUBE-NODE-PORT-LOCAL-TCP"][1] == sets["KUBE-NODE-PORT-TCP"][1] == {"30080"}
    assert sets["KUBE-HEALTH-CHECK-NODE-PORT"][1] == {"30000"}
    assert rules(tables, "nat", "KUBE-LOAD-BALANCER") == [
        "-m set --match-set KUBE-LOAD-BALANCER-LOCAL dst,dst -j RETURN",
        "-j KUBE-MARK-MASQ",
    ]


def test_policy_local_without_a_local_endpoint():
    remote = endpoint_slice("web", [endpoint("10.180.2.1", "node2")])
    services, *_ = compiled([svc(type="NodePort", externalTrafficPolicy="Local", ports=[port(80, nodePort=30080)])], [remote])
    assert servers(services, "tcp", "192.168.1.11", 30080) == ["10.180.2.1:80"]  # upstream's choice
    services, *_ = compiled([svc(internalTrafficPolicy="Local")], [remote])
    assert servers(services, "tcp", "172.30.0.41", 80) == []


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        ({"masquerade_all": True}, "-m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ"),
        ({"cluster_cidrs": ()}, "-m set --match-set KUBE-CLUSTER-IP src,dst -j KUBE-MARK-MASQ"),
        (
            {"detect_local_mode": "InterfaceNamePrefix", "interface_name_prefix": "veth"},
            "! -i veth+ -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ",
        ),
    ],
)
def test_who_is_masqueraded(config, rule):
    *_, tables = compiled([svc()], [SLICE], ProxyConfiguration(**{"mode": "ipvs", "cluster_cidrs": ("10.0.0.0/8",), **config}))
    assert rules(tables, "nat", "KUBE-SERVICES")[1] == rule


@pytest.mark.parametrize(
    ("given", "expected"), [((), set(HERE.addresses)), (("192.168.0.0/16",), {"192.168.1.11"}), (("127.0.0.0/8",), set())]
)
def test_node_port_addresses(given, expected):
    config = ProxyConfiguration(mode="ipvs", node_port_addresses=given)
    services, *_ = compiled([svc(type="NodePort", ports=[port(80, nodePort=30080)])], [SLICE], config)
    assert {address for _, address, number in services if number == 30080} == expected


def test_affinity_is_persistence_and_the_scheduler_is_the_configurations():
    services, *_ = compiled([svc(sessionAffinity="ClientIP")], [SLICE], ProxyConfiguration(mode="ipvs", ipvs_scheduler="mh"))
    assert services["tcp", "172.30.0.41", 80][:3] == ("mh", 10800, ("mh-port",))


def test_the_schedulers_name_is_checked():
    given = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "ipvs"}
    assert load({**given, "ipvs": {"scheduler": "wlc"}}).ipvs_scheduler == "wlc"
    assert load({**given, "ipvs": {"scheduler": ""}}).ipvs_scheduler == "rr"
    with pytest.raises(ConfigurationError, match=r"ipvs\.scheduler"):
        load({**given, "ipvs": {"scheduler": "best"}})


def test_what_is_printed_can_be_read_back():
    printed = print_tables(Proxier(CONFIG, HERE).tables())
    assert "--match-set KUBE-LOAD-BALANCER dst,dst -j RETURN" in printed
    assert print_tables(parse(printed, 4)) == printed


def test_external_addresses_that_the_node_has_are_not_bound():
    _, _, addresses, _ = compiled([svc(externalIPs=["192.168.1.11"])], [SLICE])
    assert addresses == {"172.30.0.41/32"}


# --- differences


def test_a_new_service_costs_a_few_operations():
    proxier = Proxier(CONFIG, HERE)
    proxier.changes(by_key([svc()]), by_key([SLICE]))
    ops = proxier.changes(by_key([service("other", "172.30.0.42")]), {})
    assert [type(op).__name__ for op in ops] == ["AddrsUpdate", "IpsetUpdate", "IpsetUpdate", "IpvsSet"]


def test_rules_change_with_the_first_and_the_last_element_of_a_set():
    proxier = Proxier(CONFIG, HERE)
    proxier.changes(by_key([svc()]), by_key([SLICE]))
    added = proxier.changes(by_key([service("ext", "172.30.0.42", externalIPs=["192.168.99.1"])]), {})
    assert [chain.name for op in added if isinstance(op, ChainsUpdate) for chain in op.chains] == ["KUBE-SERVICES"]
    assert not any(isinstance(op, ChainsUpdate) for op in proxier.changes(by_key([service("x", "172.30.0.43")]), {}))
    removed = proxier.changes({"ns/ext": None}, {})
    assert any(isinstance(op, ChainsUpdate) for op in removed)


def test_endpoints_that_go_are_terminated_gracefully():
    proxier = Proxier(CONFIG, HERE)
    proxier.changes(by_key([svc()]), by_key([SLICE]))
    (op,) = [o for o in proxier.changes({}, by_key([endpoint_slice("web", [endpoint("10.180.2.1")])])) if isinstance(o, IpvsSet)]
    assert op.graceful
    assert [s.address for s in op.service.servers] == ["10.180.2.1"]


def test_udp_connections_of_endpoints_that_go_are_deleted():
    dns = service("dns", "172.30.0.10", [port(53, protocol="UDP")])
    ports = [port(53, protocol="UDP")]
    proxier = Proxier(CONFIG, HERE)
    proxier.changes(by_key([dns]), by_key([endpoint_slice("dns", [endpoint("10.180.0.1"), endpoint("10.180.0.2")], ports)]))
    ops = proxier.changes({}, by_key([endpoint_slice("dns", [endpoint("10.180.0.2")], ports)]))
    assert ConntrackDel("udp", orig_dst="172.30.0.10", orig_dport=53, reply_src="10.180.0.1") in ops


def test_of_two_claims_the_first_by_name_counts_and_the_other_follows():
    one, two = (service(n, f"172.30.0.{i}", externalIPs=["192.168.99.1"]) for n, i in (("a", 1), ("b", 2)))
    proxier = Proxier(CONFIG, HERE)
    stack = applied(proxier.changes(by_key([two]), {}), proxier.changes(by_key([one]), {}))
    assert state(stack)[0]["tcp", "192.168.99.1", 80][3] == "Service ns/a:p80"
    stack.apply(proxier.changes({"ns/a": None}, {}), 0)
    assert state(stack)[0]["tcp", "192.168.99.1", 80][3] == "Service ns/b:p80"
    assert "192.168.99.1/32" in state(stack)[2]


SERVICES = st.builds(
    lambda name, ip, kind, extra, policy, affinity: service(
        name,
        f"172.30.0.{ip}",
        [port(80, nodePort=30000 + ip) if kind != "ClusterIP" else port(80), *([port(53, protocol="UDP")] if affinity else [])],
        type=kind,
        externalIPs=extra,
        externalTrafficPolicy=policy if kind != "ClusterIP" else "Cluster",
        sessionAffinity=affinity or "None",
        loadBalancerSourceRanges=["10.0.0.0/8"] if affinity else [],
        status={"loadBalancer": {"ingress": [{"ip": f"1.2.3.{ip % 2}"}]}} if kind == "LoadBalancer" else None,
    ),
    st.sampled_from("abc"),
    st.integers(1, 4),
    st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]),
    st.lists(st.sampled_from(["192.168.99.1", "192.168.1.11"]), max_size=2, unique=True),
    st.sampled_from(["Cluster", "Local"]),
    st.sampled_from(["", "ClientIP"]),
)
SLICES = st.builds(
    lambda name, ends: endpoint_slice(name, [endpoint(f"10.180.0.{i}", "node1" if i % 2 else "node2") for i in ends]),
    st.sampled_from("abc"),
    st.lists(st.integers(1, 4), max_size=3, unique=True),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(SERVICES, SLICES, st.sampled_from(["ns/a", "ns/b", "ns/c"])), min_size=1, max_size=10))
def test_differences_lead_where_a_whole_compile_does(steps):
    proxier, stack = Proxier(CONFIG, HERE), applied()
    services, slices = {}, {}
    for step in steps:
        changed = {"Service": {}, "EndpointSlice": {}}
        if isinstance(step, str):
            changed["Service"][step] = None
        else:
            changed[step["kind"]] = by_key([step])
        services |= changed["Service"]
        slices |= changed["EndpointSlice"]
        stack.apply(proxier.changes(changed["Service"], changed["EndpointSlice"]), 0)
    whole = applied(Proxier(CONFIG, HERE).changes(services, slices))
    assert state(stack) == state(whole)
    stack.apply(proxier.restate(), 0)
    assert state(stack) == state(whole)


def test_node_addresses_that_change_move_node_ports():
    proxier = Proxier(CONFIG, HERE)
    stack = applied(proxier.changes(by_key([svc(type="NodePort", ports=[port(80, nodePort=30080)])]), by_key([SLICE])))
    moved = NodeFacts("node1", "", ("192.168.1.99",), HERE.pod_cidrs)
    stack.apply(proxier.changes({}, {}, moved), 0)
    assert {address for _, address, number in state(stack)[0] if number == 30080} == {"192.168.1.99"}


# --- beside other modes


def test_another_mode_leaves_nothing_of_it():
    services, slices = by_key([svc(type="NodePort", ports=[port(80, nodePort=30080)])]), by_key([SLICE])
    stack = applied(modes.make(CONFIG, HERE).changes(services, slices))
    assert state(stack)[0]
    stack.apply(modes.make(ProxyConfiguration(mode="iptables"), HERE).changes(services, slices), 0)
    assert state(stack)[:3] == ({}, {}, set())
    assert not any(link.name == "kube-ipvs0" for link in stack.dump("links", 0))
    stack.apply(modes.make(CONFIG, HERE).changes(services, slices), 0)
    assert state(stack)[0]


def test_a_restart_states_everything_and_keeps_what_is_there():
    ops = Proxier(CONFIG, HERE).changes(by_key([svc()]), by_key([SLICE]))
    stack = applied(ops)
    (before,) = stack.netfilter.ipvs
    stack.apply(Proxier(CONFIG, HERE).changes(by_key([svc()]), by_key([SLICE])), 0)
    (after,) = stack.netfilter.ipvs
    assert after is before
    assert any(isinstance(op, LinkAdd) and op.name == "kube-ipvs0" for op in ops)
    assert SysctlSet("net.ipv4.vs.conntrack", "1") in ops
    assert not any(isinstance(op, IpsetUpdate) for op in ops)
