"""The host-local IPAM: which addresses of this node's ranges are taken, kept in files, as the CNI plugin of that name does.

Rules it keeps:

- One file an address, named like it, saying who has it; it appears whole or not at all (a rename), so a crash
  leaves either an address that DEL and GC can release, or nothing.
- Addresses are given round robin from the last one given, so that a fresh pod rarely gets the address of one that just left;
  never the network's, the broadcast or the gateway's.
- One allocation of several ranges (dual stack) is all or nothing. A lock file orders concurrent plugins.

Order to read: the configuration (Range), HostLocal.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

from podwire_cni.protocol import DUPLICATE, INVALID_CONFIG, NO_ADDRESS, CniError, Json

DEFAULT_DATA_DIR = "/var/lib/cni/networks"

# --- the configuration --------------------------------


class Range(NamedTuple):
    """Numbers first..last of a subnet, the gateway among them or not."""

    first: int
    last: int
    gateway: int
    prefixlen: int
    version: int

    def text(self, number: int) -> str:
        return str(IPv4Address(number) if self.version == 4 else IPv6Address(number))


class Allocated(NamedTuple):
    address: str  # with prefix length
    gateway: str


class Owner(NamedTuple):
    container_id: str
    ifname: str


def parse_ranges(ipam: Json) -> list[list[Range]]:
    """One list a range set; every set gives one address. `{"subnet": …}` alone is one set of one range."""
    sets = ipam.get("ranges")
    if sets is None:
        sets = [[ipam]]
    if not isinstance(sets, list) or not sets or not all(isinstance(each, list) and each for each in sets):
        raise CniError(INVALID_CONFIG, "ipam.ranges must be a list of lists of ranges")
    return [[_parse_range(each, f"ipam.ranges[{i}][{j}]") for j, each in enumerate(given)] for i, given in enumerate(sets)]


def _parse_range(given: object, where: str) -> Range:
    if not isinstance(given, dict) or not isinstance(given.get("subnet"), str):
        raise CniError(INVALID_CONFIG, f"{where}.subnet: expected a network in CIDR form")
    try:
        subnet = ip_network(given["subnet"])
        low, high = int(subnet.network_address), int(subnet.broadcast_address)
        first, last, gateway = (
            default if given.get(key) in (None, "") else _number(given[key], subnet.version)
            for key, default in (("rangeStart", low + 1), ("rangeEnd", high - 1), ("gateway", low + 1))
        )
    except ValueError as error:
        raise CniError(INVALID_CONFIG, f"{where}: {error}") from None
    if not low < first <= last < high:
        raise CniError(INVALID_CONFIG, f"{where}: no address between {given.get('rangeStart')} and {given.get('rangeEnd')}")
    return Range(first, last, gateway, subnet.prefixlen, subnet.version)


def _number(text: object, version: int) -> int:
    """Raises ValueError."""
    if not isinstance(text, str):
        raise ValueError(f"expected an address, got {text!r}")
    address = ip_address(text)
    if address.version != version:
        raise ValueError(f"{text} is of another family than the subnet")
    return int(address)


# --- the store --------------------------------


class HostLocal:
    """The addresses of one network on this node. `ipam` is the configuration's section of that name."""

    def __init__(self, network: str, ipam: object) -> None:
        if not isinstance(ipam, dict):
            raise CniError(INVALID_CONFIG, "ipam: expected an object")
        if ipam.get("type", "host-local") != "host-local":
            raise CniError(INVALID_CONFIG, f"ipam.type: only host-local, got {ipam['type']!r}")
        directory = ipam.get("dataDir") or DEFAULT_DATA_DIR
        if not isinstance(directory, str):
            raise CniError(INVALID_CONFIG, "ipam.dataDir: expected a path")
        self._sets = parse_ranges(ipam)
        self._dir = Path(directory, network)

    def add(self, owner: Owner) -> list[Allocated]:
        """An address of every range set. CniError if one has none left, or the owner already has some."""
        with self._locked():
            taken = self._taken()
            if owner in taken.values():
                raise CniError(DUPLICATE, f"{owner.container_id} already has an address for {owner.ifname}")
            chosen = self._choose(set(taken))
            for i, (each, number) in enumerate(chosen):
                self._reserve(i, each.text(number), owner)
        return [Allocated(f"{each.text(number)}/{each.prefixlen}", each.text(each.gateway)) for each, number in chosen]

    def release(self, owner: Owner) -> list[str]:
        """Frees what the owner has; nothing is fine."""
        with self._locked():
            return self._free(address for address, other in self._taken().items() if other == owner)

    def owners(self) -> list[Owner]:
        """Everybody who has an address."""
        with self._locked():
            return sorted(set(self._taken().values()))

    def addresses(self, owner: Owner) -> list[str]:
        with self._locked():
            return [address for address, other in self._taken().items() if other == owner]

    def available(self) -> bool:
        """Whether `add` would find an address in every set."""
        with self._locked():
            try:
                return bool(self._choose(set(self._taken())))
            except CniError:
                return False

    # --- files; the lock is held

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._dir.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._dir / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _taken(self) -> dict[str, Owner]:
        found = {}
        for name in os.listdir(self._dir):
            if ("." in name and name.replace(".", "").isdigit()) or ":" in name:
                lines = (self._dir / name).read_text().split("\n")
                found[name] = Owner(lines[0].strip(), lines[1].strip() if len(lines) > 1 else "")
        return found

    def _choose(self, taken: set[str]) -> list[tuple[Range, int]]:
        """An address of every set, none of them twice. CniError if a set has none left."""
        chosen: list[tuple[Range, int]] = []
        for i, ranges in enumerate(self._sets):
            chosen.append(self._next(i, ranges, taken | {each.text(number) for each, number in chosen}))
        return chosen

    def _next(self, index: int, ranges: list[Range], taken: set[str]) -> tuple[Range, int]:
        """The first free address behind the last one given, all ranges of the set being one ring."""
        for each, number in _ring(ranges, self._last(index)):
            if number != each.gateway and each.text(number) not in taken:
                return each, number
        spans = ", ".join(f"{each.text(each.first)}-{each.text(each.last)}" for each in ranges)
        raise CniError(NO_ADDRESS, f"no IP addresses available in range set: {spans}")

    def _last(self, index: int) -> int:
        try:
            return int(ip_address((self._dir / f"last_reserved_ip.{index}").read_text().strip()))
        except (OSError, ValueError):
            return -1  # none yet, or a write that a crash cut off: begin at the front

    def _reserve(self, index: int, address: str, owner: Owner) -> None:
        draft = self._dir / "draft"
        draft.write_text(f"{owner.container_id}\r\n{owner.ifname}")
        os.replace(draft, self._dir / address)
        (self._dir / f"last_reserved_ip.{index}").write_text(address)

    def _free(self, addresses: Iterable[str]) -> list[str]:
        freed = list(addresses)
        for address in freed:
            (self._dir / address).unlink(missing_ok=True)
        return freed


def _ring(ranges: list[Range], last: int) -> Iterator[tuple[Range, int]]:
    """Every address once, beginning behind `last` if it is one of them."""
    start = next((i for i, each in enumerate(ranges) if each.first <= last <= each.last), None)
    if start is None:
        start, last = 0, ranges[0].first - 1
    yield from ((ranges[start], n) for n in range(last + 1, ranges[start].last + 1))
    for i in range(1, len(ranges)):
        each = ranges[(start + i) % len(ranges)]
        yield from ((each, n) for n in range(each.first, each.last + 1))
    yield from ((ranges[start], n) for n in range(ranges[start].first, last + 1))
