"""What a router says back: ICMP errors (RFC 792, 1122, 1812) and TCP resets (RFC 793), built as Linux builds them.

Rules:
- No error about an ICMP error, a fragment that is not the first, a broadcast or multicast, or a source that is no host.
- An error quotes as much of the packet as fits 576 bytes; its TOS keeps the packet's and adds Internetwork Control.
- Rate limit, as icmp_ratelimit=1000 and icmp_ratemask=6168: one a second and destination, bursts of 6, for errors except
  "fragmentation needed". Resets are not limited.
- Functions here build frames with an empty Ethernet header; ip.py sends them.
"""

from __future__ import annotations

from typing import Final

from podwire_nodeagent.datapath.checksum import checksum, ones_sum, pseudo_sum
from podwire_nodeagent.datapath.packet import ACK, FIN, ICMP4_QUERIES, RST, SYN, Packet
from podwire_nodeagent.datapath.wire import ETHERTYPE_IPV4, ICMP, IPV4, L3, NEEDS_CSUM, TCP, U16, VNET, VNET_SIZE

UNREACHABLE: Final = 3
TIME_EXCEEDED: Final = 11
PARAMETER_PROBLEM: Final = 12
NET: Final = 0
HOST: Final = 1
PROTOCOL: Final = 2
PORT: Final = 3
FRAGMENTATION_NEEDED: Final = 4
NET_PROHIBITED: Final = 9
HOST_PROHIBITED: Final = 10
FILTERED: Final = 13

REJECT_CODES: Final = {
    "icmp-net-unreachable": NET,
    "icmp-host-unreachable": HOST,
    "icmp-proto-unreachable": PROTOCOL,
    "icmp-port-unreachable": PORT,
    "icmp-net-prohibited": NET_PROHIBITED,
    "icmp-host-prohibited": HOST_PROHIBITED,
    "icmp-admin-prohibited": FILTERED,
}

QUOTE: Final = 576  # bytes of an error, IP header included
BURST: Final = 6
MAX_PEERS: Final = 4096
DEFAULT_TTL: Final = 64


class RateLimit:
    """A token bucket per destination (inetpeer's)."""

    def __init__(self) -> None:
        self._peers: dict[bytes, tuple[float, float]] = {}  # tokens (in seconds), when last looked at

    def allow(self, peer: bytes, now: float, interval: float = 1.0) -> bool:
        """`interval` is icmp_ratelimit in seconds; 0 allows all."""
        tokens, last = self._peers.get(peer, (BURST * interval, now))
        tokens = min(tokens + now - last, BURST * interval)
        allowed = tokens >= interval
        if peer not in self._peers and len(self._peers) >= MAX_PEERS:
            self._peers.pop(next(iter(self._peers)))
        self._peers[peer] = (tokens - interval if allowed else tokens, now)
        return allowed


def may_answer(packet: Packet) -> bool:
    """Whether an error about this packet is allowed at all."""
    src, dst = packet.src, packet.dst
    if packet.offset or src[0] in (0, 127) or 224 <= src[0] < 240 or 224 <= dst[0] < 240:
        return False
    return packet.proto != ICMP or (packet.fragment and packet.buf[packet.l4] in ICMP4_QUERIES) or is_query(packet)


def is_query(packet: Packet) -> bool:
    return (packet.dport >> 8) in ICMP4_QUERIES


def limited(kind: int, code: int, mask: int) -> bool:
    """Whether an error counts against the limit: types of icmp_ratemask, path MTU discovery excepted."""
    return bool(mask >> kind & 1) and not (kind == UNREACHABLE and code == FRAGMENTATION_NEEDED)


def error(packet: Packet, source: bytes, kind: int, code: int, ident: int, rest: int = 0) -> bytearray:
    """An ICMP error about `packet` as it now stands in its buffer. `rest` is the header's second word (next-hop MTU)."""
    quoted = bytes(packet.buf[packet.l3 : min(packet.end, packet.l3 + QUOTE - 28)])
    body = bytearray(8 + len(quoted))
    body[0], body[1] = kind, code
    body[4:8] = rest.to_bytes(4, "big")
    body[8:] = quoted
    U16.pack_into(body, 2, checksum(body))
    return ipv4_frame(source, packet.src, ICMP, body, tos=(packet.tos & 0x1E) | 0xC0, ident=ident)


def reset(packet: Packet) -> bytearray | None:
    """The RST that answers a TCP segment, None if a reset must not be answered."""
    segment = reset_segment(packet)
    return None if segment is None else ipv4_frame(packet.dst, packet.src, TCP, segment, flags_offset=0x4000)


def reset_segment(packet: Packet) -> bytearray | None:
    """Its TCP header (RFC 793, page 36), checksum included, for either family."""
    if packet.proto != TCP or packet.flags & RST or packet.fragment:
        return None
    if packet.flags & ACK:
        seq, ack, flags = packet.ack, 0, RST
    else:
        data = packet.end - packet.l4 - ((packet.buf[packet.l4 + 12] >> 4) << 2)
        length = data + bool(packet.flags & SYN) + bool(packet.flags & FIN)
        seq, ack, flags = 0, (packet.seq + length) & 0xFFFFFFFF, RST | ACK
    segment = bytearray(20)
    U16.pack_into(segment, 0, packet.dport)
    U16.pack_into(segment, 2, packet.sport)
    segment[4:12] = seq.to_bytes(4, "big") + ack.to_bytes(4, "big")
    segment[12], segment[13] = 5 << 4, flags
    U16.pack_into(segment, 16, checksum(segment, pseudo_sum(packet.dst + packet.src, TCP, 20)))
    return segment


def ipv4_frame(
    src: bytes, dst: bytes, proto: int, body: bytes | bytearray, *, tos: int = 0, ident: int = 0, flags_offset: int = 0
) -> bytearray:
    """A frame from its payload: virtio_net_hdr, an Ethernet header without addresses, IPv4."""
    frame = bytearray(L3 + 20 + len(body))
    U16.pack_into(frame, L3 - 2, ETHERTYPE_IPV4)
    IPV4.pack_into(frame, L3, 0x45, tos, 20 + len(body), ident, flags_offset, DEFAULT_TTL, proto, 0, src, dst)
    U16.pack_into(frame, L3 + 10, checksum(frame[L3 : L3 + 20]))
    frame[L3 + 20 :] = body
    return frame


def checksum_ok(packet: Packet) -> bool:
    """Whether a TCP or UDP checksum is right (Linux rejects nothing whose checksum is wrong); a partial one counts as right."""
    buf, l4 = packet.buf, packet.l4
    if packet.fragment or packet.proto not in (6, 17):
        return True
    if buf[0] & NEEDS_CSUM and VNET.unpack_from(buf, 0)[4] + VNET_SIZE == l4:
        return True
    if packet.proto == 17 and not (buf[l4 + 6] or buf[l4 + 7]):
        return True
    segment = buf[l4 : packet.end]
    total = pseudo_sum(packet.src + packet.dst, packet.proto, len(segment)) + ones_sum(segment)
    return total % 65535 == 0
