"""The rewrite plugin: each kind of rule on its way in and out; parsers by hypothesis."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_dns import message as m
from podwire_dns.corefile import CorefileError, Directive
from podwire_dns.message import Query, Reply
from podwire_dns.plugins.rewriterules import Names, rule_of
from tests.dns.conftest import InMemory


class Behind:
    """Answers what it is asked, and remembers it."""

    def __init__(self, *lines: str) -> None:
        self.dns = InMemory(". {\n " + "\n ".join(lines) + "\n whoami\n}\n", [])
        self.dns.context.plugins[-1].serve = self.serve
        self.query = Query("", 0)
        self.rcode = 0

    async def serve(self, query: Query) -> Reply:
        self.query = query
        if query.qtype == 5:
            return Reply(answer=[m.cname(query.name, "target.internal.", 60)])
        return Reply(self.rcode, answer=[] if self.rcode else [m.address(query.name, "192.0.2.1", 60)])


@pytest.mark.parametrize(
    ("rule", "asked", "behind", "owner"),
    [
        ("name a.org b.org", "a.org.", "b.org.", "a.org."),
        ("name a.org. b.org.", "A.ORG.", "b.org.", "A.ORG."),
        ("name exact a.org b.org", "x.a.org.", "x.a.org.", "x.a.org."),
        ("name prefix foo bar", "foo.org.", "bar.org.", "bar.org."),
        ("name prefix foo bar answer auto", "foo.org.", "bar.org.", "foo.org."),
        ("name suffix .a.com .svc.local", "a.b.a.com.", "a.b.svc.local.", "a.b.svc.local."),
        ("name suffix .a.com .svc.local answer auto", "a.b.a.com.", "a.b.svc.local.", "a.b.a.com."),
        ("name substring schmoogle google", "a.schmoogle.com.", "a.google.com.", "a.google.com."),
        (r"name regex (.*)-(us)\.a\.org {1}.at.{2}.b", "ftp-us.a.org.", "ftp.at.us.b.", "ftp.at.us.b."),
        (r"name regex (.*)\.a\.org {1}.b.net answer name (.*)\.b\.net {1}.a.org", "x.a.org.", "x.b.net.", "x.a.org."),
        ("{\n  name regex (.*)\\.a\\.o {1}.b\n  answer name (.*)\\.b {1}.a.o\n }", "x.a.o.", "x.b.", "x.a.o."),
        ("stop name a.org b.org\n rewrite name b.org c.org", "a.org.", "b.org.", "a.org."),
        ("continue name a.org b.org\n rewrite name b.org c.org", "a.org.", "c.org.", "a.org."),
        ("name other.org b.org", "a.org.", "a.org.", "a.org."),
    ],
)  # fmt: skip
def test_names(rule, asked, behind, owner):
    chain = Behind(f"rewrite {rule}")
    reply = chain.dns.ask(asked)
    assert (chain.query.name, reply.answer) == (behind, [(owner, "A", "192.0.2.1")])
    assert str(reply.raw.q.qname) == asked, "the question is the client's"


def test_names_in_data():
    chain = Behind(r"rewrite name regex (.*)\.a\.org {1}.b.org answer value (.*)\.internal {1}.a.org")
    assert chain.dns.ask("x.a.org.", "CNAME").data == ["target.a.org."]


def test_types_and_classes():
    chain = Behind("rewrite type ANY HINFO", "rewrite class CH IN")
    chain.dns.ask("x.org.", "ANY")
    assert chain.query.qtype == 13


@pytest.mark.parametrize(
    ("rule", "ttls"),
    [
        ("ttl x.org 15", {15}),
        ("ttl suffix .org 30-", {60}),
        ("ttl suffix .org -30", {30}),
        ("ttl regex (.*) 90-120", {90}),
        ("ttl y.org 15", {60}),
    ],
)
def test_ttls(rule, ttls):
    assert Behind(f"rewrite {rule}").dns.ask("x.org.").ttls == ttls


@pytest.mark.parametrize(
    ("rule", "code"), [("rcode x.org NXDOMAIN NOERROR", "NOERROR"), ("rcode suffix org SERVFAIL NOERROR", "NXDOMAIN")]
)
def test_codes(rule, code):
    chain = Behind(f"rewrite {rule}")
    chain.rcode = m.NXDOMAIN
    assert chain.dns.ask("x.org.").rcode == code


@pytest.mark.parametrize(
    ("rule", "client", "options"),
    [
        ("local set 0xffee abcd", "10.1.2.3", ((0xFFEE, b"abcd"),)),
        ("local set 0xffee 0x0a0b", "10.1.2.3", ((0xFFEE, b"\x0a\x0b"),)),
        ("local set 65518 {client_ip}", "10.1.2.3", ((0xFFEE, b"\x0a\x01\x02\x03"),)),
        ("local set 1 {qname}", "10.1.2.3", ((1, b"x.org."),)),
        ("local replace 1 x", "10.1.2.3", ()),
        ("nsid set", "10.1.2.3", ((3, b""),)),
        ("subnet set 20 56", "10.1.255.3", ((8, b"\x00\x01\x14\x00\x0a\x01\xf0"),)),
        ("subnet set 24 56", "fd00:1::9", ((8, b"\x00\x02\x38\x00\xfd\x00\x00\x01\x00\x00\x00"),)),
    ],
)
def test_edns0(rule, client, options):
    chain = Behind(f"rewrite edns0 {rule}")
    chain.dns.ask("x.org.", client=client)
    assert chain.query.options == options


def test_a_name_that_is_none_is_servfail():
    assert Behind(f"rewrite name prefix x {'y' * 70}").dns.ask("x.org.").rcode == "SERVFAIL"


@pytest.mark.parametrize(
    "rule",
    [
        "name regex ( x", "name a", "type A NOPE", "class IN XX", "ttl a b", "edns0 local set x y", "edns0 subnet set 40 1",
        "nope a b",
        "edns0 local set 1 {nope}", "rcode a NOPE NOERROR", "name a b answer", "name a b answer name x", "name a b c d",
    ],
)  # fmt: skip
def test_a_wrong_rule_says_where(rule):
    with pytest.raises(CorefileError, match=r"^Corefile:2: plugin rewrite: "):
        Behind(f"rewrite {rule}")


WORDS = [
    "name",
    "ttl",
    "exact",
    "suffix",
    "regex",
    "answer",
    "auto",
    "value",
    "type",
    "A",
    "1",
    "{1}",
    "(",
    "edns0",
    "local",
    "set",
    "a.org",
    "-",
]


@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=8))
def test_no_words_break_the_parser(words):
    with contextlib.suppress(CorefileError):  # anything else is a bug
        rule_of(Directive("rewrite", (), (), "F", 1), words)


NAMES = st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,5}){0,3}\.", fullmatch=True)


@given(NAMES, NAMES, NAMES)
def test_a_suffix_is_exchanged_and_back(name, before, after):
    changed = Names("suffix", "." + before, ValueError).replace(name + before, "." + after)
    assert changed == name + after
    assert Names("suffix", "." + after, ValueError).replace(changed, "." + before) == name + before
