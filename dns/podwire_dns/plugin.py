"""What a plugin is: a link of the chain that a server block's questions walk, as in CoreDNS.

A plugin either answers or hands on to `self.next`. Which plugins there are and in which order they stand in a chain is said
in one place, `plugins/__init__.py`; the order in the Corefile does not matter. Order to read: Context, Plugin, End.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from podwire_dns.corefile import Directive
from podwire_dns.kubeindex import KubeIndex
from podwire_dns.message import CHAOS, REFUSED, Query, Reply
from podwire_dns.metrics import Metrics

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Sequence


log = logging.getLogger("podwire_dns")


class Context:
    """What plugins of one server share. `synced()`: have the objects been listed; `clock()` seconds, monotonic; `listen`: where
    this server listens, which is its own NS address; `corefile`: the path of its configuration; `metrics` outlive a reload."""

    def __init__(
        self,
        index: KubeIndex,
        synced: Callable[[], bool],
        clock: Callable[[], float],
        rng: random.Random,
        listen: tuple[str, int] = ("127.0.0.1", 53),
        corefile: str = "Corefile",
    ) -> None:
        self.index, self.synced, self.clock, self.rng = index, synced, clock, rng
        self.listen, self.corefile = listen, corefile
        self.lameduck = 0.0  # seconds for which the server goes on after SIGTERM
        self.reload: Callable[[], None] = lambda: None  # read the Corefile again; set by the server
        self.halt: Callable[[str], None] = lambda message: None  # end the server with this message
        self.lookup: Callable[[Query], Awaitable[Reply]] = END.serve  # ask the whole server, as a client would; set by it
        self.spawn: Callable[[Callable[[], Awaitable[None]]], None] = lambda task: None  # run it beside; until a reload
        self.sources: Sequence[str] = (corefile,)  # all files that the configuration was read from
        self.plugins: Sequence[Plugin] = ()  # of all server blocks of the running configuration
        self.metrics = Metrics()

    def warn(self, message: str) -> None:
        """A line for whoever runs the server."""
        log.warning(message)

    @property
    def server(self) -> str:
        """The label `server` of CoreDNS' metrics."""
        host, port = self.listen
        return f"dns://[{host}]:{port}" if ":" in host else f"dns://{host}:{port}"


class Plugin:
    """Base of all plugins. `zones` are the server block's, lower case, without trailing dot."""

    name = ""
    answers_chaos = False  # serves questions of class CH too
    repeatable = True  # may stand more than once in a server block
    merged = False  # all its lines in a block are one plugin: the first makes it, `add` takes the others

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        """Raises CorefileError (directive.error) on a bad argument or option."""
        self.next: Plugin = END
        self.context = context

    async def serve(self, query: Query) -> Reply:
        return await self.next.serve(query)

    def add(self, directive: Directive) -> None:
        """Another line of a `merged` plugin. Raises CorefileError."""
        raise NotImplementedError

    def linked(self) -> None:
        """Called when the chain is complete. Raises CorefileError if it lacks what this plugin needs."""

    async def run(self) -> None:
        """Background work (an HTTP listener, a file watch); cancelled when the configuration is replaced."""

    def ready(self) -> bool:
        """Can it answer? What the ready plugin asks of all."""
        return True


class End(Plugin):
    """Behind the last plugin: nobody answered."""

    def __init__(self) -> None:
        pass

    async def serve(self, query: Query) -> Reply:
        return Reply(REFUSED, authoritative=False)


END = End()


def in_zone(name: str, zone: str) -> bool:
    """Is the lower-case name (with trailing dot) at or below the zone (without)?"""
    return not zone or name == f"{zone}." or name.endswith(f".{zone}.")


def longest_zone(name: str, zones: tuple[str, ...]) -> str | None:
    """The most specific of the zones that the name is in."""
    matching = [zone for zone in zones if in_zone(name, zone)]
    return max(matching, key=len) if matching else None


def falls_through(fallthrough: tuple[str, ...] | None, name: str) -> bool:
    """Is the lower-case name, which a plugin does not have, the next one's? None: the option isn't there; (): all names."""
    return fallthrough is not None and (not fallthrough or any(in_zone(name, zone) for zone in fallthrough))


def first_for(first: Plugin, qclass: int) -> Plugin:
    """Where a question of this class enters the chain: what is not of class IN is for the plugins alone that say so."""
    plugin = first
    while qclass == CHAOS and not plugin.answers_chaos and plugin is not END:
        plugin = plugin.next
    return plugin
