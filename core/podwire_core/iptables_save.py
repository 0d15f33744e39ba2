"""Tables as text, in the form that iptables-save(8) of iptables 1.8.9 prints; iptables-restore loads it, legacy and nft alike.

The rules it keeps: the same rule always prints the same, and as the real tool prints it back from the kernel:
options in its order (-s -d -i -o -p, matches, target), marks in hexadecimal, probabilities as multiples of 2^-31,
built-in chains first and the others by name. Reading the text is in `iptables_restore.py` (`parse`).

Order to read: matches, targets, `rule_line`, `print_tables`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_network
from typing import TYPE_CHECKING

from podwire_core import netfilter as nf
from podwire_core.iptables_restore import parse
from podwire_core.iptables_rule import PROTOCOL_NAMES, RulesetError

if TYPE_CHECKING:
    from podwire_core.netlink import RuleCounters, TableDump

__all__ = ["RulesetError", "parse", "print_tables", "quote", "rule_line", "rule_words"]

_SAFE = frozenset("_-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_STATES = ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT")

# --- matches --------------------------------


def quote(text: str) -> str:
    """A string argument: bare if it is harmless, else in double quotes with `"`, `\\` and `'` escaped."""
    if text and _SAFE.issuperset(text):
        return text
    return '"' + "".join("\\" + c if c in "\"\\'" else c for c in text) + '"'


def _not(invert: bool) -> str:
    return "! " if invert else ""


def _net(text: str) -> str:
    """With the prefix length, also where it is the whole address. What is no network is shown as it is: errors quote rules."""
    try:
        return str(ip_network(text))
    except ValueError:
        return text


def _port(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}:{high}"


def _masked(value: int, mask: int) -> str:
    return f"{value:#x}" if mask == 0xFFFFFFFF else f"{value:#x}/{mask:#x}"


def _address_types(match: nf.AddrType) -> str:
    words = ["-m addrtype"]
    if match.src_type:
        words.append(f"{_not(match.invert_src)}--src-type {match.src_type}")
    if match.dst_type:
        words.append(f"{_not(match.invert_dst)}--dst-type {match.dst_type}")
    return " ".join(words)


def _recent(match: nf.Recent, v6: bool) -> str:
    words = ["-m recent", "--set" if match.set else "--rcheck"]
    if match.seconds:
        words.append(f"--seconds {match.seconds}")
    if match.reap:
        words.append("--reap")
    mask = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" if v6 else "255.255.255.255"
    return " ".join([*words, f"--name {match.name} --mask {mask} --rsource"])


def _icmp(match: nf.IcmpType) -> str:
    kind = f"{match.type}" if match.code is None else f"{match.type}/{match.code}"
    if match.v6:
        return f"-m icmp6 --icmpv6-type {kind}"
    return f"-m icmp --icmp-type {'any' if match.type == 255 and match.code is None else kind}"


def _is_v6(rule: nf.Rule) -> bool:
    """A rule doesn't say its family; only `-m recent` prints it where no address shows it."""
    target = rule.target
    if isinstance(target, nf.Dnat | nf.Snat):
        return ":" in target.address
    return any(isinstance(match, nf.Source | nf.Destination) and ":" in match.net for match in rule.matches)


def _match(match: nf.AnyMatch, v6: bool) -> str:
    """All but those of the IP header and the ports."""
    if isinstance(match, nf.Comment):
        return f"-m comment --comment {quote(match.text)}"
    if isinstance(match, nf.Mark):
        return f"-m mark {_not(match.invert)}--mark {_masked(match.value, match.mask)}"
    if isinstance(match, nf.ConntrackState):
        states = ",".join(state for state in _STATES if state in match.states)
        return f"-m conntrack {_not(match.invert)}--ctstate {states}"
    if isinstance(match, nf.AddrType):
        return _address_types(match)
    if isinstance(match, nf.Statistic):
        return f"-m statistic --mode random --probability {round(match.probability * 0x80000000) / 0x80000000:.11f}"
    if isinstance(match, nf.Recent):
        return _recent(match, v6)
    if isinstance(match, nf.IcmpType):
        return _icmp(match)
    if isinstance(match, nf.Set):
        return f"-m set {_not(match.invert)}--match-set {match.name} {','.join(match.flags)}"
    if isinstance(match, nf.PhysDev):
        return f"-m physdev {_not(match.invert)}--physdev-is-in"
    raise TypeError(f"not a match of its own: {match!r}")


def _header(matches: Iterable[nf.AnyMatch]) -> list[str]:
    """The conditions on the IP header, in iptables-save's order."""
    found: dict[str, str] = {}
    for match in matches:
        if isinstance(match, nf.Source | nf.Destination):
            flag = "-s" if isinstance(match, nf.Source) else "-d"
            net = _net(match.net)
            if match.invert or not net.endswith("/0"):
                found[flag] = f"{_not(match.invert)}{flag} {net}"
        elif isinstance(match, nf.InInterface):
            found["-i"] = f"{_not(match.invert)}-i {match.name}"
        elif isinstance(match, nf.OutInterface):
            found["-o"] = f"{_not(match.invert)}-o {match.name}"
        elif isinstance(match, nf.Protocol) and match.name not in ("all", "0"):
            found["-p"] = f"{_not(match.invert)}-p {PROTOCOL_NAMES.get(match.name, match.name)}"
    return [found[flag] for flag in ("-s", "-d", "-i", "-o", "-p") if flag in found]


def _matches(rule: nf.Rule, v6: bool) -> list[str]:
    words: list[str] = []
    previous = ""
    for match in rule.matches:
        if isinstance(match, nf.SourcePort | nf.DestinationPort):
            option = "--sport" if isinstance(match, nf.SourcePort) else "--dport"
            if previous != match.proto or option == "--sport":  # `-m tcp --sport 1 --dport 2` is one match
                words.append(f"-m {match.proto}")
            previous = match.proto if option == "--sport" else ""
            if (match.low, match.high) != (0, 65535) or match.invert:  # `-m tcp` alone holds for every port
                words.append(f"{_not(match.invert)}{option} {_port(match.low, match.high)}")
        elif not isinstance(match, nf.Source | nf.Destination | nf.InInterface | nf.OutInterface | nf.Protocol):
            previous = ""
            words.append(_match(match, v6))
    return words


# --- targets --------------------------------


def _endpoint(address: str, port: int) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _target(target: nf.AnyTarget) -> list[str]:
    if isinstance(target, nf.Verdict):
        return [f"-j {target.name}"]
    if isinstance(target, nf.Jump):
        return [f"-{'g' if target.goto else 'j'} {target.chain}"]
    if isinstance(target, nf.Reject):
        return [f"-j REJECT --reject-with {target.with_}"]
    if isinstance(target, nf.SetMark):
        return [f"-j MARK --set-xmark {target.value:#x}/{target.mask:#x}"]
    if isinstance(target, nf.Dnat):
        return [f"-j DNAT --to-destination {_endpoint(target.address, target.port)}"]
    if isinstance(target, nf.Snat):
        return [f"-j SNAT --to-source {_endpoint(target.address, target.port)}"]
    if isinstance(target, nf.Masquerade):
        return ["-j MASQUERADE --random-fully" if target.random_fully else "-j MASQUERADE"]
    return []


# --- rules and tables --------------------------------


def rule_words(rule: nf.Rule, family: int = 0) -> str:
    """A rule without its chain. `family` 0: as its addresses say."""
    v6 = family == 6 or (not family and _is_v6(rule))
    return " ".join(_header(rule.matches) + _matches(rule, v6) + _target(rule.target))


def rule_line(chain: str, rule: nf.Rule, family: int = 0) -> str:
    """`-A CHAIN …`."""
    return f"-A {chain} {rule_words(rule, family)}".rstrip()


def ordered_chains(table: nf.Table) -> list[nf.Chain]:
    """Built-in chains in hook order (also those that the table leaves out), then the others by name."""
    by_name = {chain.name: chain for chain in table.chains}
    builtin = nf.BUILTIN_CHAINS[table.name]
    users = sorted(name for name in by_name if name not in builtin)
    return [by_name.get(name, nf.Chain(name, (), "ACCEPT")) for name in builtin] + [by_name[name] for name in users]


def print_tables(
    tables: Iterable[nf.Table],
    counters: Iterable[TableDump] | None = None,
    *,
    rule_counters: bool = False,
    date: str = "",
) -> str:
    """The tables, one after the other. `counters` are a dump's: the policies' are always printed, each rule's with
    `rule_counters` (iptables-save -c). With `date` ("Tue Nov 24 01:58:39 2026") each table has the real tool's two
    lines of comment."""
    known = {(dump.table.name, dump.table.family): dump for dump in counters or ()}
    lines: list[str] = []
    for table in tables:
        tool = "ip6tables-save" if table.family == 6 else "iptables-save"
        if date:
            lines.append(f"# Generated by {tool} v1.8.9 on {date}")
        lines += _table_lines(table, known.get((table.name, table.family)), rule_counters)
        if date:
            lines.append(f"# Completed on {date}")
    return "".join(line + "\n" for line in lines)


def _table_lines(table: nf.Table, dump: TableDump | None, rule_counters: bool) -> list[str]:
    builtin = nf.BUILTIN_CHAINS[table.name]
    chains = ordered_chains(table)
    lines = [f"*{table.name}"]
    for chain in chains:
        counted = dump.policy_counters.get(chain.name) if dump else None
        policy = (chain.policy or "ACCEPT") if chain.name in builtin else "-"
        lines.append(f":{chain.name} {policy} {_counters(counted)}")
    for chain in chains:
        rules: Sequence[RuleCounters] = dump.counters.get(chain.name, ()) if dump else ()
        for number, rule in enumerate(chain.rules):
            line = rule_line(chain.name, rule, table.family)
            if rule_counters:
                line = f"{_counters(rules[number] if number < len(rules) else None)} {line}"
            lines.append(line)
    lines.append("COMMIT")
    return lines


def _counters(counters: RuleCounters | None) -> str:
    return f"[{counters.packets}:{counters.bytes}]" if counters else "[0:0]"
