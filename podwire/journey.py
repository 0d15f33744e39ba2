"""Joining what single nodes saw of packets into journeys: hops → passages → connections. Pure.

A *hop* is a packet at one node. A *passage* is a packet's whole way: the packet that left one node (`out`) is the packet that
entered another (`entered`). A *connection* is all passages between a client's socket and what it talked to, forth and back, also
where the addresses were translated on the way: a reply's passage ends at the client as the reverse of what the client sent.

Rules: a hop is in exactly one passage, a passage in exactly one connection. Superframes may be cut or merged between nodes, so
where no digest is equal, a packet of the same sockets that begins at the same sequence number is taken for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from msgspec import Struct, field

from podwire_core.trace import Digest, Hop, Step

CLOCK_SKEW = 0.005  # seconds by which a packet may seem to arrive before it left: the nodes' clocks, and batching
ICMP_ERRORS = {"icmp": (3, 11, 12), "icmpv6": (1, 2, 3, 4)}  # unreachable, (too big,) time exceeded, parameter problem
NEIGHBOURS = range(130, 144)  # ICMPv6: neighbour discovery, multicast listeners

Sockets = tuple[str, str, int, str, int]  # protocol, source, source port, destination, destination port


class Passage(Struct):
    """One packet from where it was first seen to where it was last seen. `reply`: towards the client."""

    hops: list[Hop]
    reply: bool = False

    @property
    def first(self) -> Digest:
        return self.hops[0].entered

    @property
    def last(self) -> Digest:
        return self.hops[-1].out or self.hops[-1].entered

    @property
    def time(self) -> float:
        return self.hops[0].time

    @property
    def verdict(self) -> str:
        return self.hops[-1].verdict

    def steps(self) -> Iterable[Step]:
        return (step for hop in self.hops for step in hop.steps)


class Connection(Struct):
    """`client` and `server` are as the client sees them; `backend` and `seen_as` as the server does ("" if not translated)."""

    proto: str
    client: str
    client_port: int
    server: str
    server_port: int
    backend: str = ""
    backend_port: int = 0
    seen_as: str = ""
    passages: list[Passage] = field(default_factory=list)

    def opening(self) -> list[Passage]:
        """What the connection began with: the first packet, and the first reply to it."""
        forward = next((p for p in self.passages if not p.reply), None)
        back = next((p for p in self.passages if p.reply), None)
        return [passage for passage in (forward, back) if passage is not None]


class Totals(Struct):
    packets: int
    hops: int
    rules: int
    tunnels: int
    datapath_ns: int
    seconds: float


def join(hops: Iterable[Hop]) -> list[Passage]:
    """Passages in the order in which they began. ARP and its like are left out: they are a node's own business."""
    ordered = sorted((hop for hop in hops if not _of_neighbours(hop.entered)), key=lambda hop: (hop.time, hop.seq))
    following = _successors(ordered)
    continued = {id(hop) for hop in following.values()}
    passages = []
    for hop in ordered:
        if id(hop) in continued:
            continue
        chain = [hop]
        while (after := following.get(id(chain[-1]))) is not None:
            chain.append(after)
        passages.append(Passage(chain))
    return passages


def _successors(hops: list[Hop]) -> dict[int, Hop]:
    """id of a hop that left its node → the hop at the next node. First the equal digests, then the similar ones."""
    result: dict[int, Hop] = {}
    taken: set[int] = set()
    for identity in (_exact, _similar):
        arrivals: dict[object, list[Hop]] = defaultdict(list)
        for hop in hops:
            if id(hop) not in taken:
                arrivals[identity(hop.entered)].append(hop)
        for hop in hops:
            if hop.verdict != "forwarded" or hop.out is None or id(hop) in result:
                continue
            for other in arrivals[identity(hop.out)]:
                if id(other) not in taken and other.node != hop.node and other.time >= hop.time - CLOCK_SKEW:
                    result[id(hop)] = other
                    taken.add(id(other))
                    break
    return result


def _exact(d: Digest) -> object:
    return (d.proto, d.src, d.sport, d.dst, d.dport, d.ident, d.seq, d.ack, d.flags, d.length)


def _similar(d: Digest) -> object:
    return (d.proto, d.src, d.sport, d.dst, d.dport, d.seq, d.ttl)


def connections(passages: Iterable[Passage]) -> list[Connection]:
    """In the order in which they began; marks each passage as `reply` or not."""
    by_sockets: dict[Sockets, Connection] = {}
    result: list[Connection] = []
    for passage in passages:
        first, last = _sockets(passage.first), _sockets(passage.last)
        found = by_sockets.get(first)
        if found is None:
            found = by_sockets.get(_reverse(last)) or by_sockets.get(_reverse(first)) or _of_error(passage, result)
            passage.reply = found is not None
        if found is None:
            found = Connection(passage.first.proto, first[1], first[2], first[3], first[4])
            by_sockets[first] = found
            result.append(found)
        if not passage.reply and last != first:
            by_sockets.setdefault(last, found)
            _note_translation(found, last)
        found.passages.append(passage)
    return result


def _note_translation(connection: Connection, last: Sockets) -> None:
    if (last[3], last[4]) != (connection.server, connection.server_port):
        connection.backend, connection.backend_port = last[3], last[4]
    if last[1] != connection.client:
        connection.seen_as = last[1]


def _of_neighbours(digest: Digest) -> bool:
    return digest.proto == "arp" or (digest.proto == "icmpv6" and digest.sport in NEIGHBOURS)


def _of_error(passage: Passage, so_far: list[Connection]) -> Connection | None:
    """An ICMP error belongs to the latest connection of the client it goes to."""
    digest = passage.last
    if digest.sport not in ICMP_ERRORS.get(digest.proto, ()):
        return None
    return next((each for each in reversed(so_far) if each.client == digest.dst), None)


def _sockets(d: Digest) -> Sockets:
    """ICMP has a type and a code where ports would be: they differ between question and answer."""
    ports = (0, 0) if d.proto.startswith("icmp") else (d.sport, d.dport)
    return (d.proto, d.src, ports[0], d.dst, ports[1])


def _reverse(sockets: Sockets) -> Sockets:
    proto, source, source_port, destination, destination_port = sockets
    return (proto, destination, destination_port, source, source_port)


def totals(passages: list[Passage]) -> Totals:
    hops = [hop for passage in passages for hop in passage.hops]
    return Totals(
        packets=len(passages),
        hops=len(hops),
        rules=sum(step.evaluated for hop in hops for step in hop.steps),
        tunnels=sum(1 for hop in hops if hop.tunnel_dst),
        datapath_ns=sum(hop.ns for hop in hops),
        seconds=max((hop.time for hop in hops), default=0.0) - min((hop.time for hop in hops), default=0.0),
    )
