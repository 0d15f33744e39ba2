"""What a network card would do for us on the way to the wire: cutting superframes into segments, and completing checksums.

Theory. A TAP hands out TCP superframes of up to 64 KB (virtio_net_hdr with a gso_type): one set of headers, `gso_size` bytes
of payload a segment. Toward another TAP they pass untouched; toward UDP they become wire-size frames, laid out one behind the
other so that one sendmsg with UDP_SEGMENT takes up to 64 of them. All segments' headers are built at once, as one NumPy matrix
of 16-bit words (a row a segment), so the cost hardly depends on their number; payload is summed once and copied once, into its
place between the headers (measured: cheaper than a gather list of slices).

Rules it keeps:

- The segments are what Linux would make of the superframe: lengths, IPv4 identification and TCP sequence numbers count up; FIN
  and PSH only on the last, CWR only on the first; every checksum is complete and canonical.
- Nothing of the virtio header is trusted: it comes from the kernel for TAPs, but tests and bugs send anything. What does not
  fit is a reason (the drop counter's name), never an exception.
- A result aliases the Cutter's buffer, until its next call.

Order to read: sums, `complete`, Shape (the geometry of a superframe), Cutter.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from podwire_nodeagent.datapath.wire import (
    ETH,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    L3,
    NEEDS_CSUM,
    TCP,
    U16,
    UDP,
    VNET,
    VNET_SIZE,
    Buffer,
)

GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 3, 4, 5, 0x80
MIN_GSO_SIZE = 48  # TCP_MIN_SND_MSS: smaller ones would let one frame become tens of thousands
MAX_FRAME = 65535 + VNET_SIZE + 14
MAX_HEADERS = L3 + 60 + 60 + 64  # the largest of IPv4 and TCP, and some of IPv6's extension headers
SEND_SEGMENTS, SEND_BYTES = 64, 65000  # of one UDP_SEGMENT call; a fuller datagram arrives unmerged despite UDP_GRO
FIN, PSH, CWR = 0x01, 0x08, 0x80

Words = npt.NDArray[np.uint32]
_COUNT = np.arange(65536 // MIN_GSO_SIZE + 2, dtype=np.uint32)
_NUMPY_FROM = 512  # bytes; below, one big integer's remainder is faster than two NumPy calls

# --- ones' complement sums --------------------------------


def ones_sum(data: Buffer | bytes) -> int:
    """The folded sum of big-endian 16-bit words (an odd end is padded): 0 only for zeros, as adding them one by one gives."""
    size = len(data)
    if size < _NUMPY_FROM:
        value = int.from_bytes(data, "big") << (8 if size & 1 else 0)
        return value % 65535 or (65535 if value else 0)
    total = int(np.frombuffer(data, "<u2", size // 2).sum(dtype=np.uint64))
    if size & 1:
        total += data[size - 1]
    while total > 65535:
        total = (total & 65535) + (total >> 16)
    return (total & 255) << 8 | total >> 8


def row_sums(data: npt.NDArray[np.uint8]) -> Words:
    """Sums of a matrix's rows modulo 65535; big-endian words, an odd end padded."""
    if data.shape[1] & 1 or data.strides[0] & 1:
        even: Words = np.add.reduce(data[:, 0::2], 1, np.uint32)
        odd: Words = np.add.reduce(data[:, 1::2], 1, np.uint32)
        return (even * 256 + odd) % 65535
    little: Words = np.add.reduce(data.view("<u2"), 1, np.uint32)
    return little.byteswap() % 65535  # a swapped sum is congruent to the swapped words' sum


def complement(sums: Words) -> Words:
    """Checksum fields for sums that are not zero: 0…65534, as folding and complementing gives."""
    return 65534 - (sums - 1) % 65535


# --- single frames --------------------------------


def complete(frame: Buffer) -> str:
    """Finishes a NEEDS_CSUM frame's checksum in place; "" or why it cannot be."""
    flags, _, _, _, start, offset = VNET.unpack_from(frame, 0)
    if not flags & NEEDS_CSUM:
        return ""
    begin, field = ETH + start, ETH + start + offset
    if begin < L3 or field + 2 > len(frame):
        return "vnet_csum_range"
    value = 65535 - ones_sum(frame[begin:])
    U16.pack_into(frame, field, value or (65535 if offset == 6 else 0))  # UDP: 0 would say that there is none
    frame[0] = flags & ~NEEDS_CSUM
    return ""


# --- superframes --------------------------------


class Shape(NamedTuple):
    """Where things are in a superframe: transport header, payload, bytes of payload a segment, and how many segments."""

    l4: int
    payload: int
    size: int
    segments: int
    tcp: bool
    v4: bool


def shape(frame: Buffer) -> Shape | str:
    """The geometry of a gso frame, or why it has none."""
    _, gso, _, size, start, _ = VNET.unpack_from(frame, 0)
    kind, l4 = gso & ~GSO_ECN, ETH + start
    if kind not in (GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4):
        return "gso_type"
    if len(frame) < L3 + 28 or len(frame) > MAX_FRAME or size < MIN_GSO_SIZE:
        return "gso_size"
    v4, tcp = frame[L3] >> 4 == 4, kind != GSO_UDP_L4
    minimum, protocol_at = (L3 + 20, L3 + 9) if v4 else (L3 + 40, L3 + 6)
    if U16.unpack_from(frame, ETH + 12)[0] != (ETHERTYPE_IPV4 if v4 else ETHERTYPE_IPV6):
        return "gso_protocol"
    if l4 < minimum or l4 & 1 or (v4 and l4 != L3 + 4 * (frame[L3] & 15)) or l4 + (20 if tcp else 8) > len(frame):
        return "gso_headers"
    if (v4 or l4 == minimum) and frame[protocol_at] != (TCP if tcp else UDP):
        return "gso_protocol"
    payload = l4 + (4 * (frame[l4 + 12] >> 4) if tcp else 8)
    if not l4 + (20 if tcp else 8) <= payload < min(len(frame), MAX_HEADERS):
        return "gso_headers"
    size = min(size, len(frame) - payload)  # one segment alone may be shorter than they all could be
    return Shape(l4, payload, size, -(-(len(frame) - payload) // size), tcp, v4)


class Cutter:
    """Cuts superframes into frames for a UDP socket, each behind the same `prefix` (a tunnel header, of even length)."""

    def __init__(self) -> None:
        self._out = np.zeros(1 << 19, np.uint8)  # MAX_FRAME cut to the smallest segments, each with its own headers
        self._view = memoryview(self._out)  # type: ignore[arg-type]

    def cut(self, frame: Buffer, prefix: bytes) -> tuple[memoryview, int] | str:
        """All segments end to end, and the length of each (the last may be shorter); or why not."""
        form = shape(frame)
        if isinstance(form, str):
            return form
        _, payload, size, count, _, _ = form
        data = np.frombuffer(frame, np.uint8, len(frame) - payload, payload)
        full = len(data) // size
        rows = data[: full * size].reshape(full, size)
        sums = np.empty(count, np.uint32)
        sums[:full] = row_sums(rows)
        tail = data[full * size :]
        if len(tail):
            sums[full] = ones_sum(frame[payload + full * size :])
        heads = _headers(frame, form, prefix, sums, len(tail) or size)
        width = heads.shape[1]
        step, total = width + size, count * width + len(data)
        out = self._out[: count * step].reshape(count, step)
        out[:, :width] = heads
        out[:full, width:] = rows
        if len(tail):
            out[full, width : width + len(tail)] = tail
        return self._view[:total], step


def _headers(frame: Buffer, form: Shape, prefix: bytes, sums: Words, last: int) -> npt.NDArray[np.uint8]:
    """The headers of all segments as rows of bytes. `sums` are their payloads', `last` is the last one's length."""
    l4, payload, size, count, tcp, v4 = form
    template = np.frombuffer(prefix + bytes(frame[ETH:payload]), ">u2")
    rows = np.empty((count, len(template)), np.uint16)
    rows[:] = template
    ip = (len(prefix) + L3 - ETH) // 2
    l4_word = (len(prefix) + l4 - ETH) // 2
    header = payload - l4
    if v4:
        _ipv4(rows, ip, l4 - L3, header + size, header + last)
    else:
        rows[:, ip + 2] = l4 - L3 - 40 + header + size
        rows[-1, ip + 2] = l4 - L3 - 40 + header + last
    addresses = frame[L3 + 12 : L3 + 20] if v4 else frame[L3 + 8 : L3 + 40]
    total = sums + np.uint32(ones_sum(addresses) + (TCP if tcp else UDP) + header + size)
    total[-1] += last - size + (1 << 16) - 1  # 65535 is zero here, and keeps the difference positive
    (_tcp if tcp else _udp)(rows, l4_word, total, size, last)
    return rows.byteswap(inplace=True).view(np.uint8)


def _ipv4(rows: npt.NDArray[np.uint16], ip: int, header: int, body: int, last: int) -> None:
    """Lengths, identification counting up, header checksum."""
    rows[:, ip + 1] = header + body
    rows[-1, ip + 1] = header + last
    rows[:, ip + 2] += _COUNT[: len(rows)].astype(np.uint16)
    rows[:, ip + 5] = 0
    rows[:, ip + 5] = complement(np.add.reduce(rows[:, ip : ip + header // 2], 1, np.uint32))


def _tcp(rows: npt.NDArray[np.uint16], at: int, total: Words, size: int, last: int) -> None:
    """Sequence numbers, flags, checksum (`total`: pseudo-header and payload)."""
    start = (int(rows[0, at + 2]) << 16) + int(rows[0, at + 3])
    sequence = _COUNT[: len(rows)] * np.uint32(size) + np.uint32(start)
    rows[:, at + 2] = sequence >> 16
    rows[:, at + 3] = sequence
    flags = int(rows[0, at + 6])
    rows[:, at + 6] = flags & ~(FIN | PSH | CWR)
    rows[0, at + 6] |= flags & CWR
    rows[-1, at + 6] |= flags & (FIN | PSH)
    rows[:, at + 8] = 0
    rows[:, at + 8] = complement(np.add.reduce(rows[:, at:], 1, np.uint32) + total)


def _udp(rows: npt.NDArray[np.uint16], at: int, total: Words, size: int, last: int) -> None:
    """Lengths and checksum; a zero checksum is sent as 65535."""
    rows[:, at + 2] = 8 + size
    rows[-1, at + 2] = 8 + last
    rows[:, at + 3] = 0
    sums = complement(np.add.reduce(rows[:, at:], 1, np.uint32) + total)
    sums[sums == 0] = 65535
    rows[:, at + 3] = sums
