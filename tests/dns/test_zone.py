"""A zone's answers: RFC 1034, 2308, 4592, 6604, 6672."""

from __future__ import annotations

import pytest
from dnslib import QTYPE

from podwire_dns.zone import Zone
from podwire_dns.zonefile import parse

TEXT = """\
$TTL 300
@       3600 SOA  ns hostmaster 7 7200 1800 86400 60
        NS   ns
        MX   10 mail
ns      A    192.0.2.53
mail    A    192.0.2.25
        AAAA 2001:db8::25
www     A    192.0.2.80
alias   CNAME www
twice   CNAME alias
out     CNAME www.example.net.
loop    CNAME pool
pool    CNAME loop
dangling CNAME absent
a.b.c   TXT  deep
*.wild  A    192.0.2.42
*.alias-wild CNAME www
there.wild TXT x
child   NS   ns.child
        NS   ns.elsewhere.net.
ns.child A   192.0.2.99
below.child A 192.0.2.98
tree    DNAME other.example.org.
x.other A    192.0.2.77
_http._tcp SRV 0 0 80 www
"""
ZONE = Zone("example.org", parse(TEXT, "example.org", "db"))


def asked(name: str, qtype: str):
    found = ZONE.lookup(f"{name}.example.org." if name else "example.org.", getattr(QTYPE, qtype))
    answer = [(str(r.rname).removesuffix(".example.org."), QTYPE[r.rtype], str(r.rdata)) for r in found.reply.answer]
    return found, answer


@pytest.mark.parametrize(
    ("name", "qtype", "answer"),
    [
        ("www", "A", [("www", "A", "192.0.2.80")]),
        ("WwW", "A", [("WwW", "A", "192.0.2.80")]),
        ("alias", "A", [("alias", "CNAME", "www.example.org."), ("www", "A", "192.0.2.80")]),
        ("alias", "CNAME", [("alias", "CNAME", "www.example.org.")]),
        ("any.wild", "A", [("any.wild", "A", "192.0.2.42")]),
        ("any.more.wild", "A", [("any.more.wild", "A", "192.0.2.42")]),
        ("z.alias-wild", "A", [("z.alias-wild", "CNAME", "www.example.org."), ("www", "A", "192.0.2.80")]),
        (
            "x.tree",
            "A",
            [
                ("tree", "DNAME", "other.example.org."),
                ("x.tree", "CNAME", "x.other.example.org."),
                ("x.other", "A", "192.0.2.77"),
            ],
        ),
    ],
)
def test_answers(name, qtype, answer):
    found, got = asked(name, qtype)
    assert (got, found.reply.rcode, found.reply.authoritative) == (answer, 0, True)


@pytest.mark.parametrize(
    ("name", "qtype", "rcode", "length"),
    [
        ("www", "AAAA", 0, 0),
        ("b.c", "A", 0, 0),
        ("there.wild", "A", 0, 0),
        ("wild", "A", 0, 0),
        ("absent", "A", 3, 0),
        ("x.www", "A", 3, 0),
        ("x.there.wild", "A", 3, 0),
        ("dangling", "A", 3, 1),
        ("twice", "AAAA", 0, 2),
    ],
)
def test_negative_answers_carry_the_soa_with_the_negative_ttl(name, qtype, rcode, length):
    found, answer = asked(name, qtype)
    [soa] = found.reply.authority
    assert (found.reply.rcode, len(answer), QTYPE[soa.rtype], soa.ttl) == (rcode, length, "SOA", 60)


def test_below_a_delegation_is_a_referral_with_glue():
    for name in ("child", "below.child", "deep.below.child"):
        found, answer = asked(name, "A")
        assert (answer, found.reply.authoritative) == ([], False)
        assert {str(r.rdata) for r in found.reply.authority} == {"ns.child.example.org.", "ns.elsewhere.net."}
        assert [(str(r.rname), str(r.rdata)) for r in found.reply.additional] == [("ns.child.example.org.", "192.0.2.99")]


def test_a_ds_record_stands_above_its_cut():
    found, _ = asked("child", "DS")
    assert found.reply.authoritative
    assert [QTYPE[r.rtype] for r in found.reply.authority] == ["SOA"]


def test_a_cname_that_leaves_the_zone_is_left_to_the_caller():
    found, answer = asked("out", "A")
    assert (found.outside, answer) == ("www.example.net.", [("out", "CNAME", "www.example.net.")])


def test_a_loop_of_cnames_ends():
    assert len(asked("loop", "A")[1]) <= 8


def test_servers_and_addresses_come_along():
    found, answer = asked("", "MX")
    assert answer == [("example.org.", "MX", "10 mail.example.org.")]
    assert {str(r.rdata) for r in found.reply.additional} == {"192.0.2.25", "2001:db8::25"}
    assert [str(r.rdata) for r in found.reply.authority] == ["ns.example.org."]
    assert [str(r.rdata) for r in asked("_http._tcp", "SRV")[0].reply.additional] == ["192.0.2.80"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("www 60 A 192.0.2.1\n", "zone example.org. has 0 SOA records, not one"),
        (TEXT + "x.example.net. A 192.0.2.1\n", "x.example.net. is not in the zone example.org."),
        (TEXT + "www CNAME x\n", "www.example.org. has a CNAME and other records"),
        (TEXT + "alias A 192.0.2.1\n", "alias.example.org. has a CNAME and other records"),
    ],
)
def test_what_is_no_zone(text, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        Zone("example.org", parse(text, "example.org", "db"))
