"""The health plugin: GET :8080/health is 200 while the process lives; with `lameduck DURATION` it serves for that long after
SIGTERM.

    health [ADDRESS] { lameduck DURATION }

Source: https://coredns.io/plugins/health/.
"""

from __future__ import annotations

from podwire_dns.corefile import Directive, Option, seconds
from podwire_dns.plugins.httpd import HttpEndpoint


class Health(HttpEndpoint):
    name, path, port = "health", "/health", 8080

    def take(self, directive: Directive, option: Option) -> None:
        if option.name != "lameduck" or len(option.args) != 1:
            raise directive.unknown(option)
        self.context.lameduck = seconds(directive, option.args[0], option)
