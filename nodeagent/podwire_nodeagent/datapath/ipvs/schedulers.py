"""Schedulers: which real server a new connection gets. By Linux's definitions (ip_vs_rr.c and its like), one class each.

Rules: a server of weight 0 is never chosen; `pick` is None if there is none to choose (sh, dh and mh: also if the one that the
hash says is quiescent, without a fallback flag). A scheduler is told when servers or weights change (`update`), and keeps tables
until then. `by_history`: the choice depends on what was chosen before, or on counters, and not on the packet alone.

Overheads: lc and wlc weigh an active connection as 256 inactive ones; sed and nq count active ones and the one to come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd
from typing import Final, Protocol

from podwire_nodeagent.datapath.ipvs import maglev
from podwire_nodeagent.datapath.ipvs.servers import Server

TABLE_BITS: Final = 8  # of sh and dh
GOLDEN_RATIO: Final = 0x61C88647
KNUTH: Final = 2654435761


class Flow(Protocol):
    """What of a packet a scheduler may look at."""

    src: bytes
    dst: bytes
    sport: int
    dport: int


class Scheduler:
    """`flags` are the virtual service's."""

    by_history = True

    def __init__(self, flags: Sequence[str] = ()) -> None:
        self.flags = frozenset(flags)
        self.servers: Sequence[Server] = ()

    def update(self, servers: Sequence[Server]) -> None:
        """Servers, their order or their weights are these now."""
        self.servers = servers

    def pick(self, flow: Flow) -> Server | None:
        raise NotImplementedError


# --- in turn --------------------------------


class RoundRobin(Scheduler):
    """rr: the next in the list."""

    def __init__(self, flags: Sequence[str] = ()) -> None:
        super().__init__(flags)
        self._last = -1

    def update(self, servers: Sequence[Server]) -> None:
        last = self.servers[self._last] if 0 <= self._last < len(self.servers) else None
        super().update(servers)
        self._last = servers.index(last) if last is not None and last in servers else max(-1, min(self._last, len(servers)) - 1)

    def pick(self, flow: Flow) -> Server | None:
        servers, size = self.servers, len(self.servers)
        for step in range(1, size + 1):
            at = (self._last + step) % size
            if servers[at].weight > 0:
                self._last = at
                return servers[at]
        return None


class WeightedRoundRobin(Scheduler):
    """wrr: rounds through the list, in each only servers of at least the present weight, which falls from the greatest."""

    def __init__(self, flags: Sequence[str] = ()) -> None:
        super().__init__(flags)
        self._at = -1
        self._divisor = self._greatest = self._present = 0

    def update(self, servers: Sequence[Server]) -> None:
        current = self.servers[self._at] if 0 <= self._at < len(self.servers) else None
        super().update(servers)
        self._at = servers.index(current) if current is not None and current in servers else -1
        weights = [server.weight for server in servers if server.weight > 0]
        self._divisor = gcd(*weights) if weights else 1
        self._greatest = max(weights) - self._divisor + 1 if weights else 0
        if self._present > self._greatest or not self._present:
            self._present = self._greatest

    def pick(self, flow: Flow) -> Server | None:
        if not self._greatest:
            return None
        while True:
            for at in range(self._at + 1, len(self.servers)):
                if self.servers[at].weight >= self._present:
                    self._at = at
                    return self.servers[at]
            self._at = -1
            self._present -= self._divisor
            if self._present <= 0:
                self._present = self._greatest


# --- by load --------------------------------


class _Least(Scheduler):
    """The least overhead for its weight; of equals the first."""

    weighted = True

    @staticmethod
    def overhead(server: Server) -> int:
        return (server.active << 8) + server.inactive

    def pick(self, flow: Flow) -> Server | None:
        least, load = None, 0
        for server in self.servers:
            if server.weight <= 0:
                continue
            mine = self.overhead(server)
            if least is None or (load * server.weight > mine * least.weight if self.weighted else mine < load):
                least, load = server, mine
        return least


class LeastConnections(_Least):
    """lc"""

    weighted = False


class WeightedLeastConnections(_Least):
    """wlc"""


class ShortestExpectedDelay(_Least):
    """sed"""

    @staticmethod
    def overhead(server: Server) -> int:
        return server.active + 1


class NeverQueue(ShortestExpectedDelay):
    """nq: the first that is idle, else as sed."""

    def pick(self, flow: Flow) -> Server | None:
        idle = next((server for server in self.servers if server.weight > 0 and not server.active), None)
        return idle or super().pick(flow)


# --- by hash --------------------------------


def _folded(address: bytes) -> int:
    value = 0
    for at in range(0, len(address), 4):
        value ^= int.from_bytes(address[at : at + 4], "big")
    return value


class DestinationHashing(Scheduler):
    """dh: by the destination address, servers in turn over 256 buckets."""

    by_history = False

    def pick(self, flow: Flow) -> Server | None:
        if not self.servers:
            return None
        bucket = _folded(flow.dst) * KNUTH & (1 << TABLE_BITS) - 1
        server = self.servers[bucket % len(self.servers)]
        return server if server.weight > 0 else None


class SourceHashing(Scheduler):
    """sh: by the source address (and port with sh-port), each server as many buckets in a row as its weight."""

    port_flag = "sh-port"
    fallback_flag = "sh-fallback"

    def __init__(self, flags: Sequence[str] = ()) -> None:
        super().__init__(flags)
        self.by_history = self.port_flag in self.flags  # a client's port is any
        self._table: Sequence[int] | None = None  # made when it is needed: most services of a large cluster see no client here

    def update(self, servers: Sequence[Server]) -> None:
        super().update(servers)
        self._table = None

    @property
    def table(self) -> Sequence[int]:
        """Indexes of servers."""
        if self._table is None:
            self._table = self.build()
        return self._table

    def build(self) -> Sequence[int]:
        repeated = [index for index, server in enumerate(self.servers) for _ in range(max(1, server.weight))]
        return [repeated[bucket % len(repeated)] for bucket in range(1 << TABLE_BITS)] if repeated else []

    def slot(self, flow: Flow, offset: int) -> int:
        port = flow.sport if self.port_flag in self.flags else 0
        mixed = (_folded(flow.src) + port & 0xFFFFFFFF) * GOLDEN_RATIO & 0xFFFFFFFF
        return (offset + (mixed >> 32 - TABLE_BITS)) % len(self.table)

    def pick(self, flow: Flow) -> Server | None:
        table, servers = self.table, self.servers
        if not table:
            return None
        first = self.slot(flow, 0)
        server = servers[table[first]]
        if server.weight > 0:
            return server
        if self.fallback_flag not in self.flags:
            return None
        others = (servers[table[self.slot(flow, first + offset)]] for offset in range(len(table)))
        return next((other for other in others if other.weight > 0), None)


class Maglev(SourceHashing):
    """mh: by the source address (and port with mh-port), in a Maglev table (maglev.py)."""

    port_flag = "mh-port"
    fallback_flag = "mh-fallback"

    def build(self) -> Sequence[int]:
        return maglev.populate(self.servers)

    def slot(self, flow: Flow, offset: int) -> int:
        port = flow.sport if self.port_flag in self.flags else 0
        folded = _folded(flow.src) + port + offset & 0xFFFFFFFF
        return maglev.siphash13(folded, maglev.KEYS[0]) % len(self.table)


SCHEDULERS: dict[str, Callable[[Sequence[str]], Scheduler]] = {
    "rr": RoundRobin,
    "wrr": WeightedRoundRobin,
    "lc": LeastConnections,
    "wlc": WeightedLeastConnections,
    "sed": ShortestExpectedDelay,
    "nq": NeverQueue,
    "dh": DestinationHashing,
    "sh": SourceHashing,
    "mh": Maglev,
}
