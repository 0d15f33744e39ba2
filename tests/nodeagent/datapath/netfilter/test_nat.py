"""Translation: by rule and by null binding, of packets, of replies, and of the packets quoted in ICMP errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_nodeagent.datapath.netfilter import ACCEPT
from podwire_nodeagent.datapath.packet import Packet
from tests.support.hooks import Gate
from tests.support.packets import ACK, SYN, Seen, decode_ip, echo, icmp, tcp, udp

POD, VIP, BACKEND, NODE, WORLD = "10.244.1.5", "10.96.0.10", "10.244.2.3", "192.168.1.11", "192.0.2.7"

SERVICE = """*nat
:SVC - [0:0]
-A PREROUTING -j SVC
-A OUTPUT -j SVC
-A SVC -d 10.96.0.10/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.244.2.3:5353
-A SVC -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.2.3:8080
-A SVC -d 10.96.0.10/32 -p icmp -j DNAT --to-destination 10.244.2.3
{more}
COMMIT
"""
MASQUERADE = "-A POSTROUTING -o eth0 -j MASQUERADE"


class Never:
    """A chooser whose searches begin where they are told."""

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def chance(self, probability: float) -> bool:
        return False

    def below(self, n: int) -> int:
        return self.start % n


def gate(more: str = "", **options) -> Gate:
    return Gate(SERVICE.format(more=more), **options)


def ends(seen: Seen) -> tuple[str, int, str, int]:
    assert seen.bad == []
    return seen.src, seen.sport, seen.dst, seen.dport


def test_dnat_and_the_way_back():
    node = gate()
    node.forward(udp(POD, VIP, 4000, 53, b"query"))
    assert ends(node.seen) == (POD, 4000, BACKEND, 5353)
    node.forward(udp(BACKEND, POD, 5353, 4000, b"answer"), "eth0", "cni0")
    assert ends(node.seen) == (VIP, 53, POD, 4000)
    assert node.entries[0].status == ("DNAT",)


def test_masquerade_on_top():
    node = gate(MASQUERADE)
    node.forward(tcp(POD, VIP, 4000, 80, SYN, 1, 0))
    assert ends(node.seen) == (NODE, 4000, BACKEND, 8080)
    node.forward(tcp(BACKEND, NODE, 8080, 4000, SYN | ACK, 1, 2), "eth0", "cni0")
    assert ends(node.seen) == (VIP, 80, POD, 4000)
    node.forward(tcp(POD, VIP, 4000, 80, ACK, 2, 2))
    assert ends(node.seen) == (NODE, 4000, BACKEND, 8080)
    assert node.entries[0].status == ("ASSURED", "DNAT", "SNAT")


def test_echo_identifier_is_a_port():
    node = gate(MASQUERADE)
    node.forward(echo(POD, VIP, ident=9))
    assert (node.seen.src, node.seen.dst, node.seen.bad) == (NODE, BACKEND, [])
    node.forward(echo("10.244.1.6", VIP, ident=9))
    ident = node.seen.rest[:2]
    assert ident != b"\0\x09"
    node.forward(echo(BACKEND, NODE, ident=int.from_bytes(ident, "big"), reply=True), "eth0", "cni0")
    assert (node.seen.src, node.seen.dst, node.seen.rest[:2]) == (VIP, "10.244.1.6", b"\0\x09")


def test_nat_is_asked_once_a_connection():
    node = gate()
    node.forward(udp(POD, VIP, 4000, 53))
    steps: list = []
    node.forward(udp(POD, VIP, 4000, 53), steps=steps)
    assert [(step.stage, step.action) for step in steps] == [("conntrack", "new"), ("nat/PREROUTING", "dnat")]
    counters = {dump.table.name: dump.counters["SVC"] for dump in node.netfilter.dump()}["nat"]
    assert (counters[0].packets, counters[0].bytes) == (1, 28)


def test_taken_source_port_is_replaced():
    node = gate(MASQUERADE, chooser=Never(7))
    node.forward(udp(POD, VIP, 4000, 53))
    node.forward(udp("10.244.1.6", VIP, 4000, 53))
    assert ends(node.seen) == (NODE, 1031, BACKEND, 5353)
    assert node.netfilter.counters["nat.port_search"] == 1
    node.forward(udp(BACKEND, NODE, 5353, 1031), "eth0", "cni0")
    assert ends(node.seen) == (VIP, 53, "10.244.1.6", 4000)


@pytest.mark.parametrize(("port", "low", "high"), [(80, 1, 511), (600, 600, 1023), (5000, 1024, 65535)])
@given(start=st.integers(0, 65535))
def test_a_found_port_is_of_the_same_class(port, low, high, start):
    node = gate(MASQUERADE, chooser=Never(start))
    node.forward(udp(POD, VIP, port, 53))
    node.forward(udp("10.244.1.6", VIP, port, 53))
    assert low <= node.seen.sport <= high
    assert node.seen.sport != port


def test_null_binding_keeps_tuples_apart():
    """No rule translates the source, but two connections would have one reply tuple after DNAT."""
    node = gate(chooser=Never(9))
    node.forward(udp(POD, BACKEND, 4000, 5353))
    node.forward(udp(POD, VIP, 4000, 53))
    assert ends(node.seen) == (POD, 1033, BACKEND, 5353)
    node.forward(udp(BACKEND, POD, 5353, 1033), "eth0", "cni0")
    assert ends(node.seen) == (VIP, 53, POD, 4000)


def test_random_fully_does_not_keep_the_port():
    node = gate(MASQUERADE + " --random-fully", chooser=Never(500))
    node.forward(udp(POD, VIP, 4000, 53))
    assert node.seen.sport == 1524


def test_exhaustion_drops_and_counts():
    node = gate(MASQUERADE, chooser=Never(0))
    table = node.netfilter.conntrack
    node.forward(udp(POD, VIP, 1, 53))
    for number in range(130):
        outcome = node.forward(udp(f"10.244.3.{number + 1}", VIP, 1, 53))
        assert (outcome.action, outcome.reason) in (("accept", ""), ("drop", "conntrack.insert_failed"))
    assert outcome.reason == "conntrack.insert_failed"
    assert node.netfilter.counters["nat.exhausted"] > 0
    assert table.counters["insert_failed"] == node.netfilter.counters["nat.exhausted"]
    assert table.count == 128


def test_masquerade_without_an_address():
    node = gate("-A POSTROUTING -j MASQUERADE")
    assert node.forward(udp(POD, WORLD, 1, 53), out="eth9").reason == "nat.no_source_address"


def test_masqueraded_connection_that_leaves_elsewhere_ends():
    node = gate("-A POSTROUTING -j MASQUERADE")
    node.forward(udp(POD, WORLD, 1, 53))
    assert node.forward(udp(POD, WORLD, 1, 53), out="cni0").action == "drop"
    assert node.entries == []


def test_local_traffic():
    node = gate(MASQUERADE)
    node.emit(udp(NODE, VIP, 4000, 53))
    assert ends(node.seen) == (NODE, 4000, BACKEND, 5353)
    node.receive(udp(BACKEND, NODE, 5353, 4000))
    assert ends(node.seen) == (VIP, 53, NODE, 4000)


# --- ICMP errors --------------------------------


def quoted(seen: Seen) -> Seen:
    """The packet inside an error; its transport checksum cannot be judged when cut off."""
    return decode_ip(seen.payload, Seen())


@pytest.mark.parametrize("cut", [28, 60])
@pytest.mark.parametrize("kind", ["udp", "tcp", "icmp"])
def test_error_from_behind_the_translation(kind, cut):
    """Somebody on the backend's side complains: the pod hears it from the address that it had called, about what it had sent."""
    node = gate(MASQUERADE)
    sent = {
        "udp": udp(POD, VIP, 4000, 53, b"x" * 20),
        "tcp": tcp(POD, VIP, 4000, 80, SYN, 1, 0, b"x" * 20),
        "icmp": echo(POD, VIP, ident=9, data=b"x" * 20),
    }[kind]
    node.forward(sent)
    seen_there = node.sent
    assert node.forward(icmp(BACKEND, NODE, 3, 3, bytes(4), seen_there[:cut]), "eth0", "cni0") is ACCEPT
    error = node.seen
    assert (error.src, error.dst, error.icmp, error.bad) == (VIP, POD, (3, 3), [])
    assert error.payload == sent[:cut]


def test_error_from_a_router_on_the_way():
    node = gate(MASQUERADE)
    sent = udp(POD, WORLD, 4000, 53, b"x")
    node.forward(sent)
    node.forward(icmp("198.51.100.1", NODE, 11, 0, bytes(4), node.sent[:28]), "eth0", "cni0")
    assert (node.seen.src, node.seen.dst, node.seen.bad) == ("198.51.100.1", POD, [])
    assert node.seen.payload == sent[:28]


def test_error_about_a_reply():
    node = gate(MASQUERADE)
    node.forward(udp(POD, VIP, 4000, 53))
    reply = udp(BACKEND, NODE, 5353, 4000, b"answer")
    node.forward(reply, "eth0", "cni0")
    node.forward(icmp(POD, VIP, 3, 3, bytes(4), node.sent[:28]))
    assert (node.seen.src, node.seen.dst, node.seen.bad) == (NODE, BACKEND, [])
    assert node.seen.payload == reply[:28]


def test_own_error_looks_like_the_called_address():
    """The node rejects a packet after DNAT: to the pod it is the Service's address that answers."""
    node = Gate(SERVICE.format(more="") + "*filter\n-A FORWARD -p udp -j REJECT\nCOMMIT\n")
    sent = udp(POD, VIP, 4000, 53, b"x")
    outcome = node.forward(sent)
    assert (outcome.action, outcome.reject_with) == ("reject", "icmp-port-unreachable")
    cause = node.packet
    answer = Packet()
    assert answer.parse(bytearray(24) + icmp("10.244.1.1", POD, 3, 3, bytes(4), bytes(cause.buf[24:]))) == ""
    answer.out_link = "cni0"
    node.netfilter.attach(answer, cause)
    assert node.netfilter.output(answer, 0.0) is ACCEPT
    assert node.netfilter.postrouting(answer, 0.0) is ACCEPT
    seen = decode_ip(bytes(answer.buf[24:]), Seen())
    assert (seen.src, seen.dst, seen.bad) == (VIP, POD, [])
    assert seen.payload == sent
    assert node.netfilter.conntrack.entries == {}


def test_redirects_of_translated_connections_are_dropped():
    node = gate(MASQUERADE)
    node.forward(udp(POD, VIP, 4000, 53))
    assert node.forward(icmp(BACKEND, NODE, 5, 1, bytes(4), node.sent[:28]), "eth0", "cni0").reason == "nat.redirect"


# --- the prepared rewrite of a flow cache --------------------------------


@given(st.booleans(), st.sampled_from(["udp", "tcp", "icmp"]), st.binary(max_size=7))
def test_prepared_rewrite_does_what_the_hooks_do(masquerade, kind, data):
    node = gate(MASQUERADE if masquerade else "")
    there = {
        "udp": udp(POD, VIP, 4000, 53, data),
        "tcp": tcp(POD, VIP, 4000, 80, SYN, 1, 0, data),
        "icmp": echo(POD, VIP, ident=9, data=data),
    }[kind]
    node.forward(there)
    source = NODE if masquerade else POD
    back = {
        "udp": udp(BACKEND, source, 5353, 4000, data),
        "tcp": tcp(BACKEND, source, 8080, 4000, SYN | ACK, 1, 2, data),
        "icmp": echo(BACKEND, source, ident=9, data=data, reply=True),
    }[kind]
    for direction, packet in enumerate((there, back)):
        node.forward(packet, *(("eth0", "cni0") if direction else ("cni0", "eth0")))
        assert node.packet.ct is not None
        assert node.packet.direction == direction
        rewrite = node.packet.ct.rewrite(direction)
        assert rewrite is not None
        buf = bytearray(24) + packet
        rewrite.patch(buf, 24, 44)
        assert bytes(buf[24:]) == node.sent
