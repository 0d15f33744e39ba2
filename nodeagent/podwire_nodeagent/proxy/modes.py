"""kube-proxy's modes: which there are, and what each of them is to the node that runs it.

A mode compiles the same model (model.py) to the datapath's state in its own way; the rest of the agent, `podwire check` and the
simulation know it by this protocol alone. A mode's file is imported when it is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from podwire_core import netfilter as nf
from podwire_core.netlink import AddrsUpdate, AnyOp, BpfReplace, IpsetDestroy, IpvsReplace, LinkDel, NftReplace, SysctlSet
from podwire_core.objects import Json
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.model import NodeFacts

MODES = ("iptables", "nftables", "ipvs", "ebpf")

# What leaves nothing of a mode behind, for nodes that change theirs. The iptables tables need none: every mode replaces them.
CLEAR: dict[str, Callable[[], list[AnyOp]]] = {
    "iptables": lambda: [SysctlSet("net.ipv4.conf.all.route_localnet", "0")],
    "nftables": lambda: [NftReplace()],
    "ipvs": lambda: [
        IpvsReplace(hand_over=True),
        IpsetDestroy(),  # once no rule refers to them
        AddrsUpdate("kube-ipvs0", replace=True, missing_ok=True),
        LinkDel("kube-ipvs0", missing_ok=True),
    ],
    "ebpf": lambda: [BpfReplace()],
}


class Proxy(Protocol):
    """One node's kube-proxy, of one family."""

    def changes(
        self, services: Mapping[str, Json | None], slices: Mapping[str, Json | None], node: NodeFacts | None = None
    ) -> list[AnyOp]:
        """Objects by "ns/name" as they are now (None: gone); the operations that bring the datapath there. The first call states
        everything."""

    def restate(self) -> list[AnyOp]:
        """Everything again, for a datapath that may hold anything."""


class Alone:
    """A proxy whose first word, and every restatement, clears what other modes may have left."""

    def __init__(self, mode: str, proxy: Proxy) -> None:
        self._mode, self._proxy, self._stated = mode, proxy, False

    def changes(
        self, services: Mapping[str, Json | None], slices: Mapping[str, Json | None], node: NodeFacts | None = None
    ) -> list[AnyOp]:
        first, self._stated = not self._stated, True
        ops = self._proxy.changes(services, slices, node)
        return [*self._clear(), *ops] if first else ops

    def restate(self) -> list[AnyOp]:
        self._stated = True
        return [*self._clear(), *self._proxy.restate()]

    def _clear(self) -> list[AnyOp]:
        return [op for mode, clear in CLEAR.items() if mode != self._mode for op in clear()]


def make(config: ProxyConfiguration, node: NodeFacts, family: int = 4, others: Sequence[nf.Table] = ()) -> Proxy:
    """The proxy of `config.mode`. `others`: iptables rules of other daemons, which every mode leaves in force (compose.py).
    Raises ValueError for a mode that is not there."""
    return Alone(config.mode, _make(config, node, family, others))


def make_all(config: ProxyConfiguration, node: NodeFacts, others: Mapping[int, Sequence[nf.Table]]) -> dict[int, Proxy]:
    """A proxy for each family of `others`. The mode is the first one's; a second family is served by iptables rules, since the
    state of the other modes is one family's, to be stated as a whole."""
    found: dict[int, Proxy] = {}
    plain = msgspec.structs.replace(config, mode="iptables")
    for family, tables in others.items():
        if not found:
            found[family] = make(config if family == 4 or config.mode == "nftables" else plain, node, family, tables)
        else:
            found[family] = _make(plain, node, family, tables)
    return found


def _make(config: ProxyConfiguration, node: NodeFacts, family: int, others: Sequence[nf.Table]) -> Proxy:
    match config.mode:
        case "iptables":
            from podwire_nodeagent.proxy.iptables import Proxier

            return Proxier(config, node, family, others)
        case "nftables":
            from podwire_nodeagent.proxy import nftables

            return nftables.Proxier(config, node, family, others)
        case "ipvs":
            from podwire_nodeagent.proxy import ipvs

            return ipvs.Proxier(config, node, family, others)
        case "ebpf":
            from podwire_nodeagent.proxy import ebpf

            return ebpf.Proxier(config, node, family, others)
    raise ValueError(f"kube-proxy mode {config.mode!r} is not there yet; there are: {', '.join(MODES)}")
