"""kube-proxy's modes: which there are, and what each of them is to the node that runs it.

A mode compiles the same model (model.py) to the datapath's state in its own way; the rest of the agent, `podwire check` and the
simulation know it by this protocol alone. A mode's file is imported when it is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from podwire_core import netfilter as nf
from podwire_core.netlink import AnyOp
from podwire_core.objects import Json
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.model import NodeFacts

MODES = ("iptables",)


class Proxy(Protocol):
    """One node's kube-proxy, of one family."""

    def changes(
        self, services: Mapping[str, Json | None], slices: Mapping[str, Json | None], node: NodeFacts | None = None
    ) -> list[AnyOp]:
        """Objects by "ns/name" as they are now (None: gone); the operations that bring the datapath there. The first call states
        everything."""

    def restate(self) -> list[AnyOp]:
        """Everything again, for a datapath that may hold anything."""


def make(config: ProxyConfiguration, node: NodeFacts, family: int = 4, others: Sequence[nf.Table] = ()) -> Proxy:
    """The proxy of `config.mode`. `others`: iptables rules of other daemons, which every mode leaves in force (compose.py).
    Raises ValueError for a mode that is not there."""
    match config.mode:
        case "iptables":
            from podwire_nodeagent.proxy.iptables import Proxier

            return Proxier(config, node, family, others)
    raise ValueError(f"kube-proxy mode {config.mode!r} is not there yet; there are: {', '.join(MODES)}")
