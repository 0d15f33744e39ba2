"""The errors plugin: logs why a question could not be answered.

    errors { stacktrace; consolidate DURATION REGEXP [error|warning|info|debug] [show_first] }

`consolidate` counts the errors that match and logs one line at the end of the duration; the first rule that matches takes the
error. `stacktrace` logs the Python traceback of an exception in a plugin with it. Standard output is the only log file.
Source: https://coredns.io/plugins/errors/.
"""

from __future__ import annotations

import logging
import re

import trio
from dnslib import QTYPE
from msgspec import Struct

from podwire_dns.corefile import Directive, Option, seconds
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin

log = logging.getLogger("podwire_dns")
LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
CHECK_SECONDS = 0.5


class _Rule(Struct):
    pattern: re.Pattern[str]
    duration: float
    text: str
    level: int = logging.ERROR
    show_first: bool = False
    count: int = 0
    until: float = 0.0


class Errors(Plugin):
    name = "errors"
    repeatable = False

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        self.stacktrace = False
        self._rules: list[_Rule] = []
        if directive.args not in ((), ("stdout",)):
            raise directive.error("the only log file is stdout")
        for option in directive.options:
            match (option.name, option.args):
                case ("stacktrace", ()):
                    self.stacktrace = True
                case ("consolidate", (duration, pattern, *more)):
                    self._rules.append(_rule(directive, option, duration, pattern, more))
                case _:
                    raise directive.unknown(option)

    async def serve(self, query: Query) -> Reply:
        reply = await self.next.serve(query)
        if reply.error:
            self._report(f"plugin/errors: {reply.rcode} {query.name} {QTYPE.get(query.qtype)}: {reply.error}", reply.error)
        return reply

    def _report(self, line: str, error: str) -> None:
        for rule in self._rules:
            if rule.pattern.search(error):
                if not rule.count:
                    rule.until = self.context.clock() + rule.duration
                    if rule.show_first:
                        log.log(rule.level, line)
                rule.count += 1
                return
        log.error(line)

    def flush(self, now: float) -> None:
        """Log the counts whose time is over."""
        for rule in self._rules:
            if rule.count and now >= rule.until:
                if rule.count > 1 or not rule.show_first:
                    counted = f"{rule.count} errors like '{rule.pattern.pattern}' occurred in last {rule.text}"
                    log.log(rule.level, f"plugin/errors: {counted}")
                rule.count = 0

    async def run(self) -> None:
        while self._rules:
            await trio.sleep(CHECK_SECONDS)
            self.flush(self.context.clock())


def _rule(directive: Directive, option: Option, duration: str, pattern: str, more: list[str]) -> _Rule:
    try:
        rule = _Rule(re.compile(pattern), seconds(directive, duration, option), duration)
    except re.error as error:
        raise directive.error(f"consolidate: {pattern!r}: {error}", option) from None
    for word in more:
        if word == "show_first":
            rule.show_first = True
        elif word in LEVELS:
            rule.level = LEVELS[word]
        else:
            raise directive.unknown(option)
    return rule
