"""The Corefile: CoreDNS' configuration language, parsed to server blocks of directives.

    .:53 {
        kubernetes cluster.local in-addr.arpa ip6.arpa {
            pods insecure
        }
        forward . /etc/resolv.conf
    }

Pure. Rules: tokens are separated by white space, "…" quotes, # begins a comment, {$VAR} takes an environment variable; every
error is one line with file and line number. What a directive's arguments mean is its plugin's matter. Order to read: values,
parse, _Reader. Syntax: https://coredns.io/manual/configuration/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import Struct

DEFAULT_PORT = 53


class CorefileError(ValueError):
    """`FILE:LINE: what is wrong`."""


class Option(Struct, frozen=True):
    """A line inside a directive's block: `pods insecure`."""

    name: str
    args: tuple[str, ...]
    line: int


class Directive(Struct, frozen=True):
    """A plugin's line in a server block, with its block. `where` is FILE:LINE for error messages."""

    name: str
    args: tuple[str, ...]
    options: tuple[Option, ...]
    file: str
    line: int

    def error(self, message: str, option: Option | None = None) -> CorefileError:
        """An error at this directive, or at a line of its block."""
        return CorefileError(f"{self.file}:{option.line if option else self.line}: plugin {self.name}: {message}")


class ServerBlock(Struct, frozen=True):
    """Zones (lower case, without trailing dot; "" is the root) with their ports, and the directives in the order written."""

    zones: tuple[tuple[str, int], ...]
    directives: tuple[Directive, ...]
    line: int


class _Token(Struct, frozen=True):
    text: str
    line: int


_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|([^\s"]\S*)')
_VARIABLE = re.compile(r"\{\$(\w+)\}|\{%(\w+)%\}")


def parse(text: str, file: str = "Corefile", environment: Mapping[str, str] | None = None) -> list[ServerBlock]:
    """The server blocks of a Corefile. Raises CorefileError."""
    tokens = _Reader(_tokens(text, file, environment or {}), file)
    snippets: dict[str, tuple[Directive, ...]] = {}
    blocks: list[ServerBlock] = []
    while first := tokens.peek():
        heads = tokens.line_until_brace(f"server block {first.text!r}")
        directives = tuple(_directives(tokens, snippets))
        if re.fullmatch(r"\(\w+\)", first.text):
            snippets[first.text[1:-1]] = directives
        else:
            blocks.append(ServerBlock(tuple(_zone(h, file) for h in heads), directives, first.line))
    if not blocks:
        raise CorefileError(f"{file}:1: no server block")
    _no_zone_twice(blocks, file)
    return blocks


def _tokens(text: str, file: str, environment: Mapping[str, str]) -> list[_Token]:
    tokens = []
    for number, line in enumerate(text.splitlines(), 1):
        rest = line.strip()
        while rest and not rest.startswith("#"):
            match = _TOKEN.match(rest)
            if match is None or match[0].count('"') % 2:
                raise CorefileError(f"{file}:{number}: a quote is not closed")
            quoted, word = match.groups()
            value = word if word is not None else quoted.replace('\\"', '"')
            value = _VARIABLE.sub(lambda m: environment.get(m[1] or m[2], ""), value)
            tokens.append(_Token(value, number))
            rest = rest[match.end() :].lstrip()
    return tokens


class _Reader:
    """The tokens with a position."""

    def __init__(self, tokens: list[_Token], file: str) -> None:
        self._tokens, self._file, self._at = tokens, file, 0

    def peek(self) -> _Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def next(self, what: str) -> _Token:
        token = self.peek()
        if token is None:
            last = self._tokens[-1].line if self._tokens else 1
            raise CorefileError(f"{self._file}:{last}: the file ends within {what}")
        self._at += 1
        return token

    def line_until_brace(self, what: str) -> list[_Token]:
        """The tokens before `{`, which is taken too."""
        taken = []
        while (token := self.next(what)).text != "{":
            if token.text == "}":
                raise self.error(token, "unexpected }")
            taken.append(token)
        return taken

    def rest_of_line(self, line: int) -> list[_Token]:
        taken = []
        while (token := self.peek()) and token.line == line and token.text not in "{}":
            taken.append(self.next(""))
        return taken

    def error(self, token: _Token, message: str) -> CorefileError:
        return CorefileError(f"{self._file}:{token.line}: {message}")

    @property
    def file(self) -> str:
        return self._file


def _directives(tokens: _Reader, snippets: Mapping[str, tuple[Directive, ...]]) -> list[Directive]:
    """Up to and with the closing brace of a server block."""
    found: list[Directive] = []
    while (token := tokens.next("a server block")).text != "}":
        args = tuple(t.text for t in tokens.rest_of_line(token.line))
        if token.text == "import":
            if len(args) != 1 or args[0] not in snippets:
                raise tokens.error(token, f"import: no snippet ({args[0] if args else ''}) above; files are not imported")
            found.extend(snippets[args[0]])
            continue
        following = tokens.peek()
        options: tuple[Option, ...] = ()
        if following and following.text == "{":
            tokens.next("")
            options = tuple(_options(tokens, token.text))
        found.append(Directive(token.text, args, options, tokens.file, token.line))
    return found


def _options(tokens: _Reader, plugin: str) -> list[Option]:
    options = []
    while (token := tokens.next(f"the block of {plugin}")).text != "}":
        if token.text == "{":
            raise tokens.error(token, f"plugin {plugin}: unexpected {{")
        options.append(Option(token.text, tuple(t.text for t in tokens.rest_of_line(token.line)), token.line))
    return options


def _zone(token: _Token, file: str) -> tuple[str, int]:
    """`example.org:1053`, `dns://.:53`, `.`"""
    scheme, separator, rest = token.text.partition("://")
    if separator and scheme != "dns":
        raise CorefileError(f"{file}:{token.line}: {scheme}:// is not served, only dns://")
    zone, colon, port = (rest if separator else token.text).rstrip(",").partition(":")
    if colon and not (port.isdigit() and 0 < int(port) < 65536):
        raise CorefileError(f"{file}:{token.line}: {token.text!r}: a port is a number from 1 to 65535")
    return zone.rstrip(".").lower(), int(port) if colon else DEFAULT_PORT


def _no_zone_twice(blocks: list[ServerBlock], file: str) -> None:
    seen: set[tuple[str, int]] = set()
    for block in blocks:
        for zone, port in block.zones:
            if (zone, port) in seen:
                raise CorefileError(f"{file}:{block.line}: {zone or '.'}:{port} is served by a block above already")
            seen.add((zone, port))
