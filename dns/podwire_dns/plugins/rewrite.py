"""The rewrite plugin: questions are changed on their way in, and their answers on the way out, unseen by the client.

    rewrite [continue|stop] name [exact|prefix|suffix|substring|regex] FROM TO [answer auto|name FROM TO|value FROM TO]…
    rewrite [continue|stop] type|class FROM TO
    rewrite [continue|stop] ttl [exact|…] NAME TTL|LEAST-MOST
    rewrite [continue|stop] rcode [exact|…] NAME FROM TO
    rewrite [continue|stop] edns0 local set|append|replace CODE DATA | nsid set|… | subnet set|… IPV4-LENGTH IPV6-LENGTH
    rewrite [continue|stop] { name …; answer … }

All lines of a server block are one list: the first rule that fits is applied, those behind it too if it says `continue`. Not
there: `cname`, `revert`, metadata. Rules: rewriterules.py. Source: https://coredns.io/plugins/rewrite/.
"""

from __future__ import annotations

import functools

from podwire_dns import message as m
from podwire_dns.corefile import Directive
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin
from podwire_dns.plugins.rewriterules import NameRule, OnAnswer, Rule, rule_of

MAX_NAME = 254  # with the trailing dot


class Rewrite(Plugin):
    name = "rewrite"
    merged = True

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        self._rules: list[Rule] = []
        self.add(directive)

    def add(self, directive: Directive) -> None:
        words = list(directive.args)
        mode = words.pop(0) if words[:1] in (["continue"], ["stop"]) else "stop"
        rules = [_block(directive)] if directive.options and not words else [rule_of(directive, words)]
        if directive.options and words:
            raise directive.error("a rule stands on the line or in the block, not in both")
        rules[0].go_on = mode == "continue"
        self._rules += rules

    async def serve(self, query: Query) -> Reply:
        asked, applied = query.renamed(query.name), list[tuple[Rule, OnAnswer | None]]()
        for rule in self._rules:
            if rule.apply(asked):
                applied.append((rule, rule.on_answer(asked)))
                if not rule.go_on:
                    break
        if not applied:
            return await self.next.serve(query)
        if asked.name != query.name and not _is_name(asked.name):
            return Reply(m.SERVFAIL, authoritative=False, error=f"plugin/rewrite: invalid name {asked.name}")
        reply = await self.next.serve(asked)
        query.size = asked.size
        answer = reply.answer
        for _, change in reversed(applied):
            if change is not None:
                answer = [change(record) for record in answer]
        changed = reply.with_answer(answer)
        for rule, _ in applied:
            changed.rcode = rule.rcode(changed.rcode)
        return changed


def _block(directive: Directive) -> Rule:
    """A name line, then answer lines."""
    first, *others = directive.options
    rule = rule_of(directive, [first.name, *first.args], first)
    for option in others:
        if option.name != "answer" or not isinstance(rule, NameRule):
            raise directive.unknown(option)
        rule.answer(list(option.args), functools.partial(directive.error, option=option))
    return rule


def _is_name(name: str) -> bool:
    return name == "." or (len(name) <= MAX_NAME and all(0 < len(label) < 64 for label in name[:-1].split(".")))
