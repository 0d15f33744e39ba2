"""The packet quoted in an ICMP error: whose it was, and its translation (RFC 5508; Linux's nf_nat_icmp_reply_translation).

An error travels against the quoted packet, so at each hook the quoted header is translated with the other end's
manipulation: where the error's destination is translated, the quoted source is, and the other way round. The error
itself is made to look as the answer of the translated address.
"""

from __future__ import annotations

from typing import Final

from podwire_nodeagent.datapath.netfilter.connection import ORIGINAL, Connection, invert, make_key, split
from podwire_nodeagent.datapath.packet import (
    ICMP,
    ICMP4_QUERIES,
    ICMP6_QUERIES,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    Packet,
)
from podwire_nodeagent.datapath.rewrite import inet_sum, translate, translate_embedded

_HEADER: Final = 8  # of ICMP, before the quoted packet
_PORTS: Final = (TCP, UDP, SCTP)


def embedded_key(packet: Packet) -> bytes:
    """The key of the packet quoted in an ICMP error, as it was when the error's sender saw it; b"" if it cannot be read."""
    buf, at, end = packet.buf, packet.l4 + _HEADER, packet.end
    if packet.family == 4:
        if end - at < 28 or buf[at] >> 4 != 4 or (buf[at + 6] & 0x1F or buf[at + 7]):
            return b""
        proto, l4, src, dst = (
            buf[at + 9],
            at + ((buf[at] & 15) << 2),
            bytes(buf[at + 12 : at + 16]),
            bytes(buf[at + 16 : at + 20]),
        )
        if buf[at] & 15 < 5:
            return b""
    else:
        if end - at < 48 or buf[at] >> 4 != 6:
            return b""
        proto, l4, src, dst = buf[at + 6], at + 40, bytes(buf[at + 8 : at + 24]), bytes(buf[at + 24 : at + 40])
    if l4 + 8 > end:
        return b""
    if proto in _PORTS:
        return make_key(src, dst, buf[l4] << 8 | buf[l4 + 1], buf[l4 + 2] << 8 | buf[l4 + 3], proto)
    if proto in (ICMP, ICMPV6):
        kind, ident = buf[l4], buf[l4 + 4] << 8 | buf[l4 + 5]
        known = kind in (ICMP4_QUERIES if proto == ICMP else ICMP6_QUERIES)
        return make_key(src, dst, ident if known else 0, kind << 8 | buf[l4 + 1], proto)
    return make_key(src, dst, 0, 0, proto)


def translate_error(packet: Packet, connection: Connection, source: bool) -> None:
    """Translate an error of a connection: its source (POSTROUTING, INPUT) or its destination (PREROUTING, OUTPUT)."""
    quoted = embedded_key(packet)
    if not quoted:
        return
    # what the error's addressee had sent, and the packet that would answer it
    sent = connection.reply if packet.direction == ORIGINAL else connection.original
    answer = split(invert(sent))
    src, dst, sport, dport = split(quoted)
    theirs = split(sent)
    inner = (src, theirs[1], sport, theirs[3]) if source else (theirs[0], dst, theirs[2], dport)
    if quoted[-1] not in _PORTS:  # ICMP: the identifier follows the source, whichever end is translated; the type stays
        inner = (inner[0], inner[1], theirs[2], dport)
    buf, at = packet.buf, packet.l4 + _HEADER
    translate_embedded(buf, at, packet.end, inner, (src, dst, sport, dport), quoted[-1])
    if source:
        translate(packet, answer[0], packet.dst, packet.sport, packet.dport)
    else:
        translate(packet, packet.src, answer[1], packet.sport, packet.dport)
    _finish(packet)


def message_sum(packet: Packet) -> int:
    """The checksum of an ICMP message with all that it covers: 0 if the one that it carries is right."""
    message = bytes(packet.buf[packet.l4 : packet.end])
    if packet.proto == ICMPV6:
        message = packet.src + packet.dst + len(message).to_bytes(4, "big") + ICMPV6.to_bytes(4, "big") + message
    return inet_sum(message)


def _finish(packet: Packet) -> None:
    """The error's own checksum, over all of its message anew: the quoted bytes have changed."""
    buf, l4 = packet.buf, packet.l4
    if packet.checksum_is_partial():
        buf[0] &= ~1
    buf[l4 + 2] = buf[l4 + 3] = 0
    buf[l4 + 2 : l4 + 4] = message_sum(packet).to_bytes(2, "big")
