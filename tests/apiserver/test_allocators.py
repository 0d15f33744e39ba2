"""ClusterIPs and node ports."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_apiserver.allocators import ServiceAllocator
from podwire_core.errors import Cause


def service(name="web", old=None, **spec):
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("ports", [{"port": 80, "protocol": "TCP"}])
    return {"metadata": {"name": name, "namespace": "default"}, "spec": spec}


def assigned(allocator, given, old=None):
    assert allocator.assign(given, old) == []
    allocator.hold(given)
    return given["spec"]


def test_a_chosen_address_is_in_the_upper_band_and_stays_the_same():
    spec = assigned(ServiceAllocator(), service())
    address = ipaddress.ip_address(spec["clusterIP"])
    assert ipaddress.ip_address("10.96.1.0") < address < ipaddress.ip_address("10.111.255.255")
    assert (spec["clusterIPs"], spec["ipFamilies"], spec["ipFamilyPolicy"]) == ([str(address)], ["IPv4"], "SingleStack")
    assert assigned(ServiceAllocator(), service())["clusterIP"] == str(address)
    assert assigned(ServiceAllocator(), service("other"))["clusterIP"] != str(address)


def test_given_addresses_are_kept_or_refused():
    allocator = ServiceAllocator()
    assert assigned(allocator, service("dns", clusterIP="10.96.0.10"))["clusterIPs"] == ["10.96.0.10"]
    taken = [Cause("$.spec.clusterIP", "10.96.0.10 is taken by Service default/dns")]
    assert allocator.assign(service("b", clusterIP="10.96.0.10")) == taken
    for outside in ("10.112.0.1", "10.96.0.0", "10.111.255.255", "fd00::1"):
        [cause] = allocator.assign(service("b", clusterIP=outside))
        assert cause.message == f"{outside} is not in the service range 10.96.0.0/12"
    assert assigned(ServiceAllocator(as_given=True), service("b", clusterIP="1.2.3.4"))["clusterIP"] == "1.2.3.4"


def test_headless_and_external_name_have_none():
    allocator = ServiceAllocator()
    assert assigned(allocator, service(clusterIP="None"))["clusterIPs"] == ["None"]
    assert "clusterIP" not in assigned(allocator, service("x", type="ExternalName", externalName="a.b"))


def test_dual_stack():
    allocator = ServiceAllocator(["10.96.0.0/12", "fd00:10:96::/112"])
    spec = assigned(allocator, service(ipFamilyPolicy="RequireDualStack"))
    assert spec["ipFamilies"] == ["IPv4", "IPv6"]
    assert ipaddress.ip_address(spec["clusterIPs"][1]) in ipaddress.ip_network("fd00:10:96::/112")
    assert assigned(allocator, service("six", ipFamilies=["IPv6"]))["clusterIP"].startswith("fd00:10:96::")


def test_node_ports_are_chosen_high_kept_and_refused():
    allocator = ServiceAllocator()
    spec = assigned(allocator, service(type="NodePort", ports=[{"port": 80}, {"port": 443, "nodePort": 30443}]))
    assert 30086 <= spec["ports"][0]["nodePort"] <= 32767
    assert spec["ports"][1]["nodePort"] == 30443
    [cause] = allocator.assign(service("b", type="NodePort", ports=[{"port": 1, "nodePort": 30443}]))
    assert cause == Cause("$.spec.ports[0].nodePort", "30443 is taken by Service default/web")
    [cause] = allocator.assign(service("b", type="NodePort", ports=[{"port": 1, "nodePort": 80}]))
    assert cause.message == "80 is not in the node port range 30000-32767"
    both = [{"port": 53, "protocol": "TCP", "nodePort": 30053}, {"port": 53, "protocol": "UDP", "nodePort": 30053}]
    assert assigned(allocator, service("dns", type="NodePort", ports=both))["ports"] == both


def test_a_local_load_balancer_has_a_health_check_port():
    allocator = ServiceAllocator()
    spec = assigned(allocator, service(type="LoadBalancer", externalTrafficPolicy="Local"))
    assert spec["healthCheckNodePort"] not in (0, spec["ports"][0]["nodePort"])
    none = assigned(allocator, service("n", type="LoadBalancer", allocateLoadBalancerNodePorts=False))
    assert "nodePort" not in none["ports"][0]


def test_an_update_keeps_what_it_does_not_mention_and_drops_what_the_new_type_lacks():
    allocator = ServiceAllocator()
    before = service(type="NodePort")
    assigned(allocator, before)
    again = service(type="NodePort", ports=[{"port": 80, "protocol": "TCP"}, {"port": 81}])
    spec = assigned(allocator, again, before)
    assert spec["clusterIP"] == before["spec"]["clusterIP"]
    assert spec["ports"][0]["nodePort"] == before["spec"]["ports"][0]["nodePort"] != spec["ports"][1]["nodePort"]
    cleared = service(type="NodePort", clusterIP="", ports=[{"port": 80, "protocol": "TCP", "nodePort": 0}])
    assert assigned(allocator, cleared, before) == before["spec"]
    inward = {"metadata": before["metadata"], "spec": {**before["spec"], "type": "ClusterIP"}}
    assert "nodePort" not in assigned(allocator, inward, before)["ports"][0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=60))
def test_no_address_is_given_twice_and_released_ones_come_back(script):
    allocator, live = ServiceAllocator(["10.96.0.0/28"], (30000, 30010)), {}
    for create, number in script:
        name = f"s{number}"
        if not create:
            if name in live:
                allocator.release(live.pop(name))
        elif name not in live:
            made = service(name, type="NodePort")
            causes = allocator.assign(made)
            if len(live) < 11:
                assert causes == []
                allocator.hold(made)
                live[name] = made
            else:
                assert "no free node port is left" in causes[0].message
        for values in zip(*((s["spec"]["clusterIP"], s["spec"]["ports"][0]["nodePort"]) for s in live.values()), strict=True):
            assert len(set(values)) == len(live)


def test_a_full_range_is_an_error():
    allocator = ServiceAllocator(["10.96.0.0/29"])
    for number in range(6):
        assigned(allocator, service(f"s{number}"))
    [cause] = allocator.assign(service("more"))
    assert cause == Cause("$.spec.clusterIP", "no free IPv4 address is left in the service range")


@pytest.mark.parametrize("cidr", ["10.0.0.0/30", "10.0.0.0/24", "10.0.0.0/16", "fd00::/120"])
def test_small_ranges_work(cidr):
    address = assigned(ServiceAllocator([cidr]), service())["clusterIP"]
    assert ipaddress.ip_address(address) in ipaddress.ip_network(cidr)


def test_families_that_the_cluster_lacks_are_refused():
    single, both = ServiceAllocator(), ServiceAllocator(["10.96.0.0/12", "fd00:10:96::/112"])
    [cause] = single.assign(service(ipFamilies=["IPv6"]))
    assert cause == Cause("$.spec.ipFamilies[0]", "IPv6 is not configured on this cluster, which has IPv4")
    [cause] = single.assign(service(ipFamilyPolicy="RequireDualStack"))
    assert cause == Cause("$.spec.ipFamilyPolicy", "this cluster is not configured for dual-stack Services")
    assert assigned(single, service(ipFamilyPolicy="PreferDualStack"))["ipFamilies"] == ["IPv4"]
    assert assigned(both, service(ipFamilies=["IPv6"]))["clusterIP"].startswith("fd00:10:96::")


def test_a_service_becomes_dual_stack_and_single_stack_again():
    allocator = ServiceAllocator(["10.96.0.0/12", "fd00:10:96::/112"])
    first = service()
    four = assigned(allocator, first)["clusterIPs"]
    second = service(ipFamilyPolicy="RequireDualStack")
    both = assigned(allocator, second, first)["clusterIPs"]
    assert both[:1] == four
    assert len(both) == 2
    third = service(ipFamilyPolicy="SingleStack")
    spec = assigned(allocator, third, second)
    assert (spec["clusterIPs"], spec["ipFamilies"]) == (four, ["IPv4"])
