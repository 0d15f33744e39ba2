"""ICMPv6 (RFC 4443) and neighbour discovery (RFC 4861) messages, built as Linux builds them. icmp.py's counterpart.

Rules:
- No error about an ICMPv6 error or a redirect, nor to a source that is no single node (unspecified, multicast), nor about a
  packet for a group, but for "packet too big".
- An error quotes as much of the packet as fits the minimum MTU (1280); its traffic class and flow label are 0.
- Rate limit, as net.ipv6.icmp.ratelimit=1000 and ratemask=0-1,3-127: every error but "packet too big", per destination, more
  often the shorter the prefix of its route (`interval`).
- Functions here build frames with an empty Ethernet header (errors) or a whole one (neighbour discovery).
"""

from __future__ import annotations

from typing import Final

from podwire_nodeagent.datapath import icmp
from podwire_nodeagent.datapath.checksum import checksum, pseudo_sum
from podwire_nodeagent.datapath.packet import ICMPV6, Packet
from podwire_nodeagent.datapath.wire import ETH, ETHERNET, ETHERTYPE_IPV6, IPV6, L3, TCP, U16

UNREACHABLE: Final = 1
PACKET_TOO_BIG: Final = 2
TIME_EXCEEDED: Final = 3
NO_ROUTE: Final = 0
PROHIBITED: Final = 1
NOT_NEIGHBOUR: Final = 2
ADDRESS: Final = 3
PORT: Final = 4
SOLICITATION: Final = 135
ADVERTISEMENT: Final = 136
DISCOVERY: Final = frozenset((133, 134, SOLICITATION, ADVERTISEMENT, 137))
LISTENERS: Final = frozenset((130, 131, 132, 143))  # multicast listener discovery
MINIMUM_MTU: Final = 1280
QUOTE: Final = MINIMUM_MTU - 48
HOPS: Final = 64
UNSPECIFIED: Final = bytes(16)
LOOPBACK: Final = bytes(15) + b"\1"
ALL_NODES: Final = b"\xff\x02" + bytes(13) + b"\1"
ALL_ROUTERS: Final = b"\xff\x02" + bytes(13) + b"\2"
SOLICITED_NODE: Final = b"\xff\x02" + bytes(9) + b"\1\xff"
ROUTER: Final = 128
SOLICITED: Final = 64
OVERRIDE: Final = 32
SOURCE_LINK: Final = 1
TARGET_LINK: Final = 2

# what ip.py says in IPv4's terms
ERRORS: Final = {
    (icmp.UNREACHABLE, icmp.NET): (UNREACHABLE, NO_ROUTE),
    (icmp.UNREACHABLE, icmp.HOST): (UNREACHABLE, ADDRESS),
    (icmp.UNREACHABLE, icmp.FILTERED): (UNREACHABLE, PROHIBITED),
    (icmp.UNREACHABLE, icmp.PORT): (UNREACHABLE, PORT),
    (icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED): (PACKET_TOO_BIG, 0),
    (icmp.TIME_EXCEEDED, 0): (TIME_EXCEEDED, 0),
}
REJECT_CODES: Final = {
    "icmp6-no-route": NO_ROUTE,
    "icmp6-adm-prohibited": PROHIBITED,
    "icmp6-addr-unreachable": ADDRESS,
    "icmp6-port-unreachable": PORT,
}


def is_multicast(address: bytes) -> bool:
    return address[0] == 0xFF


def is_link_local(address: bytes) -> bool:
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def link_local(mac: bytes) -> bytes:
    """The address that a link has by its MAC (EUI-64)."""
    return b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


def solicited_node(address: bytes) -> bytes:
    return SOLICITED_NODE + address[13:]


def group_mac(group: bytes) -> bytes:
    return b"\x33\x33" + group[12:]


# --- errors --------------------------------


def may_answer(packet: Packet, kind: int) -> bool:
    """Whether an error of this type about this packet is allowed at all."""
    if packet.src == UNSPECIFIED or is_multicast(packet.src) or (is_multicast(packet.dst) and kind != PACKET_TOO_BIG):
        return False
    return packet.offset == 0 and (packet.proto != ICMPV6 or (packet.dport >> 8 >= 128 and packet.dport >> 8 != 137))


def interval(base: float, plen: int) -> float:
    """The limit for a destination that a route of this prefix length leads to (icmpv6_xrlim_allow)."""
    return base / (1 << (128 - plen >> 5)) if plen < 128 else base


def error(packet: Packet, source: bytes, kind: int, code: int, rest: int = 0) -> bytearray:
    """An ICMPv6 error about `packet` as it now stands in its buffer. `rest` is the header's second word (MTU)."""
    body = bytearray(8)
    body[0], body[1] = kind, code
    body[4:8] = rest.to_bytes(4, "big")
    body += packet.buf[packet.l3 : min(packet.end, packet.l3 + QUOTE)]
    return message(source, packet.src, body)


def reset(packet: Packet) -> bytearray | None:
    """The RST that answers a TCP segment, None if a reset must not be answered."""
    segment = icmp.reset_segment(packet)
    return None if segment is None else ipv6_frame(packet.dst, packet.src, TCP, segment)


# --- frames --------------------------------


def ipv6_frame(src: bytes, dst: bytes, proto: int, body: bytes | bytearray, hops: int = HOPS) -> bytearray:
    """A frame from its payload: virtio_net_hdr, an Ethernet header without addresses, IPv6."""
    frame = bytearray(L3 + 40)
    U16.pack_into(frame, L3 - 2, ETHERTYPE_IPV6)
    IPV6.pack_into(frame, L3, 6 << 28, len(body), proto, hops, src, dst)
    frame += body
    return frame


def message(src: bytes, dst: bytes, body: bytearray, hops: int = HOPS) -> bytearray:
    """A frame of an ICMPv6 message, whose checksum is filled in."""
    U16.pack_into(body, 2, checksum(body, pseudo_sum(src + dst, ICMPV6, len(body))))
    return ipv6_frame(src, dst, ICMPV6, body, hops)


def solicitation(mac: bytes, source: bytes, to_mac: bytes, target: bytes) -> bytearray:
    """A neighbour solicitation for `target`: to its solicited-node group, or to the MAC that is to be confirmed."""
    body = bytearray(8) + target + bytes((SOURCE_LINK, 1)) + mac
    body[0] = SOLICITATION
    dst = target if to_mac else solicited_node(target)
    frame = message(source, dst, body, hops=255)
    ETHERNET.pack_into(frame, ETH, to_mac or group_mac(dst), mac, ETHERTYPE_IPV6)
    return frame


def advertisement(mac: bytes, target: bytes, to_mac: bytes, to: bytes, flags: int) -> bytearray:
    """A neighbour advertisement of `target` at `mac`, which it says only if it is to override what the asker knows."""
    body = bytearray(8) + target
    if flags & OVERRIDE:
        body += bytes((TARGET_LINK, 1)) + mac
    body[0], body[4] = ADVERTISEMENT, flags
    frame = message(target, to, body, hops=255)
    ETHERNET.pack_into(frame, ETH, to_mac, mac, ETHERTYPE_IPV6)
    return frame
