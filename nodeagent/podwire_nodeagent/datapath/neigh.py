"""Neighbours: which MAC an address on a link has, and how it is asked for (ARP now, NDP has the same states).

States are Linux', simplified (a table, not twenty sysctls):

| state | leaves it |
|---|---|
| INCOMPLETE | answered → REACHABLE; 3 requests, 1 s apart, unanswered → FAILED, its queue is answered "host unreachable" |
| REACHABLE | 30 s without confirmation → STALE |
| STALE | used → DELAY |
| DELAY | 5 s unconfirmed → PROBE |
| PROBE | 3 unicast requests, 1 s apart, unanswered → FAILED; answered → REACHABLE |
| FAILED | used → INCOMPLETE; unused for 60 s → gone |
| PERMANENT | never |

Rules: what an ARP packet says confirms (a reply) or updates (a request, a gratuitous one: STALE) an entry that exists; only
a request for one of our own addresses makes a new one. A queue holds at most 3 packets, the oldest is dropped. The table
holds at most 1024 dynamic entries; the one unused for longest makes room.

Nothing here sends: `use` and `tick` return what is to be sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from podwire_nodeagent.datapath.links import Link

QUEUE = 3
PROBES = 3
RETRANSMIT = 1.0
REACHABLE_TIME = 30.0
DELAY_TIME = 5.0
FAILED_TIME = 60.0
MAX_DYNAMIC = 1024

USABLE = frozenset(("REACHABLE", "STALE", "DELAY", "PROBE", "PERMANENT"))
TIMED = frozenset(("INCOMPLETE", "DELAY", "PROBE", "REACHABLE", "FAILED"))


class Neighbour:
    """`queue` holds packets that wait for the MAC, in the form the caller gave them."""

    __slots__ = ("deadline", "ip", "link", "mac", "probes", "queue", "state", "used")

    def __init__(self, link: Link, ip: bytes, state: str, now: float) -> None:
        self.link, self.ip, self.state = link, ip, state
        self.mac = b""
        self.deadline = self.used = now
        self.probes = 0
        self.queue: list[Any] = []


class Expired:
    """What `tick` found due: requests to send (to the MAC known, or b"" for broadcast), packets to give up, and whether any
    MAC that was usable no longer is."""

    def __init__(self) -> None:
        self.requests: list[Neighbour] = []
        self.failed: list[tuple[Neighbour, list[Any]]] = []
        self.changed = False


class Neighbours:
    """(link, address) → Neighbour."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._entries: dict[tuple[int, bytes], Neighbour] = {}
        self._changed = changed  # called when a MAC that may be cached is no longer valid

    def __iter__(self) -> Iterator[Neighbour]:
        return iter(self._entries.values())

    def get(self, link: Link, ip: bytes) -> Neighbour | None:
        return self._entries.get((link.index, ip))

    def use(self, link: Link, ip: bytes, now: float) -> tuple[Neighbour, bool]:
        """The entry for a packet about to be sent, and whether a (broadcast) request must be sent for it now."""
        entry = self._entries.get((link.index, ip))
        if entry is None:
            self._make_room()
            entry = self._entries[link.index, ip] = Neighbour(link, ip, "FAILED", now)
        entry.used = now
        if entry.state == "STALE" or (entry.state == "REACHABLE" and now >= entry.deadline):
            entry.state, entry.deadline = "DELAY", now + DELAY_TIME
        elif entry.state == "FAILED":
            entry.state, entry.probes, entry.deadline = "INCOMPLETE", 1, now + RETRANSMIT
            return entry, True
        return entry, False

    @staticmethod
    def enqueue(entry: Neighbour, item: Any) -> Any | None:
        """Keep a packet until the address is resolved; returns the one that had to give way."""
        entry.queue.append(item)
        return entry.queue.pop(0) if len(entry.queue) > QUEUE else None

    def confirm(self, link: Link, ip: bytes, mac: bytes, now: float, *, reply: bool, create: bool) -> Neighbour | None:
        """An ARP packet said that `ip` is at `mac`. Returns the entry, whose queue may now be sent."""
        entry = self._entries.get((link.index, ip))
        if entry is None:
            if not create:
                return None
            self._make_room()
            entry = self._entries[link.index, ip] = Neighbour(link, ip, "STALE", now)
            entry.mac = mac
            return entry
        if entry.state == "PERMANENT":
            return entry
        if entry.mac and entry.mac != mac and entry.state in USABLE:
            self._changed()
        if reply:
            entry.state, entry.deadline = "REACHABLE", now + REACHABLE_TIME
        elif entry.mac != mac or entry.state not in USABLE:
            entry.state = "STALE"
        entry.mac, entry.probes = mac, 0
        return entry

    def insert_permanent(self, link: Link, ip: bytes, mac: bytes, now: float) -> Neighbour:
        entry = self._entries.get((link.index, ip)) or Neighbour(link, ip, "PERMANENT", now)
        entry.state, entry.mac = "PERMANENT", mac
        self._entries[link.index, ip] = entry
        return entry

    def put(self, entry: Neighbour) -> None:
        self._entries[entry.link.index, entry.ip] = entry

    def remove(self, link: Link, ip: bytes) -> Neighbour | None:
        return self._entries.pop((link.index, ip), None)

    def of_link(self, link: Link) -> list[Neighbour]:
        return [entry for entry in self._entries.values() if entry.link is link]

    def tick(self, now: float) -> Expired:
        due = Expired()
        for entry in [e for e in self._entries.values() if e.state in TIMED and now >= e.deadline]:
            self._advance(entry, due, now)
        if due.changed:
            self._changed()
        return due

    def _advance(self, entry: Neighbour, due: Expired, now: float) -> None:
        if entry.state == "REACHABLE":
            entry.state = "STALE"
        elif entry.state == "FAILED":
            if now - entry.used >= FAILED_TIME:
                del self._entries[entry.link.index, entry.ip]
        elif entry.state == "DELAY":
            entry.state, entry.probes, entry.deadline = "PROBE", 1, now + RETRANSMIT
            due.requests.append(entry)
        elif entry.probes < PROBES:
            entry.probes, entry.deadline = entry.probes + 1, now + RETRANSMIT
            due.requests.append(entry)
        else:
            due.changed |= entry.state == "PROBE"
            entry.state, entry.deadline, entry.mac = "FAILED", now + FAILED_TIME, b""
            due.failed.append((entry, entry.queue))
            entry.queue = []

    def _make_room(self) -> None:
        dynamic = [e for e in self._entries.values() if e.state != "PERMANENT"] if len(self._entries) >= MAX_DYNAMIC else []
        if len(dynamic) >= MAX_DYNAMIC:
            oldest = min(dynamic, key=lambda e: e.used)
            del self._entries[oldest.link.index, oldest.ip]
            self._changed()
