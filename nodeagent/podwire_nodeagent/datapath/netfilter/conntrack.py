"""The connection table: which connection a packet belongs to, and how long that one lives.

Theory of operation. Every connection is in one dict under two keys, its original direction's and its reply's. A new
connection belongs to its packet alone until `confirm`, at the last hook: a packet that is dropped on its way leaves
no trace. Expiry is lazy: a connection lies in the bucket of one second, and when that second has passed it is either
dead or moved to the bucket of its present expiry; packets only write `expires`. `lookup` treats an expired
connection as absent, so the budget of `expire` bounds work, never correctness.

When the table is full, the oldest connection that is not ASSURED makes room (Linux searches some hash buckets for
one), else the packet is dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heappop, heappush
from typing import Final

from podwire_nodeagent.datapath.netfilter import protocols, tcp
from podwire_nodeagent.datapath.netfilter.connection import (
    ASSURED,
    CONFIRMED,
    DST_NAT,
    DYING,
    ORIGINAL,
    REPLY,
    SEEN_REPLY,
    SRC_NAT,
    Connection,
    invert,
    packet_key,
)
from podwire_nodeagent.datapath.netfilter.embedded import embedded_key, message_sum
from podwire_nodeagent.datapath.netfilter.outcome import ACCEPT, CLASH, FULL, Outcome
from podwire_nodeagent.datapath.netfilter.timeouts import Timeouts
from podwire_nodeagent.datapath.packet import (
    ESTABLISHED,
    ICMP,
    ICMPV6,
    INVALID,
    NEW,
    RELATED,
    TCP,
    UDP,
    UNTRACKED,
    Packet,
)

_MAY_CLASH: Final = frozenset((UDP, 47))  # protocols whose first packets may race (GRE is 47)


class Conntrack:
    """See the head of the file. `counters` are those of `conntrack -S`."""

    def __init__(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        self.entries: dict[bytes, Connection] = {}
        self.count = 0
        self.counters = dict.fromkeys(
            ("found", "invalid", "insert", "insert_failed", "drop", "early_drop", "error", "search_restart", "clash_resolve"), 0
        )
        self._unassured: OrderedDict[bytes, Connection] = OrderedDict()
        self._buckets: dict[int, list[Connection]] = {}
        self._seconds: list[int] = []  # heap of the buckets' keys

    # --- packets --------------------------------

    def track(self, packet: Packet, now: float) -> Outcome:
        """Find or make the packet's connection, and move its state (nf_conntrack_in)."""
        if packet.ct is not None or packet.ctinfo == UNTRACKED:
            return ACCEPT
        proto = packet.proto
        if proto in (ICMP, ICMPV6):
            kind = packet.dport >> 8
            if (kind in protocols.ICMP_ERRORS) if proto == ICMP else (kind < 128):
                self._relate(packet, now)
                return ACCEPT
            if proto == ICMPV6 and kind in protocols.ICMPV6_UNTRACKED:
                packet.ctinfo = UNTRACKED
                return ACCEPT
        if packet.fragment:
            return self._invalid(packet)
        return self._assign(packet, packet_key(packet), now)

    def _assign(self, packet: Packet, key: bytes, now: float) -> Outcome:
        connection = self.lookup(key, now)
        if connection is None:
            if packet.proto != TCP and not protocols.begins(packet):
                return self._invalid(packet)
            if self.count >= self.timeouts.max and not self._early_drop():
                self.counters["drop"] += 1
                return FULL
            connection = Connection(key, invert(key), now)
        direction = ORIGINAL if key == connection.original else REPLY
        if packet.proto == TCP:
            said = tcp.advance(connection, packet, direction, self.timeouts.loose)
            if said == tcp.UNJUDGED:
                self._label(packet, connection, direction)
                self._seen(connection, direction)
                return ACCEPT
            if said == tcp.REOPEN:
                self.kill(connection)
                return self._assign(packet, key, now)
            if said == tcp.BAD:
                return self._invalid(packet)
            timeout = float(self._tcp_timeout(connection))
            if said == tcp.REFUSED:
                self.kill(connection)
        else:
            advanced = protocols.advance(connection, packet, direction, now, self.timeouts)
            if advanced is None:
                return self._invalid(packet)
            timeout = advanced
        self._label(packet, connection, direction)
        self._refresh(connection, direction, packet.length, now, timeout)
        self._seen(connection, direction)
        return ACCEPT

    def _tcp_timeout(self, connection: Connection) -> int:
        timeout = self.timeouts.tcp[connection.state]
        if connection.state == tcp.ESTABLISHED and not connection.status & SEEN_REPLY:  # picked up in the middle
            return min(timeout, self.timeouts.tcp_unacknowledged)
        return timeout

    def _label(self, packet: Packet, connection: Connection, direction: int) -> None:
        packet.ct, packet.direction = connection, direction
        packet.ctinfo = ESTABLISHED if direction or connection.status & SEEN_REPLY else NEW

    def _refresh(self, connection: Connection, direction: int, size: int, now: float, timeout: float) -> None:
        connection.timeout = timeout
        connection.expires = now + timeout
        if direction:
            connection.packets_reply += 1
            connection.bytes_reply += size
        else:
            connection.packets_original += 1
            connection.bytes_original += size
        status = connection.status
        if status & CONFIRMED and not status & DYING:
            if status & ASSURED:
                self._unassured.pop(connection.original, None)
            if int(connection.expires) + 1 < connection.due:
                self._schedule(connection)

    def _seen(self, connection: Connection, direction: int) -> None:
        if direction and not connection.status & SEEN_REPLY:
            connection.status |= SEEN_REPLY
            connection.epoch += connection.epoch >= 0

    def _invalid(self, packet: Packet) -> Outcome:
        packet.ctinfo = INVALID
        self.counters["invalid"] += 1
        return ACCEPT

    def _relate(self, packet: Packet, now: float) -> None:
        """An ICMP error belongs to the connection of the packet that it quotes."""
        quoted = b"" if not packet.checksum_is_partial() and message_sum(packet) else embedded_key(packet)
        connection = self.lookup(invert(quoted), now) if quoted else None
        if connection is not None:
            direction = ORIGINAL if connection.original == invert(quoted) else REPLY
            towards = connection.reply if direction else connection.original
            size = len(packet.dst)
            if towards[size : 2 * size] == packet.dst:  # otherwise it quotes a packet that its addressee never sent
                packet.ct, packet.direction, packet.ctinfo = connection, direction, RELATED
                return
        self._invalid(packet)

    # --- the table --------------------------------

    def lookup(self, key: bytes, now: float) -> Connection | None:
        connection = self.entries.get(key)
        if connection is not None and connection.expires <= now:
            self.kill(connection)
            return None
        return connection

    def confirm(self, packet: Packet, now: float) -> Outcome:
        """The packet has passed the last hook: its connection goes into the table (nf_conntrack_confirm)."""
        connection = packet.ct
        if connection is None or connection.status & CONFIRMED or packet.direction or packet.ctinfo == RELATED:
            return ACCEPT
        if connection.status & DYING:
            return ACCEPT
        entries, original, reply = self.entries, connection.original, connection.reply
        if original in entries or reply in entries:
            there = self.lookup(original, now) or self.lookup(reply, now)
            if there is not None:
                return self._clash(packet, connection, there)
        entries[original] = entries[reply] = connection
        connection.status |= CONFIRMED
        self.count += 1
        self.counters["insert"] += 1
        self._unassured[connection.original] = connection
        self._schedule(connection)
        if connection.served is not None:
            connection.served.begin()
            connection.served.follow(connection)
        return ACCEPT

    def _clash(self, packet: Packet, loser: Connection, there: Connection) -> Outcome:
        """Two packets of one flow were under way at once: the second joins the first's connection, if that is the very same."""
        if packet.proto in _MAY_CLASH and loser.original == there.original and loser.reply == there.reply:
            there.packets_original += loser.packets_original
            there.bytes_original += loser.bytes_original
            self._label(packet, there, ORIGINAL)
            self.counters["clash_resolve"] += 1
            return ACCEPT
        self.counters["insert_failed"] += 1
        return CLASH

    def kill(self, connection: Connection) -> None:
        connection.epoch = -1
        if not connection.status & CONFIRMED or connection.status & DYING:
            connection.status |= DYING
            return
        connection.status |= DYING
        if connection.served is not None:
            connection.served.end()
        self.entries.pop(connection.original, None)
        self.entries.pop(connection.reply, None)
        self._unassured.pop(connection.original, None)
        self.count -= 1

    def _early_drop(self) -> bool:
        if not self._unassured:
            return False
        self.kill(next(iter(self._unassured.values())))
        self.counters["early_drop"] += 1
        return True

    # --- expiry --------------------------------

    def _schedule(self, connection: Connection) -> None:
        connection.due = second = int(connection.expires) + 1
        bucket = self._buckets.get(second)
        if bucket is None:
            self._buckets[second] = [connection]
            heappush(self._seconds, second)
        else:
            bucket.append(connection)

    def expire(self, now: float, budget: int) -> int:
        """Look at up to `budget` connections whose second has passed; how many were deleted."""
        deleted = 0
        while budget > 0 and self._seconds and self._seconds[0] <= now:
            second = self._seconds[0]
            bucket = self._buckets[second]
            while bucket and budget > 0:
                budget -= 1
                connection = bucket.pop()
                if connection.due != second or connection.status & DYING:
                    continue
                if connection.expires <= now:
                    self.kill(connection)
                    deleted += 1
                else:
                    self._schedule(connection)
            if not bucket:
                heappop(self._seconds)
                del self._buckets[second]
        return deleted

    def connections(self, now: float) -> list[Connection]:
        """All that are alive, each once."""
        return [entry for key, entry in self.entries.items() if entry.original == key and entry.expires > now]


def nat_names(status: int) -> tuple[str, ...]:
    """Status bits as ConntrackInfo.status has them."""
    names = () if status & SEEN_REPLY else ("UNREPLIED",)
    pairs = ((ASSURED, "ASSURED"), (DST_NAT, "DNAT"), (SRC_NAT, "SNAT"))
    return names + tuple(name for bit, name in pairs if status & bit)
