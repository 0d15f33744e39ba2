"""A forwarding database and what a bridge decides with it, as Linux' bridge does (no VLANs, no spanning tree).

Rules:
- A dynamic entry is learned from a frame's source, moves with it, and ages out 300 s after it was last seen. A
  permanent entry neither moves nor ages. Group addresses are never learned.
- Known unicast goes to its port, unknown unicast and groups to all ports; never back to the port a frame came from unless that
  port is a hairpin, never to a port that is down.
- 01:80:c2:00:00:0x is not forwarded (IEEE 802.1D reserved).
- On a vxlan link the same table maps a MAC to remote VTEPs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.links import Link

AGEING = 300.0
MAX_DYNAMIC = 16384
RESERVED_GROUP = b"\x01\x80\xc2\x00\x00"


class FdbEntry:
    """`port` on a bridge, `remotes` (node addresses) on a vxlan link."""

    __slots__ = ("mac", "permanent", "port", "remotes", "used")

    def __init__(self, mac: bytes, port: Link | None, permanent: bool, used: float) -> None:
        self.mac, self.port, self.permanent, self.used = mac, port, permanent, used
        self.remotes: tuple[bytes, ...] = ()


class Fdb:
    """MAC → entry."""

    __slots__ = ("dynamic", "entries")

    def __init__(self) -> None:
        self.entries: dict[bytes, FdbEntry] = {}
        self.dynamic = 0

    def lookup(self, mac: bytes, now: float) -> FdbEntry | None:
        entry = self.entries.get(mac)
        if entry is None or (not entry.permanent and now - entry.used >= AGEING):
            return None
        return entry

    def learn(self, mac: bytes, port: Link, now: float) -> bool:
        """True if the table changed in a way that matters to forwarding (a new or moved entry)."""
        entry = self.entries.get(mac)
        if entry is None:
            if self.dynamic < MAX_DYNAMIC:
                self.entries[mac] = FdbEntry(mac, port, False, now)
                self.dynamic += 1
                return True
            return False
        if entry.permanent:
            return False
        stale = now - entry.used >= AGEING
        entry.used = now
        if entry.port is port:
            return stale
        entry.port = port
        return True

    def insert(self, entry: FdbEntry) -> None:
        old = self.entries.get(entry.mac)
        self.dynamic += (not entry.permanent) - (old is not None and not old.permanent)
        self.entries[entry.mac] = entry

    def remove(self, mac: bytes) -> FdbEntry | None:
        entry = self.entries.pop(mac, None)
        if entry is not None and not entry.permanent:
            self.dynamic -= 1
        return entry

    def expire(self, now: float) -> int:
        old = [e.mac for e in self.entries.values() if not e.permanent and now - e.used >= AGEING]
        for mac in old:
            self.remove(mac)
        return len(old)


def may_leave(port: Link, came_from: Link | None) -> bool:
    return port.up and (port is not came_from or port.hairpin)


def flood_ports(ports: Iterable[Link], came_from: Link | None) -> list[Link]:
    return [port for port in ports if may_leave(port, came_from)]
