"""acl, any, bufsize, cancel, chaos, header, local, minimal, whoami: the plugins that look at a message and not at data."""

from __future__ import annotations

import logging

import dnslib
import pytest
import trio
from dnslib import QTYPE

from podwire_dns.corefile import CorefileError
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Plugin
from tests.dns.conftest import Asked, InMemory, endpoint, namespace, service, slice_of

OBJECTS = [
    namespace("default"),
    service("web"),
    service("big", "None"),
    slice_of("big", *(endpoint(f"10.244.{i}.5") for i in range(60))),
]
WEB = "web.default.svc.cluster.local."


def block(*lines: str) -> InMemory:
    return InMemory(". {\n " + "\n ".join(lines) + "\n kubernetes cluster.local\n}\n", OBJECTS)


@pytest.mark.parametrize(
    ("rules", "client", "qtype", "rcode"),
    [
        ("block", "10.0.0.1", "A", "REFUSED"),
        ("block net 10.0.0.0/8", "10.0.0.1", "A", "REFUSED"),
        ("block net 10.0.0.0/8", "192.0.2.1", "A", "NOERROR"),
        ("block type AAAA MX net *", "10.0.0.1", "A", "NOERROR"),
        ("block type AAAA MX net *", "10.0.0.1", "MX", "REFUSED"),
        ("block net fd00::/8 192.0.2.7", "fd00::1", "A", "REFUSED"),
        ("allow net 10.0.0.1\n block", "10.0.0.1", "A", "NOERROR"),
        ("allow net 10.0.0.1\n block", "10.0.0.2", "A", "REFUSED"),
        ("filter", "10.0.0.1", "A", "NOERROR"),
    ],
)
def test_acl(rules, client, qtype, rcode):
    dns = block(f"acl {{\n {rules}\n }}")
    asked = dns.ask(WEB, qtype, client)
    assert asked.rcode == rcode
    assert bool(asked.answer) == (rcode == "NOERROR" and qtype == "A" and rules != "filter")


def test_acl_drops_and_counts_and_its_lines_are_one_list():
    dns = block("acl other.org {\n  block\n }", "acl {\n  drop net 10.0.0.1\n }")
    assert dns.send(WEB, client="10.0.0.1") is None
    assert dns.ask(WEB, client="10.0.0.2").answer
    [(labels, count)] = dns.metrics("coredns_acl_dropped_requests_total").items()
    assert ('server="dns://10.244.1.2:53"' in labels, count) == (True, 1.0)


@pytest.mark.parametrize("rule", ["deny", "block net 10.0.0.0/40", "block type NOPE", "block 10.0.0.1"])
def test_a_wrong_acl_says_where(rule):
    with pytest.raises(CorefileError, match=r"^Corefile:3: plugin acl: "):
        block(f"acl {{\n {rule}\n }}")


def test_any_is_one_hinfo():
    raw = block("any").ask("anything.example.", "ANY").raw
    assert [(QTYPE[r.rtype], bytes(r.rdata.data)) for r in raw.rr] == [("HINFO", b"\x0dANY obsoleted\x0cSee RFC 8482")]
    assert block("any").ask(WEB).data == ["10.96.0.50"]


def test_bufsize_bounds_udp_answers_alone():
    big = "big.default.svc.cluster.local."
    assert block("bufsize 512").ask(big, size=4096).raw.header.tc
    assert not block().ask(big, size=4096).raw.header.tc
    assert len(block("bufsize 512").ask(big, tcp=True).answer) == 60
    with pytest.raises(CorefileError, match="takes a size from 512 to 4096"):
        block("bufsize 100")


def test_cancel_ends_what_takes_too_long():
    dns = block("cancel 50ms", "errors")

    class Sleeper(Plugin):
        def __init__(self) -> None:
            pass

        async def serve(self, query: Query) -> Reply:
            await trio.sleep(30)
            return Reply()

    dns.context.plugins[-1].serve = Sleeper().serve
    assert dns.ask(WEB).rcode == "SERVFAIL"


@pytest.mark.parametrize(
    ("name", "texts"),
    [("version.bind.", ['"v9"']), ("VERSION.server.", ['"v9"']), ("authors.bind.", ['"ann"', '"bob"'])],
)
def test_chaos(name, texts):
    reply = block("chaos v9 bob ann").send(name, "TXT", qclass=3)
    assert sorted(str(r.rdata) for r in dnslib.DNSRecord.parse(reply).rr) == texts


def test_class_ch_is_for_chaos_alone():
    assert Asked(dnslib.DNSRecord.parse(block().send(WEB, qclass=3))).rcode == "REFUSED"
    assert Asked(dnslib.DNSRecord.parse(block("chaos").send(WEB, qclass=3))).rcode == "REFUSED"
    assert block("chaos").ask(WEB).rcode == "NOERROR"


def test_header_sets_and_clears_bits():
    before = block().ask(WEB).raw.header
    after = block("header {\n  clear aa ra\n  response set rd\n }").ask(WEB).raw.header
    assert (before.aa, before.ra, after.aa, after.ra, after.rd) == (1, 1, 0, 0, 1)
    for wrong in ("set", "set qr", "query set aa", "flip aa"):
        with pytest.raises(CorefileError, match=f"^Corefile:3: plugin header: unknown or wrong option: {wrong}"):
            block(f"header {{\n  {wrong}\n }}")


@pytest.mark.parametrize(
    ("name", "qtype", "rcode", "data"),
    [
        ("localhost.", "A", "NOERROR", ["127.0.0.1"]),
        ("localhost.", "AAAA", "NOERROR", ["::1"]),
        ("localhost.cluster.local.", "A", "NOERROR", ["127.0.0.1"]),
        ("localhost.", "MX", "NOERROR", []),
        ("1.0.0.127.in-addr.arpa.", "PTR", "NOERROR", ["localhost."]),
        ("2.0.0.127.in-addr.arpa.", "PTR", "NXDOMAIN", []),
        ("127.in-addr.arpa.", "SOA", "NOERROR", None),
        ("255.in-addr.arpa.", "NS", "NOERROR", ["localhost."]),
        (WEB, "A", "NOERROR", ["10.96.0.50"]),
    ],
)
def test_local(name, qtype, rcode, data):
    asked = block("local").ask(name, qtype)
    assert (asked.rcode, asked.data) == (rcode, asked.data if data is None else data)
    assert bool(asked.soa) == (data == [])


def test_minimal_leaves_the_answer_and_negative_answers_as_they_are():
    name = f"_http._tcp.{WEB}"
    assert block().ask(name, "SRV").extra == [f"{WEB} A 10.96.0.50"]
    small = block("minimal").ask(name, "SRV")
    assert (small.extra, small.data) == ([], [f"0 100 80 {WEB}"])
    assert block("minimal").ask(f"no.{WEB}").soa == ["cluster.local."]


@pytest.mark.parametrize(("client", "tcp", "extra"), [
    ("10.0.0.9", False, ["_udp.x.org. SRV 0 0 40000 .", "x.org. A 10.0.0.9"]),
    ("fd00::9", True, ["_tcp.x.org. SRV 0 0 40000 .", "x.org. AAAA fd00::9"]),
])  # fmt: skip
def test_whoami(client, tcp, extra):
    asked = InMemory(". {\n whoami\n}\n", []).ask("x.org.", client=client, tcp=tcp)
    assert (asked.rcode, asked.answer, asked.extra) == ("NOERROR", [], extra)


@pytest.mark.parametrize(
    ("options", "name", "lines"),
    [
        ("", WEB, [f'10.244.1.9:40000 - 7 "A IN {WEB} udp 58 false 1232" NOERROR qr,aa,rd,ra']),
        (' "{name} {rcode} {>do}"', WEB, [f"{WEB} NOERROR false"]),
        (' other.org "{name}"', WEB, []),
        (' "{name}" {\n  class denial\n }', WEB, []),
        (' "{name}" {\n  class denial error\n }', f"no.{WEB}", [f"no.{WEB}"]),
        (' "{name}" {\n  class error\n  minDuration 0\n }', WEB, [WEB]),
    ],
)
def test_log(options, name, lines, caplog):
    caplog.set_level(logging.INFO, "podwire_dns")
    dns = block(f"log{options}")
    query = dnslib.DNSRecord(dnslib.DNSHeader(id=7), q=dnslib.DNSQuestion(name))
    query.add_ar(dnslib.EDNS0(udp_len=1232))
    trio.run(dns.server.answer, query.pack(), "10.244.1.9", False, 53, 40000)
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == len(lines)
    assert all(line.startswith(start) for line, start in zip(logged, lines, strict=True))


def test_a_wrong_log_format_says_so():
    with pytest.raises(CorefileError, match=r"^Corefile:2: plugin log: unknown placeholder \{nope\}"):
        block('log "{nope}"')


def test_errors_are_logged_and_consolidated(caplog):
    dns = InMemory(". {\n errors {\n  consolidate 10s fallthrough warning show_first\n }\n hosts /nonexistent\n}\n", [])
    caplog.clear()
    for _ in range(5):
        assert dns.ask("x.org.").rcode == "SERVFAIL"
    dns.now = 9.0
    dns.context.plugins[0].flush(dns.now)
    assert [r.getMessage() for r in caplog.records] == [
        "plugin/errors: 2 x.org. A: plugin/hosts: no such name, and no fallthrough"
    ]
    dns.now = 10.0
    dns.context.plugins[0].flush(dns.now)
    assert caplog.records[-1].getMessage() == "plugin/errors: 5 errors like 'fallthrough' occurred in last 10s"


def test_an_exception_in_a_plugin_is_servfail_counted_and_with_its_stack_if_wanted(caplog):
    dns = block("errors {\n  stacktrace\n }")

    async def broken(query: Query) -> Reply:
        raise RuntimeError("a bug")

    dns.context.plugins[-1].serve = broken
    assert dns.ask(WEB).rcode == "SERVFAIL"
    assert caplog.records[-1].exc_info
    assert b"coredns_panics_total 1.0" in dns.context.metrics.text()
