"""The autopath plugin: walks the client's search path for it, so that one question does for all.

    autopath [ZONES…] @kubernetes | RESOLV.CONF

The search path is the asking pod's (which `pods verified` makes known), or the file's. A question for a name in its first domain
is asked for the rest of the name in each domain, the last being none; the first answer that is not NXDOMAIN is the client's,
behind a CNAME from the name that it asked for. If all are NXDOMAIN it gets the first. Source:
https://coredns.io/plugins/autopath/.
"""

from __future__ import annotations

import copy

from podwire_dns import message as m
from podwire_dns.corefile import Directive, zones_of
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin, longest_zone
from podwire_dns.plugins.kubernetes import Kubernetes

FAILED = (m.SERVFAIL, m.REFUSED, m.FORMERR, m.NOTIMP)
OWN_RESOLV_CONF = "/etc/resolv.conf"


class AutoPath(Plugin):
    name = "autopath"
    repeatable = False

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        directive.no_block()
        if not directive.args:
            raise directive.error("no resolv-conf specified")
        *names, self._source = directive.args
        self._directive = directive
        self._zones = zones_of(directive, names, zones)
        self._kubernetes: Kubernetes | None = None
        self._search: list[str] = []
        self._counter = context.metrics.counter("coredns_autopath_success", "Counter of requests that did autopath.", "server")
        if not self._source.startswith("@"):
            self._search = search_domains(directive, self._source)
        elif self._source != "@kubernetes":
            raise directive.error(f"{self._source}: the only plugin with search paths is @kubernetes")

    def linked(self) -> None:
        if not self._source.startswith("@"):
            return
        plugin = self.next
        while plugin.name and not isinstance(plugin, Kubernetes):
            plugin = plugin.next
        if not isinstance(plugin, Kubernetes):
            raise self._directive.error("@kubernetes: there is no kubernetes in this server block")
        self._kubernetes = plugin
        self._search = search_domains(self._directive, OWN_RESOLV_CONF, required=False)

    def _path(self, query: Query) -> list[str]:
        if self._kubernetes is None:
            return [*self._search, ""]
        own = self._kubernetes.search_path(query)
        return [*own, *self._search, ""] if own else []

    async def serve(self, query: Query) -> Reply:
        path = self._path(query) if longest_zone(query.lower, self._zones) is not None else []
        if len(path) < 2 or not query.lower.endswith("." + path[0]):
            return await self.next.serve(query)
        base = query.name[: -len(path[0])]
        first: Reply | None = None
        for domain in path:
            reply = await self.next.serve(query.renamed(base + domain))
            first = first or reply
            if reply.rcode == m.NXDOMAIN or reply.rcode in FAILED:
                continue
            self._counter.inc(self.context.server)
            return _behind_cname(reply, query.name)
        assert first is not None
        return first


def _behind_cname(reply: Reply, name: str) -> Reply:
    if not reply.answer or str(reply.answer[0].rname).lower() == name.lower():
        return reply
    changed = copy.copy(reply)
    changed.answer = [m.cname(name, str(reply.answer[0].rname), reply.answer[0].ttl), *reply.answer]
    return changed


def search_domains(directive: Directive, path: str, required: bool = True) -> list[str]:
    """The last `search` line of a resolv.conf, lower case with trailing dots. Raises CorefileError."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError as error:
        if required:
            raise directive.error(f"{path}: {error.strerror}") from None
        return []
    found: list[str] = []
    for words in lines:
        if words and words[0] in ("search", "domain"):
            found = [word.rstrip(".").lower() + "." for word in words[1:] if word != "."]
    return found
