"""Types of fields: all that are wrong in an object, where msgspec's decoder stops at the first.

The decoder decides (in C, a microsecond); only an object it refuses is walked here to find the rest.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import inspect

from podwire_apiserver.validation.syntax import Problems
from podwire_core.errors import Cause

_NAMES = {dict: "object", list: "array", str: "str", bool: "bool", int: "int", float: "float", bytes: "bytes", type(None): "null"}
_EXPECTED: list[tuple[type, tuple[type, ...], str]] = [
    (inspect.StrType, (str,), "str"),
    (inspect.BoolType, (bool,), "bool"),
    (inspect.IntType, (int,), "int"),
    (inspect.FloatType, (int, float), "float"),
    (inspect.ListType, (list,), "array"),
    (inspect.DictType, (dict,), "object"),
    (inspect.StructType, (dict,), "object"),
    (inspect.NoneType, (type(None),), "null"),
]


def type_name(value: Any) -> str:
    return _NAMES.get(type(value), type(value).__name__)


def all_type_errors(shape: type, obj: Any) -> list[Cause]:
    try:
        msgspec.convert(obj, shape)
    except msgspec.ValidationError as error:
        found = Problems()
        _walk(found, inspect.type_info(shape), obj, "$")
        return found.causes or [Cause("$", str(error))]
    return []


def _walk(found: Problems, shape: inspect.Type, value: Any, path: str) -> None:
    options = [s for s in shape.types if not isinstance(s, inspect.NoneType)] if isinstance(shape, inspect.UnionType) else [shape]
    if value is None and isinstance(shape, inspect.UnionType) and shape.includes_none:
        return
    fitting = next((option for option in options if _fits(option, value)), None)
    if fitting is None:
        expected = " or ".join(_expected(option) for option in options)
        found.add(path, f"expected {expected}, got {type_name(value)}")
    elif isinstance(fitting, inspect.StructType):
        _walk_fields(found, fitting, value, path)
    elif isinstance(fitting, inspect.ListType):
        for index, item in enumerate(value):
            _walk(found, fitting.item_type, item, f"{path}[{index}]")
    elif isinstance(fitting, inspect.DictType):
        for key, item in value.items():
            _walk(found, fitting.value_type, item, f"{path}.{key}")


def _walk_fields(found: Problems, shape: inspect.StructType, value: dict[str, Any], path: str) -> None:
    for field in shape.fields:
        if field.encode_name in value:
            _walk(found, field.type, value[field.encode_name], f"{path}.{field.encode_name}")
        elif field.required:
            found.add(f"{path}.{field.encode_name}", "missing")


def _fits(shape: inspect.Type, value: Any) -> bool:
    for kind, types, _ in _EXPECTED:
        if isinstance(shape, kind):
            return isinstance(value, types) and (bool in types or not isinstance(value, bool))
    return True  # Any


def _expected(shape: inspect.Type) -> str:
    return next((name for kind, _, name in _EXPECTED if isinstance(shape, kind)), "any")
