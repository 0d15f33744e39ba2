"""Reading what iptables-save prints, and doing what iptables(8) commands say.

`parse` reads a whole file as iptables-restore does, into `Table` values; the first thing it doesn't understand ends
it with a `RulesetError` that names the line. Order to read: `TableEdit` (a table and commands on it: -A, -I …), `parse`.
"""

from __future__ import annotations

from collections.abc import Iterable

from podwire_core import netfilter as nf
from podwire_core.iptables_rule import RulesetError, parse_rule, split_words

_POLICIES = ("ACCEPT", "DROP")


class TableEdit:
    """A table in the making: its chains, and the commands of iptables on them. Positions count from 1."""

    def __init__(self, name: str, family: int, table: nf.Table | None = None) -> None:
        if name not in nf.BUILTIN_CHAINS:
            raise RulesetError(f'unknown table "{name}"')
        self.name, self.family = name, family
        self.rules: dict[str, list[nf.Rule]] = {chain: [] for chain in nf.BUILTIN_CHAINS[name]}
        self.policies: dict[str, str] = dict.fromkeys(nf.BUILTIN_CHAINS[name], "ACCEPT")
        for chain in table.chains if table else ():
            self.rules[chain.name] = list(chain.rules)
            if chain.policy:
                self.policies[chain.name] = chain.policy

    def table(self) -> nf.Table:
        chains = (nf.Chain(name, tuple(rules), self.policies.get(name, "")) for name, rules in self.rules.items())
        return nf.Table(self.name, self.family, tuple(chains))

    def command(self, words: list[str]) -> str:
        """Do one command (-A, -I, -D, -R, -N, -P, -F, -X, without -t); the chain that it changed, "" for all."""
        option = {
            "--append": "-A",
            "--insert": "-I",
            "--delete": "-D",
            "--replace": "-R",
            "--new-chain": "-N",
            "--policy": "-P",
            "--flush": "-F",
            "--delete-chain": "-X",
        }.get(words[0], words[0])
        if option in ("-F", "-X") and len(words) == 1:
            return self._all(option)
        if len(words) < 2:
            raise RulesetError(f"{option} needs a chain")
        chain, rest = words[1], words[2:]
        if option == "-N":
            if chain in self.rules:
                raise RulesetError("Chain already exists.")
            self.rules[chain] = []
            return chain
        if chain not in self.rules:
            raise RulesetError(f'no chain "{chain}" in table {self.name}')
        if option in ("-A", "-I", "-D", "-R"):
            self._rule(option, self.rules[chain], rest)
        elif option == "-P":
            self._policy(chain, rest)
        elif option == "-F":
            self.rules[chain] = []
        elif option == "-X":
            self._remove(chain)
        else:
            raise RulesetError(f'unknown command "{words[0]}"')
        return chain

    def _rule(self, option: str, rules: list[nf.Rule], rest: list[str]) -> None:
        position = 0
        if option in ("-I", "-D", "-R") and rest and rest[0].isdecimal():
            position, rest = int(rest[0]), rest[1:]
            limit = len(rules) + (option == "-I")
            if not 1 <= position <= limit:
                raise RulesetError(f"Index of {'insertion' if option == '-I' else 'deletion'} too big.")
        if option == "-D" and position:
            del rules[position - 1]
            return
        rule = parse_rule(rest, self.family)
        if option == "-A":
            rules.append(rule)
        elif option == "-I":
            rules.insert((position or 1) - 1, rule)
        elif option == "-R" and position:
            rules[position - 1] = rule
        elif option == "-D" and (there := _find(rules, rule)) is not None:
            del rules[there]
        else:
            raise RulesetError("Bad rule (does a matching rule exist in that chain?).")

    def _policy(self, chain: str, rest: list[str]) -> None:
        if chain not in nf.BUILTIN_CHAINS[self.name]:
            raise RulesetError(f'chain "{chain}" is not built in and has no policy')
        if not rest or rest[0] not in _POLICIES:
            raise RulesetError(f"Bad policy {rest[0] if rest else '(none)'}: ACCEPT or DROP")
        self.policies[chain] = rest[0]

    def _all(self, option: str) -> str:
        for name in list(self.rules):
            if option == "-F":
                self.rules[name] = []
            elif name not in nf.BUILTIN_CHAINS[self.name]:
                self._remove(name)
        return ""

    def _remove(self, chain: str) -> None:
        if chain in nf.BUILTIN_CHAINS[self.name] or self.rules[chain]:
            raise RulesetError(f"chain {chain} is built in or not empty")
        del self.rules[chain]


def _find(rules: list[nf.Rule], rule: nf.Rule) -> int | None:
    """Equal but for `origin`, which text doesn't have."""
    for number, there in enumerate(rules):
        if there.matches == rule.matches and there.target == rule.target:
            return number
    return None


def parse(text: str, family: int) -> list[nf.Table]:
    """The tables of an iptables-save file, each with all its built-in chains."""
    tables: list[nf.Table] = []
    edit: TableEdit | None = None
    number = 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        try:
            if not line or line.startswith("#"):
                continue
            if line.startswith("*"):
                if edit is not None:
                    raise RulesetError(f"table {edit.name} has no COMMIT")
                edit = TableEdit(line[1:].strip(), family)
            elif edit is None:
                raise RulesetError("no table: a line like *filter must come first")
            elif line == "COMMIT":
                _check_jumps(edit)
                tables.append(edit.table())
                edit = None
            elif line.startswith(":"):
                _declare(edit, line[1:].split())
            else:
                edit.command(_without_counters(split_words(line)))
        except RulesetError as error:
            raise RulesetError(f"line {number}: {error}") from None
    if edit is not None:
        raise RulesetError(f"line {number}: table {edit.name} has no COMMIT")
    return tables


def _without_counters(words: list[str]) -> list[str]:
    return words[1:] if len(words) > 1 and words[0].startswith("[") else words


def _declare(edit: TableEdit, words: list[str]) -> None:
    if len(words) < 2:
        raise RulesetError("a chain line is :NAME POLICY [packets:bytes]")
    name, policy = words[:2]
    builtin = name in nf.BUILTIN_CHAINS[edit.name]
    if builtin and policy not in _POLICIES:
        raise RulesetError(f"policy {policy} of {name} is neither ACCEPT nor DROP")
    if not builtin and policy != "-":
        raise RulesetError(f"chain {name} is not built in and has no policy")
    edit.rules.setdefault(name, [])
    if builtin:
        edit.policies[name] = policy


def _check_jumps(edit: TableEdit) -> None:
    def targets() -> Iterable[tuple[str, str]]:
        for name, rules in edit.rules.items():
            yield from ((name, rule.target.chain) for rule in rules if isinstance(rule.target, nf.Jump))

    for name, chain in targets():
        if chain not in edit.rules:
            raise RulesetError(f'no chain or target "{chain}", jumped to from {name} in table {edit.name}')
