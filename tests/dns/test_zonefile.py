"""Zone files: every form of a record, every error with its line."""

from __future__ import annotations

import contextlib

import pytest
from dnslib import QTYPE
from hypothesis import given
from hypothesis import strategies as st

from podwire_dns.zonefile import ZoneError, parse, seconds

SOA = "@ 3600 IN SOA ns hostmaster 1 2 3 4 60\n"


def shown(text: str) -> list[tuple[str, int, str, str]]:
    return [(str(r.rname), r.ttl, QTYPE[r.rtype], str(r.rdata)) for r in parse(text, "example.org", "db")]


@pytest.mark.parametrize(
    ("line", "record"),
    [
        ("www 60 IN A 192.0.2.1", ("www.example.org.", 60, "A", "192.0.2.1")),
        ("www IN 1h30m A 192.0.2.1 ; why", ("www.example.org.", 5400, "A", "192.0.2.1")),
        ("www.example.org. 60 AAAA 2001:DB8::1", ("www.example.org.", 60, "AAAA", "2001:db8::1")),
        ("@ 60 MX 10 mail", ("example.org.", 60, "MX", "10 mail.example.org.")),
        ("a 60 CNAME other.net.", ("a.example.org.", 60, "CNAME", "other.net.")),
        ("*.b 60 NS @", ("*.b.example.org.", 60, "NS", "example.org.")),
        ("_x._tcp 60 SRV 1 2 3 t", ("_x._tcp.example.org.", 60, "SRV", "1 2 3 t.example.org.")),
        ('t 60 TXT "a ; b" c\\"d', ("t.example.org.", 60, "TXT", '"a ; b","c"d"')),
        ("p 60 PTR q", ("p.example.org.", 60, "PTR", "q.example.org.")),
        ('@ 60 CAA 0 issue "ca.net"', ("example.org.", 60, "CAA", '0 issue "ca.net"')),
    ],
)
def test_a_record(line, record):
    assert shown(line) == [record]


def test_what_lines_inherit():
    text = "$TTL 1m\n$ORIGIN sub\n@ A 192.0.2.1\n  A 192.0.2.2\n$ORIGIN other.org.\nx 9 A (\n 192.0.2.3 ) ; end\n"
    assert shown(text) == [
        ("sub.example.org.", 60, "A", "192.0.2.1"),
        ("sub.example.org.", 60, "A", "192.0.2.2"),
        ("x.other.org.", 9, "A", "192.0.2.3"),
    ]


def test_an_soa_over_several_lines_gives_the_ttl_where_there_is_none():
    text = "@ IN SOA ns hostmaster.example.org. (\n 2026010101 ; serial\n 2h ; refresh\n 30m 1d\n 60 )\nwww A 192.0.2.1\n"
    [soa, www] = parse(text, "example.org.", "db")
    assert (soa.ttl, soa.rdata.times, www.ttl) == (60, (2026010101, 7200, 1800, 86400, 60), 3600)


def test_an_unknown_type_in_rfc_3597s_form():
    [record] = parse("x 60 TYPE731 \\# 3 abcd ef\n", "example.org", "db")
    assert (record.rtype, record.rdata.data) == (731, b"\xab\xcd\xef")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("www A 192.0.2\n", "db:1: Expected 4 octets in '192.0.2'"),
        (SOA + "www IN\n", "db:2: too few fields"),
        (SOA + "\n; c\nwww MX mail\n", "db:4: MX takes 2 fields, not 1"),
        ("www XYZ 1\n", "db:1: type XYZ is not known; write it as TYPEn \\# LENGTH HEX"),
        ("@ SOA a b (\n 1 2\n", "db:1: ( is not closed"),
        ("@ A 192.0.2.1 )\n", "db:1: ) without ("),
        (" A 192.0.2.1\n", "db:1: the first record has no owner"),
        ("$INCLUDE other\n", "db:1: $INCLUDE other: only $ORIGIN NAME and $TTL SECONDS are known"),
        ("$TTL soon\n", "db:1: 'soon' is not a time in seconds"),
        ("x CH A 192.0.2.1\n", "db:1: only class IN is served"),
        ("x SRV 1 2 65536 y\n", "db:1: '65536' is not a number of 16 bits"),
        ('x TXT "open\n', "db:1: cannot read"),
        ("x TYPE9 \\# 2 ab\n", "db:1: \\# 2: 1 bytes follow"),
        ("a..b A 192.0.2.1\n", "db:1: 'a..b' is not a domain name"),
        (f"{'x' * 64} A 192.0.2.1\n", f"db:1: '{'x' * 64}' is not a domain name"),
    ],
)
def test_an_error_says_where(text, message):
    with pytest.raises(ZoneError) as raised:
        parse(text, "example.org", "db")
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("90", 90), ("1w2d", 777600), ("1H", 3600)])
def test_times(text, value):
    assert seconds(text) == value


WORDS = [
    "@",
    "www",
    "IN",
    "60",
    "A",
    "192.0.2.1",
    "SOA",
    "(",
    ")",
    ";",
    '"',
    "\n",
    " ",
    "$TTL",
    "$ORIGIN",
    "TXT",
    "\\#",
    "\\",
    ".",
]


@given(st.text(max_size=80) | st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join))
def test_no_text_breaks_the_parser(text):
    with contextlib.suppress(ZoneError):  # anything else is a bug
        for record in parse(text, "example.org", "db"):
            assert str(record.rname).endswith(".")


@given(st.ip_addresses(v=4), st.integers(0, 2**31 - 1), st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True))
def test_what_is_written_is_read(ip, ttl, label):
    assert shown(f"{label} {ttl} IN A {ip}\n") == [(f"{label}.example.org.", ttl, "A", str(ip))]
