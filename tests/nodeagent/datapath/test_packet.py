"""The packet view: fields, malformed packets by reason, and that nothing makes it raise."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_nodeagent.datapath.packet import Packet
from tests.support.packets import ACK, SYN, echo, icmp, inet, ip, ipv4, tcp, udp

A, B = "10.244.1.5", "10.96.0.1"


def parse(data: bytes) -> tuple[str, Packet]:
    packet = Packet()
    return packet.parse(bytearray(24) + data), packet


def checked(data: bytes) -> bytes:
    """With its header checksum made right."""
    head = data[:10] + b"\0\0" + data[12:20]
    return head[:10] + inet(head).to_bytes(2, "big") + data[12:]


def ip6(following: int, payload: bytes, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return struct.pack("!IHBB", 6 << 28, size, following, 64) + bytes(15) + b"\1" + bytes(15) + b"\2" + payload


def test_tcp_fields():
    reason, packet = parse(tcp(A, B, 4000, 80, SYN | ACK, 7, 9, b"data", ttl=61, ident=77))
    assert reason == ""
    assert (packet.src, packet.dst, packet.sport, packet.dport, packet.proto) == (ip(A), ip(B), 4000, 80, 6)
    assert (packet.flags, packet.seq, packet.ack, packet.ttl, packet.ident) == (SYN | ACK, 7, 9, 61, 77)
    assert (packet.length, packet.l3, packet.l4, packet.end) == (44, 24, 44, 68)
    assert packet.family == 4
    assert not packet.fragment


def test_options_move_the_transport_header():
    reason, packet = parse(udp(A, B, 53, 54, b"x", options=bytes(8)))
    assert (reason, packet.l4, packet.sport, packet.dport) == ("", 52, 53, 54)


def test_icmp_ports_are_identifier_and_type():
    reason, packet = parse(echo(A, B, ident=513))
    assert (reason, packet.sport, packet.dport) == ("", 513, 8 << 8)
    reason, packet = parse(icmp(A, B, 3, 4, bytes(4), bytes(28)))
    assert (reason, packet.sport, packet.dport) == ("", 0, 3 << 8 | 4)


def test_fragment_has_no_ports():
    reason, packet = parse(ipv4(A, B, 17, bytes(16), df=False, more=True, offset=64))
    assert reason == ""
    assert (packet.fragment, packet.more_fragments, packet.offset, packet.sport) == (True, True, 64, 0)


def test_ip6_behind_extension_headers():
    segment = struct.pack("!HHHH", 1, 2, 8, 0)
    hop = bytes((60, 0)) + bytes(6)
    options = bytes((17, 1)) + bytes(14)
    reason, packet = parse(ip6(0, hop + options + segment))
    assert (reason, packet.family, packet.proto, packet.sport, packet.dport) == ("", 6, 17, 1, 2)
    assert len(packet.src) == 16


def test_a_reused_view_forgets_the_last_packet():
    packet = Packet()
    packet.parse(bytearray(24) + tcp(A, B, 1, 2, SYN, 3, 4))
    packet.mark, packet.in_link, packet.volatile = 5, "eth0", True
    packet.parse(bytearray(24) + udp(A, B, 7, 8))
    assert (packet.mark, packet.in_link, packet.volatile, packet.flags, packet.seq, packet.ct) == (0, "", False, 0, 0, None)


good = tcp(A, B, 4000, 80, SYN, 0, 0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "ip_truncated"),
        (good[:19], "ip_truncated"),
        (good[:39], "ip_truncated"),
        (b"\x55" + good[1:], "ip_version"),
        (checked(b"\x44" + good[1:]), "ip_header_length"),
        (checked(good[:2] + b"\0\x13" + good[4:]), "ip_header_length"),
        (good[:8] + b"\1" + good[9:], "ip_header_checksum"),
        (ipv4(A, B, 6, bytes(19)), "tcp_truncated"),
        (ipv4(A, B, 6, bytes(20)), "tcp_header_length"),
        (ipv4(A, B, 6, bytes(12) + b"\xf0" + bytes(7)), "tcp_header_length"),
        (ipv4(A, B, 17, bytes(7)), "udp_truncated"),
        (ipv4(A, B, 17, bytes(4) + b"\0\x07\0\0"), "udp_length"),
        (ipv4(A, B, 17, bytes(4) + b"\0\x09\0\0"), "udp_length"),
        (ipv4(A, B, 1, bytes(7)), "icmp_truncated"),
        (ipv4(A, B, 132, bytes(11)), "sctp_truncated"),
        (ipv4(A, B, 17, bytes(7), df=False, more=True), "ip_fragment"),
        (ipv4(A, B, 17, bytes(40), df=False, offset=65528), "ip_fragment"),
        (ip6(17, bytes(8))[:39], "ip_truncated"),
        (ip6(17, bytes(8), length=9), "ip_truncated"),
        (ip6(0, bytes(7)), "ip6_extension"),
        (ip6(0, bytes((17, 200)) + bytes(6)), "ip6_extension"),
        (ip6(44, bytes(8)), "ip_fragment"),
    ],
)
def test_malformed(data, reason):
    assert parse(data)[0] == reason


@settings(max_examples=300)
@given(st.binary(max_size=120))
def test_any_bytes(data):
    reason, _ = parse(data)
    assert isinstance(reason, str)


@settings(max_examples=300)
@given(
    st.sampled_from([good, udp(A, B, 1, 2, b"xyz"), echo(A, B), ip6(0, bytes((6, 0)) + bytes(26))]),
    st.lists(st.tuples(st.integers(0, 59), st.integers(0, 255)), max_size=4),
    st.integers(0, 60),
)
def test_mutated_packets(data, changes, cut):
    mutated = bytearray(data)
    for at, value in changes:
        if at < len(mutated):
            mutated[at] = value
    for candidate in (bytes(mutated[:cut]), checked(bytes(mutated)) if len(mutated) >= 20 else b""):
        reason, packet = parse(candidate)
        if not reason:
            assert packet.l3 < packet.l4 <= packet.end <= 24 + len(candidate)
