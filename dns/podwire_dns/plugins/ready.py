"""The ready plugin: GET :8181/ready is 200 when every plugin can answer, else 503 with the names of those that cannot yet.

    ready [ADDRESS] { monitor until-ready|continuously }

A plugin that has been ready is not asked again, unless `continuously`. Source: https://coredns.io/plugins/ready/.
"""

from __future__ import annotations

from podwire_dns.corefile import Directive, Option
from podwire_dns.plugin import Context
from podwire_dns.plugins.httpd import HttpEndpoint


class Ready(HttpEndpoint):
    name, path, port = "ready", "/ready", 8181

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        self._continuously = False
        self._were_ready: set[int] = set()
        super().__init__(directive, zones, context)

    def take(self, directive: Directive, option: Option) -> None:
        match (option.name, option.args):
            case ("monitor", ("until-ready" | "continuously" as how,)):
                self._continuously = how == "continuously"
            case _:
                raise directive.unknown(option)

    def answer(self) -> tuple[int, bytes]:
        waiting = []
        for plugin in self.context.plugins:
            if not self._continuously and id(plugin) in self._were_ready:
                continue
            if plugin.ready():
                self._were_ready.add(id(plugin))
            else:
                waiting.append(plugin.name)
        return (503, ",".join(sorted(waiting)).encode()) if waiting else (200, b"OK")
