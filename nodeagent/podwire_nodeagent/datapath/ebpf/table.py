"""The load balancer's connections: cilium_ct4_global and cilium_snat_v4_external in one table.

Theory. Cilium keeps a service entry (client → frontend, with the backend's id), an entry for client → backend with the
rev_nat_index, and, where the source is changed too, a pair of SNAT entries. All of them live and die together, so here they are
one `Entry`, found by the two keys that netfilter's connections have too: what the client sends, and what the backend answers.
listing.py shows them as the entries that Cilium would have.

Lifetimes are Cilium's defaults: 8000 s for TCP, 60 s for the rest and for a SYN, 10 s once both ends have closed.
"""

from __future__ import annotations

from typing import Final

from podwire_nodeagent.datapath.netfilter.connection import CONFIRMED, DST_NAT, SRC_NAT, Connection, invert
from podwire_nodeagent.datapath.netfilter.conntrack import Conntrack
from podwire_nodeagent.datapath.netfilter.timeouts import Timeouts
from podwire_nodeagent.datapath.packet import ACK, FIN, RST, SYN, TCP, Packet

LIFETIME_TCP: Final = 8000.0  # CT_CONNECTION_LIFETIME_TCP
LIFETIME_ANY: Final = 60.0  # CT_CONNECTION_LIFETIME_NONTCP
LIFETIME_SYN: Final = 60.0  # CT_SYN_TIMEOUT
LIFETIME_CLOSED: Final = 10.0  # CT_CLOSE_TIMEOUT
BOTH: Final = 3
MAX_ENTRIES: Final = 524288


class Entry(Connection):
    """`untracked`: netfilter does not know it, its answers are translated where they come in. `loopback`: a pod that reached
    itself. `closing`: bit 0 the client's end, bit 1 the backend's. `extra`: one more key by which its requests are known
    (DSR)."""

    __slots__ = ("backend_id", "closing", "dsr", "extra", "loopback", "origin", "rev_nat_index", "seen_non_syn", "untracked")

    def __init__(self, original: bytes, reply: bytes, now: float, backend_id: int, rev_nat_index: int, origin: str) -> None:
        super().__init__(original, reply, now)
        self.backend_id, self.rev_nat_index, self.origin = backend_id, rev_nat_index, origin
        self.untracked = self.loopback = self.seen_non_syn = self.dsr = False
        self.closing = 0
        self.extra = b""
        forth = invert(reply)
        self.status = DST_NAT | (SRC_NAT if (forth[:4], forth[8:10]) != (original[:4], original[8:10]) else 0)

    def saw(self, packet: Packet, direction: int, now: float) -> None:
        """Account a packet and prolong the entry."""
        if packet.proto == TCP:
            if not packet.flags & SYN:
                self.seen_non_syn = True
            if packet.flags & FIN:
                self.closing |= 1 << direction
            if packet.flags & RST:
                self.closing = BOTH
            lifetime = LIFETIME_TCP if self.seen_non_syn else LIFETIME_SYN
            self.timeout = LIFETIME_CLOSED if self.closing == BOTH else lifetime
        else:
            self.timeout = LIFETIME_ANY
        self.expires = now + self.timeout
        if direction:
            self.packets_reply += 1
            self.bytes_reply += packet.length
        else:
            self.packets_original += 1
            self.bytes_original += packet.length

    def reopened(self, packet: Packet) -> bool:
        """A client begins anew with the ports of a connection that has been."""
        return packet.proto == TCP and packet.flags & (SYN | ACK) == SYN and (self.seen_non_syn or bool(self.closing))

    def settled(self, packet: Packet) -> bool:
        """May a flow cache take later packets of it?"""
        if self.epoch < 0 or packet.fragment:
            return False
        return packet.proto != TCP or (self.seen_non_syn and not self.closing and not packet.flags & (SYN | FIN | RST))


class Table(Conntrack):
    """netfilter's table (keys, expiry by seconds, lazy death) with the load balancer's entries."""

    def __init__(self) -> None:
        super().__init__(Timeouts({}))

    def find(self, key: bytes, now: float) -> Entry | None:
        found = self.lookup(key, now)
        assert found is None or isinstance(found, Entry)
        return found

    def add(self, entry: Entry, now: float) -> None:
        """Into the table; the oldest goes when it is full (an LRU map)."""
        if self.count >= MAX_ENTRIES:
            self._early_drop()
        entry.expires = max(entry.expires, now + LIFETIME_SYN)
        for key in (entry.original, entry.reply, entry.extra):
            if key:
                there = self.entries.get(key)
                if there is not None:
                    self.kill(there)
                self.entries[key] = entry
        entry.status |= CONFIRMED
        self.count += 1
        self._unassured[entry.original] = entry
        self._schedule(entry)

    def saw(self, entry: Entry, packet: Packet, direction: int, now: float) -> None:
        """A packet of an entry; one that has closed is looked at again soon."""
        entry.saw(packet, direction, now)
        if int(entry.expires) + 1 < entry.due:
            self._schedule(entry)

    def kill(self, connection: Connection) -> None:
        if isinstance(connection, Entry) and connection.extra and connection.epoch >= 0:
            self.entries.pop(connection.extra, None)
        super().kill(connection)

    def all(self, now: float) -> list[Entry]:
        return [entry for entry in self.connections(now) if isinstance(entry, Entry)]
