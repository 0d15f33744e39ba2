"""ConfigMaps and Secrets: keys, base64, size."""

from __future__ import annotations

import base64
import binascii

from podwire_apiserver.validation.syntax import Problems, config_key
from podwire_core.objects import Json

MAX_DATA = 1024 * 1024


def check_config_map(found: Problems, obj: Json) -> None:
    data, binary = obj.get("data") or {}, obj.get("binaryData") or {}
    for field, values in (("data", data), ("binaryData", binary)):
        for key in values:
            found.check(f"$.{field}.{key}", key, config_key)
    for key in data.keys() & binary.keys():
        found.add(f"$.binaryData.{key}", "is in data, too")
    _check_base64(found, "$.binaryData", binary)
    if sum(map(len, data.values())) + sum(map(len, binary.values())) > MAX_DATA:
        found.add("$.data", f"more than {MAX_DATA} bytes")


def check_secret(found: Problems, obj: Json) -> None:
    data = obj.get("data") or {}
    for key in data:
        found.check(f"$.data.{key}", key, config_key)
    _check_base64(found, "$.data", data)
    if sum(map(len, data.values())) > MAX_DATA * 4 // 3:
        found.add("$.data", f"more than {MAX_DATA} bytes")


def _check_base64(found: Problems, path: str, values: dict[str, str]) -> None:
    for key, text in values.items():
        try:
            base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            found.add(f"{path}.{key}", "is not base64 (plain text goes to stringData or data)")
