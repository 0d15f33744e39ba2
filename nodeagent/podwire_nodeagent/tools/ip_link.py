"""`ip link` and `ip addr`."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from typing import Any

from podwire_core.netlink import AddrAdd, AddrDel, AddrInfo, LinkDel, LinkInfo, LinkSet
from podwire_nodeagent.tools.common import Client, ToolError, Words, abbreviates, apply, to_json, unsupported
from podwire_nodeagent.tools.ip import Options

FOREVER = 4294967295
# the kernel's kinds, for `ip link show type KIND` and -d
_KINDS = {"tap": "veth", "host": "veth", "bridge": "bridge", "vxlan": "vxlan", "dummy": "dummy"}
_TAIL = (
    "addrgenmode eui64 numtxqueues 1 numrxqueues 1 gso_max_size 65536 gso_max_segs 65535 "
    "tso_max_size 65536 tso_max_segs 65535 gro_max_size 65536 "
)
_TAIL_JSON = {
    "inet6_addr_gen_mode": "eui64",
    "num_tx_queues": 1,
    "num_rx_queues": 1,
    "gso_max_size": 65536,
    "gso_max_segs": 65535,
    "tso_max_size": 65536,
    "tso_max_segs": 65535,
    "gro_max_size": 65536,
}


def link(words: Words, options: Options, client: Client) -> str:
    command = words.next() if words else "show"
    if abbreviates(command, "show") or abbreviates(command, "list") or command == "lst":
        return _show(words, options, client, with_addresses=False)
    if abbreviates(command, "set"):
        return _set(words, client)
    if abbreviates(command, "delete"):
        apply(client, [LinkDel(_device(words))])
        return ""
    raise unsupported("ip link", [command, *words.rest()])


def address(words: Words, options: Options, client: Client) -> str:
    command = words.next() if words else "show"
    if abbreviates(command, "show") or abbreviates(command, "list") or command == "lst":
        return _show(words, options, client, with_addresses=True)
    if command in ("add", "a", "replace", "change", "del", "delete", "d"):
        return _change_address(command, words, client)
    raise unsupported("ip addr", [command, *words.rest()])


def _device(words: Words) -> str:
    word = words.next("dev")
    return words.next("dev") if word == "dev" else word


# --- writing --------------------------------


def _set(words: Words, client: Client) -> str:
    name = _device(words)
    up: bool | None = None
    mtu: int | None = None
    master: str | None = None
    while words:
        word = words.next()
        if word in ("up", "down"):
            up = word == "up"
        elif word == "mtu":
            text = words.next("mtu")
            if not text.isdecimal():
                raise ToolError(f'Error: argument "{text}" is wrong: Invalid "mtu" value', 255)
            mtu = int(text)
        elif word == "master":
            master = words.next("master")
        elif word == "nomaster":
            master = ""
        else:
            raise unsupported("ip link set", [word])
    _find(client.dump("links"), name)
    apply(client, [LinkSet(name, up=up, mtu=mtu, master=master)])
    return ""


def _change_address(command: str, words: Words, client: Client) -> str:
    text, name = words.next("address"), ""
    while words:
        word = words.next()
        if word == "dev":
            name = words.next("dev")
        elif word in ("scope", "label", "brd", "broadcast"):
            words.next(word)
        else:
            raise unsupported("ip addr", [word])
    try:
        wanted = str(ip_interface(text))
    except ValueError:
        raise ToolError(f'Error: any valid prefix is expected rather than "{text}".') from None
    if not name:
        raise ToolError('Not enough information: "dev" argument is required.', 255)
    _find(client.dump("links"), name)
    if command.startswith("d"):
        apply(client, [AddrDel(name, wanted)])
    else:
        apply(client, [AddrAdd(name, wanted, replace=not command.startswith("a"))])
    return ""


# --- showing --------------------------------


def _find(links: list[LinkInfo], name: str) -> LinkInfo:
    for found in links:
        if found.name == name:
            return found
    raise ToolError(f'Device "{name}" does not exist.' if name else "no device", 1)


def _show(words: Words, options: Options, client: Client, with_addresses: bool) -> str:
    links: list[LinkInfo] = client.dump("links")
    every = {found.name: found for found in links}
    addresses: list[AddrInfo] = client.dump("addrs") if with_addresses else []
    chosen = links
    while words:
        word = words.next()
        if word == "up":
            chosen = [found for found in chosen if found.up]
        elif word == "type":
            kind = words.next("type")
            chosen = [found for found in chosen if _KINDS.get(found.kind) == kind]
        elif word == "master":
            master = _find(links, words.next("master")).name
            chosen = [found for found in chosen if found.master == master]
        elif word in ("scope", "label"):
            words.next(word)
        else:
            chosen = [_find(links, words.next("dev") if word == "dev" else word)]
    if with_addresses and options.family:
        chosen = [found for found in chosen if _addresses(found, addresses, options.family)]
    if options.json:
        return to_json([_json(found, options, addresses, every, with_addresses) for found in chosen], options.pretty)
    text = ""
    for found in chosen:
        if options.brief:
            text += _brief(found, addresses, options, with_addresses, every)
        elif options.oneline and with_addresses:
            text += _oneline(found, addresses, options)
        else:
            lines = _text(found, options, addresses, every, with_addresses)
            text += ("\\" if options.oneline else "\n").join(lines) + "\n"
    return text


def operstate(info: LinkInfo) -> str:
    if not info.up:
        return "DOWN"
    if info.kind in ("vxlan", "dummy") or info.name == "lo":
        return "UNKNOWN"
    return "UP" if info.attached else "LOWERLAYERDOWN"


def flags(info: LinkInfo) -> list[str]:
    if info.name == "lo":
        return ["LOOPBACK", "UP", "LOWER_UP"] if info.up else ["LOOPBACK"]
    names = [] if info.attached or not info.up else ["NO-CARRIER"]
    names += ["BROADCAST", "NOARP" if info.kind == "dummy" else "MULTICAST"]
    if info.up:
        names += ["UP", "LOWER_UP"] if info.attached else ["UP"]
    return names


def _hardware(info: LinkInfo) -> tuple[str, str]:
    """Link type and broadcast address."""
    return ("loopback", "00:00:00:00:00:00") if info.name == "lo" else ("ether", "ff:ff:ff:ff:ff:ff")


def _label(info: LinkInfo) -> str:
    """A pod's end is the second device of its namespace."""
    return f"{info.name}@if2" if _KINDS.get(info.kind) == "veth" else info.name


def _netns_id(info: LinkInfo, every: dict[str, LinkInfo]) -> int | None:
    if _KINDS.get(info.kind) != "veth":
        return None
    return [found.name for found in every.values() if _KINDS.get(found.kind) == "veth"].index(info.name)


def _addresses(info: LinkInfo, addresses: list[AddrInfo], family: int) -> list[str]:
    own = (entry.address for entry in addresses if entry.dev == info.name)
    return [text for text in own if not family or (":" in text) == (family == 6)]


def _scope(text: str) -> str:
    parsed = ip_interface(text).ip
    if parsed.is_loopback:
        return "host"
    return "link" if parsed.version == 6 and parsed.is_link_local else "global"


def _text(
    info: LinkInfo, options: Options, addresses: list[AddrInfo], every: dict[str, LinkInfo], with_addresses: bool
) -> list[str]:
    master = f" master {info.master}" if info.master else ""
    mode = "" if with_addresses else " mode DEFAULT"
    line = f"{info.index}: {_label(info)}: <{','.join(flags(info))}> mtu {info.mtu} qdisc noqueue{master}"
    lines = [f"{line} state {operstate(info)}{mode} group default qlen 1000"]
    netns = _netns_id(info, every)
    tail = f" link-netnsid {netns}" if netns is not None else ""
    if options.details:
        tail += f" promiscuity {int(bool(info.master))}  allmulti {int(bool(info.master))} minmtu 68 maxmtu 65535 "
    if with_addresses and options.family:
        lines[0] += tail.rstrip() if not options.details else tail
    else:
        kind, broadcast = _hardware(info)
        lines.append(f"    link/{kind} {info.mac} brd {broadcast}{tail}")
    if options.details:
        lines += _details(info)
    if info.alias:
        lines.append(f"    alias {info.alias}")
    if options.statistics:
        lines += _statistics(info)
    if with_addresses:
        for text in _addresses(info, addresses, options.family):
            family = "inet6" if ":" in text else "inet"
            name = "" if family == "inet6" else info.name
            lines.append(f"    {family} {text} scope {_scope(text)} {name}")
            lines.append("       valid_lft forever preferred_lft forever")
    return lines


def _details(info: LinkInfo) -> list[str]:
    """The kind's own line(s); what the datapath has no notion of is left out."""
    lines = []
    if info.kind == "vxlan":
        learning = "learning" if info.learning else "nolearning"
        local = f" local {info.local}" if info.local else ""
        lines.append(
            f"    vxlan id {info.vni}{local} dev eth0 srcport 0 0 dstport {info.dstport} {learning} ttl auto ageing 300 "
            "udpcsum noudp6zerocsumtx noudp6zerocsumrx "
        )
    elif info.kind == "bridge":
        lines.append(
            f"    bridge forward_delay 1500 hello_time 200 max_age 2000 ageing_time 30000 stp_state 0 priority 32768 "
            f"vlan_filtering 0 bridge_id 8000.{info.mac} designated_root 8000.{info.mac} root_port 0 root_path_cost 0 "
        )
    elif _KINDS.get(info.kind) == "veth":
        lines.append("    veth ")
    if info.master:
        hairpin = "on" if info.hairpin else "off"
        lines.append(f"    bridge_slave state forwarding priority 32 cost 2 hairpin {hairpin} guard off learning on flood on ")
    if not lines:
        return ["    " + _TAIL]
    lines[-1] += _TAIL
    return lines


def _statistics(info: LinkInfo) -> list[str]:
    """Columns as wide as the widest of their numbers, RX and TX alike."""
    names = ("bytes", "packets", "errors", "dropped")
    sides = [[str(info.stats.get(f"{side}_{name}", 0)) for name in names] + ["0", "0"] for side in ("rx", "tx")]
    widths = [max(low, *map(len, column)) for low, column in zip((10, 7, 6, 7, 7, 7), zip(*sides, strict=True), strict=True)]
    lines = []
    for title, last, values in zip(("RX", "TX"), (("missed", "mcast"), ("carrier", "collsns")), sides, strict=True):
        head = zip([widths[0] - 4, *widths[1:]], (*names, *last), strict=True)
        lines.append(f"    {title}: " + "".join(f"{name:>{width}} " for width, name in head) + " " * 10)
        lines.append("    " + "".join(f"{value:>{width}} " for width, value in zip(widths, values, strict=True)))
    return lines


def _brief(info: LinkInfo, addresses: list[AddrInfo], options: Options, with_addresses: bool, every: dict[str, LinkInfo]) -> str:
    if with_addresses:
        rest = "".join(text + " " for text in _addresses(info, addresses, options.family))
    else:
        rest = f"{info.mac} <{','.join(flags(info))}> "
    return f"{_label(info):<16} {operstate(info):<14} {rest}\n"


def _oneline(info: LinkInfo, addresses: list[AddrInfo], options: Options) -> str:
    text = ""
    for found in _addresses(info, addresses, options.family):
        family, name = ("inet6", "") if ":" in found else ("inet", info.name)
        text += f"{info.index}: {info.name}    {family} {found} scope {_scope(found)} {name}\\"
        text += "       valid_lft forever preferred_lft forever\n"
    return text


def _json(
    info: LinkInfo, options: Options, addresses: list[AddrInfo], every: dict[str, LinkInfo], with_addresses: bool
) -> dict[str, Any]:
    data: dict[str, Any] = {"ifindex": info.index}
    netns = _netns_id(info, every)
    if netns is not None:
        data["link_index"] = 2
    data |= {"ifname": info.name, "flags": flags(info), "mtu": info.mtu, "qdisc": "noqueue"}
    if info.master:
        data["master"] = info.master
    data["operstate"] = operstate(info)
    if not with_addresses:
        data["linkmode"] = "DEFAULT"
    kind, broadcast = _hardware(info)
    data |= {"group": "default", "txqlen": 1000, "link_type": kind, "address": info.mac, "broadcast": broadcast}
    if netns is not None:
        data["link_netnsid"] = netns
    if options.details:
        data |= _json_details(info)
    if info.alias:
        data["ifalias"] = info.alias
    if options.statistics:
        data["stats64"] = {
            side: {name: info.stats.get(f"{side}_{name}", 0) for name in ("bytes", "packets", "errors", "dropped")}
            for side in ("rx", "tx")
        }
    if with_addresses:
        data["addr_info"] = [_json_address(info, text) for text in _addresses(info, addresses, options.family)]
    return data


def _json_details(info: LinkInfo) -> dict[str, Any]:
    kind: dict[str, Any] = {}
    if info.kind in _KINDS:
        kind["info_kind"] = _KINDS[info.kind]
    if info.kind == "vxlan":
        kind["info_data"] = {
            "id": info.vni,
            "local": info.local,
            "link": "eth0",
            "port_range": {"low": 0, "high": 0},
            "port": info.dstport,
            "learning": info.learning,
            "ttl": 0,
            "ageing": 300,
            "udp_csum": True,
        }
    if info.master:
        kind["info_slave_kind"] = "bridge"
        kind["info_slave_data"] = {"state": "forwarding", "priority": 32, "cost": 2, "hairpin": info.hairpin}
    promiscuity = int(bool(info.master))
    data: dict[str, Any] = {"promiscuity": promiscuity, "allmulti": promiscuity, "min_mtu": 68, "max_mtu": 65535}
    if kind:
        data["linkinfo"] = kind
    return data | _TAIL_JSON


def _json_address(info: LinkInfo, text: str) -> dict[str, Any]:
    parsed = ip_interface(text)
    data: dict[str, Any] = {
        "family": "inet" if parsed.version == 4 else "inet6",
        "local": str(ip_address(parsed.ip)),
        "prefixlen": parsed.network.prefixlen,
        "scope": _scope(text),
    }
    if parsed.version == 4:
        data["label"] = info.name
    return data | {"valid_life_time": FOREVER, "preferred_life_time": FOREVER}
