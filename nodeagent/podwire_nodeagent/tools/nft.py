"""`nft list …` of the datapath's nftables tables, as nft 1.0.6 prints them. iptables' tables are not nftables' here (as with
iptables-legacy): iptables-save shows them.

    nft list ruleset [ip|ip6]                    nft list tables
    nft list table [ip|ip6] TABLE                nft list chains | sets | maps
    nft list chain | set | map [ip|ip6] TABLE NAME
"""

from __future__ import annotations

from podwire_core import nft_text
from podwire_core import nftables as nft
from podwire_nodeagent.tools.common import Client, ToolError, unsupported

_FAMILIES = {"ip": 4, "ip6": 6}
_MISSING = "Error: No such file or directory"


def main(argv: list[str], client: Client) -> str:
    words = [word for word in argv if word not in ("-n", "-nn", "-a", "-s", "--numeric", "--handle", "--stateless")]
    if words[:1] != ["list"] or len(words) < 2 or any(word.startswith("-") for word in words):
        raise unsupported("nft", argv)
    what, rest = words[1], words[2:]
    family = _FAMILIES[rest.pop(0)] if rest and rest[0] in _FAMILIES else 0
    tables = [table for table in client.dump("nftables") if family in (0, table.family)]
    if what in ("ruleset", "tables") and not rest:
        return nft_text.ruleset(tables) if what == "ruleset" else "".join(f"table {_head(table)}\n" for table in tables)
    if what in ("chains", "sets", "maps") and not rest:
        return "".join(_outline(what, table) for table in tables)
    if what == "table" and len(rest) == 1:
        return nft_text.table(_table(tables, family, rest[0]))
    if what in ("chain", "set", "map") and len(rest) == 2:
        return _one(what, _table(tables, family, rest[0]), rest[1])
    raise unsupported("nft", argv)


def _head(table: nft.Table) -> str:
    return f"{nft_text.IP[table.family]} {table.name}"


def _table(tables: list[nft.Table], family: int, name: str) -> nft.Table:
    """nft takes `ip` where no family is given."""
    found = next((table for table in tables if table.id == (family or 4, name)), None)
    if found is None:
        raise ToolError(_MISSING)
    return found


def _one(what: str, table: nft.Table, name: str) -> str:
    if what == "chain":
        lines = next((nft_text.chain_lines(each, table.family) for each in table.chains if each.name == name), None)
    else:
        wanted = (each for each in table.sets if each.name == name and each.verdicts == (what == "map"))
        lines = next(map(nft_text.set_lines, wanted), None)
    if lines is None:
        raise ToolError(_MISSING)
    return "\n".join([f"table {_head(table)} {{", *lines, "}"]) + "\n"


def _outline(what: str, table: nft.Table) -> str:
    """Without rules and elements."""
    if what == "chains":
        parts = [nft_text.chain_lines(nft.Chain(c.name, hook=c.hook), table.family) for c in table.chains]
    else:
        bare = (
            nft.Set(s.name, s.types, s.verdicts, s.comment, s.dynamic, s.timeout, s.size)
            for s in table.sets
            if s.verdicts == (what == "maps")
        )
        parts = list(map(nft_text.set_lines, bare))
    return "\n".join([f"table {_head(table)} {{", *(line for part in parts for line in part), "}"]) + "\n"
