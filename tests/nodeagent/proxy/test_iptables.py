"""The iptables mode: rules of a port, the fixed chains, and that differences lead where a whole compile does."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.services import by_key, endpoint, endpoint_slice, port, service

from podwire_core import netfilter as nf
from podwire_core.netlink import ChainsUpdate, ConntrackDel, SysctlSet, TablesReplace
from podwire_nodeagent.proxy import iptables
from podwire_nodeagent.proxy.compose import compose
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.iptables import Proxier
from podwire_nodeagent.proxy.model import NodeFacts

HERE = NodeFacts("node1", "", ("192.168.1.11",), ("10.244.1.0/24",))
CONFIG = ProxyConfiguration(cluster_cidrs=("10.0.0.0/8",))


def compiled(services, slices=(), config=CONFIG, family=4):
    """{(table, chain): rules} of a fresh proxier."""
    proxier = Proxier(config, HERE, family)
    proxier.changes(by_key(list(services)), by_key(list(slices)))
    return as_chains(proxier.tables())


def as_chains(tables):
    return {(table.name, chain.name): chain.rules for table in tables for chain in table.chains}


def words(rule):
    """A rule as short text: what its matches and target say, without comments."""
    found = []
    for match in rule.matches:
        value = {f: getattr(match, f) for f in match.__struct_fields__}
        no = "!" if value.get("invert") else ""
        match match:
            case nf.Source():
                found.append(f"{no}-s {match.net}")
            case nf.Destination():
                found.append(f"{no}-d {match.net}")
            case nf.Protocol():
                found.append(match.name)
            case nf.DestinationPort():
                found.append(f"dport {match.low}")
            case nf.AddrType():
                found.append("from LOCAL" if match.src_type else "to LOCAL")
            case nf.Statistic():
                found.append(f"p {match.probability:.10f}")
            case nf.Recent():
                found.append(f"set {match.name}" if match.set else f"rcheck {match.name} {match.seconds}")
            case nf.InInterface():
                found.append(f"{no}-i {match.name}")
            case nf.Comment():
                pass
            case _:
                raise AssertionError(match)
    match rule.target:
        case nf.Jump():
            found.append(f"-> {rule.target.chain}")
        case nf.Dnat():
            found.append(f"DNAT {rule.target.address} {rule.target.port}")
        case nf.Verdict():
            found.append(rule.target.name)
        case nf.Reject():
            found.append(f"REJECT {rule.target.with_}")
    return " ".join(found)


def chain(chains, name, table="nat"):
    return [words(rule) for rule in chains[table, name]]


def comments(rules):
    return [m.text for rule in rules for m in rule.matches if isinstance(m, nf.Comment)]


# --- the rules of a port

SVC, SEP = "KUBE-SVC-XPGD46QRK7WJZT7O", "KUBE-SEP-SXIVWICOYRO3J4NJ"


def svc1(**spec):
    return service("svc1", "172.30.0.41", namespace="ns1", **spec)


def slice1(*addresses, node="node1"):
    return endpoint_slice("svc1", [endpoint(a, node) for a in addresses], namespace="ns1")


def test_a_cluster_ip():
    chains = compiled([svc1()], [slice1("10.180.0.1", "10.180.0.2")])
    assert chain(chains, "KUBE-SERVICES") == [f"-d 172.30.0.41/32 tcp dport 80 -> {SVC}", "to LOCAL -> KUBE-NODEPORTS"]
    to_masquerade, first, last = chain(chains, SVC)
    assert to_masquerade == "!-s 10.0.0.0/8 -d 172.30.0.41/32 tcp dport 80 -> KUBE-MARK-MASQ"
    assert first == f"p 0.5000000000 -> {SEP}"
    assert last.startswith("-> KUBE-SEP-")
    assert chain(chains, SEP) == ["-s 10.180.0.1/32 -> KUBE-MARK-MASQ", "tcp DNAT 10.180.0.1 80"]
    assert comments(chains["nat", SVC]) == [
        "ns1/svc1:p80 cluster IP",
        "ns1/svc1:p80 -> 10.180.0.1:80",
        "ns1/svc1:p80 -> 10.180.0.2:80",
    ]
    assert {rule.origin for rule in chains["nat", SVC]} == {"Service ns1/svc1:p80"}


def test_matches_stand_as_iptables_save_prints_them():
    (rule,) = compiled([svc1()], [slice1("10.180.0.1")])["nat", "KUBE-SERVICES"][:1]
    assert [type(m).__name__ for m in rule.matches] == ["Destination", "Protocol", "Comment", "DestinationPort"]


def test_nobody_serves():
    chains = compiled([svc1()])
    assert chain(chains, "KUBE-SERVICES", "filter") == ["-d 172.30.0.41/32 tcp dport 80 REJECT icmp-port-unreachable"]
    assert comments(chains["filter", "KUBE-SERVICES"]) == ["ns1/svc1:p80 has no endpoints"]
    assert ("nat", SVC) not in chains


def test_six_ports_make_probabilities_that_are_even():
    chains = compiled([svc1()], [slice1(*(f"10.180.0.{i}" for i in range(1, 7)))])
    assert [w.split()[1] for w in chain(chains, SVC)[1:-1]] == [f"{1 / n:.10f}" for n in (6, 5, 4, 3, 2)]


def test_affinity():
    svc = svc1(sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}})
    chains = compiled([svc], [slice1("10.180.0.1")])
    assert chain(chains, SVC)[1:] == [f"rcheck {SEP} 60 -> {SEP}", f"-> {SEP}"]
    assert chain(chains, SEP)[1] == f"tcp set {SEP} DNAT 10.180.0.1 80"


def test_external_policy_cluster():
    svc = svc1(
        type="LoadBalancer",
        ports=[port(80, nodePort=30080)],
        externalIPs=["192.168.99.11"],
        status={"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}},
    )
    chains = compiled([svc], [slice1("10.180.0.1")])
    ext = SVC.replace("SVC", "EXT")
    assert chain(chains, "KUBE-SERVICES")[1:3] == [
        f"-d 192.168.99.11/32 tcp dport 80 -> {ext}",
        f"-d 1.2.3.4/32 tcp dport 80 -> {ext}",
    ]
    assert chain(chains, "KUBE-NODEPORTS") == [f"tcp dport 30080 -> {ext}"]
    assert chain(chains, ext) == ["-> KUBE-MARK-MASQ", f"-> {SVC}"]


def test_external_policy_local():
    svc = svc1(type="LoadBalancer", ports=[port(80, nodePort=30080)], externalTrafficPolicy="Local", healthCheckNodePort=30000)
    ext, svl = SVC.replace("SVC", "EXT"), SVC.replace("SVC", "SVL")
    chains = compiled([svc], [slice1("10.180.0.1")])
    assert chain(chains, ext) == [
        f"-s 10.0.0.0/8 -> {SVC}",
        "from LOCAL -> KUBE-MARK-MASQ",
        f"from LOCAL -> {SVC}",
        f"-> {svl}",
    ]
    assert chain(chains, "KUBE-NODEPORTS", "filter") == ["tcp dport 30000 ACCEPT"]
    elsewhere = compiled([svc], [slice1("10.180.0.1", node="node2")])
    assert chain(elsewhere, ext)[-1] == f"from LOCAL -> {SVC}"
    assert chain(elsewhere, "KUBE-EXTERNAL-SERVICES", "filter") == ["tcp to LOCAL dport 30080 DROP"]
    assert comments(elsewhere["filter", "KUBE-EXTERNAL-SERVICES"]) == ["ns1/svc1:p80 has no local endpoints"]


def test_internal_policy_local():
    svc = svc1(internalTrafficPolicy="Local")
    svl = SVC.replace("SVC", "SVL")
    assert chain(compiled([svc], [slice1("10.180.0.1")]), svl)[0].endswith("-> KUBE-MARK-MASQ")
    elsewhere = compiled([svc], [slice1("10.180.0.1", node="node2")])
    assert chain(elsewhere, "KUBE-SERVICES", "filter") == ["-d 172.30.0.41/32 tcp dport 80 DROP"]
    assert ("nat", svl) not in elsewhere


def test_source_ranges():
    status = {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}
    svc = svc1(type="LoadBalancer", loadBalancerSourceRanges=["203.0.113.0/25", "192.168.1.0/24"], status=status)
    fw, ext = SVC.replace("SVC", "FW"), SVC.replace("SVC", "EXT")
    chains = compiled([svc], [slice1("10.180.0.1")])
    assert chain(chains, fw) == [
        f"-s 203.0.113.0/25 -> {ext}",
        f"-s 192.168.1.0/24 -> {ext}",
        f"-s 1.2.3.4/32 -> {ext}",  # since the node's own address is in a range
        "",
    ]
    assert chain(chains, "KUBE-PROXY-FIREWALL", "filter") == ["-d 1.2.3.4/32 tcp dport 80 DROP"]
    assert comments(chains["filter", "KUBE-PROXY-FIREWALL"]) == [f"ns1/svc1:p80 traffic not accepted by {fw}"]
    narrow = svc1(type="LoadBalancer", loadBalancerSourceRanges=["203.0.113.0/25"], status=status)
    assert len(chain(compiled([narrow], [slice1("10.180.0.1")]), fw)) == 2


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (ProxyConfiguration(masquerade_all=True), "-d 172.30.0.41/32 tcp dport 80 -> KUBE-MARK-MASQ"),
        (ProxyConfiguration(cluster_cidrs=()), "-> " + SEP),
        (ProxyConfiguration(detect_local_mode="NodeCIDR"), "!-s 10.244.1.0/24 -d 172.30.0.41/32 tcp dport 80 -> KUBE-MARK-MASQ"),
        (
            ProxyConfiguration(detect_local_mode="BridgeInterface", bridge_interface="cni0"),
            "-d 172.30.0.41/32 !-i cni0 tcp dport 80 -> KUBE-MARK-MASQ",
        ),
        (
            ProxyConfiguration(detect_local_mode="InterfaceNamePrefix", interface_name_prefix="veth"),
            "-d 172.30.0.41/32 !-i veth+ tcp dport 80 -> KUBE-MARK-MASQ",
        ),
    ],
)
def test_who_is_masqueraded(config, wanted):
    assert chain(compiled([svc1()], [slice1("10.180.0.1")], config), SVC)[0] == wanted


def test_ipv6():
    svc = service("svc1", "fd00:30::41", namespace="ns1", ports=[port(80, nodePort=30080)], type="NodePort")
    slices = [endpoint_slice("svc1", [endpoint("fd00::1")], namespace="ns1", family=6)]
    config = ProxyConfiguration(cluster_cidrs=("fd00::/16",))
    chains = compiled([svc], slices, config, 6)
    assert chain(chains, "KUBE-SERVICES") == [
        "-d fd00:30::41/128 tcp dport 80 -> " + SVC,
        "!-d ::1/128 to LOCAL -> KUBE-NODEPORTS",
    ]
    assert chains["filter", "KUBE-FIREWALL"] == ()
    assert chain(compiled([svc], [], config, 6), "KUBE-SERVICES", "filter")[0].endswith("REJECT icmp6-port-unreachable")


# --- the fixed part


def test_where_the_node_ports_are():
    def last(config):
        return [words(r) for r in iptables.node_port_rules(config, HERE, 4)]

    assert last(ProxyConfiguration()) == ["to LOCAL -> KUBE-NODEPORTS"]
    assert last(ProxyConfiguration(localhost_node_ports=False)) == ["!-d 127.0.0.0/8 to LOCAL -> KUBE-NODEPORTS"]
    some = ("192.168.1.0/24", "127.0.0.0/8")
    assert last(ProxyConfiguration(node_port_addresses=some)) == [
        "-d 192.168.1.11/32 -> KUBE-NODEPORTS",
        "-d 127.0.0.1/32 -> KUBE-NODEPORTS",
    ]
    assert last(ProxyConfiguration(node_port_addresses=some, localhost_node_ports=False)) == [
        "-d 192.168.1.11/32 -> KUBE-NODEPORTS"
    ]


def test_jumps_of_the_built_in_chains():
    chains = compiled([])
    targets = {key: [r.target.chain for r in rules] for key, rules in chains.items() if key[1] in nf.BUILTIN_CHAINS[key[0]]}
    assert targets["filter", "FORWARD"] == ["KUBE-PROXY-FIREWALL", "KUBE-FORWARD", "KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES"]
    assert targets["nat", "POSTROUTING"] == ["KUBE-POSTROUTING"]
    jump = chains["filter", "OUTPUT"][1]
    assert jump.matches == (nf.ConntrackState(("NEW",)), nf.Comment("kubernetes service portals"))


def test_the_first_statement_is_whole():
    first, *more = Proxier(CONFIG, HERE).changes({}, {})
    assert isinstance(first, TablesReplace)
    assert more == [SysctlSet("net.ipv4.conf.all.route_localnet", "1")]
    assert [t.name for t in first.tables] == ["nat", "filter", "mangle"]


def test_other_daemons_rules_come_behind():
    other = nf.Table(
        "nat", 4, (nf.Chain("POSTROUTING", (nf.Rule((), nf.Jump("FLANNEL-POSTRTG")),), "ACCEPT"), nf.Chain("FLANNEL-POSTRTG"))
    )
    (replace, _) = Proxier(CONFIG, HERE, others=(other,)).changes({}, {})
    chains = as_chains(replace.tables)
    assert [r.target.chain for r in chains["nat", "POSTROUTING"]] == ["KUBE-POSTROUTING", "FLANNEL-POSTRTG"]
    with pytest.raises(ValueError, match="FLANNEL-POSTRTG is written twice"):
        compose([other, msgspec.structs.replace(other, chains=(nf.Chain("FLANNEL-POSTRTG", policy="-"),))])


# --- differences


def some_services(n):
    services = [service(f"s{i}", f"10.96.1.{i}") for i in range(n)]
    return services, [endpoint_slice(f"s{i}", [endpoint(f"10.244.2.{i}")]) for i in range(n)]


def test_adding_one_touches_its_chains_and_the_shared_one():
    proxier = Proxier(CONFIG, HERE)
    services, slices = some_services(50)
    proxier.changes(by_key(services), by_key(slices))
    (update,) = proxier.changes(
        {"ns/new": service("new", "10.96.2.1")}, {"ns/new-1": endpoint_slice("new", [endpoint("10.244.2.200")])}
    )
    kinds = sorted(c.name.rpartition("-")[0] for c in update.chains)
    assert (update.table, kinds, update.delete) == ("nat", ["KUBE-SEP", "KUBE-SVC"], ())
    (shared,) = update.splices
    (splice,) = shared.splices
    assert (shared.chain, shared.length, splice.at, splice.old, len(splice.new)) == ("KUBE-SERVICES", 51, 0, (), 1)


def test_an_endpoint_more_leaves_the_shared_chains_alone():
    proxier = Proxier(CONFIG, HERE)
    services, slices = some_services(3)
    proxier.changes(by_key(services), by_key(slices))
    (update,) = proxier.changes({}, {"ns/s1-1": endpoint_slice("s1", [endpoint("10.244.2.1"), endpoint("10.244.2.9")])})
    assert sorted(c.name[:8] for c in update.chains) == ["KUBE-SEP", "KUBE-SVC"]
    (back,) = proxier.changes({}, {"ns/s1-1": slices[1]})
    assert [c.name[:8] for c in back.chains] == ["KUBE-SVC"]
    assert [name[:8] for name in back.delete] == ["KUBE-SEP"]


def test_the_last_endpoint_gone_moves_the_service_to_the_filter():
    proxier = Proxier(CONFIG, HERE)
    services, slices = some_services(2)
    proxier.changes(by_key(services), by_key(slices))
    nat, filters = proxier.changes({}, {"ns/s1-1": None})
    assert {c.name for c in nat.chains} == {"KUBE-SERVICES"}
    assert len(nat.delete) == 2
    assert [c.name for c in filters.chains] == ["KUBE-SERVICES"]


def test_nothing_changed_nothing_said():
    proxier = Proxier(CONFIG, HERE)
    services, slices = some_services(2)
    proxier.changes(by_key(services), by_key(slices))
    assert proxier.changes(by_key(services), by_key(slices)) == []


def test_large_clusters_drop_the_comments_of_endpoints(monkeypatch):
    monkeypatch.setattr(iptables, "LARGE_CLUSTER_ENDPOINTS", 3)
    proxier = Proxier(CONFIG, HERE)
    services, slices = some_services(4)
    proxier.changes(by_key(services[:3]), by_key(slices[:3]))
    before = apply({}, [proxier.restate()[0]])
    update = proxier.changes(by_key(services[3:]), by_key(slices[3:]))
    after = apply(before, update)
    assert after == as_chains(proxier.tables())
    texts = {text for (_, name), rules in after.items() if "-SEP-" in name for text in comments(rules)}
    assert texts == set()


def udp(number=53, **more):
    return [port(number, "dns", "UDP", **more)]


def test_stale_udp_entries():
    proxier = Proxier(CONFIG, HERE)
    svc = service("dns", "10.96.0.10", ports=udp(nodePort=30053), type="NodePort")
    two = endpoint_slice("dns", [endpoint("10.244.1.2"), endpoint("10.244.2.2")], udp())
    assert not any(isinstance(op, ConntrackDel) for op in proxier.changes({"ns/dns": svc}, {}))
    arrived = [op for op in proxier.changes({}, {"ns/dns-1": two}) if isinstance(op, ConntrackDel)]
    assert arrived == [
        ConntrackDel(proto="udp", orig_dst="10.96.0.10", orig_dport=53),
        ConntrackDel(proto="udp", orig_dport=30053),
    ]
    ops = proxier.changes({}, {"ns/dns-1": endpoint_slice("dns", [endpoint("10.244.1.2")], udp())})
    assert isinstance(ops[0], ChainsUpdate)
    assert ops[-2:] == [
        ConntrackDel(proto="udp", orig_dst="10.96.0.10", orig_dport=53, reply_src="10.244.2.2"),
        ConntrackDel(proto="udp", orig_dport=30053, reply_src="10.244.2.2"),
    ]
    gone = [op for op in proxier.changes({"ns/dns": None}, {}) if isinstance(op, ConntrackDel)]
    assert {op.reply_src for op in gone} == {"10.244.1.2"}


def test_tcp_entries_end_by_themselves():
    proxier = Proxier(CONFIG, HERE)
    services, slices = some_services(1)
    proxier.changes(by_key(services), by_key(slices))
    assert not any(isinstance(op, ConntrackDel) for op in proxier.changes({}, {"ns/s0-1": None}))


def spliced(rules, change):
    assert len(rules) == change.length
    made, behind = (), 0
    for splice in change.splices:
        assert splice.after == (rules[splice.at - 1] if splice.at else None)
        assert splice.old == rules[splice.at : splice.at + len(splice.old)]
        made += rules[behind : splice.at] + splice.new
        behind = splice.at + len(splice.old)
    return made + rules[behind:]


def apply(chains, ops):
    """A datapath that only keeps tables."""
    now = dict(chains)
    for op in ops:
        match op:
            case TablesReplace():
                now = as_chains(op.tables)
            case ChainsUpdate():
                now.update({(op.table, c.name): c.rules for c in op.chains})
                now.update({(op.table, c.chain): spliced(now[op.table, c.chain], c) for c in op.splices})
                for name in op.delete:
                    del now[op.table, name]
                jumped = {r.target.chain for rules in now.values() for r in rules if isinstance(r.target, nf.Jump)}
                assert jumped <= {name for _, name in now}, "a jump to a chain that is gone"
    return now


ADDRESSES = st.sampled_from([f"10.244.{n}.{i}" for n in (1, 2) for i in (2, 3)])
SPECS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]),
        "externalTrafficPolicy": st.sampled_from(["Local", "Cluster"]),
        "internalTrafficPolicy": st.sampled_from(["Local", "Cluster"]),
        "externalIPs": st.just(["192.0.2.1"]),
        "loadBalancerSourceRanges": st.just(["203.0.113.0/24"]),
        "healthCheckNodePort": st.just(32000),
        "sessionAffinity": st.just("ClientIP"),
        "ports": st.sampled_from([[port(80)], [port(80, nodePort=30080), port(53, "dns", "UDP")]]),
        "status": st.just({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}}),
    },
)
ENDPOINTS = st.lists(
    st.builds(
        lambda address, ready, terminating: endpoint(
            address, f"node{address.split('.')[2]}", ready=ready, serving=True, terminating=terminating
        ),
        ADDRESSES,
        st.booleans(),
        st.booleans(),
    ),
    max_size=4,
)
NAMES = st.sampled_from(["a", "b", "c"])
CHANGES = st.lists(
    st.tuples(st.dictionaries(NAMES, st.none() | SPECS, max_size=3), st.dictionaries(NAMES, st.none() | ENDPOINTS, max_size=3)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=80, deadline=None)
@given(CHANGES)
def test_differences_lead_where_a_whole_compile_does(rounds):
    proxier, chains, objects = Proxier(CONFIG, HERE), {}, ({}, {})
    for specs, slices in rounds:
        services = {f"ns/{n}": s if s is None else service(n, f"10.96.0.{ord(n)}", **s) for n, s in specs.items()}
        ports = [port(80), port(53, "dns", "UDP")]
        changed = {f"ns/{n}-1": e if e is None else endpoint_slice(n, e, ports) for n, e in slices.items()}
        chains = apply(chains, proxier.changes(services, changed))
        for kept, new in zip(objects, (services, changed), strict=True):
            kept.update(new)
    fresh = Proxier(CONFIG, HERE)
    (whole, *_) = fresh.changes(*({k: v for k, v in kept.items() if v is not None} for kept in objects))
    assert chains == as_chains(whole.tables)
    assert as_chains(iptables.compile(fresh.model, CONFIG)) == chains
