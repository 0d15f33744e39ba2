"""VXLAN's header against RFC 7348, section 5."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_nodeagent.datapath import vxlan


def test_header_is_that_of_the_rfc() -> None:
    assert vxlan.encode(1) == bytes.fromhex("0800000000000100")
    assert vxlan.encode(0xABCDEF) == bytes.fromhex("08000000abcdef00")
    for vni in (-1, 1 << 24):
        with pytest.raises(ValueError, match="VNI"):
            vxlan.encode(vni)


@given(st.integers(0, vxlan.MAX_VNI), st.binary(min_size=5, max_size=5), st.integers(22, 9000))
def test_what_is_reserved_is_ignored(vni: int, noise: bytes, size: int) -> None:
    header = bytearray(vxlan.encode(vni))
    header[0] |= noise[0]
    header[1:4], header[7] = noise[1:4], noise[4]
    assert vxlan.decode(header, size) == vni


@given(st.binary(max_size=60))
def test_any_bytes_have_a_vni_or_a_reason(data: bytes) -> None:
    result = vxlan.decode(data, len(data))
    if len(data) < 8 + 14:
        assert result == vxlan.SHORT
    elif not data[0] & 8:
        assert result == vxlan.NO_VNI
    else:
        assert result == int.from_bytes(data[4:7], "big")
    assert result >= 0 or result in vxlan.REASONS
