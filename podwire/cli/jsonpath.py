"""kubectl's JSONPath templates, the part that scripts use.

    {.items[*].metadata.name}   {range .items[*]}{.metadata.name}{"\\t"}{.status.podIP}{"\\n"}{end}
    {.spec.ports[?(@.name=="http")].nodePort}   {.status.conditions[-1].type}   {.metadata.labels.app\\.kubernetes\\.io/name}

Text outside braces is printed as it is; several results are joined by spaces; what is not there prints nothing. A wrong template
is a ClusterError that says where. Order to read: parse (text to nodes), find (one path), render.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from podwire.paths import ClusterError


class Text(Struct, frozen=True):
    value: str


class Path(Struct, frozen=True):
    steps: tuple[Any, ...]


class Range(Struct, frozen=True):
    over: Path
    body: tuple[Any, ...]


class Filter(Struct, frozen=True):
    """`?(@.type=="Ready")`; operator "" only asks whether the field is there."""

    path: Path
    operator: str
    value: Any


Node = Text | Path | Range
ALL = "*"
STEP = re.compile(
    r"""\.(?P<name>(?:\\.|[^.\[\]{}\\\s])+)      # .name, with \. for a dot in it
      | \[(?P<index>-?\d+)\] | \[(?P<all>\*)\] | \.(?P<star>\*)
      | \['(?P<quoted>[^']*)'\]
      | \[(?P<low>-?\d*):(?P<high>-?\d*)\]
      | \[\?\((?P<filter>[^)]*)\)\]""",
    re.VERBOSE,
)
CONDITION = re.compile(r"\s*@(?P<path>[^\s=!<>]*)\s*(?:(?P<op>==|!=|<=|>=|<|>)\s*(?P<value>.+?))?\s*")
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


def render(template: str, data: Any) -> str:
    """Raises ClusterError."""
    return _render(parse(template), data)


def parse(template: str) -> tuple[Node, ...]:
    if template and "{" not in template:  # kubectl takes `.metadata.name` too
        template = "{" + template + "}"
    stack: list[list[Node]] = [[]]
    ranges: list[Path] = []
    position = 0
    while position < len(template):
        start = template.find("{", position)
        if start < 0:
            stack[-1].append(Text(template[position:]))
            break
        if start > position:
            stack[-1].append(Text(template[position:start]))
        end = _closing(template, start)
        inside = template[start + 1 : end].strip()
        if inside.startswith("range"):
            ranges.append(_path(inside[5:].strip(), template))
            stack.append([])
        elif inside == "end":
            if not ranges:
                raise _wrong(template, "{end} without {range}")
            body = stack.pop()
            stack[-1].append(Range(ranges.pop(), tuple(body)))
        elif inside[:1] == '"':
            stack[-1].append(Text(re.sub(r"\\(.)", lambda m: ESCAPES.get(m[1], m[1]), inside.strip('"'))))
        else:
            stack[-1].append(_path(inside, template))
        position = end + 1
    if ranges:
        raise _wrong(template, "{range} without {end}")
    return tuple(stack[0])


def _closing(template: str, start: int) -> int:
    quoted = False
    for position in range(start + 1, len(template)):
        if template[position] == '"' and template[position - 1] != "\\":
            quoted = not quoted
        elif template[position] == "}" and not quoted:
            return position
    raise _wrong(template, "a { is not closed")


def _path(text: str, template: str) -> Path:
    rest = text.removeprefix("$").removeprefix("@")
    if rest in ("", "."):
        return Path(())
    if rest[0] not in ".[":
        rest = "." + rest
    steps: list[Any] = []
    position = 0
    while position < len(rest):
        found = STEP.match(rest, position)
        if found is None:
            raise _wrong(template, f"cannot read {rest[position:]!r}")
        steps.append(_step(found, template))
        position = found.end()
    return Path(tuple(steps))


def _step(found: re.Match[str], template: str) -> Any:
    if found["all"] or found["star"] or found["name"] == ALL:
        return ALL
    if found["index"] is not None:
        return int(found["index"])
    if found["filter"] is not None:
        condition = CONDITION.fullmatch(found["filter"])
        if condition is None:
            raise _wrong(template, f"cannot read the filter {found['filter']!r}")
        return Filter(_path(condition["path"], template), condition["op"] or "", _literal(condition["value"]))
    if found["low"] is not None:
        return slice(int(found["low"]) if found["low"] else None, int(found["high"]) if found["high"] else None)
    name = found["name"] if found["name"] is not None else found["quoted"]
    return (re.sub(r"\\(.)", r"\1", name),)


def _literal(text: str | None) -> Any:
    if text is None:
        return None
    if text[:1] in "'\"":
        return text[1:-1]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _wrong(template: str, what: str) -> ClusterError:
    return ClusterError(f"jsonpath {template!r}: {what}", 2)


def find(path: Path, data: Any) -> list[Any]:
    """All values at `path`."""
    found = [data]
    for step in path.steps:
        found = [value for each in found for value in _take(step, each)]
    return found


def _take(step: Any, value: Any) -> list[Any]:
    if isinstance(step, tuple):
        return [value[step[0]]] if isinstance(value, dict) and step[0] in value else []
    if step == ALL and isinstance(value, dict):
        return list(value.values())
    if not isinstance(value, list):
        return []
    if step == ALL:
        return value
    if isinstance(step, Filter):
        return [each for each in value if _holds(step, each)]
    if isinstance(step, slice):
        return value[step]
    return [value[step]] if -len(value) <= step < len(value) else []


def _holds(condition: Filter, value: Any) -> bool:
    found = find(condition.path, value)
    if not condition.operator:
        return bool(found)
    return any(_compare(each, condition.operator, condition.value) for each in found)


def _compare(left: Any, operator: str, right: Any) -> bool:
    if operator == "==":
        return bool(left == right)
    if operator == "!=":
        return bool(left != right)
    try:
        less, equal = left < right, left == right
    except TypeError:
        return False
    return bool({"<": less, "<=": less or equal, ">": not less and not equal, ">=": not less}[operator])


def _render(nodes: tuple[Node, ...], data: Any) -> str:
    parts = []
    for node in nodes:
        if isinstance(node, Text):
            parts.append(node.value)
        elif isinstance(node, Path):
            parts.append(" ".join(_plain(value) for value in find(node, data)))
        else:
            parts += [_render(node.body, value) for value in find(node.over, data)]
    return "".join(parts)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


# --- for tables --------------------------------


def sort_key(template: str) -> Callable[[Any], tuple[int, float, str]]:
    """For `get --sort-by`: objects without the field first, numbers by value, all else as text (RFC 3339 times sort so)."""
    nodes = parse(template)
    path = nodes[0] if len(nodes) == 1 else None
    if not isinstance(path, Path):
        raise _wrong(template, "one path is to be given, like .metadata.name")

    def key(obj: Any) -> tuple[int, float, str]:
        found = next(iter(find(path, obj)), None)
        if isinstance(found, int | float):
            return 1, float(found), ""
        return (0, 0.0, "") if found is None else (2, 0.0, _plain(found))

    return key


def columns(spec: str) -> list[tuple[str, str]]:
    """For `-o custom-columns=NAME:.metadata.name,IP:.status.podIP`: titles and templates."""
    found = []
    for part in re.split(r",(?![^\[\]]*\])", spec):
        title, colon, template = part.partition(":")
        if not title or not colon or not template:
            raise ClusterError(f"custom-columns: {part!r} is not TITLE:PATH", 2)
        parse(template)
        found.append((title, template))
    return found
