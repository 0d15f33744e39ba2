"""The connection table: what is found, how long it lives, what makes room."""

from __future__ import annotations

import pytest

from podwire_core.netlink import ConntrackDel, NetlinkError
from podwire_nodeagent.datapath.netfilter import ACCEPT
from podwire_nodeagent.datapath.netfilter.connection import invert, make_key, split
from podwire_nodeagent.datapath.packet import ESTABLISHED, INVALID, NEW, RELATED
from tests.support.hooks import Gate
from tests.support.packets import ACK, SYN, echo, icmp, ipv4, tcp, udp

A, B = "10.244.1.5", "192.0.2.1"


def open_tcp(gate: Gate, sport: int = 4000) -> None:
    gate.forward(tcp(A, B, sport, 80, SYN, 1, 0))
    gate.forward(tcp(B, A, 80, sport, SYN | ACK, 1, 2), "eth0", "cni0")
    gate.forward(tcp(A, B, sport, 80, ACK, 2, 2))


@pytest.mark.parametrize(("size", "proto"), [(4, 6), (4, 17), (4, 1), (4, 47), (16, 6), (16, 17), (16, 58), (16, 47)])
def test_keys_invert(size, proto):
    kind = {1: 8 << 8, 58: 128 << 8}.get(proto, 80)
    key = make_key(b"a" * size, b"b" * size, 7, kind, proto)
    answer = invert(key)
    assert invert(answer) == key
    assert split(answer)[:2] == (b"b" * size, b"a" * size)
    assert split(answer)[2:] == {1: (7, 0), 58: (7, 129 << 8)}.get(proto, (80, 7))


def test_a_dropped_packet_leaves_no_trace():
    gate = Gate("*filter\n-A FORWARD -p udp -m udp --dport 53 -j DROP\nCOMMIT\n")
    assert gate.forward(udp(A, B, 1, 53)).action == "drop"
    assert gate.netfilter.conntrack.entries == {}


def test_new_then_established_both_ways():
    gate = Gate()
    gate.forward(udp(A, B, 1, 53))
    assert (gate.packet.ctinfo, gate.packet.direction) == (NEW, 0)
    gate.forward(udp(A, B, 1, 53))
    assert gate.packet.ctinfo == NEW
    gate.forward(udp(B, A, 53, 1), "eth0", "cni0")
    assert (gate.packet.ctinfo, gate.packet.direction) == (ESTABLISHED, 1)
    gate.forward(udp(A, B, 1, 53))
    assert (gate.packet.ctinfo, gate.packet.direction) == (ESTABLISHED, 0)
    (entry,) = gate.entries
    assert (entry.packets, entry.bytes) == ((3, 1), (84, 28))


def test_udp_stream_after_two_seconds():
    gate = Gate()
    gate.forward(udp(A, B, 1, 53))
    assert gate.entries[0].timeout == 30
    for gate.now in (0.5, 1.5):
        gate.forward(udp(B, A, 53, 1), "eth0", "cni0")
        assert (gate.entries[0].timeout, gate.entries[0].status) == (30, ())
    gate.now = 2.5
    gate.forward(udp(A, B, 1, 53))
    assert (gate.entries[0].timeout, gate.entries[0].status) == (120, ("ASSURED",))


def test_icmp_echo_and_answers_to_nothing():
    gate = Gate()
    gate.forward(echo(A, B, ident=9))
    gate.forward(echo(B, A, ident=9, reply=True), "eth0", "cni0")
    assert gate.packet.ctinfo == ESTABLISHED
    gate.forward(echo(B, A, ident=10, reply=True), "eth0", "cni0")
    assert gate.packet.ctinfo == INVALID
    assert [entry.original.id for entry in gate.entries] == [9]


@pytest.mark.parametrize("original", [udp(A, B, 1, 53), tcp(A, B, 1, 80, SYN, 1, 0), echo(A, B)])
def test_error_is_related(original):
    gate = Gate()
    gate.forward(original)
    gate.forward(icmp("198.51.100.1", A, 3, 1, bytes(4), original[:28]), "eth0", "cni0")
    assert (gate.packet.ctinfo, gate.packet.direction) == (RELATED, 1)
    assert gate.packet.ct is not None
    assert gate.netfilter.conntrack.count == 1


def test_error_about_nothing_and_error_to_somebody_else():
    gate = Gate()
    gate.forward(icmp(B, A, 3, 1, bytes(4), udp(A, B, 1, 53)), "eth0", "cni0")
    assert gate.packet.ctinfo == INVALID
    gate.forward(udp(A, B, 1, 53))
    gate.forward(icmp(B, "10.244.1.99", 3, 1, bytes(4), udp(A, B, 1, 53)), "eth0", "cni0")
    assert gate.packet.ctinfo == INVALID
    bad = bytearray(icmp(B, A, 3, 1, bytes(4), udp(A, B, 1, 53)))
    bad[-1] ^= 1
    gate.forward(bytes(bad), "eth0", "cni0")
    assert gate.packet.ctinfo == INVALID


def test_unknown_protocol():
    gate = Gate()
    gate.forward(ipv4(A, B, 99, b"x"))
    gate.forward(ipv4(B, A, 99, b"x"), "eth0", "cni0")
    assert gate.packet.ctinfo == ESTABLISHED
    assert (gate.entries[0].proto, gate.entries[0].timeout) == ("99", 600)


def test_expired_is_absent_before_anybody_removes_it():
    gate = Gate()
    gate.forward(udp(A, B, 1, 53))
    gate.now = 31
    assert gate.entries == []
    gate.forward(udp(B, A, 53, 1), "eth0", "cni0")
    assert (gate.packet.ctinfo, gate.packet.direction) == (NEW, 0)


def test_expiry_follows_the_last_packet_and_its_budget():
    gate = Gate()
    for port in range(100):
        gate.forward(udp(A, B, 1000 + port, 53))
    gate.now = 20
    for port in range(10):
        gate.forward(udp(A, B, 1000 + port, 53))
    assert gate.netfilter.expire(31, 40) <= 40
    total = sum(gate.netfilter.expire(31, 40) for _ in range(10))
    assert total <= 90
    assert gate.netfilter.conntrack.count == 10
    assert gate.netfilter.expire(49.9) == 0
    assert gate.netfilter.expire(51) == 10
    assert gate.netfilter.conntrack.entries == {}


def test_a_shortened_life_is_noticed():
    """Five days as ESTABLISHED, ten seconds once closed."""
    gate = Gate()
    open_tcp(gate)
    gate.forward(tcp(A, B, 4000, 80, 4, 2, 2))
    assert gate.netfilter.expire(12) == 1


def test_full_table_drops_unassured_first():
    gate = Gate(sysctls={"net.netfilter.nf_conntrack_max": "3"})
    open_tcp(gate, 1)
    open_tcp(gate, 2)
    gate.forward(udp(A, B, 7, 53))
    assert gate.forward(udp(A, B, 8, 53)) is ACCEPT
    assert {entry.original.sport for entry in gate.entries} == {1, 2, 8}
    assert gate.netfilter.conntrack.counters["early_drop"] == 1
    open_tcp(gate, 3)
    outcome = gate.forward(udp(A, B, 9, 53))
    assert (outcome.action, outcome.reason) == ("drop", "conntrack.table_full")
    assert gate.netfilter.conntrack.counters["drop"] == 1


def test_deletion_by_filter():
    gate = Gate()
    open_tcp(gate, 1)
    gate.forward(udp(A, B, 7, 53))
    gate.forward(udp(A, "192.0.2.2", 7, 53))
    hooks = gate.netfilter
    assert hooks.delete_conntrack(ConntrackDel(proto="udp", orig_dst="192.0.2.9"), 0) == 0
    assert hooks.delete_conntrack(ConntrackDel(proto="udp", reply_src="192.0.2.2"), 0) == 1
    assert hooks.delete_conntrack(ConntrackDel(orig_dport=53), 0) == 1
    with pytest.raises(NetlinkError, match="EINVAL"):
        hooks.delete_conntrack(ConntrackDel(orig_src="nonsense"), 0)
    assert hooks.delete_conntrack(ConntrackDel(), 0) == 1
    assert hooks.conntrack.entries == {}


def test_cached_packets_prolong_and_count():
    gate = Gate()
    open_tcp(gate)
    ct = gate.packet.ct
    assert ct is not None
    assert gate.netfilter.cacheable(gate.packet)
    epoch = ct.epoch
    assert ct.touch(0, 1500, 1000.0)
    assert ct.epoch == epoch
    gate.now = 1000.0
    (entry,) = gate.entries
    assert (entry.timeout, entry.packets[0], entry.bytes[0]) == (432000, 3, 80 + 1500)
    assert not ct.touch(0, 1500, 1000.0 + 432001)
    gate.forward(tcp(A, B, 4000, 80, 17, 2, 2))
    assert ct.epoch != epoch


def test_what_must_not_be_cached():
    gate = Gate("*filter\n-A FORWARD -p udp -m statistic --mode random --probability 0.5 -j ACCEPT\nCOMMIT\n")
    gate.forward(tcp(A, B, 1, 80, SYN, 1, 0))
    assert not gate.netfilter.cacheable(gate.packet)
    gate.forward(udp(A, B, 1, 53))
    assert not gate.netfilter.cacheable(gate.packet)
    gate.forward(echo(A, B))
    assert gate.netfilter.cacheable(gate.packet)
    ct = gate.packet.ct
    assert ct is not None
    before = ct.epoch
    gate.forward(echo(B, A, reply=True), "eth0", "cni0")
    assert ct.epoch != before  # NEW became ESTABLISHED: filters may judge otherwise
    gate.netfilter.delete_conntrack(ConntrackDel(), 0)
    assert ct.epoch == -1
    assert not gate.netfilter.cacheable(gate.packet)


def test_udp_in_the_cache_becomes_a_stream():
    gate = Gate()
    gate.forward(udp(A, B, 1, 53))
    gate.forward(udp(B, A, 53, 1), "eth0", "cni0")
    gate.forward(udp(A, B, 1, 53))
    ct = gate.packet.ct
    assert ct is not None
    assert ct.touch(0, 28, 1.0)
    assert not ct.touch(0, 28, 2.5)
    gate.now = 2.5
    gate.forward(udp(A, B, 1, 53))
    assert ct.touch(0, 28, 100.0)


def test_two_first_packets_of_one_flow():
    """Both were under way before either was confirmed: UDP joins, TCP loses one."""
    gate = Gate()
    hooks = gate.netfilter
    for data, action, counter in (
        (udp(A, B, 1, 53), "accept", "clash_resolve"),
        (tcp(A, B, 1, 80, SYN, 1, 0), "drop", "insert_failed"),
    ):
        first, second = gate._parse(data, "cni0"), gate._parse(data, "cni0")
        for packet in (first, second):
            assert hooks.prerouting(packet, 0.0) is ACCEPT
            packet.out_link = "eth0"
            packet.ct.status |= 96  # as if both had been asked about already
        assert hooks.postrouting(first, 0.0) is ACCEPT
        assert hooks.postrouting(second, 0.0).action == action
        assert hooks.conntrack.counters[counter] == 1
