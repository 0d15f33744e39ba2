"""One IP packet inside a frame buffer: the parsed view that every stage of the stack reads and patches.

The rules it keeps:
- A buffer is a whole frame (virtio_net_hdr, Ethernet, IP …); `l3` and `l4` are offsets into it. The view and the buffer never
  disagree: whoever patches one patches the other (`rewrite.py`).
- `parse` never raises. It returns "" or the reason for which the packet is to be dropped and counted.
- Addresses are bytes, 4 or 16 of them; nothing here knows text.
- A `Packet` may be reused for the next frame: `parse` sets every field.

Ports as in a Linux conntrack tuple: TCP, UDP, SCTP have ports; ICMP has `sport` = identifier (0 unless it is a query
or an answer) and `dport` = type << 8 | code; other protocols and fragments have 0.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.netfilter.connection import Connection

VNET = 10  # length of the virtio_net_hdr that each frame begins with
ETHERNET = 14
ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128

# ctinfo: what conntrack says of the packet
ESTABLISHED, RELATED, NEW, INVALID, UNTRACKED = range(5)

# ICMP types with an identifier, that is queries and answers (v4: echo, timestamp, information, address mask; v6: echo)
ICMP4_QUERIES = frozenset((0, 8, 13, 14, 15, 16, 17, 18))
ICMP6_QUERIES = frozenset((128, 129))

_IP4 = Struct(">BBHHHBBH4s4s")
_IP6 = Struct(">IHBB16s16s")
_PORTS_TCP = Struct(">HHIIBB")
_PORTS_UDP = Struct(">HHH")
_ICMP = Struct(">BBHH")
_EXTENSIONS = frozenset((0, 43, 60, 51))  # hop-by-hop, routing, destination options, authentication
_MAX_EXTENSIONS = 8

Buffer = bytearray | memoryview


class Counted(Protocol):
    """What counts packets: a rule, a real server's traffic."""

    packets: int
    bytes: int


class Packet:
    """See the head of the file. `mark`, `ct`, `ctinfo`, `direction`, `in_link`, `out_link` belong to the stages, not to the wire.

    `volatile` is set when a decision about the packet was random or remembers something (`-m statistic` outside nat,
    `-m recent`): such a packet must not be cached. `hits`, when it is a list, collects the rules that matched, so
    that a flow cache can credit their counters (`Netfilter.credit`).
    """

    __slots__ = (
        "ack",
        "bridged",
        "buf",
        "ct",
        "ctinfo",
        "direction",
        "dport",
        "dst",
        "end",
        "family",
        "flags",
        "fragment",
        "hits",
        "hop",
        "ident",
        "in_link",
        "l3",
        "l4",
        "length",
        "mark",
        "more_fragments",
        "offset",
        "out_link",
        "proto",
        "seq",
        "sport",
        "src",
        "tos",
        "ttl",
        "volatile",
    )

    def __init__(self) -> None:
        self.buf: Buffer = bytearray()
        self.l3 = self.l4 = self.end = 0
        self.family = 4
        self.src = self.dst = b""
        self.proto = self.sport = self.dport = 0
        self.flags = self.seq = self.ack = 0  # TCP
        self.ident = self.offset = 0  # fragmentation: identification, offset in bytes
        self.more_fragments = self.fragment = False
        self.ttl = self.tos = self.length = 0  # length: of the IP packet, header included
        self.hop = 0  # offset, from l3, of the ttl / hop limit
        self._forget()

    def _forget(self) -> None:
        self.mark = 0
        self.ct: Connection | None = None
        self.ctinfo = INVALID
        self.direction = 0
        self.in_link = ""
        self.out_link = ""
        self.bridged = False  # it came in by a bridge port (`-m physdev`)
        self.volatile = False
        self.hits: list[Counted] | None = None

    def parse(self, buf: Buffer, l3: int = VNET + ETHERNET) -> str:
        """Look at the IP packet at `l3`; "" or a reason such as "ip_header_checksum"."""
        self.buf = buf
        self.l3 = l3
        self._forget()
        if len(buf) - l3 < 20:
            return "ip_truncated"
        version = buf[l3] >> 4
        if version == 4:
            return self._parse4(buf, l3)
        if version == 6:
            return self._parse6(buf, l3)
        return "ip_version"

    def _parse4(self, buf: Buffer, l3: int) -> str:
        first, self.tos, total, self.ident, fragment, self.ttl, self.proto, _, self.src, self.dst = _IP4.unpack_from(buf, l3)
        header = (first & 15) << 2
        if header < 20 or total < header:
            return "ip_header_length"
        if l3 + total > len(buf):
            return "ip_truncated"
        if int.from_bytes(buf[l3 : l3 + header], "big") % 65535:
            return "ip_header_checksum"
        self.family = 4
        self.hop = 8
        self.length = total
        self.end = l3 + total
        self.l4 = l3 + header
        if fragment & 0x3FFF:
            return self._fragment((fragment & 0x1FFF) << 3, bool(fragment & 0x2000))
        self.fragment = self.more_fragments = False
        self.offset = 0
        return self._transport()

    def _parse6(self, buf: Buffer, l3: int) -> str:
        if len(buf) - l3 < 40:
            return "ip_truncated"
        first, payload, following, self.ttl, self.src, self.dst = _IP6.unpack_from(buf, l3)
        self.tos = (first >> 20) & 0xFF
        self.family = 6
        self.hop = 7
        self.length = 40 + payload
        self.end = end = l3 + 40 + payload
        if end > len(buf):
            return "ip_truncated"
        self.ident = self.offset = 0
        self.fragment = self.more_fragments = False
        at = l3 + 40
        for _ in range(_MAX_EXTENSIONS):
            if following == 44:
                if end - at < 8:
                    return "ip6_extension"
                self.proto, self.l4 = buf[at], at + 8
                word = buf[at + 2] << 8 | buf[at + 3]
                self.ident = int.from_bytes(buf[at + 4 : at + 8], "big")
                return self._fragment(word & 0xFFF8, bool(word & 1))
            if following not in _EXTENSIONS:
                self.proto, self.l4 = following, at
                return self._transport()
            if end - at < 8:
                return "ip6_extension"
            size = (buf[at + 1] + 2) << 2 if following == 51 else (buf[at + 1] + 1) << 3
            following = buf[at]
            at += size
            if at > end:
                return "ip6_extension"
        return "ip6_extension"

    def _fragment(self, offset: int, more: bool) -> str:
        self.fragment = True
        self.offset = offset
        self.more_fragments = more
        self.sport = self.dport = self.flags = self.seq = self.ack = 0
        size = self.end - self.l4
        if size <= 0 or (more and size & 7) or offset + size > 65535:
            return "ip_fragment"
        return ""

    def _transport(self) -> str:
        proto, buf, l4, size = self.proto, self.buf, self.l4, self.end - self.l4
        if proto == TCP:
            if size < 20:
                return "tcp_truncated"
            self.sport, self.dport, self.seq, self.ack, header, self.flags = _PORTS_TCP.unpack_from(buf, l4)
            header = (header >> 4) << 2
            return "" if 20 <= header <= size else "tcp_header_length"
        self.flags = self.seq = self.ack = 0
        if proto == UDP:
            if size < 8:
                return "udp_truncated"
            self.sport, self.dport, length = _PORTS_UDP.unpack_from(buf, l4)
            return "" if 8 <= length <= size else "udp_length"
        if proto == (ICMP if self.family == 4 else ICMPV6):
            if size < 8:
                return "icmp_truncated"
            kind, code, _, ident = _ICMP.unpack_from(buf, l4)
            self.dport = kind << 8 | code
            self.sport = ident if kind in (ICMP4_QUERIES if self.family == 4 else ICMP6_QUERIES) else 0
            return ""
        if proto == SCTP:
            if size < 12:
                return "sctp_truncated"
            self.sport = buf[l4] << 8 | buf[l4 + 1]
            self.dport = buf[l4 + 2] << 8 | buf[l4 + 3]
            return ""
        self.sport = self.dport = 0
        return ""

    def checksum_is_partial(self) -> bool:
        """True if the transport checksum still is the pseudo-header's sum (virtio NEEDS_CSUM), to be completed by an offload."""
        buf = self.buf
        return bool(buf[0] & 1) and VNET + int.from_bytes(buf[6:8], "little") == self.l4
