"""`Stack`: a node's userspace kernel. Frames go in, frames come out; the tables between are set by netlink operations.

A pure core: frames, time and randomness are arguments, nothing here reads a clock (but the nanosecond counter that traces
are given) or touches a file descriptor. The same object moves live packets, answers `podwire check` and is joined with
others in memory by the tests.

Rules:
- `receive` never raises, whatever the frame. Each received frame ends as forwarded, delivered, dropped (with a reason),
  rejected or consumed, and these counters "frames.*" add up to "frames.received". Copies of floods, packets that waited and
  packets that the stack made are not among them; those that get dropped are "frames.lost", so that all "drop.*" together
  are "frames.dropped" and "frames.lost".
- Emitted frames may be the input buffer itself: the caller writes them before it reuses it. What the stack keeps it copies.
- The tables change only by `apply`, `tick`, and what frames teach (neighbours, bridge, conntrack); whatever a cached flow
  might depend on calls `changed`.

Order to read: this file, then packet order: flowcache.py (hit or walk), ingress.py, arp.py, ip.py with netfilter/, fib.py,
icmp.py, fragments.py, egress.py with neigh.py and bridge.py; configure.py (with change.py) and dumps.py; tracer.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from podwire_core.netlink import AnyOp, NetlinkError, UnderlaySet
from podwire_core.trace import Hop
from podwire_nodeagent.datapath import configure, dumps, egress, icmp, ingress, ip, tracer
from podwire_nodeagent.datapath.chooser import Chooser
from podwire_nodeagent.datapath.ebpf.lb import LoadBalancer
from podwire_nodeagent.datapath.fib import Fib, Route, scope
from podwire_nodeagent.datapath.flowcache import SMALLEST, FlowCache, flow_key, make_flow
from podwire_nodeagent.datapath.fragments import Reassembly
from podwire_nodeagent.datapath.links import Link, Links
from podwire_nodeagent.datapath.neigh import Neighbours
from podwire_nodeagent.datapath.netfilter import Netfilter
from podwire_nodeagent.datapath.settings import Settings
from podwire_nodeagent.datapath.walk import Waiting, Walk
from podwire_nodeagent.datapath.wire import ZERO_MAC, Buffer, Emit, Tunnel, address_bytes

__all__ = ["Emit", "Stack", "Tunnel"]

SWEEP = 10.0  # how often old flows and bridge entries are taken out; they are not used when old anyway
LOOPBACK = "lo"


class Stack:
    """See the head of the file. `traced` is drained by the caller; `time_offset` is added to `now` in traces (to make it
    CLOCK_REALTIME); `nanoseconds` times the stages of traced walks."""

    def __init__(self, node: str, rng: Chooser, nanoseconds: Callable[[], int] = time.perf_counter_ns) -> None:
        self.node = node
        self.generation = 0
        self.counters: dict[str, int] = {}
        self.settings = Settings()
        self.links = Links()
        self.fib = Fib()
        self.neighbours = Neighbours(self.changed)
        self.underlay: dict[str, UnderlaySet] = {}
        self.reassembly = Reassembly()
        self.icmp_limit = icmp.RateLimit()
        self.netfilter = Netfilter(rng, self.settings.values, self._is_local, self._masquerade_source, self._is_broadcast)
        self.lb: LoadBalancer = LoadBalancer(rng)
        self.cache = FlowCache(self.netfilter)
        self.traced: list[Hop] = []
        self.time_offset = 0.0
        self._filter: tracer.Filter | None = None
        self._nanoseconds = nanoseconds
        self._hops = 0
        self._ident = rng.below(65536)
        self._sweep_due = 0.0
        self.loopback = Link(self.links.new_index(), LOOPBACK, "loopback", ZERO_MAC, 65535)
        self._add_loopback()

    def _add_loopback(self) -> None:
        self.links.insert(self.loopback)
        own, own6 = address_bytes("127.0.0.1"), address_bytes("::1")
        self.loopback.addresses += [(own, 8), (own6, 128)]
        self.fib.insert(Route(own6, 128, self.loopback, proto="kernel", type="local", table="local"))
        for dst, plen in ((own, 32), (b"\x7f\0\0\0", 8)):
            self.fib.insert(Route(dst, plen, self.loopback, src=own, proto="kernel", type="local", table="local"))

    # --- control --------------------------------

    def apply(self, ops: Sequence[AnyOp], now: float) -> None:
        """All operations, or none and NetlinkError."""
        self.cache.settle()
        try:
            configure.apply(self, ops, now)
        finally:
            self.changed()

    def dump(self, what: str, now: float) -> Any:
        """The records of `netlink.DUMPS[what]`."""
        self.cache.settle()
        return dumps.dump(self, what, now)

    def link_index(self, name: str) -> int:
        link = self.links.get(name)
        if link is None:
            raise NetlinkError("ENODEV", f"cannot find device {name!r}")
        return link.index

    def vxlan_index(self, vni: int, mac: bytes = b"") -> int:
        """The vxlan link with this VNI, 0 if there is none; where two have it (one a family), the one with this MAC."""
        found = [link for link in self.links if link.kind == "vxlan" and link.vni == vni]
        found.sort(key=lambda link: link.mac != mac)
        return found[0].index if found else 0

    def route_get(self, dst: str) -> tuple[Route | None, bytes]:
        """`ip route get`: the route, and the source address that a packet of the node itself would have."""
        route = self.fib.lookup(address_bytes(dst))
        return route, self.fib.source(route, self.links, address_bytes(dst)) if route is not None else b""

    def trace(self, want: tracer.Filter | None) -> None:
        """From now on walks that match are appended to `traced`; None ends that."""
        self._filter = want
        self.changed()

    def changed(self) -> None:
        """Something that a cached flow may depend on is different now."""
        self.generation += 1
        self.cache.clear()

    # --- packets --------------------------------

    def receive(self, link_index: int, frame: Buffer, now: float) -> list[Emit]:
        """A frame (virtio_net_hdr first) came in by this link: what to send."""
        hit = self.cache.take(link_index, frame, now)
        if hit is not None:
            return hit
        emits: list[Emit] = []
        link = self.links.by_index.get(link_index)
        self.cache.settle()
        self.count("frames.received")
        if link is None:
            self.count("frames.dropped")
            self.count("drop.no_such_link")
            return emits
        walk = self.new_walk(frame, link, now, emits)
        walk.received = True
        key = flow_key(link_index, frame) if len(frame) >= SMALLEST and self.cache.enabled else None
        ingress.receive(self, walk, link)
        traced = self.finish(walk)
        self.count("frames." + walk.verdict)
        if key is not None and walk.cacheable and not traced:
            flow = make_flow(walk, *key, self.netfilter)
            if flow is not None:
                self.cache.insert(key[0], flow)
        return emits

    def tick(self, now: float) -> list[Emit]:
        """Timers: neighbours, connections, fragments, ageing. Cheap when nothing is due."""
        self.cache.settle()
        emits: list[Emit] = []
        due = self.neighbours.tick(now)
        for entry in due.requests:
            egress.solicit(self, Walk(bytearray(), None, now, emits), entry)
        for _, queue in due.failed:
            for waiting in queue:
                self._neighbour_failed(waiting, now, emits)
        self.netfilter.expire(now)
        if self.netfilter.ipvs.tick(now):
            self.changed()
        self.lb.table.expire(now, 1000)
        expired = self.reassembly.expire(now)
        if expired:
            self.count("fragments.timeout", expired)
        if now >= self._sweep_due:
            self._sweep_due = now + SWEEP
            self.cache.expire(now)
            self.netfilter.nftables.expire(now)
            if sum(link.fdb.expire(now) for link in self.links if link.fdb is not None and link.kind == "bridge"):
                self.changed()
        return emits

    def _neighbour_failed(self, waiting: Waiting, now: float, emits: list[Emit]) -> None:
        """Nobody answered for the next hop of a packet that waited."""
        walk = waiting.resume(now, emits)
        ip.send_error(self, walk, icmp.UNREACHABLE, icmp.HOST)
        walk.drop("neighbour_failed", "neighbour")
        self.finish(walk)

    # --- what the stages use --------------------------------

    def new_walk(self, frame: Buffer, link: Link | None, now: float, emits: list[Emit]) -> Walk:
        walk = Walk(frame, link, now, emits)
        if self._filter is not None:
            walk.steps = []
            walk.clock = self._nanoseconds
            walk.started = walk.lap = self._nanoseconds()
            walk.entered = tracer.digest(frame)
        return walk

    def finish(self, walk: Walk) -> bool:
        """Count and trace what a walk came to. True if it was traced."""
        if walk.verdict == "dropped":
            if walk.received:
                self.count("drop." + walk.reason)
            else:
                self.lost(walk.reason)
        elif walk.verdict == "rejected":
            self.count("reject." + walk.reason)
        if self._filter is None or walk.steps is None or walk.reason == "neighbour_incomplete":
            return walk.steps is not None
        sent = walk.verdict in ("forwarded", "delivered")
        out = tracer.digest(walk.frame) if sent else None
        if not tracer.wanted(self._filter, walk, out):
            return False
        self._hops += 1
        self.traced.append(tracer.hop(walk, self.node, self._hops, walk.now + self.time_offset, out))
        return True

    def lost(self, reason: str) -> None:
        """A packet was dropped that isn't a frame received just now: a copy, one that waited, one the stack made."""
        self.count("drop." + reason)
        self.count("frames.lost")

    def count(self, name: str, number: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + number

    def all_counters(self) -> dict[str, int]:
        """`counters`, the cache's share of them, and netfilter's."""
        found = {**self.netfilter.counters, **self.counters}
        for verdict, number in self.cache.verdicts.items():
            found["frames." + verdict] = found.get("frames." + verdict, 0) + number
        found["frames.received"] = found.get("frames.received", 0) + self.cache.hits
        found["cache.hits"] = self.cache.hits
        found["cache.flows"] = len(self.cache.flows)
        found["generation"] = self.generation
        return found

    def next_ident(self) -> int:
        self._ident = (self._ident + 1) & 0xFFFF
        return self._ident

    def link_source(self, dev: Link, towards: bytes) -> bytes:
        """The address by which this node is known on a link: one of its subnet, its first, any."""
        return self.fib.source(Route(towards, 8 * len(towards), dev), self.links) or bytes(len(towards))

    def _is_local(self, address: bytes) -> bool:
        return self.fib.is_local(address)

    def _is_broadcast(self, address: bytes) -> bool:
        return self.fib.address_type(address) == "BROADCAST"

    def _masquerade_source(self, out_link: str, family: int) -> bytes | None:
        """Of the link, or of any other if it has none; never lo's, whose scope is the host."""
        size = 4 if family == 4 else 16
        links = [link for link in self.links if link is not self.loopback]
        links.sort(key=lambda link: link.name != out_link)
        found = [a for link in links for a, _ in link.addresses if len(a) == size]
        return next((a for a in found if family == 4 or scope(a) > 2), None)
