"""The ebpf mode: what a Service becomes in the maps, numbers that stay, and that differences lead where a whole compile does."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.services import by_key, endpoint, endpoint_slice, port, service

from podwire_core import ebpf
from podwire_core.netlink import BpfMapUpdate, BpfReplace, ConntrackDel, TablesReplace
from podwire_nodeagent.proxy import modes
from podwire_nodeagent.proxy.config import ConfigurationError, ProxyConfiguration, load
from podwire_nodeagent.proxy.ebpf import Proxier
from podwire_nodeagent.proxy.ebpf_ids import Ids
from podwire_nodeagent.proxy.model import NodeFacts

HERE = NodeFacts("node1", "", ("192.168.1.11", "10.244.1.1"), ("10.244.1.0/24",))
CONFIG = ProxyConfiguration("ebpf", cluster_cidrs=("10.0.0.0/8",))


def compiled(*objects, config=CONFIG):
    proxier = Proxier(config, HERE)
    kinds = {kind: by_key([o for o in objects if o["kind"] == kind]) for kind in ("Service", "EndpointSlice")}
    proxier.changes(kinds["Service"], kinds["EndpointSlice"])
    return proxier


def meaning(maps):
    """The maps with every number replaced by what it stands for."""
    backends = {ebpf.unpack_backend_key(k): ebpf.unpack_backend(v) for k, v in maps[ebpf.BACKENDS].items()}
    fronts = {ebpf.unpack_index(k): ebpf.unpack_reverse_nat(v) for k, v in maps[ebpf.REVERSE_NAT].items()}
    services = {}
    for key, value in maps[ebpf.SERVICES].items():
        k, s = ebpf.unpack_service_key(key), ebpf.unpack_service(value)
        assert fronts[s.rev_nat_index] == (k.address, k.dport)
        services[k] = (backends[s.first] if k.slot else s.first, s.backend_count, s.flags, s.flags2)
    assert len(set(backends.values())) == len(backends)
    matches = {(backends[b], fronts[i]) for b, i in map(ebpf.unpack_affinity_match, maps[ebpf.AFFINITY_MATCH])}
    ranges = {(fronts[i], plen, a) for i, plen, a in map(ebpf.unpack_source_range, maps[ebpf.SOURCE_RANGES])}
    names = {fronts[ebpf.unpack_index(k)]: name for k, name in maps[ebpf.NAMES].items()}
    return services, set(backends.values()), matches, ranges, set(names.values())


def masters(proxier):
    """{(address, port, scope): (count, flags, flags2)}"""
    found = {}
    for key, value in proxier.maps()[ebpf.SERVICES].items():
        k, s = ebpf.unpack_service_key(key), ebpf.unpack_service(value)
        if not k.slot:
            found[str(ip_address(k.address)), k.dport, k.scope] = s.backend_count, s.flags, s.flags2
    return found


TWO = endpoint_slice("web", [endpoint("10.244.1.5", "node1"), endpoint("10.244.2.5", "node2")], [port(80, port=8080)])


def test_elements_are_ciliums_structs():
    maps = compiled(service("web", "10.96.0.50"), endpoint_slice("web", [endpoint("10.244.1.5", "node1")])).maps()
    head, tail = bytes((10, 96, 0, 50, 0, 80)), bytes((6, 0, 0, 0))
    assert maps[ebpf.SERVICES] == {
        head + b"\0\0" + tail: bytes((0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0)),
        head + b"\1\0" + tail: bytes((1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0)),
    }
    assert maps[ebpf.BACKENDS] == {bytes((1, 0, 0, 0)): bytes((10, 244, 1, 5, 0, 80, 6, 0, 0, 0, 0, 0))}
    assert maps[ebpf.REVERSE_NAT] == {b"\1\0": head}
    assert maps[ebpf.NAMES] == {b"\1\0": b"ns/web:p80"}


def test_frontends_of_every_kind():
    ingress = {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}
    spec = {"type": "LoadBalancer", "externalIPs": ["5.6.7.8"], "loadBalancerSourceRanges": ["203.0.113.0/24"]}
    slices = endpoint_slice("web", [endpoint("10.244.2.5", "node2")])
    proxier = compiled(service("web", "10.96.0.50", [port(80, nodePort=30080)], status=ingress, **spec), slices)
    routable = ebpf.ROUTABLE
    assert masters(proxier) == {
        ("10.96.0.50", 80, 0): (1, 0, 0),
        ("5.6.7.8", 80, 0): (1, ebpf.EXTERNAL_IP | routable, 0),
        ("1.2.3.4", 80, 0): (1, ebpf.LOADBALANCER | routable | ebpf.SOURCE_RANGE, 0),
        **{(a, 30080, 0): (1, ebpf.NODEPORT | routable, 0) for a in ("192.168.1.11", "10.244.1.1", "127.0.0.1")},
    }


def test_policy_local_has_two_scopes_and_tells_nowhere_from_not_here():
    def scopes(endpoints):
        web = service("web", "10.96.0.50", [port(80, nodePort=30080)], type="NodePort", externalTrafficPolicy="Local")
        found = masters(compiled(web, endpoint_slice("web", endpoints)))
        return found["192.168.1.11", 30080, 0], found["192.168.1.11", 30080, 1]

    flags = ebpf.NODEPORT | ebpf.ROUTABLE
    outer, inner = scopes([endpoint("10.244.2.5", "node2")])
    assert (outer, inner[0]) == ((0, flags | ebpf.EXT_LOCAL_SCOPE, ebpf.TWO_SCOPES), 1)
    outer, inner = scopes([endpoint("10.244.2.5", "node2"), endpoint("10.244.1.5", "node1")])
    assert (outer[0], inner[0]) == (1, 2)
    outer, inner = scopes([])
    assert outer == inner == (0, flags, ebpf.TWO_SCOPES)


def test_backends_are_shared_and_keep_their_numbers():
    proxier = compiled(service("a", "10.96.0.1"), service("b", "10.96.0.2"), endpoint_slice("a", [endpoint("10.244.1.5")]))
    ops = proxier.changes({}, by_key([endpoint_slice("b", [endpoint("10.244.1.5"), endpoint("10.244.1.6")])]))
    assert {op.map for op in ops} == {ebpf.SERVICES, ebpf.BACKENDS}
    assert [list(op.elements) for op in ops if op.map == ebpf.BACKENDS] == [[ebpf.pack_backend_key(1), ebpf.pack_backend_key(2)]]
    ops = proxier.changes({"ns/a": None}, {})
    assert [op for op in ops if op.map == ebpf.BACKENDS] == []  # b still has it
    assert ebpf.pack_backend_key(1) in proxier.maps()[ebpf.BACKENDS]
    ops = proxier.changes({"ns/b": None}, {})
    assert [set(op.delete) for op in ops if op.map == ebpf.BACKENDS] == [{ebpf.pack_backend_key(1), ebpf.pack_backend_key(2)}]
    assert not any(proxier.maps().values())


def test_a_change_touches_its_own_service_only():
    many = [service(f"s{n}", f"10.96.1.{n}") for n in range(200)]
    proxier = compiled(*many, *(endpoint_slice(f"s{n}", [endpoint(f"10.244.3.{n}")]) for n in range(200)))
    ops = proxier.changes(by_key([service("new", "10.96.2.1")]), by_key([endpoint_slice("new", [endpoint("10.244.4.1")])]))
    assert {op.map: (len(op.elements), len(op.delete)) for op in ops} == {
        ebpf.SERVICES: (2, 0),
        ebpf.BACKENDS: (1, 0),
        ebpf.REVERSE_NAT: (1, 0),
        ebpf.NAMES: (1, 0),
    }


def test_two_services_that_claim_one_address():
    first, second = (service(n, f"10.96.0.{ord(n)}", externalIPs=["1.2.3.4"]) for n in "ab")
    slices = [endpoint_slice(n, [endpoint(f"10.244.1.{ord(n)}")]) for n in "ab"]
    proxier = compiled(second, slices[1])
    assert meaning(proxier.maps()) == meaning(compiled(second, *slices).maps())
    proxier.changes(by_key([first]), by_key([slices[0]]))
    assert meaning(proxier.maps()) == meaning(compiled(first, second, *slices).maps())
    proxier.changes({"ns/a": None}, {})
    assert meaning(proxier.maps()) == meaning(compiled(second, slices[1]).maps())


def test_udp_entries_of_an_endpoint_that_goes_are_deleted():
    dns = [port(53, "dns", "UDP")]
    given = [service("dns", "10.96.0.10", dns), endpoint_slice("dns", [endpoint("10.244.1.5"), endpoint("10.244.2.5")], dns)]
    ops = compiled(*given).changes({}, by_key([endpoint_slice("dns", [endpoint("10.244.1.5")], dns)]))
    assert ConntrackDel("udp", orig_dst="10.96.0.10", orig_dport=53, reply_src="10.244.2.5") in ops


def test_the_first_call_states_all_and_other_modes_clear_it():
    *_, tables, maps = modes.make(CONFIG, HERE).changes({}, {})
    assert (type(tables), type(maps)) == (TablesReplace, BpfReplace)
    assert maps.config is not None
    rules = modes.make(ProxyConfiguration("iptables"), HERE)
    assert BpfReplace() in rules.changes({}, {})
    assert BpfReplace() in rules.restate()
    assert BpfReplace() not in rules.changes({}, {})


@pytest.mark.parametrize(
    ("section", "path"),
    [
        ({"algorithm": "rr"}, "$.ebpf.algorithm"),
        ({"maglevTableSize": 100}, "$.ebpf.maglevTableSize"),
        ({"mode": "x"}, "$.ebpf.mode"),
    ],
)
def test_wrong_settings_are_named(section, path):
    head = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "ebpf"}
    with pytest.raises(ConfigurationError, match=path.replace("$", "\\$")):
        load({**head, "ebpf": section})
    assert load({**head, "ebpf": {"algorithm": "maglev", "mode": "dsr", "socketLB": "all"}}).ebpf.mode == "dsr"


def test_numbers_end_and_come_again():
    ids: Ids[str] = Ids(2)
    assert [ids.take(key) for key in ("a", "b", "a", "c")] == [1, 2, 1, 0]
    assert [ids.drop("a"), ids.drop("a"), ids.take("c")] == [0, 1, 1]


ADDRESSES = st.sampled_from(["10.244.1.5", "10.244.1.6", "10.244.2.5"])
SPECS = st.fixed_dictionaries(
    {
        "ports": st.just([port(80, nodePort=30080), port(53, "dns", "UDP")]),
        "type": st.sampled_from(["ClusterIP", "NodePort"]),
        "sessionAffinity": st.sampled_from(["None", "ClientIP"]),
        "externalTrafficPolicy": st.sampled_from(["Cluster", "Local"]),
        "internalTrafficPolicy": st.sampled_from(["Cluster", "Local"]),
        "externalIPs": st.lists(st.sampled_from(["1.2.3.4", "5.6.7.8"]), max_size=2, unique=True),
    }
)
ENDPOINTS = st.lists(
    st.builds(lambda a, ready: endpoint(a, f"node{a.split('.')[2]}", ready=ready), ADDRESSES, st.booleans()), max_size=4
)
NAMES = st.sampled_from(["a", "b", "c"])
ROUNDS = st.lists(
    st.tuples(st.dictionaries(NAMES, st.none() | SPECS, max_size=3), st.dictionaries(NAMES, st.none() | ENDPOINTS, max_size=3)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=80, deadline=None)
@given(ROUNDS)
def test_differences_lead_where_a_whole_compile_does(rounds):
    proxier, held, objects = Proxier(CONFIG, HERE), {}, ({}, {})
    for specs, slices in rounds:
        services = {f"ns/{n}": s if s is None else service(n, f"10.96.0.{ord(n)}", **s) for n, s in specs.items()}
        ports = [port(80), port(53, "dns", "UDP")]
        changed = {f"ns/{n}-1": e if e is None else endpoint_slice(n, e, ports) for n, e in slices.items()}
        for op in proxier.changes(services, changed):
            if isinstance(op, BpfReplace):
                held = {name: dict(content) for name, content in op.maps.items()}
            elif isinstance(op, BpfMapUpdate):
                held[op.map].update(op.elements)
                for key in op.delete:
                    del held[op.map][key]
        for kept, new in zip(objects, (services, changed), strict=True):
            kept.update(new)
    fresh = Proxier(CONFIG, HERE)
    fresh.changes(*({k: v for k, v in kept.items() if v is not None} for kept in objects))
    assert held == proxier.maps()
    assert meaning(held) == meaning(fresh.maps())
