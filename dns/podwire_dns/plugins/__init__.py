"""Which plugins there are, and in which order they stand in a chain (CoreDNS' plugin.cfg), whatever the Corefile's order."""

from __future__ import annotations

from podwire_dns.corefile import ServerBlock
from podwire_dns.plugin import END, Context, Plugin
from podwire_dns.plugins.cache import Cache
from podwire_dns.plugins.endpoints import Health, Prometheus, Ready
from podwire_dns.plugins.forward import Forward
from podwire_dns.plugins.hosts import Hosts
from podwire_dns.plugins.kubernetes import Kubernetes
from podwire_dns.plugins.small import Errors, LoadBalance, Log, Loop, Reload

ORDER: tuple[type[Plugin], ...] = (
    Reload,
    Health,
    Ready,
    Prometheus,
    Errors,
    Log,
    LoadBalance,
    Cache,
    Hosts,
    Kubernetes,
    Loop,
    Forward,
)


def chain(block: ServerBlock, context: Context) -> list[Plugin]:
    """The block's plugins, linked, first to last. Raises CorefileError for an unknown plugin or a wrong argument."""
    known = {plugin.name: position for position, plugin in enumerate(ORDER)}
    for directive in block.directives:
        if directive.name not in known:
            raise directive.error(f"unknown; there are: {', '.join(sorted(known))}")
    zones = tuple(zone for zone, _ in block.zones)
    ordered = sorted(block.directives, key=lambda directive: known[directive.name])
    plugins = [ORDER[known[directive.name]](directive, zones, context) for directive in ordered]
    for plugin, following in zip(plugins, [*plugins[1:], END], strict=True):
        plugin.next = following
    return plugins
