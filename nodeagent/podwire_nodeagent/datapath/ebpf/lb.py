"""The load balancer's maps, and the decision that is made with them: which Service, which backend (Cilium's bpf/lib/lb.h).

Rules it keeps:
- The agent's maps hold bytes and are written by netlink only; affinity and connections are the programs' own.
- A random choice asks the chooser by halves: log n questions, all of which a check can play.
- Maglev's table is made when a frontend's first packet needs it, and again after its slots changed; it is kept while they stay.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple
from zlib import crc32

from podwire_core import ebpf
from podwire_core.ebpf import Backend, LbConfig, Service
from podwire_core.netlink import ConntrackDel
from podwire_nodeagent.datapath.chooser import Chooser
from podwire_nodeagent.datapath.ebpf import maglev
from podwire_nodeagent.datapath.ebpf.table import Entry, Table
from podwire_nodeagent.datapath.netfilter.connection import split
from podwire_nodeagent.datapath.netfilter.listing import connection_filter
from podwire_nodeagent.datapath.packet import Packet

MAX_AFFINITY = ebpf.MAPS[ebpf.AFFINITY_MAP].max_entries


class Found(NamedTuple):
    """A Service's master element, with the key by which it was found. `lookups`: of maps, so far."""

    key: bytes
    value: bytes
    service: Service
    lookups: int


class Choice(NamedTuple):
    """A backend. `how`: "random, slot 2 of 3", for traces."""

    number: int
    backend: Backend
    how: str
    lookups: int


class LoadBalancer:
    """`config` None: detached. `maps`: those that the agent writes. `attached` says whether programs have anything to do."""

    def __init__(self, chooser: Chooser) -> None:
        self.chooser = chooser
        self._exhaustive = bool(getattr(chooser, "exhaustive", False))  # a check wants every outcome of a hash, too
        self.config: LbConfig | None = None
        self.maps: dict[str, dict[bytes, bytes]] = {name: {} for name, spec in ebpf.MAPS.items() if spec.of_agent}
        self.affinity: dict[bytes, bytes] = {}
        self.table = Table()
        self._maglev: dict[bytes, tuple[tuple[int, ...], array[int]]] = {}  # by master key: backends, places

    @property
    def attached(self) -> bool:
        return self.config is not None or bool(self.table.count)

    @property
    def settings(self) -> LbConfig:
        return self.config or LbConfig()

    # --- state --------------------------------

    def forget(self, now: float) -> None:
        """No connection and no affinity is left: for simulations."""
        for entry in self.table.all(now):
            self.table.kill(entry)
        self.affinity.clear()

    def delete(self, which: ConntrackDel, now: float) -> int:
        wanted = connection_filter(which)
        chosen = [entry for entry in self.table.all(now) if wanted(entry)]
        for entry in chosen:
            self.table.kill(entry)
        return len(chosen)

    def origin(self, index: int) -> str:
        """The object that a rev_nat_index belongs to."""
        name = self.maps[ebpf.NAMES].get(ebpf.pack_index(index), b"")
        return f"Service {name.decode()}" if name else ""

    def backend(self, number: int) -> Backend | None:
        value = self.maps[ebpf.BACKENDS].get(ebpf.pack_backend_key(number))
        return ebpf.unpack_backend(value) if value is not None else None

    def keeps(self, entry: Entry) -> bool:
        """Whether an entry's backend is still there. An agent that was restarted may have given it another number."""
        src, _, sport, _ = split(entry.reply)
        there = self.backend(entry.backend_id)
        if there is not None and (there.address, there.port) == (src, sport):
            return True
        _, dst, _, dport = split(entry.original)
        for scope in (ebpf.SCOPE_EXT, ebpf.SCOPE_INT):
            master = ebpf.pack_service_key(dst, dport, entry.proto, scope)
            value = self.maps[ebpf.SERVICES].get(master, bytes(12))
            for slot in range(1, ebpf.unpack_service(value).backend_count + 1):
                number = self._slot(master, slot)
                there = self.backend(number)
                if there is not None and (there.address, there.port) == (src, sport):
                    entry.backend_id, entry.rev_nat_index = number, ebpf.unpack_service(value).rev_nat_index
                    return True
        return False

    # --- which Service --------------------------------

    def lookup(self, packet: Packet, inside: bool) -> Found | None:
        """lb4_lookup_service: the outer scope, and the inner one for those inside if the Service tells them apart."""
        services = self.maps[ebpf.SERVICES]
        key = ebpf.pack_service_key(packet.dst, packet.dport, packet.proto)
        value = services.get(key)
        if value is None:
            return None
        service = ebpf.unpack_service(value)
        if not inside or not service.flags2 & ebpf.TWO_SCOPES:
            return Found(key, value, service, 1)
        key = ebpf.pack_service_key(packet.dst, packet.dport, packet.proto, ebpf.SCOPE_INT)
        value = services.get(key)
        return Found(key, value, ebpf.unpack_service(value), 2) if value is not None else None

    def source_allowed(self, found: Found, source: bytes) -> bytes:
        """The longest range of the Service that holds the source (an element of the map); b"" if none does."""
        ranges, index = self.maps[ebpf.SOURCE_RANGES], found.service.rev_nat_index
        number = int.from_bytes(source, "big")
        for plen in range(32, -1, -1):
            masked = number >> 32 - plen << 32 - plen
            key = ebpf.pack_source_range_key(index, plen, masked.to_bytes(4, "big"))
            if key in ranges:
                return key
        return b""

    # --- which backend --------------------------------

    def choose(self, found: Found, packet: Packet, inside: bool, now: float) -> Choice | None:
        """lb4_local's choice for a new connection. None: the maps contradict each other."""
        index, seconds = found.service.rev_nat_index, found.service.first
        if not found.service.flags & ebpf.AFFINITY:
            return self._select(found, packet, inside)
        client = ebpf.pack_affinity_key(packet.src, index)
        choice = self._remembered(client, index, seconds, now) or self._select(found, packet, inside)
        if choice is not None:
            self.affinity.pop(client, None)
            if len(self.affinity) >= MAX_AFFINITY:
                del self.affinity[next(iter(self.affinity))]
            self.affinity[client] = ebpf.pack_affinity(int(now), choice.number)
        return choice

    def _remembered(self, client: bytes, index: int, seconds: int, now: float) -> Choice | None:
        value = self.affinity.get(client)
        if value is None:
            return None
        last_used, number = ebpf.unpack_affinity(value)
        backend = self.backend(number)
        matches = ebpf.pack_affinity_match(number, index) in self.maps[ebpf.AFFINITY_MATCH]
        if last_used + seconds <= now or not matches or backend is None:
            del self.affinity[client]
            return None
        return Choice(number, backend, f"session affinity of {seconds} s", 3)

    def _select(self, found: Found, packet: Packet, inside: bool) -> Choice | None:
        if self.settings.algorithm == "maglev" and not inside:
            return self._select_maglev(found, packet)
        slot = self._random(found.service.backend_count) + 1
        number = self._slot(found.key, slot)
        backend = self.backend(number)
        return (
            Choice(number, backend, f"random, slot {slot} of {found.service.backend_count}", 2) if backend is not None else None
        )

    def _random(self, count: int) -> int:
        """0 … count - 1, by halves."""
        low, high = 0, count
        while high - low > 1:
            middle = (low + high) >> 1
            if self.chooser.chance((middle - low) / (high - low)):
                high = middle
            else:
                low = middle
        return low

    def _slot(self, master: bytes, slot: int) -> int:
        value = self.maps[ebpf.SERVICES].get(master[:6] + slot.to_bytes(2, "little") + master[8:])
        return ebpf.unpack_service(value).first if value is not None else 0

    def _select_maglev(self, found: Found, packet: Packet) -> Choice | None:
        places = self.places(found)
        if not places:
            return None
        if self._exhaustive:
            numbers = sorted(set(places))
            number, where = numbers[self._random(len(numbers))], "any place"
        else:
            ports = packet.sport.to_bytes(2, "big") + packet.dport.to_bytes(2, "big")
            place = crc32(packet.src + packet.dst + ports, packet.proto) % len(places)
            number, where = places[place], f"place {place} of {len(places)}"
        backend = self.backend(number)
        return Choice(number, backend, f"maglev, {where}", 2) if backend is not None else None

    def places(self, found: Found) -> array[int]:
        """The inner map of cilium_lb4_maglev."""
        numbers = tuple(self._slot(found.key, slot) for slot in range(1, found.service.backend_count + 1))
        kept = self._maglev.get(found.key)
        if kept is not None and kept[0] == numbers:
            return kept[1]
        backends = self.maps[ebpf.BACKENDS]
        names = {number: backends.get(ebpf.pack_backend_key(number), b"") for number in numbers}
        made = maglev.table(names, self.settings.maglev_table_size)
        self._maglev[found.key] = numbers, made
        return made

    def maglev_tables(self) -> dict[bytes, bytes]:
        """What has been made so far: rev_nat_index to places."""
        found = {}
        for key, (_, places) in self._maglev.items():
            value = self.maps[ebpf.SERVICES].get(key)
            if value is not None:
                found[ebpf.pack_index(ebpf.unpack_service(value).rev_nat_index)] = places.tobytes()
        return found

    def forget_tables(self, masters: tuple[bytes, ...] | None = None) -> None:
        """Maglev tables of frontends that are gone; None: all."""
        for key in tuple(self._maglev) if masters is None else masters:
            self._maglev.pop(key, None)
