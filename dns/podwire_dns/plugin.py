"""What a plugin is: a link of the chain that a server block's questions walk, as in CoreDNS.

A plugin either answers or hands on to `self.next`. Which plugins there are and in which order they stand in a chain is said
in one place, `plugins/__init__.py`; the order in the Corefile does not matter. Order to read: Context, Plugin, End.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from podwire_dns.corefile import Directive
from podwire_dns.kubeindex import KubeIndex
from podwire_dns.message import REFUSED, Query, Reply

if TYPE_CHECKING:
    import random
    from collections.abc import Callable


class Context:
    """What plugins of one server share. `synced()`: have the objects been listed; `clock()` seconds, monotonic; `listen`: where
    this server listens, which is its own NS address; `corefile`: the path of its configuration."""

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


class Plugin:
    """Base of all plugins. `zones` are the server block's, lower case, without trailing dot."""

    name = ""

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        """Raises CorefileError (directive.error) on a bad argument or option."""
        self.next: Plugin = END
        self.context = context

    async def serve(self, query: Query) -> Reply:
        return await self.next.serve(query)

    async def run(self) -> None:
        """Background work (an HTTP listener, a file watch); cancelled when the configuration is replaced."""


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
