"""The FIB: longest prefix match against a naive twin, address types, source addresses."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from podwire_nodeagent.datapath.fib import Fib, Route
from podwire_nodeagent.datapath.links import Link

BITS = st.integers(0, 0xFFFFFFFF).map(lambda n: n & 0xF0F0FFFF)  # few different beginnings, so that prefixes nest


def network(value: int, plen: int):
    return ip_network((value, plen), strict=False)


ROUTE = st.builds(
    lambda value, plen, metric, local: (network(value, plen), metric, local),
    BITS,
    st.integers(0, 32),
    st.sampled_from([0, 0, 5, 10]),
    st.booleans(),
)


def naive(routes, address):
    """Local table first; longest prefix; lowest metric; first added."""
    for local in (True, False):
        found = [
            (-net.prefixlen, metric, i)
            for i, (net, metric, is_local) in enumerate(routes)
            if is_local == local and address in net
        ]
        if found:
            return min(found)[2]
    return None


@given(st.lists(ROUTE, max_size=25), st.lists(st.integers(0, 24), max_size=8), st.lists(BITS, min_size=1, max_size=10))
def test_lookup_is_what_a_naive_search_finds(routes, removed, addresses):
    fib = Fib()
    made = []
    for net, metric, local in routes:
        route = Route(net.network_address.packed, net.prefixlen, None, metric=metric, table="local" if local else "main")
        fib.insert(route)
        made.append(route)
    gone = {i for i in removed if i < len(routes)}
    for i in gone:
        fib.remove(made[i])
    left = [(route, spec) for i, (route, spec) in enumerate(zip(made, routes, strict=True)) if i not in gone]
    for value in [*addresses, *(int(net.network_address) for net, _, _ in routes)]:
        address = ip_address(value)
        expected = naive([spec for _, spec in left], address)
        for _ in range(2):  # the second answer comes from memory
            assert fib.lookup(address.packed) is (left[expected][0] if expected is not None else None)
    assert len(list(fib)) == len(left)


def test_both_families_live_side_by_side():
    fib = Fib()
    four, six = Route(bytes(4), 0, None), Route(bytes(16), 0, None)
    fib.insert(four)
    fib.insert(six)
    assert fib.lookup(ip_address("10.0.0.1").packed) is four
    assert fib.lookup(ip_address("fd00::1").packed) is six


def test_address_types():
    fib = Fib()
    link = Link(2, "eth0", "dummy", bytes(6))
    fib.insert(Route(ip_address("10.0.0.1").packed, 32, link, type="local", table="local"))
    fib.insert(Route(ip_address("10.0.0.255").packed, 32, link, type="broadcast", table="local"))
    expected = {
        "10.0.0.1": "LOCAL",
        "10.0.0.255": "BROADCAST",
        "10.0.0.2": "UNICAST",
        "224.0.0.5": "MULTICAST",
        "255.255.255.255": "BROADCAST",
        "ff02::1": "MULTICAST",
        "fd00::1": "UNICAST",
    }
    assert {text: fib.address_type(ip_address(text).packed) for text in expected} == expected


def test_source_is_the_routes_own_or_the_near_address_of_its_link():
    link, other = Link(2, "eth0", "dummy", bytes(6)), Link(3, "eth1", "dummy", bytes(6))
    link.addresses = [(ip_address("10.0.0.1").packed, 24), (ip_address("10.0.5.1").packed, 24)]
    other.addresses = [(ip_address("172.16.0.1").packed, 24)]
    bare = Link(4, "eth2", "dummy", bytes(6))
    fib, links = Fib(), [link, other, bare]

    def source(**how) -> str:
        return str(ip_address(fib.source(Route(bytes(4), 0, **how), links)))

    assert source(dev=link, src=ip_address("10.9.9.9").packed) == "10.9.9.9"
    assert source(dev=link, via=ip_address("10.0.5.77").packed) == "10.0.5.1"
    assert source(dev=link, via=ip_address("1.1.1.1").packed) == "10.0.0.1"
    assert source(dev=bare) == "10.0.0.1"
    assert fib.source(Route(bytes(16), 0, bare), links) == b""


def test_text_is_what_ip_route_prints():
    link = Link(2, "cni0", "bridge", bytes(6))
    net = ip_network("10.244.1.0/24").network_address.packed
    connected = Route(net, 24, link, proto="kernel", src=ip_address("10.244.1.1").packed)
    assert connected.text() == "10.244.1.0/24 dev cni0 proto kernel scope link src 10.244.1.1"
    onlink = Route(net, 24, link, via=ip_address("10.244.1.9").packed, onlink=True, metric=3)
    assert onlink.text() == "10.244.1.0/24 via 10.244.1.9 dev cni0 proto static metric 3 onlink"
    assert Route(bytes(4), 0, None, type="blackhole").text() == "blackhole default proto static"
