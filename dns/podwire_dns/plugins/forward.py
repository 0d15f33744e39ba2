"""The forward plugin: questions outside the zones above go to upstream servers.

    forward FROM TO… { max_concurrent N; policy random|round_robin|sequential; expire …; except ZONES… }

TO is an address, address:port, or a resolv.conf file. An upstream that does not answer within two seconds is tried last until it
answers again. A truncated UDP answer is asked again over TCP. Order to read: Forward.serve, Upstream.ask, options.
Source: https://coredns.io/plugins/forward/.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct

import dnslib
import trio
from dnslib import QTYPE

from podwire_dns import message as m
from podwire_dns.corefile import Directive
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin, in_zone

ASK_SECONDS = 2.0
# linux/in.h, in6.h: IP_RECVERR, IPV6_RECVERR. Without it a UDP socket is told of a refused port, but not of a network without a
# route, and an upstream that cannot be reached costs the whole time limit.
RECEIVE_ERRORS = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
PORT = 53


class Forward(Plugin):
    name = "forward"

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        if len(directive.args) < 2:
            raise directive.error("needs FROM and at least one TO: forward . 192.0.2.1")
        self._from = directive.args[0].rstrip(".").lower()
        self._except: tuple[str, ...] = ()
        self._policy = "random"
        self._limit = 0
        self._busy = 0
        self._turn = 0
        self._upstreams = [Upstream(*address) for to in directive.args[1:] for address in _addresses(directive, to)]
        self._take_options(directive)

    async def serve(self, query: Query) -> Reply:
        if not in_zone(query.lower, self._from) or any(in_zone(query.lower, zone) for zone in self._except):
            return await self.next.serve(query)
        if self._limit and self._busy >= self._limit:
            return Reply(m.REFUSED, authoritative=False)
        self._busy += 1
        try:
            for upstream in self._order():
                reply = await upstream.ask(query, self.context.rng.getrandbits(16))
                if reply is not None:
                    return reply
            return Reply(m.SERVFAIL, authoritative=False)
        finally:
            self._busy -= 1

    def _order(self) -> list[Upstream]:
        upstreams = list(self._upstreams)
        if self._policy == "random":
            self.context.rng.shuffle(upstreams)
        elif self._policy == "round_robin":
            self._turn = (self._turn + 1) % max(1, len(upstreams))
            upstreams = upstreams[self._turn :] + upstreams[: self._turn]
        return sorted(upstreams, key=lambda upstream: upstream.failed)

    def _take_options(self, directive: Directive) -> None:
        for option in directive.options:
            match (option.name, option.args):
                case ("max_concurrent", (number,)) if number.isdigit():
                    self._limit = int(number)
                case ("policy", ("random" | "round_robin" | "sequential" as policy,)):
                    self._policy = policy
                case ("except", (_, *_) as zones):
                    self._except = tuple(zone.rstrip(".").lower() for zone in zones)
                case _:
                    raise directive.error(f"unknown or wrong option: {' '.join((option.name, *option.args))}", option)


class Upstream:
    """One server. `failed`: its last answer did not come."""

    def __init__(self, ip: str, port: int) -> None:
        self._address = (ip, port)
        self._family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        self.failed = False

    async def ask(self, query: Query, ident: int) -> Reply | None:
        """The upstream's answer, None if none came in time."""
        question = dnslib.DNSRecord(dnslib.DNSHeader(id=ident, rd=1), q=dnslib.DNSQuestion(query.name, query.qtype))
        question.add_ar(dnslib.EDNS0(udp_len=1232))
        try:
            with trio.fail_after(ASK_SECONDS):
                answer = await self._over_udp(question)
                if answer.header.tc:
                    answer = await self._over_tcp(question)
        except (trio.TooSlowError, OSError, dnslib.DNSError, EOFError):
            self.failed = True
            return None
        self.failed = False
        additional = [r for r in answer.ar if r.rtype != QTYPE.OPT]
        return Reply(answer.header.rcode, list(answer.rr), list(answer.auth), additional, authoritative=False)

    async def _over_udp(self, question: dnslib.DNSRecord) -> dnslib.DNSRecord:
        with trio.socket.socket(self._family, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(*RECEIVE_ERRORS[self._family], 1)
            await sock.connect(self._address)  # so that only its answers arrive, and ICMP errors are told
            await sock.send(question.pack())
            while True:
                answer = dnslib.DNSRecord.parse(await sock.recv(65535))
                if _answers(question, answer):
                    return answer

    async def _over_tcp(self, question: dnslib.DNSRecord) -> dnslib.DNSRecord:
        data = question.pack()
        async with await trio.open_tcp_stream(*self._address) as stream:
            await stream.send_all(struct.pack("!H", len(data)) + data)
            size = struct.unpack("!H", await _exactly(stream, 2))[0]
            answer = dnslib.DNSRecord.parse(await _exactly(stream, size))
        if not _answers(question, answer):
            raise EOFError("an answer to another question")
        return answer


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


def _addresses(directive: Directive, to: str) -> list[tuple[str, int]]:
    if to.startswith("/"):
        return [(ip, PORT) for ip in _nameservers(directive, to)]
    text = to.removeprefix("dns://")
    host, port = text, PORT
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = _port(directive, rest.removeprefix(":")) if rest else PORT
    elif text.count(":") == 1:
        host, _, number = text.partition(":")
        port = _port(directive, number)
    try:
        return [(str(ipaddress.ip_address(host)), port)]
    except ValueError:
        raise directive.error(f"{to!r} is not an address, address:port or file") from None


def _port(directive: Directive, text: str) -> int:
    if not (text.isdigit() and 0 < int(text) < 65536):
        raise directive.error(f"{text!r} is not a port")
    return int(text)


def _nameservers(directive: Directive, path: str) -> list[str]:
    if not os.path.exists(path):
        raise directive.error(f"no file {path}")
    with open(path, encoding="utf-8", errors="replace") as lines:
        words = [line.split() for line in lines]
    return [w[1] for w in words if len(w) > 1 and w[0] == "nameserver" and _is_address(w[1])]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
