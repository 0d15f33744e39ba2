"""The same in IPv6: rules, DNAT, masquerade, the way back, and ICMPv6 errors."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address
from random import Random

from podwire_core.iptables_save import parse
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.netfilter import ACCEPT, Netfilter
from podwire_nodeagent.datapath.packet import RELATED, UNTRACKED, Packet
from tests.support.packets import inet

POD, VIP, BACKEND, NODE = "fd00:244:1::5", "fd00:96::a", "fd00:244:2::3", "fd00:168::b"
RULES = """*nat
-A PREROUTING -d fd00:96::a/128 -p udp -m udp --dport 53 -j DNAT --to-destination [fd00:244:2::3]:5353
-A POSTROUTING -s fd00:244::/32 -o eth0 -j MASQUERADE
COMMIT
*filter
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -s fd00:244:1::/47 -p udp -j ACCEPT
-A FORWARD -j REJECT --reject-with icmp6-adm-prohibited
COMMIT
"""


def raw(text: str) -> bytes:
    return IPv6Address(text).packed


def ip6(src: str, dst: str, proto: int, body: bytes, at: int) -> bytes:
    """With the checksum at `at` of the body filled in."""
    pseudo = raw(src) + raw(dst) + struct.pack("!II", len(body), proto)
    value = inet(pseudo + body) or 0xFFFF
    body = body[:at] + value.to_bytes(2, "big") + body[at + 2 :]
    return struct.pack("!IHBB", 6 << 28, len(body), proto, 64) + raw(src) + raw(dst) + body


def udp6(src: str, dst: str, sport: int, dport: int, data: bytes = b"") -> bytes:
    return ip6(src, dst, 17, struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data, 6)


def icmp6(src: str, dst: str, kind: int, code: int, data: bytes) -> bytes:
    return ip6(src, dst, 58, bytes((kind, code, 0, 0, 0, 0, 0, 0)) + data, 2)


def forward(hooks: Netfilter, data: bytes, link: str, out: str) -> tuple[object, Packet]:
    packet = Packet()
    assert packet.parse(bytearray(24) + data) == ""
    packet.in_link, packet.out_link = link, out
    for hook in (hooks.prerouting, hooks.forward, hooks.postrouting):
        outcome = hook(packet, 0.0)
        if outcome is not ACCEPT:
            break
    return outcome, packet


def node() -> Netfilter:
    hooks = Netfilter(
        RandomChooser(Random(1)), {}, lambda address: False, lambda link, family: raw(NODE) if family == 6 else None
    )
    hooks.replace(parse(RULES, 6))
    return hooks


def test_service_and_masquerade_and_back():
    hooks = node()
    outcome, packet = forward(hooks, udp6(POD, VIP, 4000, 53, b"query"), "cni0", "eth0")
    assert outcome is ACCEPT
    assert bytes(packet.buf[24:]) == udp6(NODE, BACKEND, 4000, 5353, b"query")
    outcome, packet = forward(hooks, udp6(BACKEND, NODE, 5353, 4000, b"answer"), "eth0", "cni0")
    assert outcome is ACCEPT
    assert bytes(packet.buf[24:]) == udp6(VIP, POD, 53, 4000, b"answer")
    assert hooks.dump_conntrack(0.0)[0].original.dst == VIP


def test_error_is_related_and_translated():
    hooks = node()
    sent = udp6(POD, VIP, 4000, 53, b"query")
    _, packet = forward(hooks, sent, "cni0", "eth0")
    outcome, packet = forward(hooks, icmp6(BACKEND, NODE, 1, 4, bytes(packet.buf[24:])), "eth0", "cni0")
    assert outcome is ACCEPT
    assert packet.ctinfo == RELATED
    assert bytes(packet.buf[24:]) == icmp6(VIP, POD, 1, 4, sent)


def test_echo_and_neighbour_discovery():
    hooks = node()
    echo = ip6(POD, "fd00::99", 58, struct.pack("!BBHHH", 128, 0, 0, 7, 1), 2)
    outcome, packet = forward(hooks, echo, "cni0", "cni0")
    assert (getattr(outcome, "action", ""), getattr(outcome, "reject_with", "")) == ("reject", "icmp6-adm-prohibited")
    assert (packet.sport, packet.dport) == (7, 128 << 8)
    solicitation = ip6(POD, "ff02::1:ff00:1", 58, bytes((135, 0, 0, 0)) + bytes(20), 2)
    _, packet = forward(hooks, solicitation, "cni0", "cni0")
    assert packet.ctinfo == UNTRACKED
