"""Where the other nodes really are: node addresses and cable MACs mapped to socket addresses. Pure.

Rule: a datagram from a host that no node owns is not the cluster's, so `hosts` is also the list of those that may send to us.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from podwire_core.netlink import UnderlayInfo
from podwire_nodeagent.datapath.udp import Address
from podwire_nodeagent.datapath.wire import address_bytes, mac_bytes


class Underlay:
    """`hosts` are those of all nodes, `cables` the other nodes' cable sockets by uplink MAC, `peers` the same without doubles."""

    def __init__(self) -> None:
        self.hosts: frozenset[str] = frozenset()
        self.cables: dict[bytes, Address] = {}
        self.peers: tuple[Address, ...] = ()
        self._nodes: dict[bytes, tuple[str, int]] = {}

    def replace(self, rows: Iterable[UnderlayInfo], own: Address) -> None:
        """The whole map. A row with the cable socket `own` is this node itself: not to be flooded to."""
        rows = list(rows)
        self._nodes = {address_bytes(row.node_ip): (normal(row.host), row.tunnel_port) for row in rows}
        others = [row for row in rows if (normal(row.host), row.cable_port) != own]
        self.cables = {mac_bytes(row.mac): (normal(row.host), row.cable_port) for row in others if row.mac and row.cable_port}
        self.peers = tuple(dict.fromkeys(self.cables.values()))
        self.hosts = frozenset(normal(row.host) for row in rows)

    def tunnel_end(self, node: bytes, dstport: int) -> Address | None:
        found = self._nodes.get(node)
        return None if found is None else (found[0], found[1] or dstport)


def normal(host: str) -> str:
    """An address as recvmsg reports it. ValueError if it is none (a name would make sending wait for DNS)."""
    return str(ipaddress.ip_address(host))
