"""The flow cache: what the walk of a flow's packet did, as an entry that later packets take instead of walking.

Theory. An entry is made from the header before and after a walk that ended in sending just this frame: the new MACs, the
TTL's decrement, the new addresses and ports, and the checksum deltas that follow from them. A packet hits it if it came by
the same link with the same MACs, addresses, ports and protocol, and is ordinary: IP without options or extension headers,
whole, header checksum right, TTL above 1, no padding, not too big, TCP without SYN, FIN, RST. Everything else walks, so an
entry needs to know nothing about it.

Rules:
- Any change of a table (`Stack.changed`) empties the cache. An entry lives at most LIFETIME, and no longer than the neighbour and
  bridge entries it relied on are certain. The connection's `epoch` must be what it was, and `touch` must agree.
- A hit does the connection's accounting at once. The counters of links, rules and bridge ageing are credited in bulk
  (`settle`) before anything reads them: before the next walk, dump or tick.
- Packets that conntrack doesn't call established or new, random or remembered decisions, floods, fragments, traced flows:
  never cached.

Order to read: Flow, make_flow, FlowCache.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from podwire_nodeagent.datapath.packet import TCP, UDP
from podwire_nodeagent.datapath.rewrite import word_delta
from podwire_nodeagent.datapath.wire import L3, VNET_SIZE, Buffer, Tunnel

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.links import Link
    from podwire_nodeagent.datapath.netfilter import Connection, Netfilter
    from podwire_nodeagent.datapath.walk import Walk

LIFETIME = 10.0
MAX_FLOWS = 65536
SMALLEST, SMALLEST6 = L3 + 28, L3 + 48
# gso_type, gso_size (swapped), MACs, type, version+ihl, length, flags+offset, ttl, protocol, checksum, addresses and ports
HEADER = Struct("!xBxxH4x12sHBxHxxHBBH12s")
NETWORK = Struct("!BBH12s")  # ttl … ports, at L3 + 8
# gso_type, gso_size (swapped), MACs, type, version+class+label, length, next header, hop limit, addresses and ports
HEADER6 = Struct("!xBxxH4x12sHIHBB36s")
FlowKey = tuple[int, bytes, bytes, int]  # link, MACs, addresses and ports, protocol


class Flow:
    """See the head of the file. `out` is a link index; `rewrites` says whether addresses or ports change at all."""

    __slots__ = (
        "addresses",
        "bpf",
        "bpf_direction",
        "bytes",
        "ct",
        "direction",
        "epoch",
        "expires",
        "fdb_source",
        "hits",
        "ip_delta",
        "l4_delta",
        "last",
        "macs",
        "mtu",
        "out",
        "packets",
        "pseudo_delta",
        "rewrites",
        "seen",
        "ttl",
        "tunnel",
        "verdict",
    )

    def __init__(self, walk: Walk, ct: Connection, key: FlowKey, ttl: int) -> None:
        self.out, frame, self.tunnel = walk.emits[0]
        (_, self.macs, self.addresses, _), left = flow_key(0, frame)
        before = key[2]
        self.rewrites = self.addresses != before
        self.ttl = left - ttl
        self.pseudo_delta = word_delta(before[:-4], self.addresses[:-4])
        self.l4_delta = word_delta(before, self.addresses)
        self.ip_delta = (self.pseudo_delta + self.ttl * 256) % 65535
        self.ct, self.direction, self.epoch = ct, walk.packet.direction, ct.epoch
        self.bpf, self.bpf_direction = walk.bpf, walk.bpf_direction
        if ct is walk.bpf:
            self.bpf, self.direction = None, walk.bpf_direction
        self.expires = min(walk.now + LIFETIME, walk.expires)
        self.mtu, self.verdict = walk.mtu, walk.verdict
        self.hits, self.seen, self.fdb_source = walk.packet.hits or [], walk.seen, walk.fdb_source
        self.packets = self.bytes = 0
        self.last = walk.now


def flow_key(link: int, frame: Buffer) -> tuple[FlowKey, int]:
    """The key of a frame that is long enough, and its TTL. Families differ in the length of their addresses."""
    if frame[L3 - 2] == 0x86 and len(frame) >= SMALLEST6:
        _, _, macs, _, _, _, proto, ttl, addresses = HEADER6.unpack_from(frame, 0)
        return (link, macs, addresses, proto), ttl
    _, _, macs, _, _, _, _, ttl, proto, _, addresses = HEADER.unpack_from(frame, 0)
    return (link, macs, addresses, proto), ttl


def make_flow(walk: Walk, key: FlowKey, ttl: int, netfilter: Netfilter) -> Flow | None:
    """The entry for what `walk` did to a frame that had this key and TTL, None if it cannot stand for others."""
    packet, bpf = walk.packet, walk.bpf
    ct = bpf if walk.untracked else packet.ct
    if not walk.cacheable or len(walk.emits) != 1 or packet.proto not in (TCP, UDP):
        return None
    if packet.l4 != L3 + (20 if packet.family == 4 else 40):
        return None
    if walk.emits[0][1] is not walk.frame or ct is None or not (walk.untracked or netfilter.cacheable(packet)):
        return None
    if bpf is not None and not bpf.settled(packet):
        return None
    if ct.packets_original + ct.packets_reply < 2:  # the nat table was asked on this walk, and may have marked the packet
        return None
    return Flow(walk, ct, key, ttl)


def patch_l4(frame: Buffer, proto: int, flow: Flow) -> None:
    """The transport checksum of a rewritten packet."""
    l4 = L3 + 20 if len(flow.addresses) == 12 else L3 + 40
    at = l4 + 16 if proto == TCP else l4 + 6
    old = frame[at] << 8 | frame[at + 1]
    if frame[0] & 1 and frame[6] | frame[7] << 8 == l4 - VNET_SIZE:
        new = (old + flow.pseudo_delta) % 65535 or 0xFFFF
    elif proto == TCP:
        new = (old - flow.l4_delta) % 65535
    elif old:
        new = (old - flow.l4_delta) % 65535 or 0xFFFF
    else:
        return
    frame[at], frame[at + 1] = new >> 8, new & 255


class FlowCache:
    """The entries, and those with counters to settle."""

    def __init__(self, netfilter: Netfilter) -> None:
        self._netfilter = netfilter
        self.flows: dict[FlowKey, Flow] = {}
        self._dirty: list[Flow] = []
        self.enabled = True
        self.hits = 0  # settled
        self.verdicts: dict[str, int] = {}

    def insert(self, key: FlowKey, flow: Flow) -> None:
        if len(self.flows) >= MAX_FLOWS:
            self.clear()
        self.flows[key] = flow

    def clear(self) -> None:
        self.settle()
        self.flows.clear()

    def expire(self, now: float) -> None:
        for key in [key for key, flow in self.flows.items() if now >= flow.expires]:
            del self.flows[key]

    def take(self, link: int, frame: Buffer, now: float) -> list[tuple[int, Buffer, Tunnel | None]] | None:
        """The hit path: the frame rewritten in place and where it goes, None if it must walk. Paid per packet, all of it."""
        if len(frame) < SMALLEST:
            return None
        gso, gso_size, macs, kind, first, total, fragment, ttl, proto, check, addresses = HEADER.unpack_from(frame, 0)
        flow = self.flows.get((link, macs, addresses, proto))
        if flow is None:
            return self._take6(link, frame, now) if kind == 0x86DD and len(frame) >= SMALLEST6 else None
        if kind != 0x800 or first != 0x45 or fragment & 0x3FFF or ttl < 2 or total + L3 != len(frame) or now >= flow.expires:
            return None
        if int.from_bytes(frame[L3 : L3 + 20], "big") % 65535:
            return None
        headers = 28
        if proto == TCP:
            if total < 40 or frame[57] & 7:
                return None
            headers = 20 + (frame[56] >> 4 << 2)
            if not 40 <= headers <= total:
                return None
        elif not 8 <= (frame[48] << 8 | frame[49]) <= total - 20:
            return None
        if total > flow.mtu and (not gso or headers + (gso_size >> 8 | (gso_size & 255) << 8) > flow.mtu or not gso_size):
            return None
        ct, bpf = flow.ct, flow.bpf
        if bpf is not None and (bpf.epoch < 0 or now >= bpf.expires or now >= bpf.upgrade):
            return None  # before anything is accounted, or the walk would count the packet again
        if ct.epoch != flow.epoch or not ct.touch(flow.direction, total, now):
            return None
        if bpf is not None:
            bpf.touch(flow.bpf_direction, total, now)
        frame[10:22] = flow.macs
        if flow.rewrites:
            NETWORK.pack_into(frame, 32, ttl + flow.ttl, proto, (check - flow.ip_delta) % 65535, flow.addresses)
            patch_l4(frame, proto, flow)
        elif flow.ttl:
            NETWORK.pack_into(frame, 32, ttl + flow.ttl, proto, (check - flow.ip_delta) % 65535, addresses)
        if not flow.packets:
            self._dirty.append(flow)
        flow.packets += 1
        flow.bytes += total
        flow.last = now
        return [(flow.out, frame, flow.tunnel)]

    def _take6(self, link: int, frame: Buffer, now: float) -> list[tuple[int, Buffer, Tunnel | None]] | None:
        """`take` for IPv6 without extension headers: no header checksum, else the same."""
        gso, gso_size, macs, _, first, payload, proto, ttl, addresses = HEADER6.unpack_from(frame, 0)
        flow = self.flows.get((link, macs, addresses, proto))
        if flow is None:
            return None
        total = payload + 40
        if first >> 28 != 6 or ttl < 2 or total + L3 != len(frame) or now >= flow.expires:
            return None
        headers = 48
        if proto == TCP:
            if total < 60 or frame[77] & 7:
                return None
            headers = 40 + (frame[76] >> 4 << 2)
            if not 60 <= headers <= total:
                return None
        elif not 8 <= (frame[68] << 8 | frame[69]) <= payload:
            return None
        if total > flow.mtu and (not gso or headers + (gso_size >> 8 | (gso_size & 255) << 8) > flow.mtu or not gso_size):
            return None
        ct = flow.ct
        if ct.epoch != flow.epoch or not ct.touch(flow.direction, total, now):
            return None
        frame[10:22] = flow.macs
        frame[31] = ttl + flow.ttl
        if flow.rewrites:
            frame[32:68] = flow.addresses
            patch_l4(frame, proto, flow)
        if not flow.packets:
            self._dirty.append(flow)
        flow.packets += 1
        flow.bytes += total
        flow.last = now
        return [(flow.out, frame, flow.tunnel)]

    def settle(self) -> None:
        """Credit what the hits since last time owe to links, rules and the bridge."""
        for flow in self._dirty:
            packets, size = flow.packets, flow.bytes
            flow.packets = flow.bytes = 0
            on_wire = size + 14 * packets
            for link, sent in flow.seen:
                credit(link, sent, packets, on_wire)
            if flow.fdb_source is not None:
                flow.fdb_source.used = max(flow.fdb_source.used, flow.last)
            if flow.hits:
                self._netfilter.credit(flow.hits, packets, size)
            self.hits += packets
            self.verdicts[flow.verdict] = self.verdicts.get(flow.verdict, 0) + packets
        self._dirty.clear()


def credit(link: Link, sent: bool, packets: int, size: int) -> None:
    if sent:
        link.tx_packets += packets
        link.tx_bytes += size
    else:
        link.rx_packets += packets
        link.rx_bytes += size
