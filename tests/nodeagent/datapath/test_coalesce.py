"""Coalescing against a reference that looks at one segment after the other, and as the inverse of segmentation."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.frames import pieces, slow_sum, superframe

from podwire_nodeagent.datapath.coalesce import HEADROOM, Coalescer
from podwire_nodeagent.datapath.offload import Cutter

VXLAN = b"\x08\0\0\0\0\0\1\0"


def received(datagrams: list[bytes]) -> tuple[memoryview, int, int]:
    data = b"".join(datagrams)
    return memoryview(bytearray(HEADROOM) + bytearray(data)), len(data), len(datagrams[0])


def coalesced(datagrams: list[bytes], prefix: bytes = b"") -> list[bytes]:
    frames = []
    for head, frame in Coalescer().frames(*received(datagrams), len(prefix)):
        assert head == prefix
        frames.append(bytes(frame))
    return frames


def cut(frame: bytes, prefix: bytes = b"") -> list[bytes]:
    """Segments of a frame: of a superframe many, of another one itself."""
    if not frame[1]:
        return [prefix + frame[10:]]
    result = Cutter().cut(bytearray(frame), prefix)
    assert not isinstance(result, str), result
    return pieces(result)


# --- the reference --------------------------------


def fields(segment: bytes) -> dict:
    l4 = 14 + 4 * (segment[14] & 15)
    header = l4 + 4 * (segment[l4 + 12] >> 4)
    tcp = bytearray(segment[l4:])
    return {
        "same": (segment[:16], segment[20:24], segment[26:l4], segment[l4 : l4 + 4], segment[l4 + 8 : l4 + 13],
                 segment[l4 + 13] & 0xF6, segment[l4 + 14 : l4 + 16], segment[l4 + 18 : header]),
        "ident": int.from_bytes(segment[18:20], "big"), "seq": int.from_bytes(tcp[4:8], "big"), "flags": segment[l4 + 13],
        "length": len(segment) - header,
        "valid": slow_sum(segment[14:l4]) == 65535 and segment[12:14] == b"\x08\0" and segment[23] == 6
        and not int.from_bytes(segment[20:22], "big") & 0x3FFF and int.from_bytes(segment[16:18], "big") == len(segment) - 14
        and slow_sum(bytes(tcp), slow_sum(segment[26:34]) + 6 + len(tcp)) == 65535 and not segment[l4 + 12] & 1,
    }  # fmt: skip


def groups(segments: list[bytes]) -> list[list[bytes]]:
    """Which segments belong together, one after the other."""
    out: list[list[bytes]] = []
    before: dict | None = None
    for segment in segments:
        now = fields(segment)
        joined = (
            before is not None and before["valid"] and now["valid"] and now["same"] == before["same"]
            and now["seq"] == (before["seq"] + before["length"]) & 0xFFFFFFFF and now["ident"] == (before["ident"] + 1) & 65535
            and not before["flags"] & 9 and now["flags"] & 0xBF & ~9 == 0x10 and now["length"] > 0
        )  # fmt: skip
        if joined:
            out[-1].append(segment)
        else:
            out.append([segment])
        before = now
    return out


# --- tests --------------------------------


@settings(max_examples=100, deadline=None)
@given(
    payload=st.integers(1, 20_000),
    size=st.integers(100, 1500),
    prefix=st.sampled_from([b"", VXLAN]),
    seq=st.integers(0, 2**32 - 1),
    ident=st.integers(0, 65535),
    flags=st.sampled_from([0x10, 0x18, 0x11, 0x50]),
    options=st.sampled_from([b"", bytes(12)]),
)
def test_it_inverts_segmentation(
    payload: int, size: int, prefix: bytes, seq: int, ident: int, flags: int, options: bytes
) -> None:
    data = random.Random(payload).randbytes(payload)
    segments = cut(bytes(superframe(data, size, seq=seq, ident=ident, flags=flags, options=options)), prefix)
    frames = coalesced(segments, prefix)
    assert len(frames) == 1
    assert [piece for frame in frames for piece in cut(frame, prefix)] == segments
    if len(segments) > 1:
        assert frames[0][:2] == b"\x01\x01"
        assert frames[0].endswith(data)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_joined_is_what_the_reference_joins(data: st.DataObject) -> None:
    """Segments of several flows, some changed, lost, doubled or swapped: the groups are the reference's and no byte is lost."""
    size, segments = 100, []
    for _ in range(data.draw(st.integers(1, 3))):
        flow = superframe(
            random.Random(len(segments)).randbytes(100 * data.draw(st.integers(1, 6))),
            size,
            seq=data.draw(st.integers(0, 2**32 - 1)),
            flags=data.draw(st.sampled_from([0x10, 0x18, 0x11, 0x90, 0x50, 0x14, 0x30])),
            source=bytes([10, 244, 1, data.draw(st.integers(5, 6))]),
        )
        segments += cut(bytes(flow))
    for _ in range(data.draw(st.integers(0, 4))):
        i = data.draw(st.integers(0, len(segments) - 1))
        match data.draw(st.sampled_from(["flip", "lose", "double", "swap"])):
            case "flip":
                at, one = data.draw(st.integers(0, 153)), bytearray(segments[i])
                one[at] ^= 1 << data.draw(st.integers(0, 7))
                segments[i] = bytes(one)
            case "lose" if len(segments) > 1:
                del segments[i]
            case "double":
                segments.insert(i, segments[i])
            case "swap":
                segments[0], segments[i] = segments[i], segments[0]
    frames = coalesced(segments)
    assert [piece for frame in frames for piece in cut(frame)] == segments
    if segments[0][12:14] == b"\x08\0" and segments[0][14] == 0x45 and segments[0][23] == 6 and segments[0][46] >> 4 == 5:
        assert [len(cut(frame)) for frame in frames] == [len(group) for group in groups(segments)]


def test_a_shorter_segment_ends_a_superframe() -> None:
    segments = cut(bytes(superframe(bytes(950), 100)))
    assert [len(cut(frame)) for frame in coalesced(segments)] == [10]
    assert len(coalesced(segments)[0]) == 10 + 54 + 950


@pytest.mark.parametrize("prefix", [0, 8])
def test_datagrams_shorter_than_the_prefix(prefix: int) -> None:
    frames = list(Coalescer().frames(*received([b"\x08\0\0\0"]), prefix))
    assert [(bytes(head), len(frame)) for head, frame in frames] == ([(b"", 14)] if prefix == 0 else [(b"\x08\0\0\0", 0)])


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=300), st.integers(1, 300), st.sampled_from([0, 8]), st.integers(0, 60))
def test_any_bytes_come_out_as_they_went_in(data: bytes, step: int, prefix: int, start: int) -> None:
    """Also where headers are torn: what is not joined is passed on whole."""
    like_tcp = bytes(superframe(bytes(10), 0))[10 : 10 + start] + data
    parts = [like_tcp[i : i + step] for i in range(0, len(like_tcp), step)]
    frames = [(bytes(head), bytes(frame[10:])) for head, frame in Coalescer().frames(*received(parts), prefix)]
    assert frames == [(part[:prefix], part[prefix:]) for part in parts]


@pytest.mark.parametrize("size", [1398, 536, 48])
@pytest.mark.parametrize("length", [1, 5000, 40000])
def test_ipv6_is_cut_and_joined_again(size, length):
    whole = bytes(superframe(random.Random(length).randbytes(length), size, v4=False, options=bytes((1, 1, 8, 10)) + bytes(8)))
    segments = cut(whole, VXLAN)
    [joined] = coalesced(segments, VXLAN) if length > 3 * size else [b""]
    assert not joined or joined[10:14] == whole[10:14]
    again = cut(joined, VXLAN) if joined else segments
    assert again == segments
    if len(segments) > 2:
        bad = [*segments[:1], segments[1][:-1] + bytes((segments[1][-1] ^ 1,)), *segments[2:]]
        assert len(coalesced(bad, VXLAN)) > 1
