"""Tables as text: what is printed, that reading it back gives the same, and errors that say where.

What the real tools say of the same text: tests/oracle/test_netfilter_text.py.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_core import netfilter as nf
from podwire_core.iptables_restore import TableEdit
from podwire_core.iptables_save import RulesetError, parse, print_tables, rule_line, rule_words
from podwire_core.netlink import RuleCounters, TableDump
from tests.support.rulesets import tables

DROP = nf.Verdict("DROP")


@pytest.mark.parametrize(
    ("matches", "target", "text"),
    [
        ((), nf.Verdict("ACCEPT"), "-j ACCEPT"),
        ((nf.Destination("10.96.0.10"),), DROP, "-d 10.96.0.10/32 -j DROP"),
        ((nf.OutInterface("e+"), nf.Source("10.0.0.0/8", True)), DROP, "! -s 10.0.0.0/8 -o e+ -j DROP"),
        ((nf.Source("0.0.0.0/0"), nf.Protocol("all")), DROP, "-j DROP"),
        ((nf.Protocol("icmpv6"),), DROP, "-p ipv6-icmp -j DROP"),
        ((nf.Protocol("89"),), DROP, "-p ospf -j DROP"),
        (
            (nf.Protocol("tcp"), nf.SourcePort("tcp", 0, 9), nf.DestinationPort("tcp", 80, 80, True)),
            DROP,
            "-p tcp -m tcp --sport 0:9 ! --dport 80 -j DROP",
        ),
        ((nf.Protocol("udp"), nf.DestinationPort("udp", 0, 65535)), DROP, "-p udp -m udp -j DROP"),
        ((nf.Comment('a "b" \\ it\'s'),), DROP, '-m comment --comment "a \\"b\\" \\\\ it\\\'s" -j DROP'),
        ((nf.Comment("plain_-9"),), DROP, "-m comment --comment plain_-9 -j DROP"),
        ((nf.Mark(0x4000, 0x4000, True),), DROP, "-m mark ! --mark 0x4000/0x4000 -j DROP"),
        ((nf.Mark(5),), DROP, "-m mark --mark 0x5 -j DROP"),
        ((nf.ConntrackState(("RELATED", "NEW")),), DROP, "-m conntrack --ctstate NEW,RELATED -j DROP"),
        ((nf.AddrType("", "LOCAL", invert_dst=True),), DROP, "-m addrtype ! --dst-type LOCAL -j DROP"),
        ((nf.Statistic(1 / 3),), DROP, "-m statistic --mode random --probability 0.33333333349 -j DROP"),
        ((nf.Statistic(0.5),), DROP, "-m statistic --mode random --probability 0.50000000000 -j DROP"),
        (
            (nf.Recent("X", rcheck=True, seconds=10800, reap=True),),
            DROP,
            "-m recent --rcheck --seconds 10800 --reap --name X --mask 255.255.255.255 --rsource -j DROP",
        ),
        ((nf.Recent("X", set=True),), nf.NoTarget(), "-m recent --set --name X --mask 255.255.255.255 --rsource"),
        ((nf.IcmpType(3, 4),), DROP, "-m icmp --icmp-type 3/4 -j DROP"),
        ((nf.IcmpType(255),), DROP, "-m icmp --icmp-type any -j DROP"),
        ((nf.IcmpType(128, v6=True),), DROP, "-m icmp6 --icmpv6-type 128 -j DROP"),
        ((), nf.Jump("KUBE-SVC", True), "-g KUBE-SVC"),
        ((), nf.Reject(), "-j REJECT --reject-with icmp-port-unreachable"),
        ((), nf.SetMark(0x4000, 0x4000), "-j MARK --set-xmark 0x4000/0x4000"),
        ((), nf.Dnat("fd00::1", 80), "-j DNAT --to-destination [fd00::1]:80"),
        ((), nf.Dnat("10.0.0.1"), "-j DNAT --to-destination 10.0.0.1"),
        ((), nf.Snat("10.0.0.1", 9), "-j SNAT --to-source 10.0.0.1:9"),
        ((), nf.Masquerade(True), "-j MASQUERADE --random-fully"),
    ],
)
def test_rules_as_text(matches, target, text):
    assert rule_words(nf.Rule(matches, target)) == text


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        ("-j MARK --or-mark 0x4000", "-j MARK --set-xmark 0x4000/0x4000"),
        ("-j MARK --xor-mark 0x4000", "-j MARK --set-xmark 0x4000/0x0"),
        ("-j MARK --and-mark 0x7", "-j MARK --set-xmark 0x0/0xfffffff8"),
        ("-j MARK --set-mark 7", "-j MARK --set-xmark 0x7/0xffffffff"),
        ("-j MARK --set-mark 1/2", "-j MARK --set-xmark 0x1/0x3"),
        ("--src 10.0.0.1 --proto 6 -j DROP", "-s 10.0.0.1/32 -p tcp -j DROP"),
        ("-d 10.1.2.3/255.255.0.0 -j DROP", "-d 10.1.0.0/16 -j DROP"),
        ("-p tcp --dport 80 -j DROP", "-p tcp -m tcp --dport 80 -j DROP"),
        ("-p tcp --dport 1024: -j DROP", "-p tcp -m tcp --dport 1024:65535 -j DROP"),
        ("-p tcp -m tcp -j DROP", "-p tcp -m tcp -j DROP"),
        ("-m state --state NEW -j DROP", "-m conntrack --ctstate NEW -j DROP"),
        ("-p icmp --icmp-type echo-request -j DROP", "-p icmp -m icmp --icmp-type 8 -j DROP"),
        ("-m addrtype --src-type LOCAL --dst-type local -j DROP", "-m addrtype --src-type LOCAL --dst-type LOCAL -j DROP"),
        ("-j REJECT", "-j REJECT --reject-with icmp-port-unreachable"),
        ("-m comment --comment '", '-m comment --comment "\\\'"'),
        ("-m recent --name N --set", "-m recent --set --name N --mask 255.255.255.255 --rsource"),
    ],
)
def test_spellings_that_are_read(given, printed):
    (table,) = parse(f"*mangle\n-A FORWARD {given}\nCOMMIT\n", 4)
    (rule,) = next(chain for chain in table.chains if chain.name == "FORWARD").rules
    assert rule_words(rule) == printed


@given(tables())
def test_printed_and_read_again(table):
    text = print_tables([table])
    (again,) = parse(text, table.family)
    assert print_tables([again]) == text


def test_builtin_chains_come_first_and_the_others_by_name():
    table = nf.Table("nat", 4, (nf.Chain("Z"), nf.Chain("A"), nf.Chain("OUTPUT", (), "ACCEPT")))
    lines = print_tables([table]).splitlines()
    assert lines == [
        "*nat",
        ":PREROUTING ACCEPT [0:0]",
        ":INPUT ACCEPT [0:0]",
        ":OUTPUT ACCEPT [0:0]",
        ":POSTROUTING ACCEPT [0:0]",
        ":A - [0:0]",
        ":Z - [0:0]",
        "COMMIT",
    ]


def test_counters_and_dates():
    table = nf.Table("raw", 4, (nf.Chain("PREROUTING", (nf.Rule((), DROP),), "ACCEPT"),))
    dump = TableDump(table, {"PREROUTING": [RuleCounters(3, 99)]}, {"PREROUTING": RuleCounters(1, 40)})
    text = print_tables([table], [dump], rule_counters=True, date="Tue Nov 24 01:58:39 2026")
    assert text.splitlines() == [
        "# Generated by iptables-save v1.8.9 on Tue Nov 24 01:58:39 2026",
        "*raw",
        ":PREROUTING ACCEPT [1:40]",
        ":OUTPUT ACCEPT [0:0]",
        "[3:99] -A PREROUTING -j DROP",
        "COMMIT",
        "# Completed on Tue Nov 24 01:58:39 2026",
    ]
    assert parse(text, 4) == [nf.Table("raw", 4, (*table.chains, nf.Chain("OUTPUT", (), "ACCEPT")))]
    assert "[3:99]" not in print_tables([table], [dump])


def test_inserted_rules():
    text = (
        "*filter\n-A INPUT -p tcp -j DROP\n-I INPUT -p udp -j DROP\n-I INPUT 2 -p icmp -j DROP\n-D INPUT -p tcp -j DROP\nCOMMIT\n"
    )
    (table,) = parse(text, 4)
    assert [rule_line("INPUT", rule) for rule in table.chains[0].rules] == ["-A INPUT -p udp -j DROP", "-A INPUT -p icmp -j DROP"]


def test_commands_on_a_table():
    edit = TableEdit("filter", 4)
    for command in (
        "-N X",
        "-A X -j ACCEPT",
        "-P FORWARD DROP",
        "-A INPUT -j X",
        "-R INPUT 1 -p tcp -j X",
        "-D INPUT 1",
        "-F X",
        "-X X",
    ):
        edit.command(command.split())
    assert edit.table() == nf.Table(
        "filter", 4, (nf.Chain("INPUT", (), "ACCEPT"), nf.Chain("FORWARD", (), "DROP"), nf.Chain("OUTPUT", (), "ACCEPT"))
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-A NOPE -j DROP", 'no chain "NOPE" in table filter'),
        ("-A INPUT -j NOPE", 'no chain or target "NOPE", jumped to from INPUT'),
        ("-A INPUT --nope", 'unknown option "--nope"'),
        ("-A INPUT -m nope", 'unknown match "nope"'),
        ("-A INPUT -s 300.0.0.1", 'invalid address "300.0.0.1"'),
        ("-A INPUT -s fd00::1", "is not an IPv4 address"),
        ("-A INPUT -s 10.0.0.1,10.0.0.2", "several addresses"),
        ("-A INPUT -p nope", 'unknown protocol "nope"'),
        ("-A INPUT -p tcp --dport 70000", 'invalid port "70000"'),
        ("-A INPUT -p tcp --dport 9:1", "min > max"),
        ("-A INPUT --dport 9", "--dport needs -p"),
        ("-A INPUT --mark 1", 'unknown option "--mark"'),
        ("-A INPUT -m mark --mark x", 'invalid mark "x"'),
        ("-A INPUT -m conntrack --ctstate OLD", 'bad ctstate "OLD"'),
        ("-A INPUT -m addrtype --dst-type X", 'bad address type "X"'),
        ("-A INPUT -m statistic --mode nth --probability 1", "statistic"),
        ("-A INPUT -m recent --name X", "recent: one of"),
        ("-A INPUT -m comment --comment", "the comment is missing"),
        ('-A INPUT -m comment --comment "x', 'missing closing "'),
        ("-A INPUT -j DROP -j ACCEPT", "one target"),
        ("-A INPUT ! -j DROP", '"!" cannot stand before -j'),
        ("-A INPUT ! ! -s 10.0.0.1", 'two "!"'),
        ("-A INPUT -j MARK", "MARK needs an option"),
        ("-A INPUT -j MARK --to-destination 10.0.0.1", "unknown option"),
        ("-A INPUT -j DNAT --to-destination 10.0.0.1-10.0.0.9", "ranges are not supported"),
        ("-A INPUT -p icmp --icmp-type 999", 'invalid ICMP type "999"'),
        ("-A INPUT -p icmp --icmpv6-type 1", "other family"),
        ("-I INPUT 3 -j DROP", "too big"),
        ("-D INPUT -j DROP", "does a matching rule exist"),
        ("-Q INPUT", 'unknown command "-Q"'),
        ("-P X DROP", 'no chain "X"'),
        (":INPUT MAYBE [0:0]", "neither ACCEPT nor DROP"),
        (":X DROP [0:0]", "not built in"),
        (":X", "a chain line is"),
        ("*nat", "no COMMIT"),
    ],
)
def test_errors_name_the_line(line, message):
    with pytest.raises(RulesetError, match=r"^line [34]: ") as error:
        parse(f"# comment\n*filter\n{line}\nCOMMIT\n", 4)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["*nope\nCOMMIT\n", "-A INPUT -j DROP\n", "*filter\n"])
def test_broken_files(text):
    with pytest.raises(RulesetError, match=r"^line 1: "):
        parse(text, 4)


@given(st.text(max_size=60), st.sampled_from([4, 6]))
def test_any_text(text, family):
    try:
        parse(f"*filter\n-A INPUT {text}\nCOMMIT\n", family)
    except RulesetError as error:
        if not str(error).startswith("line "):
            raise
