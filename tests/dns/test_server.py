"""Messages of all sorts; the chain around the plugins; the Corefile's errors."""

from __future__ import annotations

import contextlib

import dnslib
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from podwire_dns.corefile import CorefileError, parse
from tests.dns.conftest import InMemory, endpoint, namespace, service, slice_of

MANY = [namespace("default"), service("big", "None"), slice_of("big", *(endpoint(f"10.244.{i}.5") for i in range(200)))]
COREFILE = ". {\n loadbalance\n cache 30\n kubernetes cluster.local\n}\n"
BIG = "big.default.svc.cluster.local."


def test_an_answer_too_large_for_udp_is_truncated_and_whole_over_tcp():
    dns = InMemory(COREFILE, MANY)
    small = dns.ask(BIG, size=512)
    assert small.raw.header.tc
    assert len(dns.ask(BIG, tcp=True).answer) == 200


def test_addresses_are_shuffled():
    dns = InMemory(COREFILE, MANY)
    assert dns.ask(BIG, tcp=True).answer != dns.ask(BIG, tcp=True).answer


def test_a_cached_answer_ages_and_goes():
    dns = InMemory(COREFILE, MANY)
    assert {r.ttl for r in dns.ask(BIG, tcp=True).raw.rr} == {5}
    dns.index.put("Service", "default/big", None)
    dns.now = 3.0
    assert {r.ttl for r in dns.ask(BIG, tcp=True).raw.rr} == {2}
    dns.now = 5.0
    assert dns.ask(BIG).rcode == "NXDOMAIN"


def test_hosts_with_fallthrough_stand_before_kubernetes():
    dns = InMemory(". {\n hosts {\n  192.0.2.7 printer.lan\n  fallthrough\n }\n kubernetes cluster.local\n}\n", MANY)
    assert dns.ask("printer.lan.").data == ["192.0.2.7"]
    assert dns.ask("7.2.0.192.in-addr.arpa.", "PTR").data == ["printer.lan."]
    assert len(dns.ask(BIG, tcp=True).answer) == 200


def test_a_zone_nobody_serves_is_refused():
    dns = InMemory("cluster.local {\n kubernetes\n}\n", MANY)
    assert dns.ask("example.org.").rcode == "REFUSED"
    assert dns.ask(BIG, tcp=True).rcode == "NOERROR"


@pytest.mark.parametrize(
    ("message", "rcode"),
    [
        (dnslib.DNSRecord(dnslib.DNSHeader(opcode=4), q=dnslib.DNSQuestion("a.")).pack(), 4),
        (dnslib.DNSRecord(questions=[dnslib.DNSQuestion("a."), dnslib.DNSQuestion("b.")]).pack(), 1),
        (dnslib.DNSRecord().pack(), 1),
        (b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xff", 1),
    ],
    ids=["opcode", "two questions", "no question", "cut off"],
)
def test_what_is_no_question_gets_an_error(message, rcode):
    reply = trio.run(InMemory(COREFILE, []).server.answer, message, "", False)
    assert (reply[:2], reply[2] >> 7, reply[3] & 15) == (message[:2], 1, rcode)


def test_a_reply_is_never_answered():
    message = dnslib.DNSRecord.question("a.").reply().pack()
    assert trio.run(InMemory(COREFILE, []).server.answer, message, "", False) is None


@given(st.binary(max_size=80), st.integers(0, 60), st.integers(0, 255))
def test_no_message_breaks_it(noise, position, value):
    dns = FUZZED
    mutated = bytearray(dnslib.DNSRecord.question(BIG, "SRV").pack())
    mutated[position % len(mutated)] = value
    for message in (noise, bytes(mutated), bytes(mutated) + noise):
        reply = trio.run(dns.server.answer, message, "10.0.0.1", False)
        assert reply is None or len(reply) >= 12


FUZZED = InMemory(COREFILE, MANY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Corefile:1: no server block"),
        (". {\n errors\n", "Corefile:2: the file ends within a server block"),
        (". {\n nonsense\n}\n", "Corefile:2: plugin nonsense: unknown; there are: "),
        (". {\n kubernetes {\n  pods maybe\n }\n}\n", "Corefile:3: plugin kubernetes: unknown or wrong option: pods maybe"),
        (". {\n forward .\n}\n", "Corefile:2: plugin forward: needs FROM and at least one TO"),
        (". {\n forward . upstream\n}\n", "Corefile:2: plugin forward: 'upstream' is not an address, address:port or file"),
        (".:99999 {\n}\n", "Corefile:1: '.:99999': a port is a number from 1 to 65535"),
        (". {\n}\n. {\n}\n", "Corefile:3: .:53 is served by a block above already"),
        ('. {\n log "x\n}\n', "Corefile:2: a quote is not closed"),
        (". {\n import other\n}\n", "Corefile:2: import: no snippet (other) above"),
        (". {\n reload 1s\n}\n", "Corefile:2: plugin reload: takes an interval of at least 2s"),
        ("tls://. {\n}\n", "Corefile:1: tls:// is not served, only dns://"),
    ],
)
def test_a_wrong_corefile_is_one_line_that_says_where(text, message):
    with pytest.raises(CorefileError) as raised:
        InMemory(text, [])
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_snippets_comments_quotes_and_variables():
    blocks = parse('(common) {\n log "a b" # why\n}\na.org:5300 b.org {\n import common\n ttl {$T}\n}\n', environment={"T": "7"})
    [block] = blocks
    assert block.zones == (("a.org", 5300), ("b.org", 53))
    assert [(d.name, d.args) for d in block.directives] == [("log", ("a b",)), ("ttl", ("7",))]


@given(st.text(alphabet='.{} \n"\\#abc$%:/19', max_size=60))
def test_no_text_breaks_the_parser(text):
    with contextlib.suppress(CorefileError):  # anything else is a bug
        parse(text)


def test_a_wrong_configuration_leaves_the_running_one():
    dns = InMemory(COREFILE, MANY)
    with pytest.raises(CorefileError):
        dns.server.configure(parse(". {\n nonsense\n}\n"))
    assert dns.ask(BIG, tcp=True).rcode == "NOERROR"
