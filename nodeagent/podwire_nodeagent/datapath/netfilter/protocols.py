"""What a packet does to a connection of each protocol but TCP, and which packets may begin one.

UDP becomes a stream (and ASSURED) when a packet passes more than two seconds after the first and a reply has been
seen. ICMP and unknown protocols have no states. SCTP follows its chunks: the states of Linux, without verification tags.
"""

from __future__ import annotations

from typing import Final

from podwire_nodeagent.datapath.netfilter.connection import ASSURED, SEEN_REPLY, Connection
from podwire_nodeagent.datapath.netfilter.timeouts import Timeouts
from podwire_nodeagent.datapath.packet import ICMP, ICMPV6, SCTP, UDP, Packet

_STREAM_AFTER: Final = 2.0
NEVER: Final = float("inf")

# ICMP messages that may begin a connection, and those that conntrack leaves alone (neighbour discovery, multicast listeners)
_ICMP_BEGINS: Final = frozenset((8, 13, 15, 17))
_ICMPV6_BEGINS: Final = frozenset((128, 139))
ICMPV6_UNTRACKED: Final = frozenset((130, 131, 132, 133, 134, 135, 136, 137, 143))
ICMP_ERRORS: Final = frozenset((3, 4, 5, 11, 12))

# SCTP chunk types
_INIT, _INIT_ACK, _ABORT, _SHUTDOWN, _SHUTDOWN_ACK, _COOKIE_ECHO, _COOKIE_ACK, _SHUTDOWN_COMPLETE = 1, 2, 6, 7, 8, 10, 11, 14
_HEARTBEAT, _HEARTBEAT_ACK = 4, 5
S_NONE, S_CLOSED, S_COOKIE_WAIT, S_COOKIE_ECHOED, S_ESTABLISHED, S_SHUT_SENT, S_SHUT_RECD, S_SHUT_ACK, S_HEARTBEAT = range(9)


def begins(packet: Packet) -> bool:
    """May this packet (not TCP's) begin a connection?"""
    proto = packet.proto
    if proto == ICMP:
        return packet.dport >> 8 in _ICMP_BEGINS
    if proto == ICMPV6:
        return packet.dport >> 8 in _ICMPV6_BEGINS
    if proto == SCTP:
        return packet.end - packet.l4 >= 16 and packet.buf[packet.l4 + 12] in (_INIT, _HEARTBEAT, 0, 3)
    return True


def advance(connection: Connection, packet: Packet, direction: int, now: float, timeouts: Timeouts) -> float | None:
    """The timeout from now on; None if the packet is invalid for the connection."""
    proto = packet.proto
    if proto == UDP:
        return _udp(connection, now, timeouts)
    if proto == ICMP:
        return timeouts.icmp
    if proto == ICMPV6:
        return timeouts.icmpv6
    if proto == SCTP:
        return _sctp(connection, packet, direction, timeouts)
    return timeouts.generic


def _udp(connection: Connection, now: float, timeouts: Timeouts) -> float:
    if not connection.status & SEEN_REPLY:
        return timeouts.udp
    if not connection.status & ASSURED:
        stream_at = connection.begun + _STREAM_AFTER
        if now <= stream_at:
            connection.upgrade = stream_at
            return timeouts.udp
        connection.status |= ASSURED
        connection.upgrade = NEVER
    return timeouts.udp_stream


def _sctp(connection: Connection, packet: Packet, direction: int, timeouts: Timeouts) -> float | None:
    buf, at, end = packet.buf, packet.l4 + 12, packet.end
    state = connection.state
    for _ in range(64):
        if at + 4 > end:
            break
        size = buf[at + 2] << 8 | buf[at + 3]
        if size < 4:
            return None
        state = _sctp_state(state, buf[at], direction)
        at += (size + 3) & ~3
    if state != connection.state:
        connection.state = state
        connection.epoch += 1
        if state == S_ESTABLISHED and connection.status & SEEN_REPLY:
            connection.status |= ASSURED
    return timeouts.sctp[state]


def _sctp_state(state: int, chunk: int, direction: int) -> int:
    if chunk == _INIT:
        return S_COOKIE_WAIT if state in (S_NONE, S_CLOSED, S_COOKIE_WAIT) and not direction else state
    if chunk == _INIT_ACK:
        return S_COOKIE_WAIT if state in (S_NONE, S_COOKIE_WAIT) else state
    if chunk == _COOKIE_ECHO:
        return S_COOKIE_ECHOED if state in (S_NONE, S_CLOSED, S_COOKIE_WAIT, S_COOKIE_ECHOED) else state
    if chunk == _COOKIE_ACK:
        return S_ESTABLISHED if state == S_COOKIE_ECHOED else state
    if chunk in (_ABORT, _SHUTDOWN_COMPLETE):
        return S_CLOSED
    if chunk == _SHUTDOWN:
        return S_SHUT_RECD if direction else S_SHUT_SENT
    if chunk == _SHUTDOWN_ACK:
        return S_SHUT_ACK
    if chunk in (_HEARTBEAT, _HEARTBEAT_ACK):
        if state == S_NONE:
            return S_HEARTBEAT
        return S_ESTABLISHED if state == S_HEARTBEAT and direction else state
    return S_HEARTBEAT if state == S_NONE else state  # DATA, SACK: picked up in the middle
