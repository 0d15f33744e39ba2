"""nftables as text, where kube-proxy's own rulesets (tests/oracle) do not lead: IPv6, ranges, priorities, order of elements."""

from __future__ import annotations

import itertools
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_core import nft_text
from podwire_core import nftables as nft

NETS = st.builds(
    lambda number, length: str(ip_network((number, length), strict=False)), st.integers(0, 2**32 - 1), st.integers(1, 32)
)


@given(st.lists(NETS, min_size=1, max_size=6))
def test_merged_ranges_cover_the_same_and_no_two_meet(nets):
    merged = nft_text.merged(nets)
    for net in map(ip_network, nets):
        assert any(low <= net[0] and net[-1] <= high for low, high in merged)
    edges = [edge for low, high in merged for edge in (low, high)]
    parts = [ip_network(net) for net in nets]
    assert all(any(edge in part for part in parts) for edge in edges)
    assert all(int(following[0]) > int(before[1]) + 1 for before, following in itertools.pairwise(merged))


@pytest.mark.parametrize(
    ("nets", "text"),
    [
        (["10.1.2.3/32"], "10.1.2.3"),
        (["10.0.0.0/8", "11.0.0.0/8", "9.1.1.1", "9.1.1.2"], "{ 9.1.1.1-9.1.1.2, 10.0.0.0/7 }"),
        (["10.0.0.0/8", "10.1.0.0/16"], "10.0.0.0/8"),
        (["fd00::/8", "::1"], "{ ::1, fd00::/8 }"),
    ],
)
def test_addresses(nets, text):
    assert nft_text.addresses(nets) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(10800, "3h"), (61, "1m1s"), (59.98, "59s980ms"), (0.0, "0s"), (90061, "1d1h1m1s")]
)
def test_duration(seconds, text):
    assert nft_text.duration(seconds) == text


@pytest.mark.parametrize(
    ("hook", "priority", "text"),
    [
        ("prerouting", -100, "dstnat"),
        ("prerouting", -110, "dstnat - 10"),
        ("prerouting", -111, "-111"),
        ("output", -100, "-100"),
        ("postrouting", 105, "srcnat + 5"),
        ("forward", 0, "filter"),
    ],
)
def test_priorities(hook, priority, text):
    line = nft_text.chain_lines(nft.Chain("c", hook=nft.Hook("filter", hook, priority)), 4)[1]
    assert line == f"\t\ttype filter hook {hook} priority {text}; policy accept;"


def test_ipv6():
    rule = nft.Rule((nft.Address("saddr", ("fd00::/8",), True), nft.Dnat("fd00::1", 80)))
    assert nft_text.rule(rule, 6) == "ip6 saddr != fd00::/8 dnat to [fd00::1]:80"
    assert nft_text.rule(nft.Rule((nft.Update("a"),)), 6) == "update @a { ip6 saddr }"


def test_elements_two_addresses_a_line_and_by_number():
    elements = tuple(nft.Element((str(ip_address(n)),)) for n in (0x0A000010, 0x0A000002, 0x0A000101))
    lines = nft_text.set_lines(nft.Set("s", ("ipv4_addr",), elements=elements))
    assert lines[2:4] == ["\t\telements = { 10.0.0.2, 10.0.0.16,", "\t\t\t     10.0.1.1 }"]
