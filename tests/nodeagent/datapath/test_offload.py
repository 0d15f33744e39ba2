"""Segmentation and checksum completion against a byte-by-byte reference."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.frames import VNET, finish, pieces, reference, slow_sum, superframe

from podwire_nodeagent.datapath import offload
from podwire_nodeagent.datapath.offload import Cutter, complete, ones_sum

# --- segmentation --------------------------------


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_cut_equals_the_reference(data: st.DataObject) -> None:
    v4, udp = data.draw(st.booleans()), data.draw(st.booleans())
    size = data.draw(st.integers(48, 1500))
    count = data.draw(st.integers(1, 5000))
    payload = data.draw(st.sampled_from([bytes(count), b"\xff" * count, random.Random(count).randbytes(count)]))
    frame = superframe(
        payload, size, v4=v4, udp=udp, options=data.draw(st.sampled_from([b"", b"\1\1\x08\x0a" + bytes(range(8))])),
        ip_options=data.draw(st.sampled_from([b"", b"\1\1\1\0"])) if v4 else b"", ident=data.draw(st.integers(0, 65535)),
        seq=data.draw(st.integers(0, 0xFFFFFFFF)), flags=data.draw(st.integers(0, 255)),
    )  # fmt: skip
    prefix = data.draw(st.sampled_from([b"", b"\x08\0\0\0\0\0\1\0"]))
    before = bytes(frame)
    result = Cutter().cut(frame, prefix)
    assert not isinstance(result, str)
    assert pieces(result) == reference(before, prefix)
    assert bytes(frame) == before


def test_a_full_superframe_and_the_smallest_segments_fit() -> None:
    cutter = Cutter()
    for size in (offload.MIN_GSO_SIZE, 1398, 60000):
        frame = superframe(random.Random(size).randbytes(65535 - 40), size)
        assert pieces(cutter.cut(frame, b"")) == reference(bytes(frame), b"")


@pytest.mark.parametrize("v4", [True, False])
def test_one_segment_that_is_shorter_than_its_size(v4: bool) -> None:
    frame = superframe(b"x" * 900, 65535, v4=v4)
    result = Cutter().cut(frame, b"")
    assert not isinstance(result, str)
    assert pieces(result) == reference(bytes(frame), b"")


def test_what_is_no_superframe_is_a_reason() -> None:
    cut, good = Cutter().cut, superframe(bytes(3000), 1000)

    def broken(at: int, value: bytes) -> str | tuple:
        frame = bytearray(good)
        frame[at : at + len(value)] = value
        return cut(frame, b"")

    assert broken(1, b"\x03") == "gso_type"
    assert broken(4, b"\x01\x00") == "gso_size"
    assert broken(6, b"\xff\xff") == "gso_headers"
    assert broken(6, b"\x00\x00") == "gso_headers"
    assert broken(10 + 12, b"\x86\xdd") == "gso_protocol"
    assert broken(24 + 9, b"\x11") == "gso_protocol"
    assert broken(10 + 34 + 12, b"\x10") == "gso_headers"
    assert cut(good[:40], b"") == "gso_size"


@given(st.binary(min_size=24, max_size=200))
def test_any_bytes_are_cut_or_refused(frame: bytes) -> None:
    result = Cutter().cut(bytearray(frame), b"")
    assert isinstance(result, str) or result[1] > 0


# --- partial checksums --------------------------------


@given(st.binary(max_size=1500))
def test_sums(data: bytes) -> None:
    assert ones_sum(data) == slow_sum(data)


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("size", [0, 1, 500, 1399])
def test_complete(udp: bool, size: int) -> None:
    frame = superframe(random.Random(size).randbytes(size), 0, udp=udp)
    if udp:
        frame[48:50] = (8 + size).to_bytes(2, "big")
    wanted = finish(bytearray(frame[10:]), 34, 17 if udp else 6, True)
    field = 10 + 34 + (6 if udp else 16)
    pseudo = slow_sum(frame[36:44], (17 if udp else 6) + len(frame) - 44)
    frame[field : field + 2] = pseudo.to_bytes(2, "big")
    frame[:10] = VNET.pack(1, 0, 0, 0, 34, 6 if udp else 16)
    assert complete(frame) == ""
    assert (bytes(frame[44:]), frame[0]) == (wanted[34:], 0)
    assert complete(frame) == ""
    assert bytes(frame[44:]) == wanted[34:]


def test_complete_stays_inside_the_frame() -> None:
    frame = superframe(b"x", 0)
    for start, offset in ((13, 16), (34, 65535), (65535, 0), (34, 20)):
        frame[:10] = VNET.pack(1, 0, 0, 0, start, offset)
        assert complete(frame) == "vnet_csum_range"
