"""The simulated cluster: choices are played exhaustively, packets are right, and the fabric joins the stacks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.simulation import Choices, packets
from podwire_nodeagent.datapath.packet import Packet
from podwire_nodeagent.datapath.wire import ARP_REPLY


@given(st.recursive(st.integers(), lambda tree: st.tuples(tree, tree), max_leaves=20))
def test_every_outcome_is_played_once_in_order(tree):
    """A tree whose inner nodes are questions: the runs visit its leaves, from left to right."""

    def leaves(node):
        return [node] if isinstance(node, int) else [*leaves(node[0]), *leaves(node[1])]

    choices, played = Choices(), []
    choices.start()
    while True:
        node = tree
        while not isinstance(node, int):
            node = node[0] if choices.chance(0.5) else node[1]
        played.append(node)
        if not choices.advance():
            break
    assert played == leaves(tree)


def test_certainties_are_no_choice():
    choices = Choices()
    choices.start()
    assert choices.chance(1.0)
    assert not choices.chance(0.0)
    assert not choices.advance()


def test_start_forgets_what_was_played():
    choices = Choices()
    choices.start()
    choices.chance(0.5)
    choices.start()
    assert not choices.advance()


@pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP"])
@pytest.mark.parametrize(("sport", "dport"), [(40000, 80), (1, 65535), (32768, 53)])
def test_first_packets_are_well_formed(protocol, sport, dport):
    raw = packets.first_packet(protocol, "10.244.1.2", "10.96.0.10", sport, dport, 7)
    frame = packets.ip_frame(b"\x02" * 6, b"\x04" * 6, raw)
    parsed = Packet()
    assert not parsed.parse(frame)  # it looks at the checksum of the header
    assert (parsed.sport, parsed.dport, parsed.ident) == (sport, dport, 7)
    seen = packets.read_ip(frame)
    assert (seen.source, seen.destination, seen.port) == ("10.244.1.2", "10.96.0.10", dport)
    assert packets.opens_a_flow(seen, protocol)
    others = {"TCP", "UDP", "SCTP"} - {protocol}
    assert not any(packets.opens_a_flow(seen, other) for other in others)


def transport_sum(raw: bytes, number: int) -> int:
    """Ones' complement sum of pseudo-header and segment: 0xffff if the checksum is right."""
    segment = raw[20:] + b"\0" * (len(raw) % 2)
    data = raw[12:20] + bytes((0, number)) + (len(raw) - 20).to_bytes(2, "big") + segment
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize(("protocol", "number"), [("TCP", 6), ("UDP", 17)])
def test_transport_checksums_are_right(protocol, number):
    for port in range(1, 2000, 37):
        assert transport_sum(packets.first_packet(protocol, "10.0.0.1", "10.0.0.2", port, 80, port), number) == 0xFFFF


def test_the_sctp_checksum_is_a_crc32c():
    assert packets._crc32c(b"123456789") == 0xE3069283  # the check value of the polynomial


def test_arp_is_read_as_it_is_written():
    mac = bytes(range(6))
    frame = packets.arp_frame(ARP_REPLY, mac, "10.244.1.2", b"\x02" * 6, "10.244.1.1")
    assert packets.read_arp(frame) == packets.Arp(2, mac, "10.244.1.2", "10.244.1.1")
    assert packets.read_ip(frame) is None
