"""`bridge fdb` and `bridge link`."""

from __future__ import annotations

from typing import Any

from podwire_core.netlink import FdbAdd, FdbDel, FdbInfo, LinkInfo, LinkSet
from podwire_nodeagent.tools.common import Client, ToolError, Words, abbreviates, apply, to_json, unsupported
from podwire_nodeagent.tools.ip import Options, options
from podwire_nodeagent.tools.ip_link import flags


def main(argv: list[str], client: Client) -> str:
    words = Words(argv)
    found = options(words, "bridge")
    if not words:
        raise ToolError("Usage: bridge [ OPTIONS ] { link | fdb } { COMMAND | help }", 255)
    name = words.next()
    if abbreviates(name, "fdb"):
        return _fdb(words, found, client)
    if abbreviates(name, "link"):
        return _link(words, found, client)
    if abbreviates(name, "vlan") or abbreviates(name, "mdb"):
        return ""
    raise ToolError(f'Object "{name}" is unknown, try "bridge help".')


def _fdb(words: Words, found: Options, client: Client) -> str:
    command = words.next() if words else "show"
    if command in ("add", "append", "replace", "del", "delete"):
        return _change(command, words, client)
    if not (abbreviates(command, "show") or abbreviates(command, "list")):
        raise unsupported("bridge fdb", [command, *words.rest()])
    dev = master = ""
    while words:
        word = words.next()
        if word in ("dev", "brport"):
            dev = words.next(word)
        elif word in ("br", "master"):
            master = words.next(word)
        elif word != "state":
            raise unsupported("bridge fdb show", [word])
    names = {info.name for info in client.dump("links")}
    for name in (dev, master):
        if name and name not in names:
            raise ToolError(f'Cannot find device "{name}"', 255)
    entries = [info for info in client.dump("fdb") if dev in ("", info.dev) and master in ("", info.master, info.dev)]
    if found.json:
        return to_json([_json(info, dev) for info in entries], found.pretty)
    return "".join(_line(info, dev, found.statistics) for info in entries)


def _change(command: str, words: Words, client: Client) -> str:
    mac, dev, dst = words.next("address"), "", ""
    while words:
        word = words.next()
        if word == "dev":
            dev = words.next("dev")
        elif word == "dst":
            dst = words.next("dst")
        elif word not in ("self", "permanent", "static", "master"):
            raise unsupported("bridge fdb", [command, word])
    if not dev:
        raise ToolError("Device and address are required arguments.", 255)
    if command.startswith("d"):
        apply(client, [FdbDel(mac, dev, dst)])
    else:
        apply(client, [FdbAdd(mac, dev, dst, replace=command != "add")])
    return ""


def _line(info: FdbInfo, hide_dev: str, statistics: bool) -> str:
    words = [info.mac]
    if not hide_dev:
        words.append(f"dev {info.dev}")
    if info.dst:
        words.append(f"dst {info.dst}")
    if statistics:
        words.append(f"used {int(info.age)}/{int(info.age)}")
    words.append(f"master {info.master}" if info.master else "self")
    words.append("" if info.state == "dynamic" else info.state)
    return " ".join(words) + "\n"


def _json(info: FdbInfo, hide_dev: str) -> dict[str, Any]:
    data: dict[str, Any] = {"mac": info.mac}
    if not hide_dev:
        data["ifname"] = info.dev
    if info.dst:
        data["dst"] = info.dst
    data["flags"] = [] if info.master else ["self"]
    if info.master:
        data["master"] = info.master
    return data | {"state": "" if info.state == "dynamic" else info.state}


def _link(words: Words, found: Options, client: Client) -> str:
    command = words.next() if words else "show"
    if abbreviates(command, "set"):
        return _set(words, client)
    if not (abbreviates(command, "show") or abbreviates(command, "list")):
        raise unsupported("bridge link", [command, *words.rest()])
    dev = words.next("dev") if words and words.next() == "dev" else ""
    ports: list[LinkInfo] = [info for info in client.dump("links") if info.master and dev in ("", info.name)]
    if found.json:
        return to_json([_port_json(info) for info in ports], found.pretty)
    return "".join(_port_line(info, found.details) for info in ports)


def _port_state(info: LinkInfo) -> str:
    return "forwarding" if info.up and info.attached else "disabled"


def _port_line(info: LinkInfo, details: bool) -> str:
    text = f"{info.index}: {info.name}@{info.master}: <{','.join(flags(info))}> mtu {info.mtu} master {info.master} "
    text += f"state {_port_state(info)} priority 32 cost 2 \n"
    if details:
        text += f"    hairpin {'on' if info.hairpin else 'off'} guard off root_block off fastleave off learning on flood on \n"
    return text


def _port_json(info: LinkInfo) -> dict[str, Any]:
    return {
        "ifindex": info.index,
        "link": info.master,
        "ifname": info.name,
        "flags": flags(info),
        "mtu": info.mtu,
        "master": info.master,
        "state": _port_state(info),
        "priority": 32,
        "cost": 2,
        "hairpin": info.hairpin,
    }


def _set(words: Words, client: Client) -> str:
    dev, hairpin = "", None
    while words:
        word = words.next()
        if word == "dev":
            dev = words.next("dev")
        elif word == "hairpin":
            value = words.next("hairpin")
            if value not in ("on", "off"):
                raise ToolError('Error: argument of "hairpin" must be one of "on" or "off"', 255)
            hairpin = value == "on"
        else:
            raise unsupported("bridge link set", [word])
    apply(client, [LinkSet(dev, hairpin=hairpin)])
    return ""
