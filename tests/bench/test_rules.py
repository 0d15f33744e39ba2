"""The benchmark of rules: what it prints, and the text by which a Linux gets the same rules."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path

import pytest

from podwire_core import netfilter as nf
from podwire_core import nftables as nft
from podwire_core.netlink import ChainSplice, ChainsUpdate, IpvsReplace, NftUpdate, Splice, SysctlSet
from podwire_nodeagent.proxy import modes


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    collector = gc.get_threshold()
    yield importlib.import_module("rules")
    gc.set_threshold(*collector)
    for name in ("rules", "rules_kernel", "common"):
        sys.modules.pop(name)


def test_a_difference_as_iptables_restore_takes_it(rules) -> None:
    kept = nf.Chain("KUBE-SERVICES", (nf.Rule((nf.Destination("10.96.0.1/32"),), nf.Jump("KUBE-SVC-A")),))
    [load] = rules.loads([SysctlSet("net.ipv4.ip_forward", "1"), ChainsUpdate("nat", 4, (kept,), ("KUBE-SVC-B",))])
    assert "--noflush" in load.command
    lines = load.text.splitlines()
    assert lines[0] == "*nat"
    assert {":KUBE-SERVICES - [0:0]", ":KUBE-SVC-B - [0:0]"} <= set(lines)  # a chain must be empty to be deleted
    assert lines[-3:] == ["-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-A", "-X KUBE-SVC-B", "COMMIT"]


def test_splices_as_iptables_restore_takes_them(rules) -> None:
    a, b, c, new = (nf.Rule((nf.Destination(f"10.96.0.{n}/32"),), nf.Verdict("ACCEPT")) for n in range(4))
    splices = (Splice(0, None, (a,), (new, new)), Splice(2, b, (c,), ()))
    [load] = rules.loads([ChainsUpdate("filter", 4, splices=(ChainSplice("X", 3, splices),))])
    steps = load.text.splitlines()[-5:]
    assert steps[:2] == ["-D X 3", "-D X 1"]
    assert steps[2:] == ["-I X 1 -d 10.96.0.3/32 -j ACCEPT", "-I X 2 -d 10.96.0.3/32 -j ACCEPT", "COMMIT"]


def test_a_difference_as_nft_takes_it(rules) -> None:
    goto = nft.Verdict("goto", "service-new")
    update = NftUpdate(
        4,
        "kube-proxy",
        delete_elements={"cluster-ips": (("10.96.0.2",),)},
        chains=(nft.Chain("service-new", (nft.Rule((nft.Dnat("10.244.1.2", 80),)),)),),
        elements={"service-ips": (nft.Element(("10.96.0.1", "tcp", "80"), goto),)},
        delete_chains=("service-old",),
    )
    [load] = rules.loads([update])
    steps = ["delete element ip kube-proxy cluster-ips { 10.96.0.2 }", "flush chain ip kube-proxy service-new"]
    steps += ["dnat to 10.244.1.2:80", "add element ip kube-proxy service-ips { 10.96.0.1 . tcp . 80 : goto service-new }"]
    steps += ["delete chain ip kube-proxy service-old"]
    places = [load.text.index(step) for step in steps]
    assert places == sorted(places)


def test_what_only_clears_is_left_out_and_what_has_no_text_has_no_peer(rules) -> None:
    clearing = [op for clear in modes.CLEAR.values() for op in clear()]
    assert rules.loads(clearing) == []
    assert rules.loads([*clearing, IpvsReplace(())]) is None


def test_rows_and_picture(rules, tmp_path: Path) -> None:
    found = rules.Found({"first-packet": [40.0, 44.0], "memory": [7.5]}, {"first-packet": [5.0, 4.0]})
    rows = [row.data("rules") for row in found.rows("iptables 1000")]
    assert rows == [
        {
            "bench": "rules", "case": "iptables 1000", "metric": "first-packet", "unit": "µs",
            "podwire": 42.0, "kernel": 4.5, "ratio": 9.333, "low": 8.0, "high": 11.0, "pairs": 2,
        },
        {
            "bench": "rules", "case": "iptables 1000", "metric": "memory", "unit": "kB/Service",
            "podwire": 7.5, "kernel": None, "ratio": None, "low": None, "high": None, "pairs": 0,
        },
    ]  # fmt: skip
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("svg")
    rules.plot(str(tmp_path / "plot.svg"), "rules", rows)
    assert "<svg" in (tmp_path / "plot.svg").read_text()


@pytest.mark.root
@pytest.mark.parametrize("mode", modes.MODES)
def test_every_mode_is_measured(rules, mode: str) -> None:
    """With the kernel's tools taking our text, the change and its undoing, where there is text."""
    found, left_out = rules.measure_size(mode, 10, 2, kernel=True)
    assert left_out == ""
    assert set(found.podwire) == set(rules.UNITS) - {"memory"}
    assert all(value > 0 for values in found.podwire.values() for value in values)
    in_turns = {"first-packet", "known", "add", "endpoint", "remove"}
    assert set(found.kernel) == (in_turns | {"load", "apply"} if mode in ("iptables", "nftables") else set())
    assert {len(found.podwire[metric]) for metric in in_turns} == {2}
