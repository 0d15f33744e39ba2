"""Messages of all sorts; the chain around the plugins; the Corefile's errors."""

from __future__ import annotations

import struct

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


def test_a_wrong_configuration_leaves_the_running_one():
    dns = InMemory(COREFILE, MANY)
    with pytest.raises(CorefileError):
        dns.server.configure(parse(". {\n nonsense\n}\n"))
    assert dns.ask(BIG, tcp=True).rcode == "NOERROR"


def test_the_longest_zone_answers_and_ports_are_apart():
    text = "org {\n whoami\n}\na.org:53 {\n any\n}\n.:5300 {\n whoami\n}\n"
    dns = InMemory(text, [])
    assert dns.server.ports == {53, 5300}
    assert [dns.ask(name).rcode for name in ("x.org.", "x.a.org.", "x.net.")] == ["NOERROR", "REFUSED", "REFUSED"]
    reply = dns.send("x.net.", port=5300)
    assert reply is not None
    assert dnslib.RCODE[dnslib.DNSRecord.parse(reply).header.rcode] == "NOERROR"


def test_a_networks_reverse_names_have_their_own_block():
    dns = InMemory("10.96.0.0/15 {\n kubernetes cluster.local 10.96.0.0/15\n}\n", [namespace("default"), service("web")])
    assert dns.ask("50.0.96.10.in-addr.arpa.", "PTR").data == ["web.default.svc.cluster.local."]
    assert dns.ask("1.0.98.10.in-addr.arpa.", "PTR").rcode == "REFUSED"


def test_metrics_have_coredns_names():
    dns = InMemory("cluster.local {\n prometheus\n kubernetes\n}\n", MANY)
    dns.ask(BIG, tcp=True)
    dns.ask(f"no.{BIG}", client="fd00::1")
    dns.ask(f"no.{BIG}", "TYPE65280" if "TYPE65280" in dnslib.QTYPE.reverse else "SPF")
    server = 'server="dns://10.244.1.2:53"'
    requests = dns.metrics("coredns_dns_requests_total")
    assert requests == {
        f'{{family="1",proto="tcp",{server},type="A",view="",zone="cluster.local."}}': 1.0,
        f'{{family="2",proto="udp",{server},type="A",view="",zone="cluster.local."}}': 1.0,
        f'{{family="1",proto="udp",{server},type="other",view="",zone="cluster.local."}}': 1.0,
    }
    assert dns.metrics("coredns_dns_responses_total") == {
        f'{{rcode="NOERROR",{server},view="",zone="cluster.local."}}': 1.0,
        f'{{rcode="NXDOMAIN",{server},view="",zone="cluster.local."}}': 2.0,
    }
    assert dns.metrics("coredns_plugin_enabled") == {f'{{name="kubernetes",{server},view="",zone="cluster.local."}}': 1.0}
    assert list(dns.metrics("coredns_dns_request_duration_seconds_count").values()) == [3.0]


def test_metrics_go_on_counting_over_a_reload():
    dns = InMemory(". {\n prometheus\n whoami\n}\n", [])
    dns.ask("x.org.")
    dns.server.configure(parse(". {\n prometheus\n any\n whoami\n}\n"))
    dns.ask("x.org.")
    assert list(dns.metrics("coredns_dns_requests_total").values()) == [2.0]


def test_ready_names_the_plugins_that_are_not():
    dns = InMemory(". {\n ready {\n  monitor continuously\n }\n kubernetes cluster.local\n}\n", [], synced=False)
    ready = dns.context.plugins[0]
    assert ready.answer() == (503, b"kubernetes")
    dns.context.synced = lambda: True
    assert ready.answer() == (200, b"OK")
    dns.context.synced = lambda: False
    assert ready.answer() == (503, b"kubernetes")


def test_what_has_been_ready_is_not_asked_again():
    dns = InMemory(". {\n ready\n kubernetes cluster.local\n}\n", [])
    ready = dns.context.plugins[0]
    assert ready.answer() == (200, b"OK")
    dns.context.synced = lambda: False
    assert ready.answer() == (200, b"OK")


EVERYTHING = """\
. {
 bufsize
 errors
 log
 local
 dns64
 acl {
  drop net 192.0.2.0/24
 }
 any
 chaos
 loadbalance
 cache
 rewrite continue name suffix .example .svc.cluster.local answer auto
 rewrite continue name regex (.*)x(.*) {2}y{1} answer value (.*) {1}
 rewrite ttl suffix . 5-9
 header {
  clear ra
 }
 autopath @kubernetes
 minimal
 prometheus
 hosts /nonexistent {
  192.0.2.1 a.org
  fallthrough
 }
 kubernetes cluster.local in-addr.arpa ip6.arpa {
  pods verified
  zonal
  fallthrough
 }
 whoami
}
"""
ALL_PLUGINS = InMemory(EVERYTHING, MANY)
WORDS = b"svc cluster local default big example _tcp pin _zone in-addr arpa a org".split()
NAMES = st.lists(st.sampled_from(WORDS) | st.binary(min_size=1, max_size=63), max_size=9)
TYPES, CLASSES = st.sampled_from([1, 5, 6, 12, 16, 28, 33, 255, 65280]), st.sampled_from([1, 3])


SHORT = NAMES.filter(lambda labels: sum(len(label) + 1 for label in labels) < 255)


@given(SHORT, TYPES, CLASSES, st.sampled_from(["10.0.0.1", "fd00::1"]))
def test_no_name_breaks_a_plugin(labels, qtype, qclass, client):
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    message = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + name + struct.pack("!HH", qtype, qclass)
    reply = trio.run(ALL_PLUGINS.server.answer, message, client, False, 53, 40000)
    assert b"coredns_panics_total 0.0" in ALL_PLUGINS.context.metrics.text()
    assert reply is None or reply[:2] == message[:2]
