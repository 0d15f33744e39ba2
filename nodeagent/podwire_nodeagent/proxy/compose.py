"""Several daemons write rules into the same tables of a node: how their parts become the one `TablesReplace`.

Rules it keeps: a part is a `Table` whose built-in chains hold only that daemon's jumps, and whose other chains are its own. Parts
are composed in the order given, which is the order in which a packet meets them; kube-proxy's come first, as on a real node,
where it prepends its jumps. Two parts that claim the same chain are a bug.
"""

from __future__ import annotations

from collections.abc import Iterable

from podwire_core import netfilter as nf


def compose(parts: Iterable[nf.Table]) -> tuple[nf.Table, ...]:
    """One table for each name and family that occurs, complete with its built-in chains."""
    by_table: dict[tuple[str, int], list[nf.Table]] = {}
    for part in parts:
        by_table.setdefault((part.name, part.family), []).append(part)
    return tuple(_merge(name, family, tables) for (name, family), tables in by_table.items())


def _merge(name: str, family: int, parts: list[nf.Table]) -> nf.Table:
    jumps: dict[str, list[nf.Rule]] = {chain: [] for chain in nf.BUILTIN_CHAINS[name]}
    policies = dict.fromkeys(jumps, "ACCEPT")
    own: dict[str, nf.Chain] = {}
    for chain in (chain for part in parts for chain in part.chains):
        if chain.name in jumps:
            jumps[chain.name].extend(chain.rules)
            if chain.policy == "DROP":
                policies[chain.name] = "DROP"
        elif own.setdefault(chain.name, chain) is not chain:
            raise ValueError(f"table {name}: chain {chain.name} is written twice")
    builtin = [nf.Chain(chain, tuple(rules), policies[chain]) for chain, rules in jumps.items()]
    return nf.Table(name, family, (*builtin, *own.values()))
