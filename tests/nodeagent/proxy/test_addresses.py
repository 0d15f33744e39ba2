"""Addresses as objects may spell them."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_nodeagent.proxy.addresses import canonical, contains, host_network, host_port, network


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("10.0.0.1", "10.0.0.1"),
        (" 010.000.08.1 ", "10.0.8.1"),
        ("FD00::0001", "fd00::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("10.0.0", None),
        ("10.0.0.256", None),
        ("10.0.0.1.2", None),
        ("10.0.0.-1", None),
        ("１０.0.0.1", None),
        ("fe80::1%eth0", None),
        ("None", None),
        ("", None),
    ],
)
def test_canonical(text, wanted):
    assert canonical(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("203.0.113.130/25", "203.0.113.128/25"),
        (" 203.0.113.0/25", "203.0.113.0/25"),
        ("010.1.2.3/8", "10.0.0.0/8"),
        ("fd00::1/64", "fd00::/64"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("10.0.0.0", None),
        ("10.0.0.0/33", None),
        ("10.0.0.0/", None),
        ("10.0.0.0/-1", None),
        ("x/8", None),
    ],
)
def test_network(text, wanted):
    assert network(text) == wanted


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_none(text):
    found = canonical(text)
    assert found is None or str(ipaddress.ip_address(found)) == found
    assert network(text) is None or ipaddress.ip_network(network(text))


@given(st.ip_addresses())
def test_addresses_are_their_own_canonical_form(address):
    mapped = getattr(address, "ipv4_mapped", None)
    assert canonical(str(address)) == str(mapped or address)


def test_forms():
    assert (host_network("10.0.0.1"), host_network("fd00::1")) == ("10.0.0.1/32", "fd00::1/128")
    assert (host_port("10.0.0.1", 80), host_port("fd00::1", 80)) == ("10.0.0.1:80", "[fd00::1]:80")
    assert contains("10.0.0.0/8", "10.1.1.1")
    assert not contains("10.0.0.0/8", "fd00::1")
