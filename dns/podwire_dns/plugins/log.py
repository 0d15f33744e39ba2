"""The log plugin: a line for every question.

    log [NAMES…] [FORMAT] { class success|denial|error|all…; minDuration DURATION }

FORMAT is text with placeholders: {type} {name} {class} {proto} {remote} {local} {size} {port} {duration} {rcode} {rsize}
{>rflags} {>bufsize} {>do} {>id} {>opcode}; {common} (the default) and {combined} are formats themselves. Metadata labels are not
served. Source: https://coredns.io/plugins/log/.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import dnslib
from dnslib import QTYPE
from msgspec import Struct

from podwire_dns import message as m
from podwire_dns.corefile import Directive, seconds, zones_of
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin, longest_zone

log = logging.getLogger("podwire_dns")
COMMON = '{remote}:{port} - {>id} "{type} {class} {name} {proto} {size} {>do} {>bufsize}" {rcode} {>rflags} {rsize} {duration}'
COMBINED = COMMON + ' "{>opcode}"'
CLASSES = ("success", "denial", "error", "all")
CLASS_NAMES = {1: "IN", 3: "CH", 4: "HS", 255: "ANY"}
_PLACEHOLDER = re.compile(r"\{(>?\w+)\}")


class _Answered(Struct):
    """What a line can say."""

    query: Query
    reply: Reply
    duration: float
    local: str


class _Rule(Struct):
    zones: tuple[str, ...]
    format: str
    classes: set[str]
    minimum: float | None


class Log(Plugin):
    name = "log"
    merged = True

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        self._rules: list[_Rule] = []
        self.add(directive)

    def add(self, directive: Directive) -> None:
        args, form = list(directive.args), COMMON
        if args and "{" in args[-1]:
            form = args.pop().replace("{common}", COMMON).replace("{combined}", COMBINED)
        for name in _PLACEHOLDER.findall(form):
            if name not in VALUES:
                raise directive.error(f"unknown placeholder {{{name}}}")
        rule = _Rule(zones_of(directive, args, ("",)), form, set(), None)
        for option in directive.options:
            match (option.name, option.args):
                case ("class", (_, *_) as classes) if all(name in CLASSES for name in classes):
                    rule.classes |= set(classes)
                case ("minDuration", (duration,)):
                    rule.minimum = seconds(directive, duration, option)
                case _:
                    raise directive.unknown(option)
        rule.classes = rule.classes or ({"all"} if rule.minimum is None else set())
        self._rules.append(rule)

    async def serve(self, query: Query) -> Reply:
        started = self.context.clock()
        asked = query.renamed(query.name)  # a plugin behind this one may change it
        reply = await self.next.serve(query)
        answered = _Answered(asked, reply, self.context.clock() - started, self.context.listen[0])
        for rule in self._rules:
            if longest_zone(asked.lower, rule.zones) is None:
                continue
            slow = rule.minimum is not None and answered.duration >= rule.minimum
            if slow or rule.classes & {"all", class_of(reply)}:
                log.info(_PLACEHOLDER.sub(lambda found: VALUES[found[1]](answered), rule.format))
            break
        return reply


def class_of(reply: Reply) -> str:
    """success, denial or error."""
    if reply.rcode == m.NXDOMAIN or (reply.rcode == m.NOERROR and not reply.answer):
        return "denial"
    return "success" if reply.rcode == m.NOERROR else "error"


def _host(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


def _flags(query: Query, reply: Reply) -> str:
    flags = {"aa": reply.authoritative, "rd": query.rd, "ra": True, **dict(reply.flags)}
    return ",".join(["qr", *(flag for flag in ("aa", "rd", "ra") if flags[flag])])


def _size(answered: _Answered) -> str:
    """Of the answer as one message, whatever of it the client gets."""
    reply = answered.reply
    try:
        question = dnslib.DNSQuestion(m.label(answered.query.name), answered.query.qtype)
        records = {"rr": reply.answer, "auth": reply.authority, "ar": reply.additional}
        return str(len(dnslib.DNSRecord(dnslib.DNSHeader(), q=question, **records).pack()))
    except (dnslib.DNSError, ValueError):
        return "-"  # a record without a wire format; the client gets SERVFAIL


VALUES: dict[str, Callable[[_Answered], str]] = {
    "type": lambda a: str(QTYPE.get(a.query.qtype)),
    "name": lambda a: a.query.lower,
    "class": lambda a: CLASS_NAMES.get(a.query.qclass, str(a.query.qclass)),
    "proto": lambda a: "tcp" if a.query.tcp else "udp",
    "remote": lambda a: _host(a.query.client),
    "local": lambda a: _host(a.local),
    "size": lambda a: str(a.query.length),
    "port": lambda a: str(a.query.source_port),
    "duration": lambda a: f"{a.duration:.9f}s",
    "rcode": lambda a: m.rcode_name(a.reply.rcode),
    "rsize": _size,
    ">rflags": lambda a: _flags(a.query, a.reply),
    ">bufsize": lambda a: str(a.query.size),
    ">do": lambda a: str(a.query.do).lower(),
    ">id": lambda a: str(a.query.ident),
    ">opcode": lambda a: "0",
}
