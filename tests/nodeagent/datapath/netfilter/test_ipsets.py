"""Sets in rules: which packets are in which set, by type and flags; elements and their text."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_core.ipset import IpSet, parse, save_lines, text
from podwire_nodeagent.datapath.netfilter.ipsets import LiveSet, compile_test, lengths_of
from podwire_nodeagent.datapath.packet import Packet


def live(kind, *elements):
    made = LiveSet(IpSet("S", kind))
    made.elements = dict(made.key(element) for element in elements)
    made.lengths = lengths_of(made, made.elements)
    return made


def packet(src="10.0.0.1", dst="10.96.0.1", proto=6, sport=40000, dport=80):
    made = Packet()
    made.src, made.dst = ip_address(src).packed, ip_address(dst).packed
    made.proto, made.sport, made.dport = proto, sport, dport
    return made


CASES = [
    # type, elements, flags, packet, is it in
    ("hash:ip", ["10.96.0.1"], "dst", {}, True),
    ("hash:ip", ["10.96.0.1"], "src", {}, False),
    ("hash:ip", ["10.96.0.1"], "dst", {"proto": 1}, True),
    ("hash:ip,port", ["10.96.0.1,tcp:80"], "dst,dst", {}, True),
    ("hash:ip,port", ["10.96.0.1,tcp:80"], "dst,dst", {"proto": 17}, False),
    ("hash:ip,port", ["10.96.0.1,sctp:80"], "dst,dst", {"proto": 132}, True),
    ("hash:ip,port", ["10.96.0.1,tcp:80"], "dst,dst", {"dport": 81}, False),
    ("hash:ip,port", ["10.0.0.1,tcp:80"], "src,dst", {}, True),
    ("hash:ip,port", ["10.96.0.1,tcp:40000"], "dst,src", {}, True),
    ("hash:ip,port", ["10.96.0.1,tcp:2048"], "dst,dst", {"proto": 1, "dport": 2048}, False),
    ("hash:ip,port,ip", ["10.96.0.1,tcp:80,10.0.0.1"], "dst,dst,src", {}, True),
    ("hash:ip,port,ip", ["10.96.0.1,tcp:80,10.0.0.2"], "dst,dst,src", {}, False),
    ("hash:ip,port,net", ["10.96.0.1,tcp:80,10.0.0.0/24"], "dst,dst,src", {}, True),
    ("hash:ip,port,net", ["10.96.0.1,tcp:80,10.0.1.0/24"], "dst,dst,src", {}, False),
    ("hash:ip,port,net", ["10.96.0.1,tcp:81,0.0.0.0/1", "10.96.0.1,tcp:80,10.0.0.1/32"], "dst,dst,src", {}, True),
    ("hash:net", ["10.0.0.0/8"], "src", {}, True),
    ("hash:net", ["10.0.0.0/30"], "src", {"src": "10.0.0.4"}, False),
    ("bitmap:port", ["80"], "dst", {}, True),
    ("bitmap:port", ["80"], "dst", {"proto": 17}, True),
    ("bitmap:port", ["80"], "dst", {"proto": 132}, False),
]


@pytest.mark.parametrize(("kind", "elements", "flags", "fields", "there"), CASES)
def test_membership(kind, elements, flags, fields, there):
    given = live(kind, *elements)
    words = tuple(flags.split(","))
    assert compile_test(given, words, False)(packet(**fields)) is there
    assert compile_test(given, words, True)(packet(**fields)) is not there


ADDRESSES = st.ip_addresses(v=4).map(str)
NETS = st.tuples(ADDRESSES, st.integers(1, 32)).map(lambda pair: str(ip_network(f"{pair[0]}/{pair[1]}", strict=False)))


@given(st.lists(NETS, max_size=8), ADDRESSES)
def test_networks_hold_what_they_hold(nets, address):
    expected = any(ip_address(address) in ip_network(net) for net in nets)
    assert compile_test(live("hash:net", *nets), ("src",), False)(packet(src=address)) is expected


@given(ADDRESSES, st.sampled_from(["tcp", "udp", "sctp"]), st.integers(0, 65535), NETS)
def test_elements_are_printed_as_they_are_read(address, proto, port, net):
    shown = net.removesuffix("/32")
    element = f"{address},{proto}:{port},{shown}"
    assert text("hash:ip,port,net", parse("hash:ip,port,net", 4, element)) == element


@pytest.mark.parametrize(
    ("kind", "element"),
    [
        ("hash:ip", "10.0.0"),
        ("hash:ip", "fd00::1"),
        ("hash:ip,port", "10.0.0.1"),
        ("bitmap:port", "70000"),
        ("hash:net", "1.1.1.1/8"),
    ],
)
def test_what_is_no_element(kind, element):
    with pytest.raises(ValueError):
        parse(kind, 4, element)


def test_a_set_as_ipset_saves_it():
    given = IpSet("KUBE-CLUSTER-IP", "hash:ip,port", elements=("10.96.0.10,udp:53", "10.96.0.9,tcp:80", "10.96.0.10,tcp:53"))
    head, *lines = save_lines(given)
    assert head.startswith("create KUBE-CLUSTER-IP hash:ip,port family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x")
    assert lines == [f"add KUBE-CLUSTER-IP {e}" for e in ("10.96.0.9,tcp:80", "10.96.0.10,tcp:53", "10.96.0.10,udp:53")]
    assert save_lines(IpSet("P", "bitmap:port", elements=("9", "10"))) == [
        "create P bitmap:port range 0-65535",
        "add P 9",
        "add P 10",
    ]
