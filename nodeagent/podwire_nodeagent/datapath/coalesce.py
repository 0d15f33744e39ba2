"""The way back from the wire: what UDP_GRO delivers as one buffer of equal datagrams becomes superframes again.

Theory. The segments of one superframe mostly arrive as one buffer: rows of the same length (the last may be shorter), each with
the same prefix (tunnel header) and nearly the same headers. All rows' headers are compared at once, as a NumPy matrix of 16-bit
words; neighbouring rows that continue each other become one superframe, with one copy of each payload. It leaves with
NEEDS_CSUM and the pseudo-header's sum, as a TAP takes it.

Rules it keeps:

- Only TCP, without IPv6 extension headers (`_Batch.of` decides). A row joins the one before it if prefix, Ethernet, addresses,
  ports, TOS, TTL (or their IPv6 names and the flow label), acknowledgement, window and options are equal, identification (IPv4)
  and sequence number continue it, both carry data, and flags are ACK or ACK|ECE, but for PSH and FIN, which end a superframe.
  Never across a gap, a flow, or a shorter segment.
- A row with a wrong checksum joins nothing and is passed on as it came, for the receiver to drop.
- So cutting a superframe again gives the very segments it was joined from. It fits an IP packet, since the buffer was one
  UDP payload.
- Frames alias the buffers, until the next one is asked for.

Order to read: Coalescer.frames, _Batch: of, joins, superframe.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from podwire_nodeagent.datapath.offload import FIN, GSO_TCPV4, GSO_TCPV6, MIN_GSO_SIZE, PSH, ones_sum, row_sums
from podwire_nodeagent.datapath.wire import (
    ETH_SIZE,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    NEEDS_CSUM,
    NO_VNET,
    TCP,
    U16,
    VNET,
    VNET_SIZE,
)

HEADROOM = 16  # bytes to leave before the first datagram: a frame's virtio header may need to stand before it
ACK, ECE = 0x10, 0x40
FLAGS = 0x1FF & ~(FIN | PSH | ECE)  # those that must be ACK alone
IPV4_WORD, IPV6_WORD = ETHERTYPE_IPV4.to_bytes(2, "big"), ETHERTYPE_IPV6.to_bytes(2, "big")

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]


class Coalescer:
    """Splits received buffers into (prefix, frame with virtio header) pairs, joining what can be joined."""

    def __init__(self) -> None:
        self._out = np.zeros(VNET_SIZE + ETH_SIZE + 65535, np.uint8)
        self._view = memoryview(self._out)  # type: ignore[arg-type]

    def frames(self, buffer: memoryview, size: int, step: int, prefix: int) -> Iterator[tuple[bytes, memoryview]]:
        """`size` bytes at HEADROOM of `buffer` are datagrams of `step` bytes (the last may be shorter); `prefix` bytes of each
        are the tunnel header. A datagram that ends inside its prefix comes with an empty frame."""
        at, end = HEADROOM, HEADROOM + size
        batch = _Batch.of(buffer, size, step, prefix) if size > step else None
        if batch is not None:
            bounds = [*np.flatnonzero(~batch.joins()).tolist(), len(batch.lengths)]
            for first, after in pairwise(bounds):
                if after - first > 1:
                    head = bytes(buffer[at : at + prefix])
                    yield head, self._view[: batch.superframe(first, after, self._out, self._view)]
                else:
                    yield _single(buffer, at, min(at + step, end), prefix)
                at += step * (after - first)
        while at < end:
            yield _single(buffer, at, min(at + step, end), prefix)
            at += step


def _single(buffer: memoryview, at: int, end: int, prefix: int) -> tuple[bytes, memoryview]:
    head, start = bytes(buffer[at : min(at + prefix, end)]), at + prefix
    if start >= end:
        return head, buffer[:0]
    buffer[start - VNET_SIZE : start] = NO_VNET
    return head, buffer[start - VNET_SIZE : end]


class _Batch:
    """Datagrams of one buffer whose first one is a TCP segment with payload.

    `rows` are those of full length, `tail` a shorter last one's payload; `heads` the header words of all, `lengths` their payload
    lengths. `ip` and `tcp` are the words of `heads` where these headers begin, `header` all header bytes, prefix included.
    """

    def __init__(self, rows: Bytes, tail: Bytes, prefix: int, l4: int, header: int, v4: bool) -> None:
        full, step = rows.shape
        self.rows, self.prefix, self.header, self.v4 = rows, prefix, header, v4
        self.ip, self.tcp, self.size = (prefix + ETH_SIZE) // 2, l4 // 2, step - header
        keep_tail = len(tail) > header
        heads = np.empty((full + keep_tail, header), np.uint8)
        heads[:full] = rows[:, :header]
        self.lengths = np.full(len(heads), self.size, np.uint32)
        self.tail = tail[header:]
        if keep_tail:
            heads[full] = tail[:header]
            self.lengths[full] = len(self.tail)
        self.heads = heads.view(np.uint16).byteswap(inplace=True)

    @staticmethod
    def of(buffer: memoryview, size: int, step: int, prefix: int) -> _Batch | None:
        """None if the first datagram is not the beginning of anything that could be joined."""
        ip = HEADROOM + prefix + ETH_SIZE
        if step < prefix + ETH_SIZE + 40:
            return None
        kind, version, v4 = buffer[ip - 2 : ip], buffer[ip] >> 4, buffer[ip - 2 : ip] == IPV4_WORD
        if v4 and (version != 4 or buffer[ip + 9] != TCP or buffer[ip] & 15 < 5):
            return None
        if not v4 and (kind != IPV6_WORD or version != 6 or buffer[ip + 6] != TCP):
            return None
        l4 = prefix + ETH_SIZE + (4 * (buffer[ip] & 15) if v4 else 40)
        if l4 + 20 > step:
            return None
        header = l4 + 4 * (buffer[HEADROOM + l4 + 12] >> 4)
        if header < l4 + 20 or step - header < MIN_GSO_SIZE:
            return None
        data = np.frombuffer(buffer, np.uint8, size, HEADROOM)
        full = size // step
        return _Batch(data[: full * step].reshape(full, step), data[full * step :], prefix, l4, header, v4)

    def joins(self) -> Bools:
        """For each datagram, whether it continues the one before it."""
        heads, ip, tcp = self.heads, self.ip, self.tcp
        before, after = heads[:-1], heads[1:]
        differ = (before ^ after) & self._constant()
        if self.v4:
            differ[:, ip + 2] = after[:, ip + 2] - before[:, ip + 2] - np.uint16(1)
        sequence = (heads[:, tcp + 2].astype(np.uint32) << 16) + heads[:, tcp + 3]
        gap = sequence[1:] - sequence[:-1] - self.lengths[:-1]
        differ[:, tcp + 6] |= before[:, tcp + 6] & (FIN | PSH)
        good = self._good()
        result = np.zeros(len(heads), np.bool_)
        result[1:] = good[1:] & good[:-1] & (gap == 0) & ~differ.any(1)
        return result

    def _constant(self) -> npt.NDArray[np.uint16]:
        """The header bits that all segments of a superframe share."""
        mask = np.full(self.header // 2, 65535, np.uint16)
        ip, tcp = self.ip, self.tcp
        varying = (ip + 1, ip + 2, ip + 5) if self.v4 else (ip + 2,)  # lengths, identification, header checksum
        for word in (*varying, tcp + 2, tcp + 3, tcp + 8):  # and sequence, checksum
            mask[word] = 0
        mask[tcp + 6] = 65535 & ~(FIN | PSH)
        return mask

    def _good(self) -> Bools:
        """Datagrams that are whole, unfragmented segments with right lengths, checksums and joinable flags."""
        heads, lengths, ip, tcp = self.heads, self.lengths, self.ip, self.tcp
        transport = self.header - self.tcp * 2
        first, last = (ip + 6, ip + 10) if self.v4 else (ip + 4, ip + 20)  # addresses
        total = np.add.reduce(heads[:, tcp:], 1, np.uint32) + np.add.reduce(heads[:, first:last], 1, np.uint32)
        total += lengths + np.uint32(transport + TCP)
        total[: len(self.rows)] += row_sums(self.rows[:, self.header :])
        if len(total) > len(self.rows):
            total[-1] += ones_sum(memoryview(self.tail))  # type: ignore[arg-type]
        ok: Bools = total % 65535 == 0
        if self.v4:
            ok &= np.add.reduce(heads[:, ip:tcp], 1, np.uint32) % 65535 == 0
            ok &= heads[:, ip + 1] == lengths + np.uint32(self.header - self.prefix - ETH_SIZE)
            ok &= heads[:, ip + 3] & 0x3FFF == 0
        else:
            ok &= heads[:, ip + 2] == lengths + np.uint32(self.header - tcp * 2)
        ok &= heads[:, tcp + 6] & FLAGS == ACK
        return ok

    def superframe(self, first: int, after: int, out: Bytes, view: memoryview) -> int:
        """Writes datagrams first…after as one frame to `out`, and returns its length."""
        full = min(after, len(self.rows)) - first
        body = VNET_SIZE + self.header - self.prefix
        end: int = body + full * self.size
        out[VNET_SIZE:body] = self.rows[first, self.prefix : self.header]
        out[body:end].reshape(full, self.size)[:] = self.rows[first : first + full, self.header :]
        if first + full < after:
            out[end : end + len(self.tail)] = self.tail
            end += len(self.tail)
        l3, l4 = VNET_SIZE + ETH_SIZE, VNET_SIZE + self.tcp * 2 - self.prefix
        if self.v4:
            U16.pack_into(view, l3 + 2, end - l3)
            U16.pack_into(view, l3 + 10, 0)
            U16.pack_into(view, l3 + 10, 65535 - ones_sum(view[l3:l4]))
        else:
            U16.pack_into(view, l3 + 4, end - l4)
        view[l4 + 13] |= int(self.heads[after - 1, self.tcp + 6]) & (FIN | PSH)
        pseudo = ones_sum(view[l3 + 12 : l3 + 20] if self.v4 else view[l3 + 8 : l3 + 40]) + TCP + end - l4
        U16.pack_into(view, l4 + 16, (pseudo & 65535) + (pseudo >> 16))
        VNET.pack_into(view, 0, NEEDS_CSUM, GSO_TCPV4 if self.v4 else GSO_TCPV6, body - VNET_SIZE, self.size, l4 - VNET_SIZE, 16)
        return end
