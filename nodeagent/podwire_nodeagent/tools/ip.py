"""`ip`: global options and objects; the objects are in ip_link.py (link, addr), ip_route.py (route, rule) and ip_neigh.py."""

from __future__ import annotations

from msgspec import Struct

from podwire_nodeagent.tools.common import Client, ToolError, Words, abbreviates


class Options(Struct):
    """The global options."""

    family: int = 0
    details: bool = False
    statistics: bool = False
    json: bool = False
    pretty: bool = False
    brief: bool = False
    oneline: bool = False


_FLAGS = {
    "d": "details",
    "details": "details",
    "s": "statistics",
    "stats": "statistics",
    "statistics": "statistics",
    "j": "json",
    "json": "json",
    "p": "pretty",
    "pretty": "pretty",
    "br": "brief",
    "brief": "brief",
    "o": "oneline",
    "oneline": "oneline",
}
_IGNORED = frozenset(("c", "color", "color=never", "color=auto", "N", "n", "numeric", "r", "resolve"))


def options(words: Words, tool: str) -> Options:
    """Take the options before the object."""
    found = Options()
    while words.peek().startswith("-"):
        name = words.next().lstrip("-")
        if name in ("4", "6"):
            found.family = int(name)
        elif name in ("f", "family"):
            family = words.next("-family")
            if family not in ("inet", "inet6", "link", "bridge"):
                raise ToolError(f'Error: argument "{family}" is wrong: invalid protocol family', 255)
            found.family = {"inet": 4, "inet6": 6}.get(family, 0)
        elif name in _FLAGS:
            setattr(found, _FLAGS[name], True)
        elif name in ("V", "Version"):
            raise ToolError(f"{tool} utility, iproute2-6.1.0 (podwire)", 0)
        elif name not in _IGNORED:
            raise ToolError(f'Option "-{name}" is unknown, try "{tool} -help".', 255)
    return found


def main(argv: list[str], client: Client) -> str:
    from podwire_nodeagent.tools import ip_link, ip_neigh, ip_route

    words = Words(argv)
    found = options(words, "ip")
    if not words:
        raise ToolError("Usage: ip [ OPTIONS ] { link | addr | route | rule | neigh } { COMMAND | help }", 255)
    name = words.next()
    objects = {
        "link": ip_link.link,
        "address": ip_link.address,
        "route": ip_route.route,
        "rule": ip_route.rule,
        "neighbor": ip_neigh.neighbour,
        "neighbour": ip_neigh.neighbour,
    }
    for full, run in objects.items():
        if abbreviates(name, full):
            return run(words, found, client)
    raise ToolError(f'Object "{name}" is unknown, try "ip help".')
