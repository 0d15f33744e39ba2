"""The soak, for some seconds: it holds, and its books notice what vanishes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "bench"))

import soak


@pytest.mark.root
def test_a_short_soak_is_good() -> None:
    result = soak.soak(4.0, seed=1)
    assert result["good"], result
    assert result["bytes"] > 1_000_000
    assert sum(result["changes"].values()) > 5


def test_what_vanishes_between_the_nodes_is_noticed() -> None:
    relay = {"taken.12": 10, "overflow.12": 1, "sent.12": 9, "taken.11": 5, "sent.11": 5}
    counters = [{"tunnel_tx": 11, "tunnel_rx": 5}, {"tunnel_tx": 5, "tunnel_rx": 8, "drop.tunnel_overflow": 1}]
    assert soak.books(relay, counters) == []
    counters[1]["tunnel_rx"] = 7
    assert soak.books(relay, counters) == ["the relay sent 9 datagrams to 12, 8 came"]
