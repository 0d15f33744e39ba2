"""Fragmentation and reassembly: inverse of each other in any order, refused overlaps, bounded memory and time."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import packets
from support.packets import decode, frame

from podwire_nodeagent.datapath import fragments
from podwire_nodeagent.datapath.fragments import Reassembly, split
from podwire_nodeagent.datapath.packet import Packet

A, B = "10.0.0.1", "10.0.0.2"
MACS = ("02:00:00:00:00:02", "02:00:00:00:00:01")
RECORD_AND_COPIED = b"\x07\x07\x04\0\0\0\0" + b"\x88\x04\0\1" + b"\0"  # record route (not copied), stream id (copied)


def view(data) -> Packet:
    packet = Packet()
    assert packet.parse(data) == ""
    return packet


def piece(offset: int, data: bytes, more: bool, ident: int = 5, src: str = A) -> Packet:
    return view(frame(*MACS, packets.ipv4(src, B, 17, data, ident=ident, df=False, more=more, offset=offset)))


@given(
    st.binary(min_size=1, max_size=6000),
    st.integers(68, 1500),
    st.randoms(use_true_random=False),
    st.sampled_from([b"", RECORD_AND_COPIED]),
)
def test_what_is_split_comes_together_in_any_order(data, mtu, random, options):
    whole = packets.udp(A, B, 1, 2, data, df=False, ident=9, options=options)
    original = frame(*MACS, whole)
    pieces = split(original, view(original), mtu)
    for made in pieces:
        seen = decode(made)
        assert (seen.bad, len(seen.packet) <= mtu or len(pieces) == 1) == ([], True)
    assert [decode(p).more for p in pieces] == [True] * (len(pieces) - 1) + [False]
    if len(pieces) == 1:
        return
    random.shuffle(pieces)
    table = Reassembly()
    results = [table.add(view(p), "eth0", 0.0) for p in pieces]
    assert results[:-1] == [None] * (len(pieces) - 1)
    assert bytes(results[-1]) == bytes(original)
    assert (len(table), table.bytes) == (0, 0)
    assert table.largest == max(len(decode(p).packet) for p in pieces)


def test_a_fragment_can_be_split_again():
    data = bytes(range(256)) * 8
    middle = piece(800, data, True)
    pieces = [decode(p) for p in split(middle.buf, middle, 1000)]
    assert [(p.offset, p.more) for p in pieces] == [(800, True), (1776, True), (2752, True)]
    assert b"".join(p.payload for p in pieces) == data


def test_options_without_the_copy_bit_are_in_the_first_fragment_only():
    original = frame(*MACS, packets.udp(A, B, 1, 2, bytes(2000), df=False, options=RECORD_AND_COPIED))
    first, second, *_ = (decode(p).packet for p in split(original, view(original), 600))
    assert first[20:32] == RECORD_AND_COPIED
    assert second[20:32] == b"\1" * 7 + b"\x88\x04\0\1" + b"\0"


def test_a_partial_checksum_is_completed_first():
    original = frame(*MACS, packets.udp(A, B, 1, 2, bytes(range(250)) * 8, df=False))
    expected = bytes(original)
    pseudo = 0xFFFF ^ packets.inet(packets.ip(A) + packets.ip(B) + b"\0\x11" + (2008).to_bytes(2, "big"))
    original[50:52] = pseudo.to_bytes(2, "big")
    original[:10] = b"\1\0\0\0\0\0\x22\0\6\0"
    pieces = split(original, view(original), 1500)
    assert all(p[0] == 0 for p in pieces)
    table = Reassembly()
    whole = [table.add(view(p), "", 0.0) for p in pieces][-1]
    assert bytes(whole) == expected


@pytest.mark.parametrize(
    "second",
    [(8, bytes(16), True), (4000, bytes(8), False), (1200, bytes(8), False)],
    ids=["overlap", "beyond the end", "a second end"],
)
def test_contradictions_drop_the_whole_packet(second):
    table = Reassembly()
    table.add(piece(0, bytes(16), True), "", 0.0)
    table.add(piece(2000, bytes(8), False), "", 0.0)
    assert table.add(piece(*second), "", 0.0) is None
    assert (table.reason, len(table), table.bytes) == ("fragment_overlap", 0, 0)


def test_a_duplicate_is_dropped_alone():
    table = Reassembly()
    table.add(piece(0, bytes(16), True), "", 0.0)
    table.add(piece(0, bytes(16), True), "", 0.0)
    assert table.reason == "fragment_duplicate"
    assert table.add(piece(16, bytes(8), False), "", 0.0) is not None


def test_packets_are_kept_apart_and_time_out():
    table = Reassembly()
    for ident, src, dev in ((1, A, "x"), (2, A, "x"), (1, B, "x"), (1, A, "y")):
        assert table.add(piece(0, bytes(8), True, ident, src), dev, 0.0) is None
    assert len(table) == 4
    assert (table.expire(29.0), table.expire(30.0), table.bytes) == (0, 4, 0)


def test_late_pieces_do_not_join_an_old_packet():
    table = Reassembly()
    table.add(piece(0, bytes(8), True), "", 0.0)
    assert table.add(piece(8, bytes(8), False), "", 31.0) is None


@pytest.mark.interpreted
def test_memory_is_bounded_and_the_oldest_gives_way(monkeypatch):
    monkeypatch.setattr(fragments, "MAX_MEMORY", 4000)
    table = Reassembly()
    random = Random(1)
    for ident in range(200):
        table.add(piece(8 * random.randrange(100), bytes(64), True, ident), "", 0.0)
        assert table.bytes <= 4000
    assert table.evicted > 100
    assert table.add(piece(0, bytes(4096), True, 999), "", 0.0) is None
    assert table.reason == "fragment_memory"


def test_more_than_an_ip_packet_can_be_is_refused():
    table = Reassembly()
    for at in range(0, 65520, 65520 // 2):
        result = table.add(piece(at, bytes(65520 // 2), at == 0), "", 0.0)
    assert result is None
    assert table.reason == "fragment_too_big"
