"""Reassembly (as nf_defrag_ipv4 and _ipv6: before conntrack sees a packet) and fragmentation (as ip_do_fragment, ip6_fragment).

Rules:
- Fragments of one packet share source, destination, protocol (not for IPv6) and identification. They are kept at most 30 s
  and at most 4 MiB in all (the oldest packet goes first).
- A fragment wholly contained in what is there is dropped alone; a partial overlap, or an end that contradicts another,
  drops the whole packet (RFC 5722's rule, which Linux keeps for IPv4 as well).
- A reassembled packet remembers its largest fragment: it is never cut into larger ones again.
- IPv6: the fragment header is taken out of what is put together, and goes back in, behind the same headers, with an
  identification of its own, when it is split.
- `split` completes a partial checksum first and sets offsets; options without the copy bit are in the first fragment only.
"""

from __future__ import annotations

from podwire_nodeagent.datapath import checksum
from podwire_nodeagent.datapath.packet import Packet
from podwire_nodeagent.datapath.wire import DF, L3, MF, U16, VNET_SIZE, Buffer

TIMEOUT = 30.0
MAX_MEMORY = 4 << 20
MAX_FRAGMENTS = 1024  # of one packet: 64 KiB in pieces of 64 bytes
FRAGMENT, AUTHENTICATION = 44, 51  # IPv6's extension header
BEFORE_FRAGMENT = (0, 43, 60)  # hop-by-hop, routing, destination options: each fragment has them
Key = tuple[bytes, bytes, int, int, str]


class _Queue:
    """The pieces of one packet: offset → payload, without overlaps."""

    __slots__ = ("bytes", "deadline", "head", "largest", "pieces", "total")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.pieces: dict[int, bytes] = {}
        self.head = b""  # of the first fragment: everything before its payload
        self.total = -1  # known once the last fragment is here
        self.bytes = self.largest = 0


class Reassembly:
    """`add` returns a whole frame, or None while pieces are missing; `reason` then says whether the piece was dropped."""

    def __init__(self) -> None:
        self._queues: dict[Key, _Queue] = {}
        self.bytes = 0
        self.reason = ""
        self.largest = 0  # largest fragment of the packet last completed
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._queues)

    def add(self, packet: Packet, dev: str, now: float) -> bytearray | None:
        key = (packet.src, packet.dst, packet.proto if packet.family == 4 else FRAGMENT, packet.ident, dev)
        queue = self._queues.get(key)
        if queue is None or now >= queue.deadline:
            if queue is not None:
                self._forget(key)
            queue = self._queues[key] = _Queue(now + TIMEOUT)
        self.reason = self._insert(queue, packet)
        if self.reason == "fragment_overlap":
            self._forget(key)
            return None
        while self.bytes > MAX_MEMORY:
            self.evicted += 1
            self._forget(next(iter(self._queues)))
        if key not in self._queues:
            self.reason = "fragment_memory"
        if self.reason or queue.total < 0 or queue.bytes < queue.total:
            return None
        frame = _join(queue)
        self.reason = "" if frame is not None else "fragment_too_big"
        self.largest = queue.largest
        self._forget(key)
        return frame

    def _insert(self, queue: _Queue, packet: Packet) -> str:
        start, end = packet.offset, packet.offset + packet.end - packet.l4
        if packet.more_fragments:
            if 0 <= queue.total < end:
                return "fragment_overlap"
        elif (queue.total >= 0 and queue.total != end) or any(at + len(p) > end for at, p in queue.pieces.items()):
            return "fragment_overlap"
        for at, piece in queue.pieces.items():
            if at < end and start < at + len(piece):
                return "fragment_duplicate" if at <= start and end <= at + len(piece) else "fragment_overlap"
        if len(queue.pieces) >= MAX_FRAGMENTS:
            return "fragment_overlap"
        if not packet.more_fragments:
            queue.total = end
        if start == 0:
            queue.head = bytes(VNET_SIZE) + bytes(packet.buf[VNET_SIZE : packet.l4])
        queue.pieces[start] = bytes(packet.buf[packet.l4 : packet.end])
        queue.bytes += end - start
        queue.largest = max(queue.largest, packet.length)
        self.bytes += end - start
        return ""

    def _forget(self, key: Key) -> None:
        self.bytes -= self._queues.pop(key).bytes

    def expire(self, now: float) -> int:
        old = [key for key, queue in self._queues.items() if now >= queue.deadline]
        for key in old:
            self._forget(key)
        return len(old)


def _join(queue: _Queue) -> bytearray | None:
    frame = bytearray(queue.head)
    if frame[L3] >> 4 == 6:
        return _join6(queue)
    for at in sorted(queue.pieces):
        frame += queue.pieces[at]
    length = len(frame) - L3
    if length > 65535:
        return None
    flags = int.from_bytes(frame[L3 + 6 : L3 + 8], "big") & DF
    U16.pack_into(frame, L3 + 2, length)
    U16.pack_into(frame, L3 + 6, flags)
    _seal(frame)
    return frame


def _join6(queue: _Queue) -> bytearray | None:
    """Without the fragment header, which is the last of the head."""
    frame = bytearray(queue.head)
    following, at, field = frame[L3 + 6], L3 + 40, L3 + 6
    while following != FRAGMENT:
        following, at, field = frame[at], at + _extension(following, frame[at + 1]), at
    frame[field] = frame[at]
    del frame[at : at + 8]
    for offset in sorted(queue.pieces):
        frame += queue.pieces[offset]
    length = len(frame) - L3 - 40
    if length > 65535:
        return None
    U16.pack_into(frame, L3 + 4, length)
    return frame


def _extension(kind: int, size: int) -> int:
    """Bytes of an extension header, by the length field in it."""
    return (size + 2) << 2 if kind == AUTHENTICATION else (size + 1) << 3


def _seal(frame: bytearray) -> None:
    end = L3 + ((frame[L3] & 15) << 2)
    frame[L3 + 10 : L3 + 12] = b"\0\0"
    U16.pack_into(frame, L3 + 10, checksum.checksum(frame[L3:end]))


def split(frame: Buffer, packet: Packet, mtu: int, ident: int = 0) -> list[bytearray]:
    """The fragments of a packet for this MTU; an IPv4 packet may itself be a fragment. `ident` is for IPv6."""
    checksum.complete(frame)
    if packet.family == 6:
        return _split6(frame, packet, mtu, ident)
    header = bytes(VNET_SIZE) + bytes(frame[VNET_SIZE : packet.l4])
    later = header[: L3 + 20] + _copied_options(header[L3 + 20 :])
    more = int.from_bytes(header[L3 + 6 : L3 + 8], "big") & MF
    pieces: list[bytearray] = []
    at, end = packet.l4, packet.end
    while at < end:
        head = later if pieces else header
        room = max(8, (mtu - (len(head) - L3)) & ~7)
        stop = end if end - at <= mtu - (len(head) - L3) else at + room
        piece = bytearray(head)
        piece += frame[at:stop]
        piece[L3] = 0x40 | (len(head) - L3) >> 2
        U16.pack_into(piece, L3 + 2, len(piece) - L3)
        offset = (packet.offset + at - packet.l4) >> 3
        U16.pack_into(piece, L3 + 6, offset | (MF if stop < end or more else 0))
        _seal(piece)
        pieces.append(piece)
        at = stop
    return pieces


def _split6(frame: Buffer, packet: Packet, mtu: int, ident: int) -> list[bytearray]:
    """A fragment header goes behind the headers that each node on the way may look at (ip6_find_1stfragopt)."""
    following, at, field = frame[L3 + 6], L3 + 40, L3 + 6
    routed = False
    while following in BEFORE_FRAGMENT and at + 8 <= packet.end and not (following == 60 and routed):
        routed |= following == 43
        following, at, field = frame[at], at + _extension(following, frame[at + 1]), at
    head = bytearray(VNET_SIZE) + bytearray(frame[VNET_SIZE:at])
    head[field] = FRAGMENT
    pieces: list[bytearray] = []
    start, end = at, packet.end
    room = max(8, (mtu - (at - L3) - 8) & ~7)
    while at < end:
        stop = end if end - at <= mtu - (start - L3) - 8 else at + room
        piece = bytearray(head)
        piece += bytes((following, 0)) + (at - start | (stop < end)).to_bytes(2, "big") + ident.to_bytes(4, "big")
        piece += frame[at:stop]
        U16.pack_into(piece, L3 + 4, len(piece) - L3 - 40)
        pieces.append(piece)
        at = stop
    return pieces


def _copied_options(options: bytes) -> bytes:
    """The options of later fragments: those without the copy bit become no-operations, so that the header keeps its size."""
    kept, at = bytearray(options), 0
    while at < len(options) and options[at] != 0:
        size = 1 if options[at] == 1 else options[at + 1] if at + 1 < len(options) else 0
        if size < 1 or at + size > len(options):
            break
        if not options[at] & 0x80:
            kept[at : at + size] = b"\1" * size
        at += size
    return bytes(kept)
