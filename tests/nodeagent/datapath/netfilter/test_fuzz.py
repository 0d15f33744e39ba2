"""Mutated packets through all hooks: nothing raises, and the table stays sound."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_core.iptables_save import parse
from podwire_nodeagent.datapath.netfilter import ACCEPT, Outcome
from podwire_nodeagent.datapath.packet import Packet
from tests.support.hooks import Gate
from tests.support.packets import ACK, SYN, echo, icmp, inet, ipv4, tcp, udp

A, VIP, NODE = "10.244.1.5", "10.96.0.10", "192.168.1.11"
RULES = """*nat
-A PREROUTING -d 10.96.0.10/32 -j DNAT --to-destination 10.244.2.3
-A POSTROUTING -j MASQUERADE
COMMIT
*filter
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -p icmp -m icmp --icmp-type 3 -j REJECT
COMMIT
"""
SEEDS = [
    tcp(A, VIP, 1, 80, SYN, 1, 0, b"x"),
    tcp("10.244.2.3", NODE, 80, 1, SYN | ACK, 1, 2),
    udp(A, VIP, 1, 53, b"xyz"),
    echo(A, VIP),
    icmp("10.244.2.3", NODE, 3, 4, bytes(4), udp(NODE, "10.244.2.3", 1, 53, b"xyz")),
    icmp("10.244.2.3", NODE, 11, 0, bytes(4), tcp(NODE, "10.244.2.3", 1, 80, SYN, 1, 0)[:28]),
    icmp("10.244.2.3", NODE, 3, 4, bytes(4), echo(NODE, "10.244.2.3")),
    ipv4(A, VIP, 132, bytes((0, 1, 0, 80)) + bytes(8) + bytes((1, 0, 0, 20)) + bytes(16)),
    ipv4(A, VIP, 58, bytes(48)),
    ipv4(A, VIP, 99, b"?"),
]


def settle(data: bytearray) -> None:
    """Header checksums (also the ICMP message's) made right, so that the mutation reaches further than the first check."""
    size = (data[0] & 15) * 4
    if 20 <= size <= len(data):
        data[10:12] = b"\0\0"
        data[10:12] = inet(bytes(data[:size])).to_bytes(2, "big")
    if data[9] == 1 and len(data) >= size + 4:
        data[size + 2 : size + 4] = b"\0\0"
        data[size + 2 : size + 4] = inet(bytes(data[size:])).to_bytes(2, "big")


mutations = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 255)), max_size=3)
flows = st.lists(st.tuples(st.sampled_from(SEEDS), mutations, st.integers(0, 30), st.booleans()), max_size=12)


@settings(max_examples=200, deadline=None)
@given(flows)
def test_hooks_never_raise(sent):
    gate = Gate(RULES)
    gate.netfilter.replace(
        parse(
            RULES.replace("-d 10.96.0.10/32 ", "")
            .replace("10.244.2.3", "fd00::3")
            .replace("icmp -m icmp --icmp-type 3 ", "tcp "),
            6,
        )
    )
    for seed, changes, cut, mend in sent:
        data = bytearray(seed[: len(seed) - cut] if cut < len(seed) - 20 else seed)
        for at, value in changes:
            data[at % len(data)] = value
        if mend:
            settle(data)
        packet = Packet()
        if packet.parse(bytearray(24) + data):
            continue
        packet.in_link, packet.out_link = "eth0", "cni0"
        steps: list = []
        for hook in (gate.netfilter.prerouting, gate.netfilter.forward, gate.netfilter.postrouting):
            outcome = hook(packet, gate.now, steps)
            assert isinstance(outcome, Outcome)
            if outcome is not ACCEPT:
                break
        gate.now += 1
    table = gate.netfilter.conntrack
    assert len(table.entries) == 2 * table.count == 2 * len({id(entry) for entry in table.entries.values()})
