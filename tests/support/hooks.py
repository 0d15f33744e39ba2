"""A packet through the hooks of a Netfilter, as the stack would take it."""

from __future__ import annotations

from random import Random

from podwire_core.iptables_save import parse
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.netfilter import ACCEPT, Netfilter, Outcome
from podwire_nodeagent.datapath.packet import Packet
from tests.support.packets import Seen, decode_ip

LOCAL = frozenset((bytes((192, 168, 1, 11)), bytes((10, 244, 1, 1))))
SOURCES = {"eth0": bytes((192, 168, 1, 11)), "cni0": bytes((10, 244, 1, 1))}


class Gate:
    """A node that forwards everything from `cni0` to `eth0` and back; `packet` is the last one's view."""

    def __init__(self, rules: str = "", sysctls: dict[str, str] | None = None, chooser=None) -> None:
        self.netfilter = Netfilter(
            chooser or RandomChooser(Random(1)),
            sysctls or {},
            LOCAL.__contains__,
            lambda link, family: SOURCES.get(link) if family == 4 else None,
        )
        if rules:
            self.netfilter.replace(parse(rules, 4))
        self.packet = Packet()
        self.now = 0.0

    def forward(self, data: bytes, link: str = "cni0", out: str = "eth0", steps=None) -> Outcome:
        packet = self._parse(data, link)
        hooks = self.netfilter
        outcome = hooks.prerouting(packet, self.now, steps)
        packet.out_link = out
        if outcome is ACCEPT:
            outcome = hooks.forward(packet, self.now, steps)
        return hooks.postrouting(packet, self.now, steps) if outcome is ACCEPT else outcome

    def receive(self, data: bytes, link: str = "eth0", steps=None) -> Outcome:
        packet = self._parse(data, link)
        outcome = self.netfilter.prerouting(packet, self.now, steps)
        return self.netfilter.input(packet, self.now, steps) if outcome is ACCEPT else outcome

    def emit(self, data: bytes, out: str = "eth0", steps=None) -> Outcome:
        packet = self._parse(data, "")
        packet.out_link = out
        outcome = self.netfilter.output(packet, self.now, steps)
        return self.netfilter.postrouting(packet, self.now, steps) if outcome is ACCEPT else outcome

    def _parse(self, data: bytes, link: str) -> Packet:
        self.packet = Packet()
        assert self.packet.parse(bytearray(24) + data) == ""
        self.packet.in_link = link
        return self.packet

    @property
    def sent(self) -> bytes:
        """The last packet as it is now."""
        return bytes(self.packet.buf[24:])

    @property
    def seen(self) -> Seen:
        return decode_ip(self.sent, Seen())

    @property
    def entries(self):
        return self.netfilter.dump_conntrack(self.now)
