"""Address and port translation of a packet in place, with the checksums kept right.

Theory: one's complement sums are arithmetic modulo 65535, and 2^16 is 1 there. So the change of any run of aligned 16-bit words,
read as one big number, is `(new - old) % 65535`, and RFC 1624's update of a checksum field is `~(~field + delta)`,
carries folded. Three kinds of field are patched:

- the IPv4 header checksum, by the delta of the addresses;
- a finished transport checksum (TCP, UDP, ICMPv6), by the delta of addresses and ports; an absent UDP checksum (0) stays absent;
- a partial one (virtio NEEDS_CSUM): the field holds the pseudo-header's sum itself, *not* complemented and without
  the ports, so it is patched by the plain delta of the addresses alone.

SCTP has a CRC32c over its own header, computed anew when a port changes. Order to read: the sums, `Rewrite` (what a
connection does to its packets, ready for a flow cache), `translate` (any packet, any field).
"""

from __future__ import annotations

from podwire_nodeagent.datapath.packet import ICMP, ICMPV6, SCTP, TCP, UDP, VNET, Buffer, Packet

_CHECKSUM_AT = {TCP: 16, UDP: 6}  # offset in the transport header


def patch_sum(buf: Buffer, at: int, delta: int) -> None:
    """RFC 1624 on the complemented checksum field at `at`."""
    total = (65535 ^ (buf[at] << 8 | buf[at + 1])) + delta
    total = 65535 ^ ((total & 65535) + (total >> 16))
    buf[at] = total >> 8
    buf[at + 1] = total & 255


def patch_partial(buf: Buffer, at: int, delta: int) -> None:
    """The same for a field that holds the sum itself."""
    total = (buf[at] << 8 | buf[at + 1]) + delta
    total = (total & 65535) + (total >> 16)
    buf[at] = total >> 8
    buf[at + 1] = total & 255


def word_delta(old: bytes, new: bytes) -> int:
    """What replacing `old` by `new` (even lengths) adds to a one's complement sum."""
    return (int.from_bytes(new, "big") - int.from_bytes(old, "big")) % 65535


def inet_sum(data: Buffer | bytes) -> int:
    """The Internet checksum (RFC 1071) of `data`, ready for the field."""
    size = len(data)
    total = int.from_bytes(data, "big") << (8 if size & 1 else 0)
    if not total:
        return 65535
    return 65535 ^ (total % 65535 or 65535)


class Rewrite:
    """What a connection does to every packet of one direction: new addresses and ports, and the checksum deltas.

    The deltas are plain numbers modulo 65535, so that a flow cache can add its own (the TTL's decrement is -0x100 on `ip_delta`).
    `l4_delta` covers addresses and ports, `pseudo_delta` the addresses alone. For ICMP queries the ports are
    (identifier, type and code): only the identifier is replaced.
    """

    __slots__ = ("addresses", "dport", "dst", "family", "ip_delta", "l4_delta", "ports", "proto", "pseudo_delta", "sport", "src")

    def __init__(self, proto: int, old: tuple[bytes, bytes, int, int], new: tuple[bytes, bytes, int, int]) -> None:
        self.proto = proto
        self.src, self.dst, self.sport, self.dport = new
        self.family = 4 if len(self.src) == 4 else 6
        self.addresses = self.src + self.dst
        self.ports = self.sport.to_bytes(2, "big") + self.dport.to_bytes(2, "big")
        self.pseudo_delta = word_delta(old[0] + old[1], self.addresses)
        ports = (self.sport + self.dport - old[2] - old[3]) % 65535
        if proto == ICMP:  # no pseudo-header
            self.l4_delta = ports
        else:
            self.l4_delta = (self.pseudo_delta + ports) % 65535
        self.ip_delta = self.pseudo_delta if self.family == 4 else 0

    def __repr__(self) -> str:
        return f"Rewrite({self.src.hex()}:{self.sport} -> {self.dst.hex()}:{self.dport})"

    def patch(self, buf: Buffer, l3: int, l4: int) -> None:
        """Apply it to the packet at `l3` whose transport header is at `l4`."""
        if self.family == 4:
            buf[l3 + 12 : l3 + 20] = self.addresses
            patch_sum(buf, l3 + 10, self.ip_delta)
        else:
            buf[l3 + 8 : l3 + 40] = self.addresses
        proto = self.proto
        if proto in (TCP, UDP):
            at = l4 + (16 if proto == TCP else 6)
            buf[l4 : l4 + 4] = self.ports
            if buf[0] & 1 and VNET + (buf[6] | buf[7] << 8) == l4:
                patch_partial(buf, at, self.pseudo_delta)
            elif proto == TCP:
                patch_sum(buf, at, self.l4_delta)
            elif buf[at] or buf[at + 1]:
                _patch_udp(buf, at, self.l4_delta)
        elif proto in (ICMP, ICMPV6):
            buf[l4 + 4 : l4 + 6] = self.ports[:2]
            if proto == ICMPV6 and buf[0] & 1 and VNET + (buf[6] | buf[7] << 8) == l4:
                patch_partial(buf, l4 + 2, self.pseudo_delta)
            else:
                patch_sum(buf, l4 + 2, self.l4_delta)
        elif proto == SCTP and bytes(buf[l4 : l4 + 4]) != self.ports:
            buf[l4 : l4 + 4] = self.ports
            _finish_sctp(buf, l3, l4)

    def apply(self, packet: Packet) -> None:
        """`patch`, and the view."""
        self.patch(packet.buf, packet.l3, packet.l4)
        packet.src, packet.dst, packet.sport, packet.dport = self.src, self.dst, self.sport, self.dport


def _patch_udp(buf: Buffer, at: int, delta: int) -> None:
    patch_sum(buf, at, delta)
    if not buf[at] and not buf[at + 1]:
        buf[at] = buf[at + 1] = 255  # 0 would mean "no checksum"


def _finish_sctp(buf: Buffer, l3: int, l4: int) -> None:
    if buf[0] & 1 and VNET + (buf[6] | buf[7] << 8) == l4:
        return  # the offload computes it
    end = l3 + (buf[l3 + 2] << 8 | buf[l3 + 3]) if buf[l3] >> 4 == 4 else l3 + 40 + (buf[l3 + 4] << 8 | buf[l3 + 5])
    buf[l4 + 8 : l4 + 12] = bytes(4)
    buf[l4 + 8 : l4 + 12] = crc32c(buf[l4:end]).to_bytes(4, "little")


def translate(packet: Packet, src: bytes, dst: bytes, sport: int, dport: int) -> None:
    """Give a packet these addresses and ports (for ICMP: identifier, type and code)."""
    old = (packet.src, packet.dst, packet.sport, packet.dport)
    new = (src, dst, sport, dport)
    if old != new:
        Rewrite(packet.proto, old, new).apply(packet)


def translate_embedded(
    buf: Buffer, at: int, end: int, new: tuple[bytes, bytes, int, int], old: tuple[bytes, bytes, int, int], proto: int
) -> None:
    """Rewrite the packet inside an ICMP error at `at` (it may be cut off after 8 bytes of its transport header):
    addresses, ports, its header checksum, and its transport checksum where that is still inside. The error's own
    checksum is the caller's."""
    size = 4 if buf[at] >> 4 == 4 else 16
    if size == 4:
        buf[at + 12 : at + 20] = new[0] + new[1]
        patch_sum(buf, at + 10, word_delta(old[0] + old[1], new[0] + new[1]))
        l4 = at + ((buf[at] & 15) << 2)
    else:
        buf[at + 8 : at + 40] = new[0] + new[1]
        l4 = at + 40
    ports = (new[2] + new[3] - old[2] - old[3]) % 65535
    addresses = word_delta(old[0] + old[1], new[0] + new[1])
    if proto in (TCP, UDP, SCTP) and l4 + 4 <= end:
        buf[l4 : l4 + 4] = new[2].to_bytes(2, "big") + new[3].to_bytes(2, "big")
        field = l4 + _CHECKSUM_AT.get(proto, 65535)
        if field + 2 <= end and (proto != UDP or buf[field] or buf[field + 1]):
            patch_sum(buf, field, (addresses + ports) % 65535)
    elif proto in (ICMP, ICMPV6) and l4 + 6 <= end:
        buf[l4 + 4 : l4 + 6] = new[2].to_bytes(2, "big")
        patch_sum(buf, l4 + 2, ports if proto == ICMP else (addresses + ports) % 65535)


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_CRC32C = _crc32c_table()


def crc32c(data: Buffer | bytes) -> int:
    """Castagnoli's CRC, SCTP's checksum (RFC 9260, appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF
