"""The least that can stand in a datapath process's stack: a learning-free switch, to test the I/O edge by itself.

A frame goes to the link (or the vxlan remote) that its destination MAC was given by FdbAdd, else nowhere.
"""

from __future__ import annotations

import socket

from podwire_core.netlink import FdbAdd, LinkAdd, LinkDel, LinkInfo, NetlinkError, Subscribe, UnderlayInfo, UnderlaySet
from podwire_core.trace import Digest, Hop
from podwire_nodeagent.datapath.wire import Tunnel, mac_bytes


class Switch:
    def __init__(self) -> None:
        self.counters: dict[str, int] = {}
        self.traced: list[Hop] = []
        self.links: dict[str, LinkInfo] = {}
        self.macs: dict[bytes, tuple[int, Tunnel | None]] = {}
        self.nodes: dict[str, UnderlayInfo] = {}
        self.received: list[tuple[int, bytes]] = []
        self.keep = False
        self.time_offset = 0.0
        self.subscription: Subscribe | None = None
        self.broken = 0

    def apply(self, ops, now) -> None:
        for i, op in enumerate(ops):
            if isinstance(op, LinkAdd):
                if op.name in self.links and not op.replace:
                    raise NetlinkError("EEXIST", f"link {op.name} exists", i)
                index = self.links[op.name].index if op.name in self.links else len(self.links) + 1
                self.links[op.name] = LinkInfo(index, op.name, op.kind, op.mac, op.mtu, op.up, vni=op.vni)
            elif isinstance(op, LinkDel):
                del self.links[op.name]
            elif isinstance(op, FdbAdd):
                link = self.links[op.dev]
                tunnel = Tunnel(socket.inet_aton(op.dst), link.vni, 50000, 8472) if op.dst else None
                self.macs[mac_bytes(op.mac)] = (link.index, tunnel)
            elif isinstance(op, UnderlaySet):
                self.nodes[op.node_ip] = UnderlayInfo(op.node_ip, op.mac, op.host, op.cable_port, op.tunnel_port)

    def dump(self, what, now):
        return {"links": list(self.links.values()), "underlay": list(self.nodes.values())}.get(what, dict(self.counters))

    def receive(self, index, frame, now):
        if self.broken:
            raise RuntimeError("a bug in the stack")
        if self.keep:
            self.received.append((index, bytes(frame)))
        if self.subscription is not None:
            self.traced.append(Hop("n", 1, now, "in", Digest("10.0.0.1", "10.0.0.2", "tcp", len(frame), 80), [], "forwarded"))
        found = self.macs.get(bytes(frame[10:16]))
        return [(found[0], frame, found[1])] if found else []

    def tick(self, now):
        return []

    def link_index(self, name) -> int:
        return self.links[name].index

    def trace(self, subscription) -> None:
        self.subscription = subscription
