"""`ip route` and `ip rule`. `ip route get` looks the address up in the dumped tables, as the datapath's FIB does."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from typing import Any

import msgspec

from podwire_core.netlink import AddrInfo, RouteAdd, RouteDel, RouteInfo
from podwire_nodeagent.tools.common import Client, ToolError, Words, abbreviates, apply, to_json, unsupported
from podwire_nodeagent.tools.ip import Options

Net = IPv4Network | IPv6Network
_REFUSALS = {
    "unreachable": "No route to host",
    "blackhole": "Invalid argument",
    "prohibit": "Permission denied",
}
_TYPES = ("unicast", "local", "broadcast", *_REFUSALS)


def rule(words: Words, options: Options, client: Client) -> str:
    command = words.next() if words else "show"
    if not (abbreviates(command, "show") or abbreviates(command, "list")):
        raise unsupported("ip rule", [command, *words.rest()])
    tables = [(0, "local"), (32766, "main")] + ([] if options.family == 6 else [(32767, "default")])
    if options.json:
        return to_json([{"priority": number, "src": "all", "table": table} for number, table in tables], options.pretty)
    return "".join(f"{number}:\tfrom all lookup {table}\n" for number, table in tables)


def route(words: Words, options: Options, client: Client) -> str:
    command = words.next() if words else "show"
    if abbreviates(command, "get"):
        return _get(words, options, client)
    if abbreviates(command, "show") or abbreviates(command, "list"):
        return _show(words, options, client)
    if command in ("add", "a", "replace", "r", "append", "change", "del", "delete", "d"):
        return _change(command, words, client)
    raise unsupported("ip route", [command, *words.rest()])


def _network(dst: str, family: int) -> Net:
    if dst == "default":
        return ip_network("::/0" if family == 6 else "0.0.0.0/0")
    return ip_network(dst, strict=False)


def _family(info: RouteInfo) -> int:
    return 6 if ":" in info.dst or ":" in info.via or ":" in info.src else 4


# --- writing --------------------------------


def _change(command: str, words: Words, client: Client) -> str:
    given: dict[str, str] = {}
    kind, onlink = "unicast", False
    while words:
        word = words.next()
        if word == "onlink":
            onlink = True
        elif word in _TYPES:
            kind = word
        elif word in ("via", "dev", "src", "metric", "proto", "protocol", "scope", "table", "to"):
            given[{"protocol": "proto", "to": "dst"}.get(word, word)] = words.next(word)
        elif "dst" not in given:
            given["dst"] = word
        else:
            raise unsupported("ip route", [word])
    dst = _destination(given.get("dst", ""))
    if not given.get("metric", "0").isdecimal():
        raise ToolError(f'Error: argument "{given["metric"]}" is wrong: "metric" value is invalid', 255)
    metric = int(given.get("metric", "0"))
    dev, via, src = given.get("dev", ""), given.get("via", ""), given.get("src", "")
    if command.startswith("d"):
        apply(client, [RouteDel(dst, dev, via, metric)])
        return ""
    wanted = RouteAdd(dst, dev, via, src, onlink, metric, given.get("proto", "boot"), kind, command[0] in "rc")
    apply(client, [wanted])
    return ""


def _destination(text: str) -> str:
    if text in ("default", ""):
        return "default"
    try:
        return str(ip_network(text))
    except ValueError:
        raise ToolError(f'Error: any valid prefix is expected rather than "{text}".') from None


# --- showing --------------------------------


def _show(words: Words, options: Options, client: Client) -> str:
    table, dev, only = "main", "", ""
    exact = True
    while words:
        word = words.next()
        if word == "table":
            table = {"254": "main", "255": "local", "0": "all"}.get(name := words.next("table"), name)
        elif word == "dev":
            dev = words.next("dev")
        elif word in ("proto", "via", "type", "scope"):
            raise unsupported("ip route show", [word])
        elif word in ("match", "root", "exact", "to"):
            exact = word in ("exact", "to")
            only = words.next(word)
        else:
            only = word
    routes = [info for info in client.dump("routes") if table in ("all", info.table)]
    wanted = {4} if options.family == 4 else {6} if options.family == 6 else {4, 6} if table == "all" else {4}
    routes = [info for info in routes if _family(info) in wanted and dev in ("", info.dev, *(hop.dev for hop in info.nexthops))]
    if only:
        routes = [info for info in routes if _selected(info, only, exact)]
    routes.sort(key=_order)
    if options.json:
        return to_json([_json(info, options) for info in routes], options.pretty)
    return "".join(_line(info, options, hide_dev=dev, show_table=table == "all") for info in routes)


def _selected(info: RouteInfo, only: str, exact: bool) -> bool:
    net = _network(info.dst, _family(info))
    if only == "default":
        return net.prefixlen == 0
    wanted = _network(_destination(only), _family(info))
    if exact or wanted.version != net.version:
        return net == wanted
    return wanted.subnet_of(net)  # type: ignore[arg-type]


def _order(info: RouteInfo) -> tuple[bool, int, int, int, int]:
    """The kernel's: by address, the longer prefix first, then by metric; the local table last."""
    net = _network(info.dst, _family(info))
    return info.table != "main", net.version, int(net.network_address), -net.prefixlen, info.metric


def _text_dst(info: RouteInfo) -> str:
    if info.dst == "default":
        return info.dst
    net = ip_network(info.dst, strict=False)
    if net.prefixlen == 0:
        return "default"
    return str(net.network_address) if net.prefixlen == net.max_prefixlen else str(net)


def _line(info: RouteInfo, options: Options, hide_dev: str, show_table: bool) -> str:
    words = [info.type] if info.type != "unicast" or options.details else []
    words.append(_text_dst(info))
    if info.via:
        words.append(f"via {info.via}")
    if info.dev and not hide_dev:
        words.append(f"dev {info.dev}")
    if show_table and info.table != "main":
        words.append(f"table {info.table}")
    if info.proto != "boot" or options.details:
        words.append(f"proto {info.proto}")
    if info.scope != "global" or options.details:
        words.append(f"scope {info.scope}")
    if info.src:
        words.append(f"src {info.src}")
    if info.metric:
        words.append(f"metric {info.metric}")
    if info.onlink:
        words.append("onlink")
    hops = "".join(f"\tnexthop via {hop.via} dev {hop.dev} weight {hop.weight} \n" for hop in info.nexthops)
    return " ".join(words) + (" \n" if _family(info) == 4 else " pref medium\n") + hops


def _json(info: RouteInfo, options: Options) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if info.type != "unicast" or options.details:
        data["type"] = info.type
    data["dst"] = _text_dst(info)
    if info.via:
        data["gateway"] = info.via
    if info.dev:
        data["dev"] = info.dev
    if info.proto != "boot" or options.details:
        data["protocol"] = info.proto
    if info.scope != "global" or options.details:
        data["scope"] = info.scope
    if info.src:
        data["prefsrc"] = info.src
    if info.metric:
        data["metric"] = info.metric
    data["flags"] = ["onlink"] if info.onlink else []
    if info.nexthops:
        data["nexthops"] = [{"gateway": hop.via, "dev": hop.dev, "weight": hop.weight, "flags": []} for hop in info.nexthops]
    return data


# --- looking up --------------------------------


def lookup(routes: list[RouteInfo], text: str) -> RouteInfo | None:
    """The most specific route, of the local table if that has any; among equals the smallest metric."""
    wanted = ip_address(text)
    for table in ("local", "main"):
        fitting = [
            info
            for info in routes
            if info.table == table and _family(info) == wanted.version and wanted in _network(info.dst, _family(info))
        ]
        if fitting:
            return min(fitting, key=lambda info: (-_network(info.dst, _family(info)).prefixlen, info.metric))
    return None


def _get(words: Words, options: Options, client: Client) -> str:
    target = ""
    while words:
        word = words.next()
        if word in ("from", "iif", "oif", "dev", "mark", "uid"):
            raise unsupported("ip route get", [word])
        target = words.next("to") if word == "to" else word
    try:
        text = str(ip_interface(target).ip)
    except ValueError:
        raise ToolError(f'Error: any valid prefix is expected rather than "{target}".') from None
    found = lookup(client.dump("routes"), text)
    if found is None:
        raise ToolError("RTNETLINK answers: Network is unreachable", 2)
    if found.type in _REFUSALS:
        raise ToolError(f"RTNETLINK answers: {_REFUSALS[found.type]}", 2)
    if found.nexthops:  # which one depends on the flow; the tool asks for none in particular
        found = msgspec.structs.replace(found, via=found.nexthops[0].via, dev=found.nexthops[0].dev)
    local = found.type == "local"
    dev = "lo" if local else found.dev
    src = text if local else found.src or _source(client.dump("addrs"), found, text)
    if options.json:
        data: dict[str, Any] = {"type": found.type} if found.type != "unicast" else {}
        data["dst"] = text
        if found.via:
            data["gateway"] = found.via
        data |= {"dev": dev, "prefsrc": src, "flags": [], "uid": 0, "cache": ["local"] if local else []}
        return to_json([data], options.pretty)
    kind = f"{found.type} " if found.type != "unicast" else ""
    via = f" via {found.via}" if found.via else ""
    cache = "<local> " if local else ""
    return f"{kind}{text}{via} dev {dev} src {src} uid 0 \n    cache {cache}\n"


def _source(addresses: list[AddrInfo], found: RouteInfo, text: str) -> str:
    """The address of the link whose network holds the next hop, else its first, else the node's first."""
    version = ip_address(text).version
    own = [entry for entry in addresses if ip_interface(entry.address).version == version]
    here = [ip_interface(entry.address) for entry in own if entry.dev == found.dev]
    hop = ip_address(found.via or text)
    for candidate in here:
        if hop in candidate.network:
            return str(candidate.ip)
    first = here or [ip_interface(entry.address) for entry in own]
    return str(first[0].ip) if first else ("::" if version == 6 else "0.0.0.0")
