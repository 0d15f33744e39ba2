"""The tables in force, and transactions that change them.

A transaction compiles and checks against what it will leave behind, and touches nothing before `commit`, which only
assigns. What is refused, as by Linux: an unknown chain, a loop, a chain deleted while in use, a target that its
table or hook does not allow (EINVAL, ENOENT, ELOOP, EBUSY with the rule's text).

In an updated chain, rules that were there before keep their compiled form and their counters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from podwire_core import netfilter as nf
from podwire_core.netlink import ChainsUpdate, NetlinkError, RuleCounters, TableDump
from podwire_nodeagent.datapath.netfilter.chains import (
    JUMP,
    Body,
    CompiledChain,
    CompiledRule,
)
from podwire_nodeagent.datapath.netfilter.matches import Context
from podwire_nodeagent.datapath.netfilter.targets import check_chain, check_changes, check_graph, compile_rule, policy_rule

TableKey = tuple[str, int]  # name, family
Chains = dict[str, CompiledChain]
ORDER: Final = ("raw", "mangle", "nat", "filter")


class Ruleset:
    """The tables in force. `generation` tells cached walks that they are void."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.tables: dict[TableKey, Chains] = {}
        self.hooks: dict[int, dict[str, CompiledChain]] = {4: {}, 6: {}}  # by family, the built-in chains as "nat/PREROUTING"
        self.generation = 0

    def begin(self) -> Transaction:
        return Transaction(self)

    def dump(self) -> list[TableDump]:
        keys = sorted(self.tables, key=lambda key: (key[1], ORDER.index(key[0])))
        return [_dump_table(name, family, self.tables[name, family]) for name, family in keys]


def _dump_table(name: str, family: int, chains: Chains) -> TableDump:
    bodies = [chain.body for chain in chains.values()]
    return TableDump(
        table=nf.Table(name, family, tuple(body.source for body in bodies)),
        counters={
            body.source.name: [RuleCounters(rule.packets, rule.bytes) for rule in body.rules] for body in bodies if body.rules
        },
        policy_counters={
            body.source.name: RuleCounters(body.policy.packets, body.policy.bytes) for body in bodies if body.policy is not None
        },
    )


class Transaction:
    """See the head of the file. After an exception it is to be thrown away."""

    def __init__(self, ruleset: Ruleset) -> None:
        self._ruleset = ruleset
        self._tables = dict(ruleset.tables)
        self._bodies: dict[int, Body] = {}  # by id of the chain: what it will hold
        self._holds: list[CompiledChain] = []  # keeps those ids alive

    # --- requests --------------------------------

    def replace(self, tables: Iterable[nf.Table]) -> None:
        """TablesReplace: the whole content of these tables."""
        for table in tables:
            _check_table(table.name, table.family)
            given = list(table.chains)
            names = {chain.name for chain in given}
            missing = [name for name in nf.BUILTIN_CHAINS[table.name] if name not in names]
            given = [nf.Chain(name, (), "ACCEPT") for name in missing] + given
            self._tables[table.name, table.family] = {}
            self._put(table.name, table.family, given)
            self._check((table.name, table.family))

    def update(self, change: ChainsUpdate) -> None:
        """ChainsUpdate: these chains; counters of rules that stay are kept."""
        _check_table(change.table, change.family)
        key = (change.table, change.family)
        if key not in self._tables:
            self.replace([nf.Table(change.table, change.family)])
        self._tables[key] = dict(self._tables[key])
        chains = self._tables[key]
        remade = {chain.name for chain in change.chains}
        delete = [name for name in change.delete if name not in remade]
        for name in delete:
            if name not in chains:
                raise NetlinkError("ENOENT", f"{change.table}: no chain {name} to delete")
            if name in nf.BUILTIN_CHAINS[change.table]:
                raise NetlinkError("EINVAL", f"{change.table}: {name} is built in and cannot be deleted")
        for name in delete:
            del chains[name]
        gone = frozenset(delete)
        nothing = Body(nf.Chain(""), (), None)
        before = {chain.name: self._body(chains[chain.name]) if chain.name in chains else nothing for chain in change.chains}
        self._put(change.table, change.family, list(change.chains), gone)
        if gone or not check_changes(change.table, lambda name: self._body(chains[name]), before):
            self._check(key, gone)

    def commit(self) -> None:
        ruleset = self._ruleset
        for chain in self._holds:
            chain.body = self._bodies[id(chain)]
        ruleset.tables = self._tables
        for (table, family), chains in self._tables.items():
            for name in nf.BUILTIN_CHAINS[table]:
                ruleset.hooks[family][f"{table}/{name}"] = chains[name]
        ruleset.generation += 1
        ruleset.context.recent.keep_only(_recent_names(self._tables) if ruleset.context.recent.lists else ())

    # --- work --------------------------------

    def _body(self, chain: CompiledChain) -> Body:
        return self._bodies.get(id(chain), chain.body)

    def _put(self, table: str, family: int, given: list[nf.Chain], gone: frozenset[str] = frozenset()) -> None:
        chains = self._tables[table, family]
        seen: set[str] = set()
        for chain in given:
            if chain.name in seen:
                raise NetlinkError("EEXIST", f"{table}: chain {chain.name} is given twice")
            seen.add(chain.name)
            check_chain(table, chain)
            if chain.name not in chains:
                chains[chain.name] = CompiledChain(chain.name, Body(nf.Chain(chain.name), (), None))
        for chain in given:
            cell = chains[chain.name]
            old = self._body(cell)
            if table in nf.BUILTIN_CHAINS and chain.name in nf.BUILTIN_CHAINS[table] and not chain.policy:
                chain = nf.Chain(chain.name, chain.rules, old.source.policy or "ACCEPT")
            rules = self._compile(chain, table, family, chains, old, gone)
            policy = policy_rule(chain) if chain.policy else None
            if policy and old.policy and chain.policy == old.source.policy:
                policy = old.policy
            self._bodies[id(cell)] = Body(chain, rules, policy)
            self._holds.append(cell)

    def _compile(
        self, chain: nf.Chain, table: str, family: int, chains: Chains, old: Body, gone: frozenset[str]
    ) -> list[CompiledRule]:
        """Compile a chain's rules, taking over those that were there (with their counters): in place, or anywhere."""
        rules, before = chain.rules, old.rules
        shared = 0
        for new, kept in zip(rules, before, strict=False):
            if new != kept.source:
                break
            shared += 1
        tail = 0
        while tail < min(len(rules), len(before)) - shared and rules[-1 - tail] == before[-1 - tail].source:
            tail += 1
        middle = {rule.source: rule for rule in before[shared : len(before) - tail]}
        compiled = list(before[:shared])
        for rule in rules[shared : len(rules) - tail]:
            known = middle.pop(rule, None)
            compiled.append(known or compile_rule(rule, chain.name, table, family, chains, self._ruleset.context))
        compiled.extend(before[len(before) - tail :])
        return [self._rebind(rule, table, chains, gone) for rule in compiled]

    def _rebind(self, rule: CompiledRule, table: str, chains: Chains, gone: frozenset[str]) -> CompiledRule:
        """A kept jump must lead to the chain that has the name now."""
        target = rule.source.target
        if isinstance(target, nf.Jump) and chains.get(target.chain) is not rule.argument:
            if target.chain not in chains:
                word = "EBUSY" if target.chain in gone else "ENOENT"
                raise NetlinkError(word, f"{table}: {rule.text()}: no chain {target.chain}")
            fresh = CompiledRule(rule.source, rule.chain_name, rule.tests, rule.operation, chains[target.chain], rule.keys)
            fresh.packets, fresh.bytes = rule.packets, rule.bytes
            return fresh
        return rule

    def _check(self, key: TableKey, gone: frozenset[str] = frozenset()) -> None:
        chains = self._tables[key]
        bodies = {name: self._body(chain) for name, chain in chains.items()}
        if gone:
            for name, body in bodies.items():
                for rule in body.rules:
                    if rule.operation >= JUMP and isinstance(rule.source.target, nf.Jump) and rule.source.target.chain in gone:
                        raise NetlinkError("EBUSY", f"{key[0]}: chain {rule.source.target.chain} is still used in {name}")
        check_graph(key[0], bodies)


def _check_table(name: str, family: int) -> None:
    if name not in nf.BUILTIN_CHAINS:
        raise NetlinkError("ENOENT", f"unknown table {name!r}")
    if family not in (4, 6):
        raise NetlinkError("EINVAL", f"{name}: family {family} is neither 4 nor 6")


def _recent_names(tables: dict[TableKey, Chains]) -> set[str]:
    return {
        match.name
        for chains in tables.values()
        for chain in chains.values()
        for rule in chain.body.rules
        for match in rule.source.matches
        if isinstance(match, nf.Recent)
    }
