"""Choosing a connection's translation (Linux's nf_nat_core): which tuple its replies will have.

A translation is nothing but the reply's key: it differs from the inverse of the original's. Every new connection is
given one per manipulation, also where no rule says so (a null binding), so that two clients with one source port
never collide behind one address. A source keeps its port if that is free; else a free one is searched, from the same
class of ports (below 512, below 1024, above), from a random beginning and with Linux's bounds (248 tries). If none
is found the connection keeps the taken tuple, and is dropped when it is to be confirmed.

Not done: reuse of a mapping that the same source has towards another destination (`find_appropriate_src`); it
differs only after a clash.
"""

from __future__ import annotations

from typing import Final

from podwire_nodeagent.datapath.chooser import Chooser
from podwire_nodeagent.datapath.netfilter.connection import (
    DST_DONE,
    DST_NAT,
    SRC_DONE,
    SRC_NAT,
    Connection,
    Tuple,
    invert,
    make_key,
    split,
)
from podwire_nodeagent.datapath.netfilter.conntrack import Conntrack
from podwire_nodeagent.datapath.packet import ICMP, ICMPV6, SCTP, TCP, UDP, Packet
from podwire_nodeagent.datapath.rewrite import translate

_MAX_ATTEMPTS: Final = 128
_MIN_ATTEMPTS: Final = 16
_WITH_PORTS: Final = frozenset((TCP, UDP, SCTP))


class Nat:
    """`counters`: "nat.port_search" (a source port was taken), "nat.exhausted" (none was free)."""

    def __init__(self, conntrack: Conntrack, chooser: Chooser, counters: dict[str, int]) -> None:
        self.conntrack, self.chooser, self.counters = conntrack, chooser, counters
        for name in ("nat.port_search", "nat.exhausted"):
            counters.setdefault(name, 0)

    def destination(self, connection: Connection, address: bytes, port: int) -> None:
        """DNAT; port 0 keeps the port."""
        src, dst, sport, dport = split(connection.original)  # nothing is translated before the destination
        self._set(connection, (src, address, sport, port or dport), (src, dst, sport, dport), DST_NAT)
        connection.status |= DST_DONE

    def source(self, connection: Connection, address: bytes, port: int, scatter: bool, now: float) -> None:
        """SNAT; b"" keeps the address (a null binding), port 0 lets choose; `scatter` is --random-fully."""
        connection.status |= SRC_DONE
        if not address and connection.reply not in self.conntrack.entries:
            return
        current = split(invert(connection.reply))
        src = address or current[0]
        if port and connection.original[-1] in _WITH_PORTS:
            self._set(connection, (src, current[1], port, current[3]), current, SRC_NAT)
            return
        wanted = (src, current[1], current[2], current[3])
        if scatter or self._taken(connection, wanted, now):
            wanted = self._search(connection, wanted, now)
        self._set(connection, wanted, current, SRC_NAT)

    def _set(self, connection: Connection, wanted: Tuple, current: Tuple, status: int) -> None:
        if wanted != current:
            connection.reply = invert(make_key(*wanted, connection.original[-1]))
            connection.status |= status

    def _taken(self, connection: Connection, wanted: Tuple, now: float) -> bool:
        there = self.conntrack.lookup(invert(make_key(*wanted, connection.original[-1])), now)
        return there is not None and there is not connection

    def _search(self, connection: Connection, wanted: Tuple, now: float) -> Tuple:
        """A source port (an ICMP identifier) that nobody uses towards this destination."""
        proto, port = connection.original[-1], wanted[2]
        if proto in (ICMP, ICMPV6):
            low, size = 0, 65536
        elif proto not in _WITH_PORTS:
            return wanted
        elif port < 512:
            low, size = 1, 511
        elif port < 1024:
            low, size = 600, 424
        else:
            low, size = 1024, 64512
        self.counters["nat.port_search"] += 1
        src, dst, _, dport = wanted
        attempts = min(size, _MAX_ATTEMPTS)
        while True:
            start = self.chooser.below(65536)
            for step in range(start, start + attempts):
                candidate = (src, dst, low + step % size, dport)
                if not self._taken(connection, candidate, now):
                    return candidate
            if attempts >= size or attempts < _MIN_ATTEMPTS:
                self.counters["nat.exhausted"] += 1
                return wanted
            attempts //= 2


def manipulate(packet: Packet, connection: Connection, source: bool) -> bool:
    """Give a packet of a connection its translated source or destination (nf_nat_packet); False if that is what it has."""
    mine, other = (connection.reply, connection.original) if packet.direction else (connection.original, connection.reply)
    bit = SRC_NAT if source != bool(packet.direction) else DST_NAT
    if not connection.status & bit:
        return False
    src, dst, sport, dport = split(invert(other))
    if mine[-1] in (ICMP, ICMPV6):
        # the identifier is the "source port" of both directions, and the type is no port
        new = (src, packet.dst, sport, packet.dport) if source else (packet.src, dst, sport, packet.dport)
    elif source:
        new = (src, packet.dst, sport, packet.dport)
    else:
        new = (packet.src, dst, packet.sport, dport)
    translate(packet, *new)
    return True
