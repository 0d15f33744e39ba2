"""`bpftool map show|list|dump|lookup`, printed as bpftool 7 does for maps without BTF; `-j` and `-p` too."""

from __future__ import annotations

import json
from typing import Any

from podwire_core.netlink import BpfMapInfo
from podwire_nodeagent.tools.common import Client, ToolError, unsupported

PINNED = "/sys/fs/bpf/tc/globals/"
NAME_LENGTH = 15  # BPF_OBJ_NAME_LEN without its NUL


def main(argv: list[str], client: Client) -> str:
    flags = {word for word in argv if word.startswith("-")}
    words = [word for word in argv if not word.startswith("-")]
    unknown = flags - {"-j", "--json", "-p", "--pretty"}
    if unknown or len(words) < 2 or words[0] not in ("map", "m"):
        raise unsupported("bpftool", argv or ["help"])
    maps: list[BpfMapInfo] = client.dump("bpf.maps")
    pretty, as_json = bool(flags & {"-p", "--pretty"}), bool(flags)
    if words[1] in ("show", "list", "l"):
        chosen = maps if len(words) == 2 else [find(maps, words[2:])]
        if as_json:
            return text([described(each) for each in chosen] if len(words) == 2 else described(chosen[0]), pretty)
        return "".join(shown(each) for each in chosen)
    if words[1] in ("dump", "d"):
        found = find(maps, words[2:])
        return text(as_lists(found), pretty) if as_json else dumped(found)
    if words[1] == "lookup" and "key" in words:
        at = words.index("key")
        return looked_up(find(maps, words[2:at]), words[at + 1 :])
    raise unsupported("bpftool", argv)


def find(maps: list[BpfMapInfo], words: list[str]) -> BpfMapInfo:
    """By `name NAME` (the kernel keeps 15 characters of it), `id N` or `pinned PATH`."""
    if len(words) != 2 or words[0] not in ("name", "id", "pinned"):
        raise ToolError(f"Error: expected 'id', 'name' or 'pinned', got: '{' '.join(words)}'?", 255)
    how, what = words
    name = what.rsplit("/", 1)[-1] if how == "pinned" else what
    found = [each for each in maps if (str(each.id) == what if how == "id" else matches(each.name, name, how))]
    if not found:
        said = f"get by id ({what}): No such file or directory" if how == "id" else "can't parse name"
        raise ToolError(f"Error: {said}" if how != "pinned" else f"Error: bpf obj get ({what}): No such file or directory", 255)
    if len(found) > 1:
        raise ToolError("Error: several maps match this handle", 255)
    return found[0]


def matches(full: str, given: str, how: str) -> bool:
    return full == given or (how == "name" and full[:NAME_LENGTH] == given)


def memlock(found: BpfMapInfo) -> int:
    """About what the kernel accounts: the elements, padded to 8 bytes."""
    return len(found.elements) * (48 + -(-found.key_size // 8) * 8 + -(-found.value_size // 8) * 8)


def shown(found: BpfMapInfo) -> str:
    sizes = f"key {found.key_size}B  value {found.value_size}B  max_entries {found.max_entries}  memlock {memlock(found)}B"
    return f"{found.id}: {found.type}  name {found.name[:NAME_LENGTH]}  flags 0x1\n\t{sizes}\n\tpinned {PINNED}{found.name}\n"


def described(found: BpfMapInfo) -> dict[str, Any]:
    return {
        "id": found.id,
        "type": found.type,
        "name": found.name[:NAME_LENGTH],
        "flags": 1,
        "bytes_key": found.key_size,
        "bytes_value": found.value_size,
        "max_entries": found.max_entries,
        "bytes_memlock": memlock(found),
        "frozen": 0,
        "pinned": [PINNED + found.name],
    }


def hexes(data: bytes) -> str:
    """fprint_hex: two spaces in the middle of a line of 16."""
    lines = [data[at : at + 16] for at in range(0, len(data), 16)]
    return "\n".join("  ".join(part.hex(" ") for part in (line[:8], line[8:]) if part) for line in lines)


def dumped(found: BpfMapInfo) -> str:
    count = len(found.elements)
    elements = "".join(element(key, value) for key, value in found.elements.items())
    return f"{elements}Found {count} element{'' if count == 1 else 's'}\n"


def element(key: bytes, value: bytes) -> str:
    """print_entry_plain: in one line if both are short."""
    broken = len(key) > 16 or len(value) > 16
    after, between = ("\n", "\n") if broken else (" ", "  " if len(key) + len(value) <= 24 else "\n")
    return f"key:{after}{hexes(key)}{between}value:{after}{hexes(value)}\n"


def as_lists(found: BpfMapInfo) -> list[dict[str, list[str]]]:
    return [{"key": [f"{b:#04x}" for b in key], "value": [f"{b:#04x}" for b in value]} for key, value in found.elements.items()]


def looked_up(found: BpfMapInfo, words: list[str]) -> str:
    base = 16 if words[:1] == ["hex"] else 0
    try:
        key = bytes(int(word, base) for word in words[1 if base else 0 :])
    except ValueError:
        raise ToolError("Error: error parsing byte", 255) from None
    if len(key) != found.key_size:
        raise ToolError(f"Error: error parsing byte: expected {found.key_size} bytes of key, got {len(key)}", 255)
    if key not in found.elements:
        return f"key:\n{hexes(key)}\n\nNot found\n"
    return element(key, found.elements[key])


def text(data: Any, pretty: bool) -> str:
    return json.dumps(data, indent=4 if pretty else None, separators=None if pretty else (",", ":")) + ("\n" if pretty else "")
