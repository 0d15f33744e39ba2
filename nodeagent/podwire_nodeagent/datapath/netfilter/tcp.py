"""TCP as connection tracking sees it: which packet moves a connection into which state (as Linux's nf_conntrack_proto_tcp does).

The states and the table are Linux's, with its finer points: a SYN in TIME_WAIT opens the connection anew; a SYN or
SYN/ACK that cannot be judged is let through and remembered, so that the answer tells whether conntrack or the
endpoints were out of step; a challenge ACK (RFC 5961) in LAST_ACK does not count as the last one; simultaneous open.
Connections may be picked up in the middle (`nf_conntrack_tcp_loose`).

Not tracked: windows. Sequence numbers are never a reason for INVALID (as with `nf_conntrack_tcp_be_liberal`), and any RST closes:
a flow cache carries the packets of an established connection past this code, so their windows are not known here.
"""

from __future__ import annotations

from typing import Final

from podwire_nodeagent.datapath.netfilter.connection import ASSURED, SEEN_REPLY, Connection
from podwire_nodeagent.datapath.packet import ACK, CWR, ECE, FIN, PSH, RST, SYN, URG, Packet

STATES: Final = (
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
)
NONE: Final = 0
SYN_SENT: Final = 1
SYN_RECV: Final = 2
ESTABLISHED: Final = 3
FIN_WAIT: Final = 4
CLOSE_WAIT: Final = 5
LAST_ACK: Final = 6
TIME_WAIT: Final = 7
CLOSE: Final = 8
SYN_SENT2: Final = 9
_IGNORE: Final = 10
_INVALID: Final = 11
_SHORT: Final = ("no", "ss", "sr", "es", "fw", "cw", "la", "tw", "cl", "s2", "--", "!!")

# What a packet (line) does in a state (column): the new state, `--` let through unjudged, `!!` invalid.
_ORIGINAL_TABLE: Final = """
            no ss sr es fw cw la tw cl s2
    syn     ss ss -- -- -- -- -- ss ss s2
    syn/ack !! !! sr !! !! !! !! !! !! sr
    fin     !! !! fw fw la la la tw cl !!
    ack     es !! es es cw cw tw tw cl !!
    rst     !! cl cl cl cl cl cl cl cl cl
"""
_REPLY_TABLE: Final = """
            no ss sr es fw cw la tw cl s2
    syn     !! s2 !! !! !! !! !! ss !! s2
    syn/ack !! sr -- -- -- -- -- -- -- sr
    fin     !! !! fw fw la la la tw cl !!
    ack     !! -- sr es cw cw tw tw cl --
    rst     !! cl cl cl cl cl cl cl cl cl
"""
_SYN: Final = 0
_SYN_ACK: Final = 1
_FIN: Final = 2
_ACK: Final = 3
_RST: Final = 4


def _read(text: str) -> tuple[tuple[int, ...], ...]:
    lines = [line.split() for line in text.strip().splitlines()]
    return tuple(tuple(_SHORT.index(word) for word in line[1:]) for line in lines[1:])


_TABLE: Final = (_read(_ORIGINAL_TABLE), _read(_REPLY_TABLE))

_VALID_FLAGS: Final = frozenset(
    (SYN, SYN | URG, SYN | ACK, RST, RST | ACK, FIN | ACK, FIN | ACK | URG, ACK, ACK | URG)
)  # with PSH, ECE, CWR masked out
_MASK: Final = ~(PSH | ECE | CWR)

# `Connection.last`: what is remembered of the last packet. Its end of sequence above these bits.
_LAST_INDEX: Final = 7
_LAST_DIRECTION: Final = 8
_CLOSE_INIT: Final = 16  # somebody has sent a FIN first: a new SYN may open the connection anew
_SIMULTANEOUS: Final = 32
_CHALLENGE: Final = 64  # a SYN went by in LAST_ACK: the next ACK may be a challenge
_STICKY: Final = _CLOSE_INIT | _SIMULTANEOUS
_NOTHING_YET: Final = 7  # no packet: an index that no packet has
_END_SHIFT: Final = 8

# what `advance` says
MOVED: Final = 0  # prolong the connection by the state's timeout
UNJUDGED: Final = 1  # let it through, neither prolong the connection nor count the packet
BAD: Final = 2  # ctstate INVALID
REOPEN: Final = 3  # forget this connection, and look the packet up again
REFUSED: Final = 4  # the only answer was a RST: delete the connection, let the packet through


def _index(flags: int) -> int:
    if flags & RST:
        return _RST
    if flags & SYN:
        return _SYN_ACK if flags & ACK else _SYN
    return _FIN if flags & FIN else _ACK


def _end(packet: Packet) -> int:
    """The sequence number after the segment."""
    payload = packet.end - packet.l4 - ((packet.buf[packet.l4 + 12] >> 4) << 2)
    return (packet.seq + payload + bool(packet.flags & SYN) + bool(packet.flags & FIN)) & 0xFFFFFFFF


def advance(connection: Connection, packet: Packet, direction: int, loose: bool) -> int:
    """Move the connection's state. Everything but MOVED and UNJUDGED says that the packet or the connection is not
    what it seemed."""
    if packet.flags & _MASK not in _VALID_FLAGS:
        return BAD
    index = _index(packet.flags)
    old, last = connection.state, connection.last
    new = _TABLE[direction][index][old]
    if new == _INVALID or (old == NONE and new != SYN_SENT and not loose):
        return BAD
    if old == NONE:
        last = _NOTHING_YET
    if new == SYN_SENT and old >= TIME_WAIT:
        if last & _CLOSE_INIT or last & 15 == (_RST | direction << 3):
            return REOPEN
        new = _IGNORE
    if new == _IGNORE:
        if not _answers_ignored_syn(last, index, direction, packet):
            connection.last = _remember(last, index, direction, packet) | (_CHALLENGE if index == _SYN and old == LAST_ACK else 0)
            return UNJUDGED
        old, new, last = SYN_SENT, SYN_RECV, 0
    elif (
        new == TIME_WAIT
        and old == LAST_ACK
        and index == _ACK
        and last & _CHALLENGE
        and last & 15 == (_SYN | (1 - direction) << 3)
    ):
        connection.last = last & ~_CHALLENGE
        return UNJUDGED
    elif new == SYN_SENT2:
        last |= _SIMULTANEOUS
    elif new == SYN_RECV and direction and index == _ACK and last & _SIMULTANEOUS:
        new = ESTABLISHED
    return _enter(connection, index, direction, old, new, last)


def _answers_ignored_syn(last: int, index: int, direction: int, packet: Packet) -> bool:
    """A SYN/ACK that acknowledges a SYN which was let through unjudged: the endpoints agree, conntrack was wrong."""
    return index == _SYN_ACK and last & 15 == (_SYN | (1 - direction) << 3) and last >> _END_SHIFT == packet.ack


def _remember(last: int, index: int, direction: int, packet: Packet) -> int:
    return last & _STICKY | index | direction << 3 | _end(packet) << _END_SHIFT


def _enter(connection: Connection, index: int, direction: int, old: int, new: int, last: int) -> int:
    if new == FIN_WAIT and old != FIN_WAIT:
        last |= _CLOSE_INIT
    connection.last = last & _STICKY | index | direction << 3 | last >> _END_SHIFT << _END_SHIFT
    if connection.state != new:
        connection.state = new
        connection.epoch += 1
    if not connection.status & SEEN_REPLY:
        if index == _RST:
            return REFUSED
        if index == _SYN and old == SYN_SENT:
            return UNJUDGED  # a SYN sent again prolongs nothing: else a client that never gives up keeps its translation for ever
    elif not connection.status & ASSURED and new == ESTABLISHED and old in (SYN_RECV, ESTABLISHED):
        connection.status |= ASSURED
        connection.epoch += 1
    return MOVED
