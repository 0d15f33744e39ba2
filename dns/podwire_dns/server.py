"""The DNS server: sockets, messages, and the choice of the chain by zone.

Rules: a message that cannot be parsed is answered FORMERR if it has a header, else dropped, and counted; a question is answered
by the server block with the longest zone; an exception in a plugin is a bug: SERVFAIL, logged, and the server goes on.
Order to read: Server.answer (pure but for the plugins), then the sockets.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Sequence

import dnslib
import trio
from dnslib import QTYPE

from podwire_dns import message as m
from podwire_dns.corefile import DEFAULT_PORT, ServerBlock
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import END, Context, Plugin, first_for, longest_zone
from podwire_dns.plugins import chain

log = logging.getLogger("podwire_dns")
IDLE_SECONDS = 10.0
MAX_UDP = 4096
MAX_CONCURRENT = 1000  # questions on their way to an upstream; more are dropped, as a full socket buffer would drop them


class Server:
    """All server blocks at one listening address. Raises CorefileError when made of a wrong configuration."""

    def __init__(self, blocks: Sequence[ServerBlock], context: Context) -> None:
        self._context = context
        self._chains: dict[int, dict[str, Plugin]] = {}  # by port, by zone
        self._plugins: list[Plugin] = []
        self._background: trio.CancelScope | None = None
        self.malformed = 0
        self._free = trio.CapacityLimiter(MAX_CONCURRENT)
        self._panics = context.metrics.counter("coredns_panics", "A metrics that counts the number of panics.")
        context.lookup = self.resolve
        self.configure(blocks)

    def configure(self, blocks: Sequence[ServerBlock]) -> None:
        """Take another configuration. Raises CorefileError, and then the old one stays."""
        chains: dict[int, dict[str, Plugin]] = {}
        plugins: list[Plugin] = []
        for block in blocks:
            linked = chain(block, self._context)
            plugins += linked
            for zone, port in block.zones:
                chains.setdefault(port, {})[zone] = linked[0] if linked else END
        self._chains, self._plugins = chains, plugins
        self._zones = {port: tuple(by_zone) for port, by_zone in chains.items()}
        self._context.plugins = plugins
        if self._background is not None:
            self._background.cancel()

    async def run(self) -> None:
        """The plugins' background work, for ever; begun anew when the configuration is replaced."""
        while True:
            with trio.CancelScope() as self._background:
                async with trio.open_nursery() as nursery:
                    for plugin in self._plugins:
                        nursery.start_soon(plugin.run)
                    self._context.spawn = nursery.start_soon
                    try:
                        await trio.sleep_forever()
                    finally:
                        self._context.spawn = lambda task: None

    async def answer(self, data: bytes, client: str, tcp: bool, port: int = DEFAULT_PORT, source_port: int = 0) -> bytes | None:
        """The reply to a message that came to the blocks of `port`, None if it deserves none."""
        try:
            request = dnslib.DNSRecord.parse(data)
        except Exception:  # dnslib raises whatever its slicing and decoding raise
            self.malformed += 1
            return _formerr(data)
        if request.header.qr:
            self.malformed += 1
            return None
        size = 65535 if tcp else min(MAX_UDP, max(512, *(r.rclass for r in request.ar if r.rtype == QTYPE.OPT), 512))
        query = _query(request, client, tcp, size, source_port, len(data)) if len(request.questions) == 1 else None
        reply = await self._reply(request, query, port)
        if reply.drop:
            return None
        try:
            return m.to_wire(request, reply, min(size, query.size) if query else size)
        except Exception as error:  # a record that has no wire format, such as a name too long, made of data or by a rule
            self._panics.inc()
            log.error("%s from %s: %r", request.q.qname, client, error)
            return m.to_wire(request, Reply(m.SERVFAIL, authoritative=False), size)

    async def _reply(self, request: dnslib.DNSRecord, query: Query | None, port: int) -> Reply:
        if request.header.opcode != 0:
            return Reply(m.NOTIMP, authoritative=False)
        if query is None:
            return Reply(m.FORMERR, authoritative=False)
        if query.qclass not in (m.INTERNET, m.CHAOS, m.ANY_CLASS):
            return Reply(m.REFUSED, authoritative=False)
        return await self.resolve(query, port)

    async def resolve(self, query: Query, port: int = DEFAULT_PORT) -> Reply:
        """The answer of the server block with the longest zone; what plugins ask too, for a name behind a CNAME."""
        zone = longest_zone(query.lower, self._zones.get(port, ()))
        if zone is None:
            return Reply(m.REFUSED, authoritative=False)
        try:
            return await first_for(self._chains[port][zone], query.qclass).serve(query)
        except Exception as error:
            self._panics.inc()
            stack = any(getattr(plugin, "stacktrace", False) for plugin in self._plugins)
            log.error("%s %s from %s: %r", query.name, QTYPE.get(query.qtype), query.client, error, exc_info=stack)
            return Reply(m.SERVFAIL, authoritative=False)

    @property
    def ports(self) -> frozenset[int]:
        """On which the running configuration wants to be asked."""
        return frozenset(self._chains)

    async def serve_udp(self, sock: trio.socket.SocketType, port: int = DEFAULT_PORT) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    data, sender = await sock.recvfrom(65535)
                except OSError:
                    continue  # an ICMP error for an earlier answer
                if self._free.available_tokens:
                    nursery.start_soon(self._answer_datagram, sock, data, sender, port)

    async def _answer_datagram(self, sock: trio.socket.SocketType, data: bytes, sender: tuple[str, int], port: int) -> None:
        async with self._free:
            reply = await self.answer(data, sender[0].removeprefix("::ffff:"), False, port, sender[1])
            if reply is not None:
                try:
                    await sock.sendto(reply, sender)
                except OSError as error:
                    log.warning("answer to %s: %s", sender[0], error)

    async def serve_connection(self, stream: trio.SocketStream, port: int = DEFAULT_PORT) -> None:
        """Questions over one TCP connection, in order, until the client closes it or says nothing for ten seconds."""
        peer = stream.socket.getpeername()
        client = peer[0].removeprefix("::ffff:")
        buffer = b""
        try:
            while True:
                while len(buffer) < 2 or len(buffer) < 2 + struct.unpack_from("!H", buffer)[0]:
                    with trio.fail_after(IDLE_SECONDS):
                        chunk = bytes(await stream.receive_some(65536))
                    if not chunk:
                        return
                    buffer += chunk
                size = struct.unpack_from("!H", buffer)[0]
                message, buffer = buffer[2 : 2 + size], buffer[2 + size :]
                reply = await self.answer(message, client, True, port, peer[1])
                if reply is None:
                    return
                await stream.send_all(struct.pack("!H", len(reply)) + reply)
        except (trio.TooSlowError, trio.BrokenResourceError):
            return


def _query(request: dnslib.DNSRecord, client: str, tcp: bool, size: int, source_port: int, length: int) -> Query:
    """The question of a message; its name has its case and a trailing dot, bytes that are no text are escaped."""
    query = Query(str(request.q.qname), request.q.qtype, client, tcp, size, qclass=request.q.qclass)
    query.ident, query.rd, query.source_port, query.length = request.header.id, bool(request.header.rd), source_port, length
    for record in request.ar:
        if record.rtype == QTYPE.OPT:
            query.do = bool(record.ttl & 0x8000)
            query.options = tuple((option.code, option.data) for option in record.rdata)
    return query


def _formerr(data: bytes) -> bytes | None:
    """FORMERR for a message that has at least a query's header."""
    if len(data) < 12 or data[2] & 0x80:
        return None
    return data[:2] + bytes([0x80 | (data[2] & 0x79), m.FORMERR]) + bytes(8)


def bind(host: str, port: int) -> tuple[trio.socket.SocketType, trio.SocketListener]:
    """The UDP and the TCP socket at an address. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    udp.bind((host, port))
    tcp = socket.socket(family, socket.SOCK_STREAM)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tcp.bind((host, port))
    tcp.listen(256)
    return trio.socket.from_stdlib_socket(udp), trio.SocketListener(trio.socket.from_stdlib_socket(tcp))
