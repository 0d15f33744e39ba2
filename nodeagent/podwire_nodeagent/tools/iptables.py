"""`iptables-save`, `iptables-restore`, `iptables` and their ip6 forms, over the datapath's tables. Listing (-L) is
in iptables_list.py.

Commands that write (-A, -I, -D, -R, -N, -X, -P, -F) read the table, change it as text would, and send the chains
that differ: one transaction.
"""

from __future__ import annotations

import sys
import time

from podwire_core import netfilter as nf
from podwire_core.iptables_restore import TableEdit
from podwire_core.iptables_save import RulesetError, ordered_chains, parse, print_tables, rule_line
from podwire_core.netlink import ChainsUpdate, NetlinkError, Op, RuleCounters, TableDump, TablesReplace
from podwire_nodeagent.tools.common import Client, ToolError, unsupported
from podwire_nodeagent.tools.iptables_list import list_table

_ORDER = ("mangle", "raw", "filter", "nat")  # in which iptables-save prints
_NO_CHAIN = "No chain/target/match by that name."


def _dumps(client: Client, family: int) -> dict[str, TableDump]:
    return {dump.table.name: dump for dump in client.dump("rules") if dump.table.family == family}


def _failed(family: int, error: Exception) -> ToolError:
    tool = "ip6tables" if family == 6 else "iptables"
    message = error.message if isinstance(error, NetlinkError) else str(error)
    return ToolError(f"{tool}: {message}", 2 if isinstance(error, RulesetError) else 1)


# --- save and restore --------------------------------


def save(argv: list[str], client: Client, family: int = 4) -> str:
    """iptables-save [-t TABLE] [-c]."""
    wanted, counters, words = "", False, list(argv)
    while words:
        word = words.pop(0)
        if word in ("-t", "--table") and words:
            wanted = words.pop(0)
        elif word in ("-c", "--counters"):
            counters = True
        else:
            raise unsupported("iptables-save", [word])
    dumps = _dumps(client, family)
    if wanted and wanted not in nf.BUILTIN_CHAINS:
        raise ToolError(f"iptables-save: Cannot initialize: Table does not exist (do you need to insmod?): {wanted}")
    names = [wanted] if wanted else [name for name in _ORDER if name in dumps]
    date = time.strftime("%a %b %e %H:%M:%S %Y")
    tables = [dumps[name].table for name in names if name in dumps]
    return print_tables(tables, dumps.values(), rule_counters=counters, date=date)


def restore(argv: list[str], client: Client, family: int = 4) -> str:
    """iptables-restore [--noflush] [--test] [FILE], from stdin without a file."""
    noflush = bool({"-n", "--noflush"} & set(argv))
    test = bool({"-t", "--test"} & set(argv))
    files = [word for word in argv if not word.startswith("-")]
    try:
        text = open(files[0]).read() if files else sys.stdin.read()  # noqa: SIM115
        tables = parse(text, family)
        if test:
            return ""
        ops: list[Op] = [TablesReplace(tuple(tables))]
        if noflush:
            ops = [_merged(table, client) for table in tables]
        client.apply(ops)
    except OSError as error:
        raise ToolError(f"Can't open {files[0] if files else 'stdin'}: {error.strerror}") from None
    except (RulesetError, NetlinkError) as error:
        raise _failed(family, error) from None
    return ""


def _merged(table: nf.Table, client: Client) -> ChainsUpdate:
    """--noflush: built-in chains are appended to, the file's own chains are replaced."""
    dump = _dumps(client, table.family).get(table.name)
    old = {chain.name: chain for chain in dump.table.chains} if dump else {}
    chains = []
    for chain in table.chains:
        there = old.get(chain.name)
        if chain.name not in nf.BUILTIN_CHAINS[table.name] or there is None:
            chains.append(chain)
        elif chain.rules or chain.policy != there.policy:
            chains.append(nf.Chain(chain.name, there.rules + chain.rules, chain.policy))
    return ChainsUpdate(table.name, table.family, tuple(chains))


# --- the command --------------------------------


_LONG = {
    "append": "-A",
    "insert": "-I",
    "delete": "-D",
    "replace": "-R",
    "new-chain": "-N",
    "delete-chain": "-X",
    "policy": "-P",
    "flush": "-F",
    "check": "-C",
    "list": "-L",
    "list-rules": "-S",
    "zero": "-Z",
}
_COMMANDS = "AIDRNXPFCLSZ"


class Command:
    """A command line of iptables taken apart: table, command, the words after it, and the flags of -L."""

    def __init__(self, argv: list[str]) -> None:
        self.table, self.command = "filter", ""
        self.words: list[str] = []
        self.numeric = self.verbose = self.exact = self.numbers = False
        words = list(argv)
        while words:
            word = words.pop(0)
            if word in ("-t", "--table"):
                self.table = words.pop(0) if words else ""
            elif word.startswith("--") and word[2:] in _LONG and not self.command:
                self.command = _LONG[word[2:]]
            elif word in ("-w", "--wait"):
                if words and words[0].isdecimal():
                    words.pop(0)
            elif not self._flag(word):
                self._other(word)
        if self.table not in nf.BUILTIN_CHAINS:
            raise ToolError(f"iptables v1.8.9 (legacy): can't initialize iptables table `{self.table}': Table does not exist", 3)

    def _flag(self, word: str) -> bool:
        """-n, -v, -x, --line-numbers, also in one word with the command (-nvL)."""
        names = {"--numeric": "n", "--verbose": "v", "--exact": "x", "--line-numbers": "l"}
        letters = names.get(word, "")
        if not letters and word.startswith("-") and not word.startswith("--") and self.command in ("", "-L", "-S"):
            letters = word[1:]
            commands = [letter for letter in letters if letter in _COMMANDS]
            if set(letters) - set(_COMMANDS) - set("nvx") or len(commands) > 1:
                return False
            if commands:
                self.command = f"-{commands[0]}"
        self.numeric |= "n" in letters
        self.verbose |= "v" in letters
        self.exact |= "x" in letters
        self.numbers |= "l" in letters
        return bool(letters)

    def _other(self, word: str) -> None:
        if not self.command:
            raise ToolError(f'iptables v1.8.9 (legacy): unknown option "{word}"\nTry `iptables -h\' for more information.', 2)
        self.words.append(word)


def iptables(argv: list[str], client: Client, family: int = 4) -> str:
    if argv in (["-V"], ["--version"]):
        return f"{'ip6tables' if family == 6 else 'iptables'} v1.8.9 (legacy)\n"
    given = Command(argv)
    if not given.command:
        raise ToolError("iptables v1.8.9 (legacy): no command specified\nTry `iptables -h' for more information.", 2)
    dump = _dumps(client, family).get(given.table) or TableDump(TableEdit(given.table, family).table(), {}, {})
    if given.command in ("-L", "-S"):
        return _show(given, dump, family)
    if given.command in ("-Z",):
        raise unsupported("iptables", ["-Z"])
    return _write(given, dump, client, family)


def _show(given: Command, dump: TableDump, family: int) -> str:
    chains = ordered_chains(dump.table)
    if given.words:
        chains = [chain for chain in chains if chain.name == given.words[0]]
        if not chains:
            raise ToolError(f"{'ip6tables' if family == 6 else 'iptables'}: {_NO_CHAIN}")
    if given.command == "-L":
        return list_table(dump, chains, given.numeric, given.verbose, given.exact, given.numbers)
    builtin = nf.BUILTIN_CHAINS[given.table]
    lines = []
    for chain in chains:
        count = _shown(dump.policy_counters.get(chain.name)) if given.verbose and chain.name in builtin else ""
        lines.append(f"-P {chain.name} {chain.policy or 'ACCEPT'}{count}" if chain.name in builtin else f"-N {chain.name}")
    for chain in chains:
        counters = dump.counters.get(chain.name, [])
        for number, rule in enumerate(chain.rules):
            text = rule_line(chain.name, rule, family)
            if given.verbose:
                text = _with_counters(text, counters[number] if number < len(counters) else None)
            lines.append(text)
    return "".join(line + "\n" for line in lines)


def _shown(counters: RuleCounters | None) -> str:
    return f" -c {counters.packets} {counters.bytes}" if counters else " -c 0 0"


def _with_counters(line: str, counters: RuleCounters | None) -> str:
    """`-c` stands before the target."""
    for jump in (" -j ", " -g "):
        head, found, tail = line.rpartition(jump)
        if found:
            return head + _shown(counters) + found + tail
    return line + _shown(counters)


def _write(given: Command, dump: TableDump, client: Client, family: int) -> str:
    edit = TableEdit(given.table, family, dump.table)
    before = {chain.name: chain for chain in edit.table().chains}
    try:
        if given.command == "-C":
            edit.command(["-D", *given.words])
            return ""
        edit.command([given.command, *given.words])
        after = {chain.name: chain for chain in edit.table().chains}
        changed = tuple(chain for name, chain in after.items() if chain != before.get(name))
        gone = tuple(name for name in before if name not in after)
        if changed or gone:
            client.apply([ChainsUpdate(given.table, family, changed, gone)])
    except (RulesetError, NetlinkError) as error:
        raise _failed(family, error) from None
    return ""
