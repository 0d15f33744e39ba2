"""The same node as `kernel_node.KernelNode`, made of our own stack, with every choice tried."""

from __future__ import annotations

from support.probes import DROPPED, Outcome, Probe, frame, packet, told_by

from podwire_core.constants import GATEWAY_MAC
from podwire_core.netlink import LinkAdd, SysctlSet, TablesReplace
from podwire_nodeagent import network
from podwire_nodeagent.datapath.stack import Stack


class Script:
    """A chooser that says no `refusals` times, then yes; `asked` tells how often it was asked."""

    def __init__(self) -> None:
        self.refusals = self.asked = 0

    def chance(self, probability: float) -> bool:
        self.asked += 1
        return self.asked > self.refusals

    def below(self, n: int) -> int:
        return 0


class StackNode:
    def __init__(self, ops, tables, chooser=None) -> None:
        self._script = Script()
        host = LinkAdd(network.HOST_LINK, "host", mac=GATEWAY_MAC, peer_mac=network.HOST_TAP_MAC)
        settings = [SysctlSet("net.ipv4.ip_forward", "1"), SysctlSet("net.ipv4.conf.all.route_localnet", "1")]
        self.stack = Stack("node1", chooser or self._script)
        self.stack.apply([*ops, host, *settings, TablesReplace(tuple(tables))], 0.0)
        self._names = {link.index: link.name for link in self.stack.dump("links", 0.0)}
        self._macs = {link.name: link.mac for link in self.stack.dump("links", 0.0)}
        masters = {link.name: link.master for link in self.stack.dump("links", 0.0)}
        self._targets = {name: self._macs.get(masters[name], mac) for name, mac in self._macs.items()}
        self._sent = 0

    def outcomes(self, probe: Probe) -> set[Outcome]:
        """What may become of it: one for every way the rules may choose."""
        found = set()
        self._script.refusals = 0
        while True:
            self._script.asked = 0
            found.add(self.send(probe))
            if self._script.asked <= self._script.refusals:
                return found
            self._script.refusals += 1

    def send(self, probe: Probe, now: float | None = None) -> Outcome:
        """By default long after the one before, so that no connection or affinity of that is left."""
        self._sent += 1
        now = self._sent * 1e6 if now is None else now
        data = packet(probe, 0x4000, 10000 + self._sent)
        link = probe.link or network.HOST_LINK
        source = "02:00:00:00:00:99" if probe.link else network.HOST_TAP_MAC
        emits = self.stack.receive(self.stack.link_index(link), frame(data, source, self._targets[link]), now)
        for index, emitted, _ in emits:
            name = self._names[index]
            if bytes(emitted[22:24]) == b"\x08\0":
                told = told_by(bytes(emitted[24:]), name, local=name == network.HOST_LINK)
                if told is not None:
                    return told[1]
        return DROPPED
