"""Manifests: YAML or JSON text to objects, with one-line errors that say the file and the line.

Rules it keeps: YAML 1.2 core schema, so `y`, `no` and `on` are strings, as is a date; merge keys (`<<`) work, since manifests
use them. A file is taken whole or not at all. What could exhaust memory is refused: size, depth, aliases that multiply.
Duplicate keys, tabs, binary data and tags that are not YAML's own are errors. What an object means is for the API server to
judge; here it must be a mapping with apiVersion and kind. Lists (`kind: List`, `PodList` …) are taken apart.

Order to read: load, text to nodes, nodes to values, documents.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import yaml
from msgspec import Struct

Json = dict[str, Any]

MAX_SIZE = 32 * 1024 * 1024
MAX_DEPTH = 100
MAX_ALIASED = 100_000  # values that exist only because an alias repeats them
_TAG = "tag:yaml.org,2002:"


class ManifestError(ValueError):
    """`errors`: one line each, "web.yaml:3: what is wrong"."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


class Document(Struct):
    """An object and where it begins: "web.yaml:12"."""

    object: Json
    where: str


def load(data: bytes | str, name: str = "manifest") -> list[Document]:
    """All objects of a file, in order. Raises ManifestError."""
    if len(data) > MAX_SIZE:
        raise ManifestError([f"{name}: {len(data) / 1e6:.0f} MB; a manifest has at most {MAX_SIZE // 1_000_000} MB: split it"])
    text = data if isinstance(data, str) else _text(data, name)
    try:
        roots = _from_json(text, name) if text.lstrip()[:1] in ("{", "[") else None
        roots = _from_yaml(text, name) if roots is None else roots
    except RecursionError:
        raise ManifestError([f"{name}: nested deeper than {MAX_DEPTH} levels"]) from None
    documents: list[Document] = []
    errors: list[str] = []
    for root in roots:
        for item, where in _unlisted(root, name, errors):
            documents.append(Document(item, where))
    if errors:
        raise ManifestError(errors)
    return documents


def _text(data: bytes, name: str) -> str:
    if b"\0" in data:
        raise ManifestError([f"{name}: binary data (a zero byte at offset {data.index(0)}), expected YAML or JSON text"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError([f"{name}: not UTF-8 text (byte 0x{data[error.start]:02x} at offset {error.start})"]) from None


# --- text to nodes --------------------------------


class _Root(Struct):
    """A document's value, its line, and the lines of its `items` if it has some."""

    value: Any
    line: int
    items: list[int] = []


class _Loader(yaml.CBaseLoader):
    """The C parser with the core schema's rules for plain scalars."""


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


def _from_yaml(text: str, name: str) -> list[_Root]:
    roots = []
    try:
        _refuse_deep(text, name)
        loader = _Loader(text)
        while loader.check_node():
            node = loader.get_node()
            assert node is not None, "check_node said there is one"
            value = _Builder(name).value(node)
            if value is not None:
                roots.append(_Root(value, _line(node), _item_lines(node)))
    except yaml.MarkedYAMLError as error:
        raise ManifestError([_explain(error, text, name)]) from None
    except yaml.YAMLError as error:
        raise ManifestError([f"{name}: {' '.join(str(error).split())}"]) from None
    return roots


def _refuse_deep(text: str, name: str) -> None:
    """Before nodes are composed: the C composer recurses without a limit."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise ManifestError([f"{name}:{line}: nested deeper than {MAX_DEPTH} levels"])
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _explain(error: yaml.MarkedYAMLError, text: str, name: str) -> str:
    what = " ".join(filter(None, (error.problem, error.context)))
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return f"{name}: {what}"
    lines = text.splitlines()
    before = lines[mark.line][: mark.column + 1] if mark.line < len(lines) else ""
    if before.lstrip(" ").startswith("\t"):
        what = "a tab in the indentation; YAML indents with spaces"
    elif "maximum nesting depth" in what:  # newer versions of libyaml have a limit of their own
        what = f"nested deeper than {MAX_DEPTH} levels"
    return f"{name}:{mark.line + 1}: {what}"


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _item_lines(root: yaml.Node) -> list[int]:
    if isinstance(root, yaml.MappingNode):
        for key, value in root.value:
            if key.value == "items" and isinstance(value, yaml.SequenceNode):
                return [_line(item) for item in value.value]
    return []


# --- nodes to values --------------------------------


class _Builder:
    """One document's nodes as plain values. Aliases repeat a node, so its values are counted when it is met again."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: set[int] = set()
        self._open: set[int] = set()
        self._aliased = 0

    def value(self, node: yaml.Node, repeated: bool = False) -> Any:
        repeated = repeated or id(node) in self._seen
        if repeated:
            self._aliased += 1
            if self._aliased > MAX_ALIASED:
                raise self._error(node, f"aliases repeat more than {MAX_ALIASED} values; write it without them")
        self._seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._open:
            raise self._error(node, "an alias refers to what contains it")
        self._open.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            self._expect(node, "seq")
            result: Any = [self.value(item, repeated) for item in node.value]
        else:
            self._expect(node, "map")
            result = self._mapping(node, repeated)
        self._open.discard(id(node))
        return result

    def _mapping(self, node: yaml.Node, repeated: bool) -> Json:
        result: Json = {}
        merged: list[Json] = []
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                merged += self._merge(value_node, repeated)
                continue
            key = self._key(key_node)
            if key in result:
                raise self._error(key_node, f"the key {key!r} is there twice")
            result[key] = self.value(value_node, repeated)
        for mapping in merged:
            for key, value in mapping.items():
                result.setdefault(key, value)
        return result

    def _merge(self, node: yaml.Node, repeated: bool) -> list[Json]:
        value = self.value(node, repeated)
        mappings = value if isinstance(value, list) else [value]
        if not all(isinstance(mapping, dict) for mapping in mappings):
            raise self._error(node, "<< takes a mapping or a list of mappings")
        return mappings

    def _key(self, node: yaml.Node) -> str:
        """As Kubernetes does it, a number or a boolean as a key is its text."""
        if not isinstance(node, yaml.ScalarNode) or node.tag == _TAG + "null":
            raise self._error(node, "a key must be a string")
        return str(node.value)

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = node.value
        kind = node.tag.removeprefix(_TAG)
        try:
            if kind == "str" or kind == "merge":
                return text
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return _integer(text)
            if kind == "float":
                return _number(text)
        except (KeyError, ValueError):
            raise self._error(node, f"{text[:40]!r} is not a {kind} that JSON can hold") from None
        raise self._error(node, f"unknown tag {node.tag.replace(_TAG, '!!')}")

    def _expect(self, node: yaml.Node, kind: str) -> None:
        if node.tag != _TAG + kind:
            raise self._error(node, f"unknown tag {node.tag.replace(_TAG, '!!')}")

    def _error(self, node: yaml.Node, what: str) -> ManifestError:
        return ManifestError([f"{self._name}:{_line(node)}: {what}"])


def _integer(text: str) -> int:
    number = int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)
    if not -(2**63) <= number < 2**64:
        raise ValueError
    return number


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


# --- JSON --------------------------------


class _Twice(ValueError):
    pass


def _from_json(text: str, name: str) -> list[_Root] | None:
    """None if it is not JSON; then it may be YAML that begins with a brace."""

    def pairs(items: list[tuple[str, Any]]) -> Json:
        result = dict(items)
        if len(result) < len(items):
            keys = [key for key, _ in items]
            raise _Twice(next(key for key in keys if keys.count(key) > 1))
        return result

    def refuse(text: str) -> None:
        raise ManifestError([f"{name}: {text} is not a number that JSON can hold"])

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=refuse)
    except _Twice as twice:
        raise ManifestError([f"{name}: the key {str(twice)!r} is there twice"]) from None
    except ValueError:
        return None
    return [_Root(value, 1)]


# --- documents --------------------------------


def _unlisted(root: _Root, name: str, errors: list[str]) -> Iterator[tuple[Json, str]]:
    value, where = root.value, f"{name}:{root.line}"
    if not isinstance(value, dict):
        errors.append(f"{where}: expected an object (a mapping with apiVersion and kind), got {_type(value)}")
        return
    kind, items = value.get("kind"), value.get("items")
    is_list = isinstance(kind, str) and kind.endswith("List") and (isinstance(items, list) or kind == "List")
    if not is_list or not isinstance(kind, str):
        if _checked(value, where, errors):
            yield value, where
        return
    inherited = {"apiVersion": value.get("apiVersion"), "kind": kind.removesuffix("List")} if kind != "List" else {}
    for index, item in enumerate(items if isinstance(items, list) else []):
        at = f"{name}:{root.items[index]}" if index < len(root.items) else where
        if not isinstance(item, dict):
            errors.append(f"{at}: $.items[{index}]: expected an object, got {_type(item)}")
            continue
        item = {**inherited, **item}
        if _checked(item, at, errors):
            yield item, at


def _checked(obj: Json, where: str, errors: list[str]) -> bool:
    before = len(errors)
    for field in ("apiVersion", "kind"):
        value = obj.get(field)
        if value is None or value == "":
            errors.append(f"{where}: $.{field}: missing")
        elif not isinstance(value, str):
            errors.append(f"{where}: $.{field}: expected str, got {_type(value)}")
    return len(errors) == before


def _type(value: Any) -> str:
    names = {dict: "object", list: "array", str: "str", bool: "bool", int: "int", float: "float", type(None): "null"}
    return names[type(value)]
