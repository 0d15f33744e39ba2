"""The real iptables judges our text: generated tables, printed, loaded by iptables-restore (legacy and nft), and what
iptables-save, iptables -S and iptables -L then print is what our printer and the shims print."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from podwire_core import netfilter as nf
from podwire_core import netns
from podwire_core.iptables_save import parse, print_tables
from podwire_core.netlink import RuleCounters, TableDump
from podwire_nodeagent.tools.__main__ import call
from tests.support.rulesets import tables

pytestmark = pytest.mark.root
slow = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


class Dumped:
    """A datapath that holds these tables, as far as a shim can see."""

    def __init__(self, *tables: nf.Table) -> None:
        self._tables = tables

    def dump(self, what: str):
        assert what == "rules"
        return [
            TableDump(table, {chain.name: [RuleCounters(0, 0)] * len(chain.rules) for chain in table.chains}, {})
            for table in self._tables
        ]


class Namespace:
    def __init__(self, path: Path) -> None:
        self._path = path
        netns.create(path)

    def run(self, *argv: str, stdin: str = "") -> str:
        with netns.in_netns(self._path):
            done = subprocess.run(argv, input=stdin, text=True, capture_output=True)
        assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}\n{stdin}"
        return done.stdout

    def close(self) -> None:
        netns.delete(self._path)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> Iterator[Namespace]:
    made = Namespace(tmp_path_factory.mktemp("nf") / "netns")
    yield made
    made.close()


def tool(family: int, variant: str, rest: str = "") -> str:
    return f"{'ip6tables' if family == 6 else 'iptables'}-{variant}{rest}"


def without_comments(text: str) -> str:
    return "".join(line + "\n" for line in text.splitlines() if not line.startswith("#"))


def only(text: str, name: str) -> str:
    """One table of a save."""
    begin = text.index(f"*{name}\n")
    return text[begin : text.index("COMMIT\n", begin) + 7]


@pytest.mark.parametrize("variant", ["legacy", "nft"])
@slow
@given(table=tables())
def test_restore_loads_it_and_save_prints_the_same(kernel, variant, table):
    text = print_tables([table])
    kernel.run(tool(table.family, variant, "-restore"), stdin=text)
    saved = without_comments(kernel.run(tool(table.family, variant, "-save"), stdin=""))
    assert only(saved, table.name) == text
    assert print_tables(parse(only(saved, table.name), table.family)) == text
    kernel.run(tool(table.family, variant, "-restore"), stdin=f"*{table.name}\nCOMMIT\n")


@slow
@given(table=tables())
def test_listings(kernel, table):
    kernel.run(tool(table.family, "legacy", "-restore"), stdin=print_tables([table]))
    shim = "ip6tables" if table.family == 6 else "iptables"
    for arguments in (["-S"], ["-vS"], ["-nL"], ["-L", "-n", "-v", "--line-numbers"], ["-L", "-nvx"], ["-nL", "X"], ["-S", "X"]):
        real = kernel.run(tool(table.family, "legacy"), "-t", table.name, *arguments)
        assert call(shim, ["-t", table.name, *arguments], Dumped(table)) == real
    kernel.run(tool(table.family, "legacy", "-restore"), stdin=f"*{table.name}\nCOMMIT\n")


SPELLINGS = """*filter
:FOO - [0:0]
-A INPUT -p tcp -m tcp --sport 7 --dport 1:5 -m conntrack --ctstate INVALID,NEW -j REJECT --reject-with tcp-reset
-A INPUT -p udp ! --dport 53 -j DROP
-A FORWARD -i eth0 ! -o lo -g FOO
-A INPUT -p icmp --icmp-type 8 -j REJECT
-A INPUT -p icmp --icmp-type any -j MARK --or-mark 7
-A INPUT -p 89 -j MARK --and-mark 7
-A INPUT -p sctp --dport 5 -j MARK --xor-mark 7
-A INPUT -p tcp -m tcp -j MARK --set-xmark 5/6
-A INPUT ! -p tcp -m conntrack ! --ctstate RELATED,ESTABLISHED -j MARK --set-mark 5
-A INPUT -p tcp --dport 443 -m mark --mark 5 -m comment --comment "two words"
-I FORWARD -s 10.1.2.3/255.255.0.0 -j FOO
COMMIT
"""


def test_what_we_read_is_what_the_real_tool_reads(kernel):
    kernel.run("iptables-legacy-restore", stdin=SPELLINGS)
    (table,) = parse(SPELLINGS, 4)
    saved = without_comments(kernel.run("iptables-legacy-save", "-t", "filter"))
    assert print_tables([table]) == saved
    for arguments in (["-L"], ["-n", "-L", "-v"]):
        assert call("iptables", arguments, Dumped(table)) == kernel.run("iptables-legacy", *arguments)
