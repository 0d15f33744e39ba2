"""The Corefile: CoreDNS' configuration language, parsed to server blocks of directives.

    (common) {
        errors
    }
    .:53 10.96.0.0/12 {
        import common
        kubernetes cluster.local in-addr.arpa ip6.arpa {
            pods insecure
        }
        forward . {$UPSTREAM}
    }

Pure; files named by `import` come through a function that the caller gives. Rules: tokens are separated by white space, "…"
quotes, # begins a comment, {$VAR} takes an environment variable; a network as a zone means its reverse zones; a file with one
server block may leave its braces out; every error is one line with file and line number. What a directive's arguments mean is its
plugin's matter. Order to read: values, parse, _tokens, _expand (imports), _Reader, zones. Syntax:
https://coredns.io/manual/configuration/.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

DEFAULT_PORT = 53
MAX_IMPORTS, MAX_NESTING = 1000, 50
Importer = Callable[[str, str], Sequence[tuple[str, str]]]


class CorefileError(ValueError):
    """`FILE:LINE: what is wrong`."""


class Option(Struct, frozen=True):
    """A line inside a directive's block: `pods insecure`."""

    name: str
    args: tuple[str, ...]
    line: int

    @property
    def text(self) -> str:
        """The line as written."""
        return " ".join((self.name, *self.args))


class Directive(Struct, frozen=True):
    """A plugin's line in a server block, with its block. `file` and `line` are for error messages."""

    name: str
    args: tuple[str, ...]
    options: tuple[Option, ...]
    file: str
    line: int

    def error(self, message: str, option: Option | None = None) -> CorefileError:
        """An error at this directive, or at a line of its block."""
        return CorefileError(f"{self.file}:{option.line if option else self.line}: plugin {self.name}: {message}")

    def unknown(self, option: Option) -> CorefileError:
        """The error for a line of the block that is none of the plugin's options, or has arguments that do not fit."""
        return self.error(f"unknown or wrong option: {option.text}", option)

    def no_block(self) -> None:
        """Raises CorefileError if there is a block; for plugins that take none."""
        if self.options:
            raise self.unknown(self.options[0])


class ServerBlock(Struct, frozen=True):
    """Zones (lower case, without trailing dot; "" is the root) with their ports, and the directives in the order written."""

    zones: tuple[tuple[str, int], ...]
    directives: tuple[Directive, ...]
    line: int
    file: str = "Corefile"


class _Token(Struct, frozen=True):
    text: str
    line: int
    file: str


_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|([^\s"]\S*)')
_VARIABLE = re.compile(r"\{\$(\w+)\}|\{%(\w+)%\}")
_SNIPPET = re.compile(r"\((\w[\w-]*)\)")


def parse(
    text: str, file: str = "Corefile", environment: Mapping[str, str] | None = None, importer: Importer | None = None
) -> list[ServerBlock]:
    """The server blocks of a Corefile. `importer(pattern, importing file)` returns the (path, text) pairs that an `import` names.
    Raises CorefileError."""
    env = environment or {}
    tokens = _Reader(_Expander(env, importer).expand(_tokens(text, file, env)), file)
    blocks: list[ServerBlock] = []
    while first := tokens.peek():
        zones = tuple(zone for head in tokens.heads() for zone in _zone(head))
        braces = (opening := tokens.peek()) is not None and opening.text == "{" and opening.line == tokens.last.line
        if braces:
            tokens.next("")
        elif blocks:
            raise tokens.error(first, f"server block {first.text!r}: {{ expected at the end of the line")
        blocks.append(ServerBlock(zones, tuple(_directives(tokens, braces)), first.line, first.file))
    if not blocks:
        raise CorefileError(f"{file}:1: no server block")
    _no_zone_twice(blocks)
    return blocks


# --- tokens --------------------------------


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
            tokens.append(_Token(value, number, file))
            rest = rest[match.end() :].lstrip()
    return tokens


class _Expander:
    """Takes snippets out and puts imports in, on tokens, so that an import may stand wherever a line may."""

    def __init__(self, environment: Mapping[str, str], importer: Importer | None) -> None:
        self._environment, self._importer = environment, importer
        self._snippets: dict[str, list[_Token]] = {}
        self._imports = self._nesting = 0

    def expand(self, tokens: list[_Token]) -> list[_Token]:
        out: list[_Token] = []
        at = depth = 0
        while at < len(tokens):
            token = tokens[at]
            starts_line = at == 0 or (tokens[at - 1].line, tokens[at - 1].file) != (token.line, token.file)
            if starts_line and depth == 0 and (name := _SNIPPET.fullmatch(token.text)):
                at = self._snippet(name[1], tokens, at)
            elif starts_line and token.text == "import":
                args = [t for t in tokens[at + 1 :] if (t.line, t.file) == (token.line, token.file)]
                out += self._import(token, [t.text for t in args])
                at += 1 + len(args)
            else:
                depth += {"{": 1, "}": -1}.get(token.text, 0)
                out.append(token)
                at += 1
        return out

    def _snippet(self, name: str, tokens: list[_Token], at: int) -> int:
        """Keep the tokens between its braces; returns the position behind them."""
        if at + 1 >= len(tokens) or tokens[at + 1].text != "{":
            raise CorefileError(f"{tokens[at].file}:{tokens[at].line}: snippet ({name}): {{ expected")
        depth = 0
        for end in range(at + 1, len(tokens)):
            depth += {"{": 1, "}": -1}.get(tokens[end].text, 0)
            if depth == 0:
                self._snippets[name] = tokens[at + 2 : end]
                return end + 1
        raise CorefileError(f"{tokens[-1].file}:{tokens[-1].line}: the file ends within snippet ({name})")

    def _import(self, token: _Token, args: list[str]) -> list[_Token]:
        where = f"{token.file}:{token.line}: import"
        self._imports += 1
        if not args:
            raise CorefileError(f"{where}: needs the name of a snippet above, or a file")
        if self._imports > MAX_IMPORTS or self._nesting >= MAX_NESTING:
            raise CorefileError(f"{where}: too many imports; does something import itself?")
        self._nesting += 1
        found = self._imported(where, args[0], args[1:], token.file)
        self._nesting -= 1
        return found

    def _imported(self, where: str, name: str, args: list[str], file: str) -> list[_Token]:
        if name in self._snippets:
            return self.expand([_Token(_arguments(t.text, args), t.line, t.file) for t in self._snippets[name]])
        files = self._importer(name, file) if self._importer else []
        if not files and not any(c in name for c in "*?["):
            raise CorefileError(f"{where}: no snippet ({name}) above, and no such file")
        return [t for path, text in files for t in self.expand(_tokens(text, path, self._environment))]


def _arguments(text: str, args: list[str]) -> str:
    """{args.0} is the first word behind the snippet's name."""
    return re.sub(r"\{args\.(\d+)\}", lambda m: args[int(m[1])] if int(m[1]) < len(args) else "", text)


class _Reader:
    """The tokens with a position."""

    def __init__(self, tokens: list[_Token], file: str) -> None:
        self._tokens, self._file, self._at = tokens, file, 0

    @property
    def last(self) -> _Token:
        """The token taken last."""
        return self._tokens[self._at - 1]

    def peek(self) -> _Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def next(self, what: str) -> _Token:
        token = self.peek()
        if token is None:
            last = self._tokens[-1] if self._tokens else _Token("", 1, self._file)
            raise CorefileError(f"{last.file}:{last.line}: the file ends within {what}")
        self._at += 1
        return token

    def heads(self) -> list[_Token]:
        """A server block's zones: the rest of the line, and the next one behind a comma."""
        taken: list[_Token] = []
        while (token := self.peek()) and token.text != "{":
            if taken and token.line != taken[-1].line and not taken[-1].text.endswith(","):
                break
            if token.text == "}":
                raise self.error(token, "unexpected }")
            taken.append(self.next(""))
        if not taken:
            raise self.error(self.next(""), "a zone is missing before {")
        return taken

    def rest_of_line(self, first: _Token) -> list[_Token]:
        taken = []
        while (token := self.peek()) and (token.line, token.file) == (first.line, first.file) and token.text not in "{}":
            taken.append(self.next(""))
        return taken

    @staticmethod
    def error(token: _Token, message: str) -> CorefileError:
        return CorefileError(f"{token.file}:{token.line}: {message}")


def _directives(tokens: _Reader, braces: bool) -> list[Directive]:
    """Up to and with the closing brace of a server block; to the end of the file if it has none."""
    found: list[Directive] = []
    while braces or tokens.peek():
        token = tokens.next("a server block")
        if token.text == "}" and braces:
            break
        if token.text in ("{", "}"):
            raise tokens.error(token, f"unexpected {token.text}")
        args = tuple(t.text for t in tokens.rest_of_line(token))
        options: tuple[Option, ...] = ()
        following = tokens.peek()
        if following and following.text == "{":
            tokens.next("")
            options = tuple(_options(tokens, token.text))
        found.append(Directive(token.text, args, options, token.file, token.line))
    return found


def _options(tokens: _Reader, plugin: str) -> list[Option]:
    options = []
    while (token := tokens.next(f"the block of {plugin}")).text != "}":
        if token.text == "{":
            raise tokens.error(token, f"plugin {plugin}: unexpected {{")
        options.append(Option(token.text, tuple(t.text for t in tokens.rest_of_line(token)), token.line))
    return options


# --- zones --------------------------------


def _zone(token: _Token) -> list[tuple[str, int]]:
    """`example.org:1053`, `dns://.:53`, `.`, `10.96.0.0/12`, `fd00::/8`."""
    scheme, separator, rest = token.text.partition("://")
    if separator and scheme != "dns":
        raise CorefileError(f"{token.file}:{token.line}: {scheme}:// is not served, only dns://")
    text = (rest if separator else token.text).rstrip(",")
    zone, colon, port = text, "", ""
    if text.count(":") == 1 or "/" in text.rpartition(":")[0]:
        zone, colon, port = text.rpartition(":")
    if colon and not (port.isdigit() and 0 < int(port) < 65536):
        raise CorefileError(f"{token.file}:{token.line}: {token.text!r}: a port is a number from 1 to 65535")
    try:
        return [(name, int(port) if colon else DEFAULT_PORT) for name in zone_names(zone)]
    except ValueError as error:
        raise CorefileError(f"{token.file}:{token.line}: {error}") from None


def zone_names(text: str) -> tuple[str, ...]:
    """A zone in lower case without its trailing dot; for a network, its reverse zones: 10.1.0.0/15 is 0.10 and 1.10.in-addr.arpa.
    Raises ValueError."""
    if "/" not in text:
        return (text.rstrip(".").lower(),)
    network = ipaddress.ip_network(text, strict=False)
    step = 8 if network.version == 4 else 4
    whole = -(-network.prefixlen // step) * step
    labels = (network.max_prefixlen - whole) // step
    subnets = network.subnets(new_prefix=whole)
    return tuple(".".join(subnet.network_address.reverse_pointer.split(".")[labels:]) for subnet in subnets)


def zones_of(directive: Directive, args: Sequence[str], default: tuple[str, ...]) -> tuple[str, ...]:
    """The zones that a plugin's arguments name; the server block's if there are none. Raises CorefileError."""
    try:
        return tuple(name for arg in args for name in zone_names(arg)) or default
    except ValueError as error:
        raise directive.error(str(error)) from None


def seconds(directive: Directive, text: str, option: Option | None = None) -> float:
    """A Go duration: 500ms, 30s, 1m30s, 1h. Raises CorefileError."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    if text == "0":
        return 0.0
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise directive.error(f"{text!r} is not a duration such as 30s", option)
    return sum(float(number) * units[unit] for number, unit in parts)


def _no_zone_twice(blocks: list[ServerBlock]) -> None:
    seen: set[tuple[str, int]] = set()
    for block in blocks:
        for zone, port in block.zones:
            if (zone, port) in seen:
                raise CorefileError(f"{block.file}:{block.line}: {zone or '.'}:{port} is served by a block above already")
            seen.add((zone, port))
