"""nftables rulesets as text: what `nft list ruleset` (nft 1.0.6) prints for the same ruleset, and what `nft -f` loads.

Rules it keeps: the spelling is canonical, so that a kernel that was given our text lists the same text: marks in eight
hexadecimal digits, priorities by name where nft has one, adjacent networks merged, elements in nft's order (addresses by number;
concatenated keys by the number that their bytes make in the machine's byte order, so ports weigh most).

Order to read: ruleset, then table, sets, chains, rules, statements.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network, summarize_address_range

from podwire_core import nftables as nft

IP = {4: "ip", 6: "ip6"}
FIELDS = {"saddr": "{ip} saddr", "daddr": "{ip} daddr", "l4proto": "meta l4proto", "dport": "th dport"}
NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}
PRIORITIES = {-300: "raw", -150: "mangle", 0: "filter", 50: "security"}
ADDRESSES_A_LINE = 2  # of IPv4; all other keys stand alone


def ruleset(tables: Iterable[nft.Table]) -> str:
    return "".join(map(table, tables))


def table(given: nft.Table) -> str:
    """`nft list table`."""
    lines = [f"table {IP[given.family]} {given.name} {{"]
    if given.comment:
        lines.append(f'\tcomment "{given.comment}"')
    parts = [set_lines(each) for each in given.sets] + [chain_lines(each, given.family) for each in given.chains]
    for number, part in enumerate(parts):
        lines += [""] * bool(number) + part
    return "\n".join([*lines, "}"]) + "\n"


# --- sets and maps --------------------------------


def set_lines(given: nft.Set) -> list[str]:
    types = " . ".join(given.types)
    lines = [f"\t{'map' if given.verdicts else 'set'} {given.name} {{", f"\t\ttype {types}" + " : verdict" * given.verdicts]
    if given.size:
        lines.append(f"\t\tsize {given.size}")
    flags = [name for name, there in (("dynamic", given.dynamic), ("timeout", given.timeout)) if there]
    if flags:
        lines.append(f"\t\tflags {','.join(flags)}")
    if given.timeout:
        lines.append(f"\t\ttimeout {duration(given.timeout)}")
    if given.comment:
        lines.append(f'\t\tcomment "{given.comment}"')
    return [*lines, *_element_lines(given), "\t}"]


def _element_lines(given: nft.Set) -> list[str]:
    if not given.elements:
        return []
    texts = [element(each) for each in sorted(given.elements, key=_rank)]
    a_line = ADDRESSES_A_LINE if given.types == ("ipv4_addr",) else 1
    rows = [", ".join(texts[at : at + a_line]) for at in range(0, len(texts), a_line)]
    return ("\t\telements = { " + ",\n\t\t\t     ".join(rows) + " }").split("\n")


def _rank(each: nft.Element) -> bytes:
    if len(each.key) == 1:
        return _key_bytes(each.key[0])
    return b"".join(_key_bytes(part).ljust(-(-len(_key_bytes(part)) // 4) * 4, b"\0") for part in each.key)[::-1]


def _key_bytes(part: str) -> bytes:
    if part in NUMBERS:
        return bytes((NUMBERS[part],))
    return int(part).to_bytes(2, "big") if part.isdigit() else ip_address(part).packed


def element(each: nft.Element) -> str:
    text = " . ".join(each.key)
    if each.expires:
        text += f" expires {duration(each.expires)}"
    if each.comment:
        text += f' comment "{each.comment}"'
    return text + (f" : {verdict(each.verdict)}" if each.verdict else "")


def duration(seconds: float) -> str:
    """ "3h", "1m1s", "59s980ms"."""
    left, found = round(seconds * 1000), ""
    for size, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")):
        if left >= size:
            found += f"{left // size}{unit}"
            left %= size
    return found or "0s"


# --- chains and rules --------------------------------


def chain_lines(given: nft.Chain, family: int) -> list[str]:
    lines = [f"\tchain {given.name} {{"]
    if given.comment:
        lines.append(f'\t\tcomment "{given.comment}"')
    if given.hook:
        hook = given.hook
        where = f"type {hook.type} hook {hook.hook} priority {_priority(hook)}"
        lines.append(f"\t\t{where}; policy {hook.policy};")
    return [*lines, *(f"\t\t{rule(each, family)}" for each in given.rules), "\t}"]


def _priority(hook: nft.Hook) -> str:
    """By name within ten of one: "dstnat - 10"."""
    special = {"prerouting": {-100: "dstnat"}, "postrouting": {100: "srcnat"}}.get(hook.hook, {})
    for number, name in (PRIORITIES | special).items():
        away = hook.priority - number
        if abs(away) <= 10:
            return name if not away else f"{name} {'+' if away > 0 else '-'} {abs(away)}"
    return str(hook.priority)


def rule(given: nft.Rule, family: int) -> str:
    """Without its chain."""
    text = " ".join(statement(each, family) for each in given.statements)
    return f'{text} comment "{given.comment}"' if given.comment else text


def verdict(given: nft.Verdict) -> str:
    return f"{given.name} {given.chain}" if given.chain else given.name


def fields(names: Iterable[str], family: int) -> str:
    return " . ".join(FIELDS[name].format(ip=IP[family]) for name in names)


def statement(given: nft.AnyStatement, family: int) -> str:
    ip = IP[family]
    match given:
        case nft.Verdict():
            return verdict(given)
        case nft.Address():
            return f"{ip} {given.side} {'!= ' * given.invert}{addresses(given.nets)}"
        case nft.InSet():
            return f"{fields(given.fields, family)} {'!= ' * given.invert}@{given.set}"
        case nft.L4Proto():
            return f"meta l4proto {given.name}"
        case nft.DestinationPort():
            return f"{given.proto} dport {given.port}"
        case nft.Fib():
            return f"fib {given.side} type local"
        case nft.InInterface():
            return f'iifname {"!= " * given.invert}"{given.name}"'
        case nft.CtState():
            return f"ct state {','.join(given.states)}"
        case nft.MarkBits():
            return f"meta mark & {given.mask:#010x} == {given.value:#010x}"
        case nft.MarkSet():
            return f"meta mark set meta mark {given.operator} {given.value:#010x}"
        case nft.Lookup():
            return f"{fields(given.fields, family)} vmap @{given.map}"
        case nft.Random():
            choices = ", ".join(f"{number} : {verdict(each)}" for number, each in enumerate(given.verdicts))
            return f"numgen random mod {len(given.verdicts)} vmap {{ {choices} }}"
        case nft.Update():
            return f"update @{given.set} {{ {ip} {given.side} }}"
        case nft.Reject():
            return "reject"
        case nft.Dnat():
            return f"dnat to [{given.address}]:{given.port}" if ":" in given.address else f"dnat to {given.address}:{given.port}"
        case nft.Masquerade():
            return "masquerade" + " fully-random" * given.fully_random


# --- networks --------------------------------

Address = IPv4Address | IPv6Address
Range = tuple[Address, Address]


def merged(nets: Iterable[str]) -> list[Range]:
    """The ranges that these addresses and networks cover: sorted, overlapping and adjacent ones joined, as nft does it."""
    found: list[tuple[int, int]] = []
    parsed = [ip_network(net) for net in nets]
    for low, high in sorted((int(net.network_address), int(net.broadcast_address)) for net in parsed):
        if found and low <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(found[-1][1], high)
        else:
            found.append((low, high))
    kind = type(parsed[0].network_address)
    return [(kind(low), kind(high)) for low, high in found]


def addresses(nets: Iterable[str]) -> str:
    """One address, network or range; several in braces."""
    texts = [_range(*each) for each in merged(nets)]
    return texts[0] if len(texts) == 1 else f"{{ {', '.join(texts)} }}"


def _range(low: Address, high: Address) -> str:
    if low == high:
        return str(low)
    first = str(next(iter(summarize_address_range(low, high))))  # type: ignore[type-var, unused-ignore]
    return first if ip_network(first).broadcast_address == high else f"{low}-{high}"
