"""One tracked connection, and the keys by which it is found.

A key is one `bytes` value: source, destination, source port, destination port, protocol (13 bytes for IPv4, 37 for
IPv6). The ICMP identifier stands for the source port, type and code for the destination port; a reply's key has the
answering type.

`epoch` is what a flow cache compares: it changes whenever a decision made earlier about this connection may be wrong
(it got its first reply, it was closed, deleted or marked), and is -1 once the connection is dead.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from podwire_nodeagent.datapath.packet import ESTABLISHED as CT_ESTABLISHED
from podwire_nodeagent.datapath.packet import FIN, ICMP, ICMPV6, RST, SCTP, SYN, TCP, UDP, Packet
from podwire_nodeagent.datapath.packet import NEW as CT_NEW
from podwire_nodeagent.datapath.rewrite import Rewrite

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.ipvs.servers import Served

ORIGINAL: Final = 0
REPLY: Final = 1

# status bits
SEEN_REPLY: Final = 1
ASSURED: Final = 2
CONFIRMED: Final = 4
SRC_NAT: Final = 8  # the reply's destination differs from the original's source
DST_NAT: Final = 16  # the reply's source differs from the original's destination
SRC_DONE: Final = 32  # the nat table was asked (nf_nat_initialized)
DST_DONE: Final = 64
DYING: Final = 128

_TAIL = Struct(">HHB")
_ANSWERS4 = {8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 17: 18, 18: 17}
_ANSWERS6 = {128: 129, 129: 128}

NEVER: Final = float("inf")
_SPECIAL: Final = FIN | SYN | RST
_TCP_ESTABLISHED: Final = 3  # as in tcp.py, which imports this file

Tuple = tuple[bytes, bytes, int, int]  # source, destination, source port, destination port


def make_key(src: bytes, dst: bytes, sport: int, dport: int, proto: int) -> bytes:
    return src + dst + _TAIL.pack(sport, dport, proto)


def packet_key(packet: Packet) -> bytes:
    return packet.src + packet.dst + _TAIL.pack(packet.sport, packet.dport, packet.proto)


def invert(key: bytes) -> bytes:
    """The key of the answer to a packet with this key."""
    proto = key[-1]
    if len(key) == 13 and proto != ICMP:
        return key[4:8] + key[:4] + key[10:12] + key[8:10] + key[12:]
    size = (len(key) - 5) >> 1
    if proto in (ICMP, ICMPV6):
        kind = key[-3]
        answers = _ANSWERS4 if proto == ICMP else _ANSWERS6
        return key[size:-5] + key[:size] + key[-5:-3] + bytes((answers.get(kind, kind), key[-2], proto))
    return key[size:-5] + key[:size] + key[-3:-1] + key[-5:-3] + key[-1:]


def split(key: bytes) -> Tuple:
    if len(key) == 13:
        return key[:4], key[4:8], key[8] << 8 | key[9], key[10] << 8 | key[11]
    size = (len(key) - 5) >> 1
    sport, dport, _ = _TAIL.unpack_from(key, 2 * size)
    return key[:size], key[size : 2 * size], sport, dport


class Connection:
    """See the head of the file. `original` and `reply` are the keys of its directions; they are each other's inverse unless the
    connection is translated. `timeout` is what the next packet prolongs it by."""

    __slots__ = (
        "begun",
        "bytes_original",
        "bytes_reply",
        "cause",
        "due",
        "epoch",
        "expires",
        "last",
        "mark",
        "original",
        "out_link",
        "packets_original",
        "packets_reply",
        "reply",
        "served",
        "state",
        "status",
        "timeout",
        "upgrade",
    )

    def __init__(self, original: bytes, reply: bytes, now: float) -> None:
        self.begun = now
        self.original = original
        self.reply = reply
        self.status = 0
        self.state = 0  # of the protocol: tcp.py, protocols.py
        self.last = 0  # TCP: what its state machine remembers of the last packet
        self.mark = 0
        self.expires = now
        self.timeout = 0.0
        self.due = 0  # the second in which the expiry looks at it
        self.upgrade = NEVER  # UDP: after this time a packet makes it a stream
        self.epoch = 0
        self.cause = ""  # the object for which its destination was translated: it explains later packets in traces
        self.served: Served | None = None  # by a real server of ip_vs
        self.out_link = ""  # MASQUERADE: the link whose address was taken
        self.packets_original = self.packets_reply = self.bytes_original = self.bytes_reply = 0

    @property
    def proto(self) -> int:
        return self.original[-1]

    @property
    def translated(self) -> bool:
        return bool(self.status & (SRC_NAT | DST_NAT))

    def rewrite(self, direction: int) -> Rewrite | None:
        """The whole translation of packets of this direction, None if there is none."""
        if not self.status & (SRC_NAT | DST_NAT):
            return None
        old, other = (self.original, self.reply) if direction == ORIGINAL else (self.reply, self.original)
        return Rewrite(self.original[-1], split(old), split(invert(other)))

    def touch(self, direction: int, length: int, now: float) -> bool:
        """Account a packet that a flow cache forwards, and prolong the connection. False: this packet must walk (the
        connection has expired, or this packet changes its state)."""
        if now >= self.expires or now >= self.upgrade:
            return False
        self.expires = now + self.timeout
        if direction:
            self.packets_reply += 1
            self.bytes_reply += length
        else:
            self.packets_original += 1
            self.bytes_original += length
        return True

    def cacheable(self, packet: Packet) -> bool:
        """May the walk of this packet stand for the next ones of its direction (until `epoch` changes)?"""
        if self is not packet.ct or packet.volatile or packet.fragment or self.epoch < 0:
            return False
        if not self.status & CONFIRMED or packet.ctinfo not in (CT_ESTABLISHED, CT_NEW):
            return False
        if packet.proto == TCP:
            return self.state == _TCP_ESTABLISHED and bool(self.status & ASSURED) and not packet.flags & _SPECIAL
        if packet.proto == UDP:  # the packet after the first reply decides when it becomes a stream
            return not self.status & SEEN_REPLY or bool(self.status & ASSURED) or self.upgrade != NEVER
        return packet.proto != SCTP
