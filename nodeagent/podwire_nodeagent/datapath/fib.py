"""The forwarding information base: routes, longest prefix match, source address selection, as Linux' fib_trie and rules do.

Rules:
- Two tables, looked up in the order of `ip rule`: local (addresses and broadcasts of the node), then main.
- The longest prefix wins, then the lowest metric, then the route added first.
- A route's next hop must be reachable when it is added, and is never resolved recursively later.
- A route with several next hops is a list of routes (`hops`), of which a flow takes one by its hash: the hash's range is
  divided by weight, as fib_multipath does (hash-threshold, RFC 2992). It goes with any of its links.
- The two tables hold both families: the length of an address says which.
- Lookups are memoised until the next change. Nothing here sends or sees packets.

Order to read: Route, Table, Fib (lookup, then check and change).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from zlib import crc32

from podwire_core.netlink import NetlinkError
from podwire_nodeagent.datapath.links import Link
from podwire_nodeagent.datapath.wire import address_text

MEMO = 8192
UNREACHABLE_TYPES = {"blackhole": "blackhole", "unreachable": "host_unreachable", "prohibit": "prohibited"}


class Route:
    """One route. `dev` is None for blackhole and its like. `gateway` is whom packets are sent to: `via`, unless that is
    an address of the node itself, which makes the destinations neighbours."""

    __slots__ = ("dev", "dst", "gateway", "hops", "metric", "onlink", "plen", "proto", "scope", "src", "table", "type", "via")

    def __init__(
        self,
        dst: bytes,
        plen: int,
        dev: Link | None,
        *,
        via: bytes = b"",
        src: bytes = b"",
        onlink: bool = False,
        metric: int = 0,
        proto: str = "static",
        type: str = "unicast",
        scope: str = "",
        table: str = "main",
    ) -> None:
        self.dst, self.plen, self.dev, self.via, self.src = dst, plen, dev, via, src
        self.gateway = via
        self.hops: tuple[Hop, ...] = ()
        self.onlink, self.metric, self.proto, self.type, self.table = onlink, metric, proto, type, table
        self.scope = scope or ("link" if type == "unicast" and not via else "host" if type == "local" else "global")

    def spread(self, hops: Sequence[tuple[int, Route]]) -> None:
        """Make this a multipath route over these (weight, route)."""
        total, upto, found = sum(weight for weight, _ in hops), 0, []
        for weight, way in hops:
            upto += weight
            found.append(Hop(HASHES * upto // total, weight, way))
        self.hops = tuple(found)
        self.dev, self.scope = found[0].way.dev, found[0].way.scope

    def towards(self, flow: int) -> Route:
        """The route that a flow with this hash takes."""
        return next((hop.way for hop in self.hops if flow < hop.bound), self)

    def uses(self, link: Link) -> bool:
        return self.dev is link or any(hop.way.dev is link for hop in self.hops)

    def text(self) -> str:
        """As `ip route` prints it."""
        words = [self.type] if self.type != "unicast" else []
        words.append("default" if not self.plen else address_text(self.dst) + self._suffix())
        if self.via:
            words += ["via", address_text(self.via)]
        if self.dev is not None:
            words += ["dev", self.dev.name]
        if self.proto != "boot":
            words += ["proto", self.proto]
        if self.scope != "global":
            words += ["scope", self.scope]
        if self.src:
            words += ["src", address_text(self.src)]
        if self.metric:
            words += ["metric", str(self.metric)]
        return " ".join([*words, "onlink"] if self.onlink else words)

    def _suffix(self) -> str:
        return "" if self.plen == 8 * len(self.dst) else f"/{self.plen}"


class Hop(NamedTuple):
    """One of several next hops: flows whose hash is below `bound` (and not below the one before) go this `way`."""

    bound: int
    weight: int
    way: Route


HASHES = 1 << 32


def flow_hash(key: bytes) -> int:
    """Of a connection's key (addresses, ports, protocol), or of two addresses alone: below HASHES."""
    return crc32(key) * 0x9E3779B1 % HASHES  # crc32 is linear: neighbouring ports must not go to neighbouring hops


def masked(address: bytes, plen: int) -> bytes:
    bits = 8 * len(address)
    value = int.from_bytes(address, "big") >> (bits - plen) << (bits - plen)
    return value.to_bytes(len(address), "big")


def scope(address: bytes) -> int:
    """Of an IPv6 address: 1 interface, 2 link, 14 global (RFC 4007); a unique local address is global."""
    if address[0] == 0xFF:
        return address[1] & 15
    return 2 if address[0] == 0xFE and address[1] & 0xC0 == 0x80 else 1 if address == bytes(15) + b"\1" else 14


def select_source(dst: bytes, dev: Link | None, links: Iterable[Link]) -> bytes:
    """RFC 6724, section 5, as far as addresses here differ: itself, the scope, the outgoing link, the longest common prefix."""

    def rank(item: tuple[Link, bytes]) -> tuple[bool, bool, int, bool, int]:
        link, address = item
        wide = scope(address) >= scope(dst)
        common = 128 - (int.from_bytes(address, "big") ^ int.from_bytes(dst, "big")).bit_length()
        return address == dst, wide, -scope(address) if wide else scope(address), link is dev, common

    candidates = [(link, a) for link in links for a, _ in link.addresses if len(a) == 16 and (link is dev or scope(a) > 2)]
    return max(candidates, key=rank)[1] if candidates else b""


class Table:
    """Routes of one table: (length of address, prefix length) → network → routes in order of preference."""

    def __init__(self) -> None:
        self._nets: dict[tuple[int, int], dict[int, list[Route]]] = {}
        self._orders: dict[int, list[int]] = {4: [], 16: []}

    def __iter__(self) -> Iterator[Route]:
        for key in sorted(self._nets):
            for network in sorted(self._nets[key]):
                yield from self._nets[key][network]

    def candidates(self, dst: bytes) -> Iterator[Route]:
        """Routes that cover `dst`, best first."""
        size = len(dst)
        value, bits = int.from_bytes(dst, "big"), 8 * size
        for plen in self._orders[size]:
            yield from self._nets[size, plen].get(value >> (bits - plen), ())

    def same_net(self, dst: bytes, plen: int) -> list[Route]:
        """The list itself, in order; empty if there is none."""
        return self._nets.get((len(dst), plen), {}).get(self._network(dst, plen), [])

    def insert(self, route: Route, at: int | None = None) -> None:
        """After those of its metric, or where it was (`at`, as `remove` returned it)."""
        size = len(route.dst)
        nets = self._nets.setdefault((size, route.plen), {})
        routes = nets.setdefault(self._network(route.dst, route.plen), [])
        if at is None:
            at = next((i for i, other in enumerate(routes) if other.metric > route.metric), len(routes))
        routes.insert(at, route)
        if route.plen not in self._orders[size]:
            self._orders[size] = sorted([*self._orders[size], route.plen], reverse=True)

    def remove(self, route: Route) -> int:
        size = len(route.dst)
        nets = self._nets[size, route.plen]
        network = self._network(route.dst, route.plen)
        at = nets[network].index(route)
        del nets[network][at]
        if not nets[network]:
            del nets[network]
        if not nets:
            del self._nets[size, route.plen]
            self._orders[size].remove(route.plen)
        return at

    @staticmethod
    def _network(dst: bytes, plen: int) -> int:
        return int.from_bytes(dst, "big") >> (8 * len(dst) - plen)


class Fib:
    """Both tables and what is asked of them."""

    def __init__(self) -> None:
        self.local, self.main = Table(), Table()
        self._memo: dict[bytes, Route | None] = {}

    def __iter__(self) -> Iterator[Route]:
        yield from self.main
        yield from self.local

    def lookup(self, dst: bytes) -> Route | None:
        """The route for `dst`, of any type; None: network unreachable."""
        try:
            return self._memo[dst]
        except KeyError:
            if len(self._memo) >= MEMO:
                self._memo.clear()
            found = next(self.local.candidates(dst), None) or next(self.main.candidates(dst), None)
            self._memo[dst] = found
            return found

    def is_local(self, address: bytes) -> bool:
        route = self.lookup(address)
        return route is not None and route.type == "local"

    def address_type(self, address: bytes) -> str:
        """For `-m addrtype`: LOCAL, BROADCAST, MULTICAST, UNICAST, or the capital name of a route's type."""
        if len(address) == 4:
            if address == b"\xff\xff\xff\xff" or not address[0]:
                return "BROADCAST"
            if address[0] & 0xF0 == 0xE0:
                return "MULTICAST"
        elif address[0] == 0xFF:
            return "MULTICAST"
        route = next(self.local.candidates(address), None)
        return route.type.upper() if route is not None else "UNICAST"

    def source(self, route: Route, links: Iterable[Link], dst: bytes = b"") -> bytes:
        """The source address for a packet that a route carries (b"": none): its `src`, or an address of its link. `dst` is
        the packet's destination, which matters for IPv6."""
        if route.src:
            return route.src
        size = len(route.dst)
        towards = route.gateway or route.dst
        if size == 16:
            return select_source(dst or route.dst, route.dev, links)
        if route.dev is not None:
            own = [(a, plen) for a, plen in route.dev.addresses if len(a) == size]
            near = [a for a, plen in own if masked(a, plen) == masked(towards, plen)]
            if near or own:
                return near[0] if near else own[0][0]
        others = (a for link in links if link.kind != "loopback" for a, _ in link.addresses if len(a) == size)
        return next(others, b"")

    def table(self, name: str) -> Table:
        return self.local if name == "local" else self.main

    def insert(self, route: Route, at: int | None = None) -> None:
        self.table(route.table).insert(route, at)
        self._memo.clear()

    def remove(self, route: Route) -> int:
        self._memo.clear()
        return self.table(route.table).remove(route)

    def of_link(self, link: Link) -> list[Route]:
        return [route for route in self if route.uses(link)]

    def check_nexthop(self, route: Route) -> Route:
        """The route with its device found out, or NetlinkError as the kernel refuses it."""
        if route.type in UNREACHABLE_TYPES:
            return route
        if route.dev is not None and not route.dev.up:
            raise NetlinkError("ENETDOWN", f"device {route.dev.name} is not up")
        if route.via:
            self._check_gateway(route)
        elif route.onlink:
            raise NetlinkError("EINVAL", "onlink needs a gateway")
        if route.dev is None:
            raise NetlinkError("ENODEV", "nexthop device required")
        if route.src and not self.is_local(route.src):
            raise NetlinkError("EINVAL", f"invalid prefsrc address {address_text(route.src)}")
        return route

    def _check_gateway(self, route: Route) -> None:
        """A gateway must be reached without another gateway: by a route of scope link or host, over the route's device."""
        via = address_text(route.via)
        if route.onlink:
            if route.dev is None:
                raise NetlinkError("ENODEV", "nexthop device required for onlink")
            if self.address_type(route.via) != "UNICAST":
                raise NetlinkError("EINVAL", f"nexthop {via} is no unicast address")
            return
        for found in (*self.local.candidates(route.via), *self.main.candidates(route.via)):
            if found.scope == "global" or found.dev is None or route.dev not in (None, found.dev):
                continue
            if found.type not in ("unicast", "local"):
                raise NetlinkError("EINVAL", f"nexthop {via} is no unicast address")
            route.dev = found.dev
            if found.type == "local":
                route.gateway = b""
            return
        raise NetlinkError("ENETUNREACH", f"nexthop {via} is not reachable")
