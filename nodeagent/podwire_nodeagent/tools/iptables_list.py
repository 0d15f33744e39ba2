"""`iptables -L`: a table as columns. Spellings are those of iptables 1.8.9, with its quirks (-n prints protocols as numbers)."""

from __future__ import annotations

from functools import cache
from ipaddress import ip_network
from pathlib import Path

from podwire_core import netfilter as nf
from podwire_core.iptables_rule import PROTOCOL_NAMES
from podwire_core.netlink import RuleCounters, TableDump

_NUMBERS = {name: number for number, name in PROTOCOL_NAMES.items() if number.isdecimal()} | {"all": "0"}
_ICMP = {0: "echo-reply", 3: "destination-unreachable", 8: "echo-request", 11: "time-exceeded", 12: "parameter-problem"}
_ICMP6 = {1: "destination-unreachable", 2: "packet-too-big", 128: "echo-request", 129: "echo-reply"}


@cache
def _services() -> dict[tuple[str, int], str]:
    """The names of ports, from where the real tool has them too; without the file ports stay numbers."""
    found: dict[tuple[str, int], str] = {}
    try:
        lines = Path("/etc/services").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        words = line.partition("#")[0].split()
        port, _, proto = words[1].partition("/") if len(words) > 1 else ("", "", "")
        if port.isdecimal():
            found.setdefault((proto, int(port)), words[0])
    return found


def list_table(dump: TableDump, chains: list[nf.Chain], numeric: bool, verbose: bool, exact: bool, numbers: bool) -> str:
    """The chains, each with its title and its rules."""
    references = _references(dump.table)
    blocks = []
    for chain in chains:
        lines = [_title(dump, chain, references.get(chain.name, 0), verbose), _header(verbose, exact, numbers)]
        counters = dump.counters.get(chain.name, [])
        for position, rule in enumerate(chain.rules):
            counted = counters[position] if position < len(counters) else RuleCounters(0, 0)
            start = f"{position + 1:<4} " if numbers else ""
            start += f"{_count(counted.packets, exact, 5)} {_count(counted.bytes, exact, 5)} " if verbose else ""
            lines.append(start + _rule(rule, dump.table.family, numeric, verbose))
        blocks.append("".join(line + "\n" for line in lines))
    return "\n".join(blocks)


def _references(table: nf.Table) -> dict[str, int]:
    found: dict[str, int] = {}
    for chain in table.chains:
        for rule in chain.rules:
            if isinstance(rule.target, nf.Jump):
                found[rule.target.chain] = found.get(rule.target.chain, 0) + 1
    return found


def _count(value: int, exact: bool, width: int) -> str:
    """Five columns, with K, M, G, T above 99999."""
    if exact:
        return f"{value:>8}" if width == 5 else str(value)
    for unit in ("", "K", "M", "G"):
        if value <= (99999 if not unit else 9999):
            return f"{value}{unit}".rjust(width)
        value = (value + 500) // 1000
    return f"{value}T".rjust(width)


def _title(dump: TableDump, chain: nf.Chain, references: int, verbose: bool) -> str:
    if chain.name not in nf.BUILTIN_CHAINS[dump.table.name]:
        return f"Chain {chain.name} ({references} references)"
    counted = dump.policy_counters.get(chain.name) or RuleCounters(0, 0)
    text = f"Chain {chain.name} (policy {chain.policy or 'ACCEPT'}"
    if verbose:
        packets, size = (_count(value, False, 0) for value in (counted.packets, counted.bytes))
        text += f" {packets} packets, {size} bytes"
    return text + ")"


def _header(verbose: bool, exact: bool, numbers: bool) -> str:
    text = "num  " if numbers else ""
    if verbose:
        text += f"{'pkts':>8} {'bytes':>10} " if exact else " pkts bytes "
    text += "target     prot opt "
    text += "in     out     " if verbose else ""
    return text + f"{'source':<19}  {'destination':<19} "


def _rule(rule: nf.Rule, family: int, numeric: bool, verbose: bool) -> str:
    nets = {type(match): match for match in rule.matches if isinstance(match, nf.Source | nf.Destination)}
    links = {type(match): match for match in rule.matches if isinstance(match, nf.InInterface | nf.OutInterface)}
    text = f"{_target_name(rule.target):<9} {_protocol(rule, numeric)} -- "
    if verbose:
        text += f" {_link(links.get(nf.InInterface)):<6} {_link(links.get(nf.OutInterface)):<6} "
    text += _net(nets.get(nf.Source), family, numeric) + _net(nets.get(nf.Destination), family, numeric)
    if isinstance(rule.target, nf.Jump) and rule.target.goto:
        text += "[goto] "
    return text + "".join(f" {note}" for note in _notes(rule, family, numeric))


def _target_name(target: nf.AnyTarget) -> str:
    if isinstance(target, nf.Verdict):
        return target.name
    if isinstance(target, nf.Jump):
        return target.chain
    names = {nf.Reject: "REJECT", nf.SetMark: "MARK", nf.Dnat: "DNAT", nf.Snat: "SNAT", nf.Masquerade: "MASQUERADE"}
    return names.get(type(target), "")


def _protocol(rule: nf.Rule, numeric: bool) -> str:
    match = next((match for match in rule.matches if isinstance(match, nf.Protocol)), nf.Protocol("all"))
    name = PROTOCOL_NAMES.get(match.name, match.name)
    text = _NUMBERS.get(name, name) if numeric else name
    return f"{'!' if match.invert else ' '}{text:<4}"


def _link(match: nf.AnyMatch | None) -> str:
    if not isinstance(match, nf.InInterface | nf.OutInterface):
        return "*"
    return f"{'!' if match.invert else ''}{match.name}"


def _net(match: nf.AnyMatch | None, family: int, numeric: bool) -> str:
    everything = ("::/0" if family == 6 else "0.0.0.0/0") if numeric else "anywhere"
    if not isinstance(match, nf.Source | nf.Destination):
        return f" {everything:<19} "
    net = ip_network(match.net)
    text = str(net.network_address) if net.prefixlen == net.max_prefixlen else str(net)
    text = everything if net.prefixlen == 0 else text
    return f"{'!' if match.invert else ' '}{text:<19} "


def _notes(rule: nf.Rule, family: int, numeric: bool) -> list[str]:
    notes: list[str] = []
    ports: nf.SourcePort | None = None
    for match in rule.matches:
        if isinstance(match, nf.SourcePort):
            notes.append(f"{match.proto}{_ports('spt', match, numeric)}")
            ports = match
            continue
        if isinstance(match, nf.DestinationPort):
            bare = _ports("dpt", match, numeric)
            if ports is not None and ports.proto == match.proto:
                notes[-1] += bare
            else:
                notes.append(f"{match.proto}{bare}")
        elif note := _note(match, family, numeric):
            notes.append(note)
        ports = None
    target = _target_note(rule.target)
    return [*notes, target] if target else notes


def _ports(name: str, match: nf.SourcePort | nf.DestinationPort, numeric: bool) -> str:
    if (match.low, match.high) == (0, 65535) and not match.invert:
        return ""

    def one(port: int) -> str:
        return str(port) if numeric else _services().get((match.proto, port), str(port))

    invert = "!" if match.invert else ""
    if match.low == match.high:
        return f" {name}:{invert}{one(match.low)}"
    return f" {name}s:{invert}{one(match.low)}:{one(match.high)}"


def _note(match: nf.AnyMatch, family: int, numeric: bool) -> str:
    if isinstance(match, nf.Comment):
        return f"/* {match.text} */"
    if isinstance(match, nf.Mark):
        value = f"{match.value:#x}" if match.mask == 0xFFFFFFFF else f"{match.value:#x}/{match.mask:#x}"
        return f"mark match {'! ' if match.invert else ''}{value}"
    if isinstance(match, nf.ConntrackState):
        order = ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT")
        return f"{'! ' if match.invert else ''}ctstate {','.join(state for state in order if state in match.states)}"
    if isinstance(match, nf.AddrType):
        text = "ADDRTYPE match"
        text += f" src-type {'!' if match.invert_src else ''}{match.src_type}" if match.src_type else ""
        return text + (f" dst-type {'!' if match.invert_dst else ''}{match.dst_type}" if match.dst_type else "")
    if isinstance(match, nf.Statistic):
        return f"statistic mode random probability {round(match.probability * 0x80000000) / 0x80000000:.11f}"
    if isinstance(match, nf.Recent):
        mask = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" if family == 6 else "255.255.255.255"
        seconds = f" seconds: {match.seconds}" if match.seconds else ""
        what = f"{'SET' if match.set else 'CHECK'}{seconds}{' reap' if match.reap else ''}"
        return f"recent: {what} name: {match.name} side: source mask: {mask}"
    if isinstance(match, nf.Set):
        return f"{'! ' if match.invert else ''}match-set {match.name} {','.join(match.flags)}"
    if isinstance(match, nf.PhysDev):
        return f"PHYSDEV match {'! ' if match.invert else ''}--physdev-is-in"
    return _icmp(match, numeric) if isinstance(match, nf.IcmpType) else ""


def _icmp(match: nf.IcmpType, numeric: bool) -> str:
    kind = "ipv6-icmp" if match.v6 else "icmp"
    code = "" if match.code is None else f" code {match.code}"
    names = _ICMP6 if match.v6 else _ICMP
    if numeric or (match.type not in names and match.type != 255):
        return f"{kind}type {match.type}{code}" if not match.v6 else f"ipv6-icmptype {match.type}{code}"
    return f"{kind} {'any' if match.type == 255 else names[match.type]}{code}"


def _target_note(target: nf.AnyTarget) -> str:
    if isinstance(target, nf.Reject):
        return f"reject-with {target.with_}"
    if isinstance(target, nf.Dnat | nf.Snat):
        address = f"[{target.address}]" if ":" in target.address and target.port else target.address
        return f"to:{address}:{target.port}" if target.port else f"to:{target.address}"
    if isinstance(target, nf.Masquerade):
        return "random-fully" if target.random_fully else ""
    return _mark_note(target) if isinstance(target, nf.SetMark) else ""


def _mark_note(target: nf.SetMark) -> str:
    value, mask = target.value, target.mask
    if value == 0:
        return f"MARK and {~mask & 0xFFFFFFFF:#x}"
    if value == mask:
        return f"MARK or {value:#x}"
    if mask == 0:
        return f"MARK xor {value:#x}"
    return f"MARK set {value:#x}" if mask == 0xFFFFFFFF else f"MARK xset {value:#x}/{mask:#x}"
