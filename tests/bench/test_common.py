"""The benchmarks' output format, which other people's scripts read."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch):
    spec = importlib.util.spec_from_file_location("bench_common", Path(__file__).parents[2] / "bench" / "common.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_common", module)
    spec.loader.exec_module(module)
    return module


def test_a_row_is_medians_and_the_range_of_the_pairs_ratios(common) -> None:
    row = common.Row("same-node", "tcp", "Gb/s", podwire=[10.0, 12.0, 11.0], kernel=[20.0, 10.0, 22.0])
    assert row.data("throughput") == {
        "bench": "throughput", "case": "same-node", "metric": "tcp", "unit": "Gb/s",
        "podwire": 11.0, "kernel": 20.0, "ratio": 0.55, "low": 0.5, "high": 1.2, "pairs": 3,
    }  # fmt: skip


def test_pairs_alternate(common) -> None:
    order: list[str] = []
    found = common.paired(lambda: order.append("p") or {"x": 1.0}, lambda: order.append("k") or {"x": 2.0}, 3)
    assert "".join(order) == "pkkppk"
    assert found == ({"x": [1.0] * 3}, {"x": [2.0] * 3})


def test_plot(common, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    row = common.Row("same-node", "tcp", "Gb/s", [10.0], [20.0]).data("throughput")
    common.plot(str(tmp_path / "plot.svg"), "throughput", [row])
    assert "<svg" in (tmp_path / "plot.svg").read_text()
