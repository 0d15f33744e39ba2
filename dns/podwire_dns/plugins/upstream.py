"""One server that forward asks: its connections, and whether it is alive.

Sockets are kept for `expire` seconds and used again, one question at a time each. A UDP answer with TC is asked for again over
TCP. An exchange that fails starts health checks, which go on until one succeeds; more than `max_fails` of them in a row and the
upstream counts as down. Order to read: Policy, Upstream.ask, _over_udp, _over_tcp, check.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import dnslib
import trio
from dnslib import QTYPE
from msgspec import Struct

from podwire_dns import message as m
from podwire_dns.message import Query, Reply
from podwire_dns.metrics import Metrics

READ_SECONDS = 2.0
CHECK_SECONDS = 1.0  # a health check's own time limit
UDP_SIZE = 1232
# linux/in.h, in6.h: IP_RECVERR, IPV6_RECVERR. Without it a UDP socket is told of a refused port, but not of a network without a
# route, and an upstream that cannot be reached costs the whole time limit.
RECEIVE_ERRORS = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
FAILURES = (trio.TooSlowError, OSError, trio.BrokenResourceError, trio.ClosedResourceError, dnslib.DNSError, EOFError)


class Policy(Struct):
    """What forward's block says of its upstreams."""

    force_tcp: bool = False
    prefer_udp: bool = False
    expire: float = 10.0
    max_idle: int = 0
    max_fails: int = 2
    interval: float = 0.5
    domain: str = "."
    recursive: bool = True


class Upstream:
    """`fails`: health checks failed in a row; `suspect`: the last exchange failed, so that others are tried first."""

    def __init__(self, ip: str, port: int, policy: Policy, metrics: Metrics, clock: Callable[[], float]) -> None:
        self.address = (ip, port)
        self.label = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
        self._family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        self._policy, self._clock = policy, clock
        self.fails, self.suspect, self.checking, self._closed = 0, False, False, False
        self._udp: list[tuple[trio.socket.SocketType, float]] = []
        self._tcp: list[tuple[trio.SocketStream, float]] = []
        self._duration = metrics.histogram(
            "coredns_proxy_request_duration_seconds", "Histogram of the time each request took.", "proxy_name", "to", "rcode"
        )
        self._failures = metrics.counter(
            "coredns_proxy_healthcheck_failures", "Counter of the number of failed healthchecks.", "proxy_name", "to"
        )

    def down(self) -> bool:
        return bool(self._policy.max_fails) and self.fails > self._policy.max_fails

    async def ask(self, query: Query, ident: int) -> Reply:
        """The upstream's answer. Raises one of FAILURES if none came in time."""
        started = self._clock()
        question = _question(query, ident)
        tcp = self._policy.force_tcp or (query.tcp and not self._policy.prefer_udp)
        try:
            with trio.fail_after(READ_SECONDS):
                answer = await (self._over_tcp(question) if tcp else self._over_udp(question))
                if answer.header.tc and not tcp:
                    answer = await self._over_tcp(question)
        except FAILURES:
            self.suspect = True
            raise
        self.suspect = False
        self._duration.observe(self._clock() - started, "forward", self.label, m.rcode_name(answer.header.rcode))
        additional = [r for r in answer.ar if r.rtype != QTYPE.OPT]
        return Reply(answer.header.rcode, list(answer.rr), list(answer.auth), additional, authoritative=bool(answer.header.aa))

    async def _over_udp(self, question: dnslib.DNSRecord) -> dnslib.DNSRecord:
        sock = self._idle_udp() or await self._connected()
        try:
            await sock.send(question.pack())
            while True:
                answer = dnslib.DNSRecord.parse(await sock.recv(65535))
                if _answers(question, answer):
                    break
        except BaseException:
            sock.close()
            raise
        if not self._policy.max_idle or len(self._udp) < self._policy.max_idle:
            self._udp.append((sock, self._clock()))
        else:
            sock.close()
        return answer

    def _idle_udp(self) -> trio.socket.SocketType | None:
        while self._udp:
            sock, used = self._udp.pop()
            if self._clock() - used < self._policy.expire:
                return sock
            sock.close()
        return None

    async def _connected(self) -> trio.socket.SocketType:
        sock = trio.socket.socket(self._family, socket.SOCK_DGRAM)
        sock.setsockopt(*RECEIVE_ERRORS[self._family], 1)
        await sock.connect(self.address)  # so that only its answers arrive, and ICMP errors are told
        return sock

    async def _over_tcp(self, question: dnslib.DNSRecord) -> dnslib.DNSRecord:
        """Over an idle connection, or over a new one if that was closed in the meantime."""
        while self._tcp:
            stream, used = self._tcp.pop()
            if self._clock() - used < self._policy.expire:
                try:
                    return await self._exchange(stream, question)
                except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
                    continue
            await trio.aclose_forcefully(stream)
        return await self._exchange(await trio.open_tcp_stream(*self.address), question)

    async def _exchange(self, stream: trio.SocketStream, question: dnslib.DNSRecord) -> dnslib.DNSRecord:
        data = question.pack()
        try:
            await stream.send_all(struct.pack("!H", len(data)) + data)
            size = struct.unpack("!H", await _exactly(stream, 2))[0]
            answer = dnslib.DNSRecord.parse(await _exactly(stream, size))
            if not _answers(question, answer):
                raise EOFError("an answer to another question")
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        if not self._policy.max_idle or len(self._tcp) < self._policy.max_idle:
            self._tcp.append((stream, self._clock()))
        else:
            await trio.aclose_forcefully(stream)
        return answer

    async def check(self) -> None:
        """Health checks until one succeeds."""
        if self.checking:
            return
        self.checking = True
        question = dnslib.DNSRecord(
            dnslib.DNSHeader(id=0, rd=int(self._policy.recursive)), q=dnslib.DNSQuestion(self._policy.domain, QTYPE.NS)
        )
        try:
            while not self._closed:
                try:
                    with trio.fail_after(CHECK_SECONDS):
                        await (self._over_tcp(question) if self._policy.force_tcp else self._over_udp(question))
                    self.fails, self.suspect = 0, False
                    return
                except FAILURES:
                    self.fails += 1
                    self._failures.inc("forward", self.label)
                await trio.sleep(self._policy.interval)
        finally:
            self.checking = False

    def close(self) -> None:
        """The kept sockets; when the configuration is replaced."""
        for sock, _ in self._udp:
            sock.close()
        for stream, _ in self._tcp:
            stream.socket.close()
        self._udp, self._tcp, self._closed = [], [], True


def _question(query: Query, ident: int) -> dnslib.DNSRecord:
    question = dnslib.DNSRecord(
        dnslib.DNSHeader(id=ident, rd=int(query.rd)), q=dnslib.DNSQuestion(m.label(query.name), query.qtype, query.qclass)
    )
    options = [dnslib.EDNSOption(code, data) for code, data in query.options]
    question.add_ar(dnslib.EDNS0(flags="do" if query.do else "", udp_len=UDP_SIZE, opts=options))
    return question


def _answers(question: dnslib.DNSRecord, answer: dnslib.DNSRecord) -> bool:
    same = answer.header.id == question.header.id and answer.header.qr and len(answer.questions) == 1
    return bool(same and answer.q.qname == question.q.qname and answer.q.qtype == question.q.qtype)


async def _exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = await stream.receive_some(size - len(data))
        if not chunk:
            raise EOFError("the upstream closed the connection")
        data += bytes(chunk)
    return data
