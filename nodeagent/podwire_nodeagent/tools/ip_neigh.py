"""`ip neigh`."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from podwire_core.netlink import NeighAdd, NeighDel, NeighInfo
from podwire_nodeagent.tools.common import Client, ToolError, Words, abbreviates, apply, to_json, unsupported
from podwire_nodeagent.tools.ip import Options


def neighbour(words: Words, options: Options, client: Client) -> str:
    command = words.next() if words else "show"
    if abbreviates(command, "show") or abbreviates(command, "list"):
        return _show(words, options, client)
    if command in ("add", "a", "replace", "r", "change", "del", "delete", "d"):
        return _change(command, words, client)
    raise unsupported("ip neigh", [command, *words.rest()])


def _change(command: str, words: Words, client: Client) -> str:
    given: dict[str, str] = {}
    while words:
        word = words.next()
        if word in ("dev", "lladdr", "nud", "to"):
            given["dst" if word == "to" else word] = words.next(word)
        elif word == "permanent":
            continue
        else:
            given["dst"] = word
    if "dev" not in given or "dst" not in given:
        raise ToolError("Device and destination are required arguments.", 255)
    if command.startswith("d"):
        apply(client, [NeighDel(given["dst"], given["dev"])])
    elif given.get("nud", "permanent") != "permanent" or "lladdr" not in given:
        raise unsupported("ip neigh", [command, "(only: lladdr MAC nud permanent)"])
    else:
        apply(client, [NeighAdd(given["dst"], given["lladdr"], given["dev"], replace=command[0] in "rc")])
    return ""


def _show(words: Words, options: Options, client: Client) -> str:
    dev, only, state = "", "", ""
    while words:
        word = words.next()
        if word == "dev":
            dev = words.next("dev")
            if dev not in {info.name for info in client.dump("links")}:
                raise ToolError(f'Cannot find device "{dev}"')
        elif word == "nud":
            state = words.next("nud").upper()
        else:
            only = words.next("to") if word == "to" else word
    entries: list[NeighInfo] = [
        info
        for info in client.dump("neighs")
        if dev in ("", info.dev)
        and only in ("", info.dst)
        and state in ("", "ALL", info.state)
        and options.family in (0, ip_address(info.dst).version)
    ]
    entries.sort(key=lambda info: (ip_address(info.dst).version, info.dev, int(ip_address(info.dst))))
    if options.json:
        return to_json([_json(info) for info in entries], options.pretty)
    return "".join(_line(info, dev) for info in entries)


def _line(info: NeighInfo, hide_dev: str) -> str:
    link = "" if hide_dev else f"dev {info.dev} "
    lladdr = f"lladdr {info.lladdr} " if info.lladdr else ""
    return f"{info.dst} {link}{lladdr}{info.state} \n"


def _json(info: NeighInfo) -> dict[str, Any]:
    data: dict[str, Any] = {"dst": info.dst, "dev": info.dev}
    if info.lladdr:
        data["lladdr"] = info.lladdr
    return data | {"state": [info.state]}
