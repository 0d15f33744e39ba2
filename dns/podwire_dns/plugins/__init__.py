"""Which plugins there are, and in which order they stand in a chain (CoreDNS' plugin.cfg), whatever the Corefile's order."""

from __future__ import annotations

from podwire_dns.corefile import ServerBlock
from podwire_dns.plugin import END, Context, Plugin
from podwire_dns.plugins.acl import Acl
from podwire_dns.plugins.any import Any
from podwire_dns.plugins.autopath import AutoPath
from podwire_dns.plugins.bufsize import BufSize
from podwire_dns.plugins.cache import Cache
from podwire_dns.plugins.cancel import Cancel
from podwire_dns.plugins.chaos import Chaos
from podwire_dns.plugins.dns64 import Dns64
from podwire_dns.plugins.errors import Errors
from podwire_dns.plugins.file import File
from podwire_dns.plugins.forward import Forward
from podwire_dns.plugins.header import Header
from podwire_dns.plugins.health import Health
from podwire_dns.plugins.hosts import Hosts
from podwire_dns.plugins.kubernetes import Kubernetes
from podwire_dns.plugins.loadbalance import LoadBalance
from podwire_dns.plugins.local import Local
from podwire_dns.plugins.log import Log
from podwire_dns.plugins.loop import Loop
from podwire_dns.plugins.minimal import Minimal
from podwire_dns.plugins.prometheus import Prometheus
from podwire_dns.plugins.ready import Ready
from podwire_dns.plugins.reload import Reload
from podwire_dns.plugins.rewrite import Rewrite
from podwire_dns.plugins.whoami import Whoami

ORDER: tuple[type[Plugin], ...] = (
    Cancel,
    Reload,
    BufSize,
    Ready,
    Health,
    Prometheus,
    Errors,
    Log,
    Local,
    Dns64,
    Acl,
    Any,
    Chaos,
    LoadBalance,
    Cache,
    Rewrite,
    Header,
    AutoPath,
    Minimal,
    Hosts,
    Kubernetes,
    File,
    Loop,
    Forward,
    Whoami,
)


def chain(block: ServerBlock, context: Context) -> list[Plugin]:
    """The block's plugins, linked, first to last. Raises CorefileError for an unknown plugin or a wrong argument."""
    known = {plugin.name: position for position, plugin in enumerate(ORDER)}
    for directive in block.directives:
        if directive.name not in known:
            raise directive.error(f"unknown; there are: {', '.join(sorted(known))}")
    zones = tuple(zone for zone, _ in block.zones)
    plugins: list[Plugin] = []
    for directive in sorted(block.directives, key=lambda directive: known[directive.name]):
        kind = ORDER[known[directive.name]]
        again = bool(plugins) and type(plugins[-1]) is kind
        if again and kind.merged:
            plugins[-1].add(directive)
        elif again and not kind.repeatable:
            raise directive.error("this plugin can only be used once per Server Block")
        else:
            plugins.append(kind(directive, zones, context))
    for plugin, following in zip(plugins, [*plugins[1:], END], strict=True):
        plugin.next = following
    for plugin in plugins:
        plugin.linked()
    return plugins
