"""The tables in force, and transactions that change them.

A transaction compiles and checks against what it will leave behind, and touches nothing before `commit`, which only
assigns. What is refused, as by Linux: an unknown chain, a loop, a chain deleted while in use, a target that its
table or hook does not allow (EINVAL, ENOENT, ELOOP, EBUSY with the rule's text), a splice of a chain that is another (EAGAIN).

In an updated chain, rules that were there before keep their compiled form and their counters. Which rules came and which went
is all that the rest is told: who is in use (`uses` of a chain, `recent` lists), and what is to be checked (graph.py).

Order to read: Ruleset, Transaction's requests, then its work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from podwire_core import netfilter as nf
from podwire_core.netlink import ChainSplice, ChainsUpdate, NetlinkError, RuleCounters, TableDump
from podwire_nodeagent.datapath.netfilter.chains import GOTO, JUMP, Body, CompiledChain, CompiledRule, Cut
from podwire_nodeagent.datapath.netfilter.graph import Turnover, check_changes, check_graph
from podwire_nodeagent.datapath.netfilter.matches import Context
from podwire_nodeagent.datapath.netfilter.targets import Compiler, check_chain, check_interfaces, policy_rule

TableKey = tuple[str, int]  # name, family
Chains = dict[str, CompiledChain]
Rules = Sequence[CompiledRule]
EMPTY: Final = Body((), None, None)
ORDER: Final = ("raw", "mangle", "nat", "filter")


class Ruleset:
    """The tables in force. `generation` tells cached walks that they are void; `recents`: how many rules name a `recent` list."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.tables: dict[TableKey, Chains] = {}
        self.hooks: dict[int, dict[str, CompiledChain]] = {4: {}, 6: {}}  # by family, the built-in chains as "nat/PREROUTING"
        self.recents: Counter[str] = Counter()
        self.generation = 0

    def begin(self) -> Transaction:
        return Transaction(self)

    def dump(self) -> list[TableDump]:
        keys = sorted(self.tables, key=lambda key: (key[1], ORDER.index(key[0])))
        return [_dump_table(name, family, self.tables[name, family]) for name, family in keys]


def _dump_table(name: str, family: int, chains: Chains) -> TableDump:
    bodies = {chain.name: chain.body for chain in chains.values()}
    policies = {name: body.policy for name, body in bodies.items() if body.policy is not None}
    given = tuple(
        nf.Chain(name, tuple(rule.source for rule in body.rules), body.policy.name if body.policy else "")
        for name, body in bodies.items()
    )
    return TableDump(
        table=nf.Table(name, family, given),
        counters={
            name: [RuleCounters(rule.packets, rule.bytes) for rule in body.rules] for name, body in bodies.items() if body.rules
        },
        policy_counters={name: RuleCounters(policy.packets, policy.bytes) for name, policy in policies.items()},
    )


class Transaction:
    """See the head of the file. After an exception it is to be thrown away."""

    def __init__(self, ruleset: Ruleset) -> None:
        self._ruleset = ruleset
        self._tables = dict(ruleset.tables)
        self._bodies: dict[CompiledChain, Body] = {}  # what they will hold
        self._uses: Counter[CompiledChain] = Counter()  # by how many more jumps they will be used
        self._recents: Counter[str] = Counter()

    # --- requests --------------------------------

    def replace(self, tables: Iterable[nf.Table]) -> None:
        """TablesReplace: the whole content of these tables."""
        for table in tables:
            _check_table(table.name, table.family)
            key = (table.name, table.family)
            for chain in self._tables.get(key, {}).values():
                self._count(self._body(chain).rules, -1)
            self._tables[key] = {}
            names = {chain.name for chain in table.chains}
            missing = [name for name in nf.BUILTIN_CHAINS[table.name] if name not in names]
            self._put(key, [*(nf.Chain(name, (), "ACCEPT") for name in missing), *table.chains])
            self._check(key)

    def update(self, change: ChainsUpdate) -> None:
        """ChainsUpdate: these chains; counters of rules that stay are kept."""
        _check_table(change.table, change.family)
        key = (change.table, change.family)
        if key not in self._tables:
            self.replace([nf.Table(change.table, change.family)])
        chains = self._tables[key] = dict(self._tables[key])
        remade = {chain.name for chain in change.chains}
        gone = [self._delete(key, name) for name in change.delete if name not in remade]
        turnover = self._put(key, change.chains) | self._splice(key, change.splices, remade)
        for chain in gone:
            if chain.uses + self._uses[chain]:
                users = [name for name, cell in chains.items() if any(r.argument is chain for r in self._body(cell).rules)]
                raise NetlinkError("EBUSY", f"{change.table}: chain {chain.name} is still used in {', '.join(users)}")
        if not check_changes(change.table, lambda name: self._body(chains[name]), turnover):
            self._check(key)

    def commit(self) -> None:
        ruleset = self._ruleset
        for chain, body in self._bodies.items():
            chain.body = body
        for chain, more in self._uses.items():
            chain.uses += more
        ruleset.tables = self._tables
        for (table, family), chains in self._tables.items():
            for name in nf.BUILTIN_CHAINS[table]:
                ruleset.hooks[family][f"{table}/{name}"] = chains[name]
        ruleset.generation += 1
        for name, more in self._recents.items():
            ruleset.recents[name] += more
            if not ruleset.recents[name]:
                del ruleset.recents[name]
                ruleset.context.recent.forget(name)

    # --- work --------------------------------

    def _body(self, chain: CompiledChain) -> Body:
        return self._bodies.get(chain, chain.body)

    def _delete(self, key: TableKey, name: str) -> CompiledChain:
        if name not in self._tables[key]:
            raise NetlinkError("ENOENT", f"{key[0]}: no chain {name} to delete")
        if name in nf.BUILTIN_CHAINS[key[0]]:
            raise NetlinkError("EINVAL", f"{key[0]}: {name} is built in and cannot be deleted")
        chain = self._tables[key].pop(name)
        self._count(self._body(chain).rules, -1)
        return chain

    def _put(self, key: TableKey, given: Sequence[nf.Chain]) -> dict[str, Turnover]:
        """State these chains; which rules came and went in each."""
        (table, family), chains = key, self._tables[key]
        compiler = Compiler(table, family, chains, self._ruleset.context)
        seen: set[str] = set()
        for chain in given:
            if chain.name in seen:
                raise NetlinkError("EEXIST", f"{table}: chain {chain.name} is given twice")
            seen.add(chain.name)
            check_chain(table, chain)
            if chain.name not in chains:
                chains[chain.name] = CompiledChain(chain.name, EMPTY)
        turnover: dict[str, Turnover] = {}
        for chain in given:
            cell = chains[chain.name]
            old = self._body(cell)
            rules, came, went = self._compiled(compiler, cell.name, chain.rules, old.rules)
            turnover[cell.name] = came, went
            policy = old.policy
            if chain.name in nf.BUILTIN_CHAINS[table]:
                wanted = chain.policy or (policy.name if policy else "ACCEPT")
                if policy is None or policy.name != wanted:
                    policy = policy_rule(cell.name, wanted)
            self._bodies[cell] = Body.of(rules, policy)
        return turnover

    def _splice(self, key: TableKey, given: Sequence[ChainSplice], stated: set[str]) -> dict[str, Turnover]:
        """The same for chains that change in places."""
        (table, family), chains = key, self._tables[key]
        compiler = Compiler(table, family, chains, self._ruleset.context)
        turnover: dict[str, Turnover] = {}
        for each in given:
            cell = chains.get(each.chain)
            if cell is None:
                raise NetlinkError("ENOENT", f"{table}: no chain {each.chain} to splice")
            if each.chain in stated or each.chain in turnover:
                raise NetlinkError("EEXIST", f"{table}: chain {each.chain} is given twice")
            body = self._body(cell)
            _check_fit(table, each, body.rules)
            cuts: list[Cut] = []
            came: list[CompiledRule] = []
            went: list[CompiledRule] = []
            for splice in each.splices:
                if each.chain in nf.BUILTIN_CHAINS[table]:
                    check_interfaces(table, each.chain, splice.new)
                old = body.rules[splice.at : splice.at + len(splice.old)]
                rules, more, less = self._compiled(compiler, cell.name, splice.new, old)
                cuts.append((splice.at, len(old), rules))
                came += more
                went += less
            turnover[cell.name] = came, went
            self._bodies[cell] = body.spliced(cuts)
        return turnover

    def _compiled(self, compiler: Compiler, chain: str, rules: Sequence[nf.Rule], before: Rules) -> tuple[Rules, Rules, Rules]:
        """A chain's rules compiled, those that came and those that went. Rules that were there are taken over (with their
        counters): in place, or anywhere."""
        shared = 0
        for new, kept in zip(rules, before, strict=False):
            if new != kept.source:
                break
            shared += 1
        tail = 0
        while tail < min(len(rules), len(before)) - shared and rules[-1 - tail] == before[-1 - tail].source:
            tail += 1
        middle = before[shared : len(before) - tail]
        known = {rule.source: rule for rule in middle}
        compiled, came = list(before[:shared]), []
        for rule in rules[shared : len(rules) - tail]:
            there = known.pop(rule, None)
            if there is None:
                there = compiler.rule(rule, chain)
                came.append(there)
            compiled.append(there)
        stayed = {id(rule) for rule in compiled[shared:]} if middle else ()
        went = [rule for rule in middle if id(rule) not in stayed]
        self._count(went, -1)
        self._count(came, +1)
        compiled.extend(before[len(before) - tail :])
        return compiled, came, went

    def _count(self, rules: Rules, step: int) -> None:
        """These rules came or went."""
        uses = self._uses
        for rule in rules:
            if rule.operation in (JUMP, GOTO):
                uses[rule.argument] += step
            for match in rule.source.matches:
                if type(match) is nf.Recent:
                    self._recents[match.name] += step

    def _check(self, key: TableKey) -> None:
        check_graph(key[0], {name: self._body(chain) for name, chain in self._tables[key].items()})


def _check_fit(table: str, given: ChainSplice, rules: Rules) -> None:
    """That the splices are of the chain that is there."""
    behind, wrong = 0, len(rules) != given.length
    for splice in given.splices:
        if not wrong:
            end = splice.at + len(splice.old)
            wrong = not behind <= splice.at <= end <= len(rules)
            wrong = wrong or splice.after != (rules[splice.at - 1].source if splice.at else None)
            wrong = wrong or splice.old != tuple(rule.source for rule in rules[splice.at : end])
            behind = end
    if wrong:
        raise NetlinkError("EAGAIN", f"{table}: chain {given.chain} is not the one that was to be spliced")


def _check_table(name: str, family: int) -> None:
    if name not in nf.BUILTIN_CHAINS:
        raise NetlinkError("ENOENT", f"unknown table {name!r}")
    if family not in (4, 6):
        raise NetlinkError("EINVAL", f"{name}: family {family} is neither 4 nor 6")
