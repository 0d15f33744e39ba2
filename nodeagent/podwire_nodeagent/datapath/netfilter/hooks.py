"""`Netfilter`: the hooks in Linux's order, put together from the tables, conntrack and NAT.

    PREROUTING   raw, conntrack, mangle, nat (destination)      OUTPUT   raw, conntrack, mangle, nat (destination), ip_vs, filter
    INPUT        mangle, filter, ip_vs, nat (source), confirm   FORWARD  mangle, filter, ip_vs (answers)
    POSTROUTING  mangle, nat (source), confirm

The nat table is asked once a connection and kind of translation; all later packets are translated by the conntrack
entry. Base chains of nftables tables stand behind the iptables tables, by their priority (nftables/tables.py). Given a list
`steps`, a hook appends what it decided (`podwire_core.trace.Step`); the same code decides either way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from podwire_core.netfilter import Table
from podwire_core.netlink import ChainsUpdate, ConntrackDel, ConntrackInfo, TableDump
from podwire_nodeagent.datapath.chooser import Chooser
from podwire_nodeagent.datapath.ipvs.table import Ipvs
from podwire_nodeagent.datapath.netfilter import explain
from podwire_nodeagent.datapath.netfilter.chains import (
    ACCEPT_OP,
    DNAT_OP,
    DROP_OP,
    MASQUERADE_OP,
    REJECT_OP,
    SNAT_OP,
    CompiledChain,
    CompiledRule,
    Walk,
    walk,
)
from podwire_nodeagent.datapath.netfilter.connection import CONFIRMED, DST_DONE, DST_NAT, DYING, SRC_DONE, SRC_NAT, Connection
from podwire_nodeagent.datapath.netfilter.conntrack import Conntrack
from podwire_nodeagent.datapath.netfilter.embedded import translate_error
from podwire_nodeagent.datapath.netfilter.explain import Steps
from podwire_nodeagent.datapath.netfilter.listing import connection_filter, connection_info
from podwire_nodeagent.datapath.netfilter.matches import Context
from podwire_nodeagent.datapath.netfilter.nat import Nat, manipulate
from podwire_nodeagent.datapath.netfilter.outcome import ACCEPT, NO_SOURCE, REDIRECT, SERVED, Outcome
from podwire_nodeagent.datapath.netfilter.ruleset import Ruleset, Transaction
from podwire_nodeagent.datapath.netfilter.timeouts import Timeouts
from podwire_nodeagent.datapath.nftables import Nftables, Path
from podwire_nodeagent.datapath.nftables import explain as nft_explain
from podwire_nodeagent.datapath.nftables import walk as nft_walk
from podwire_nodeagent.datapath.nftables.compiled import Chain, Decision
from podwire_nodeagent.datapath.packet import ICMP, ICMPV6, RELATED, Counted, Packet

_LIMITED_BROADCAST: Final = b"\xff\xff\xff\xff"


class Netfilter:
    """Tables of both families, the connection table and the hooks.

    - `sysctls`: the stack's own dict, names with dots ("net.netfilter.nf_conntrack_max"); after a change of it call
      `reconfigure()`.
    - `local_address_test(address) -> bool`: is it one of the node's own (`--dst-type LOCAL`)?
    - `masquerade_source(out_link, address_family) -> bytes | None`: the primary address of a link.
    - `broadcast_test(address)`: is it a broadcast address of a connected network? Without it only 255.255.255.255 is one.
    - `generation` is bumped by every committed transaction: cached walks of older generations are void.
    Drops are counted by the stack, under `Outcome.reason`.
    """

    def __init__(
        self,
        chooser: Chooser,
        sysctls: Mapping[str, str],
        local_address_test: Callable[[bytes], bool],
        masquerade_source: Callable[[str, int], bytes | None],
        broadcast_test: Callable[[bytes], bool] | None = None,
    ) -> None:
        self._sysctls = sysctls
        self._masquerade_source = masquerade_source
        self._context = Context(chooser, local_address_test, broadcast_test or (lambda address: address == _LIMITED_BROADCAST))
        self._counters: dict[str, int] = {}
        self.ruleset = Ruleset(self._context)
        self.nftables = Nftables(self._context)
        self.conntrack = Conntrack(Timeouts(sysctls))
        self._nat = Nat(self.conntrack, chooser, self._counters)
        self.ipsets = self._context.ipsets
        self.ipvs = Ipvs(chooser, sysctls, local_address_test, self.conntrack.kill)

    # --- settings and tables --------------------------------

    @property
    def generation(self) -> int:
        return self.ruleset.generation

    @property
    def counters(self) -> dict[str, int]:
        """A snapshot of events by name: "nat.port_search", and those of `conntrack -S` as "conntrack.insert" …"""
        kept = {f"conntrack.{name}": number for name, number in self.conntrack.counters.items()}
        return {**self._counters, **kept, "conntrack.count": self.conntrack.count}

    def reconfigure(self) -> None:
        """Read the sysctls again (net.netfilter.nf_conntrack_*)."""
        self.conntrack.timeouts = Timeouts(self._sysctls)

    def begin(self) -> Transaction:
        """Changes of tables that become visible together. `replace` and `update` of the transaction raise
        `NetlinkError`; `commit` cannot fail."""
        return self.ruleset.begin()

    def replace(self, tables: Iterable[Table]) -> None:
        """A transaction of its own."""
        transaction = self.begin()
        transaction.replace(tables)
        transaction.commit()

    def update(self, change: ChainsUpdate) -> None:
        """A transaction of its own."""
        transaction = self.begin()
        transaction.update(change)
        transaction.commit()

    def dump(self) -> list[TableDump]:
        return self.ruleset.dump()

    # --- hooks, in packet order --------------------------------

    def prerouting(self, packet: Packet, now: float, steps: Steps = None) -> Outcome:
        """Needs packet.in_link. Afterwards packet.ct, ctinfo, direction are set and the destination may be new."""
        return self._arrive(packet, "PREROUTING", now, steps)

    def input(self, packet: Packet, now: float, steps: Steps = None) -> Outcome:
        """For a packet that is for this node; it may be delivered after this, its connection is in the table. SERVED: ip_vs
        has given it another destination, to which it is to be sent by `served`."""
        outcome = self._walk(packet, "mangle/INPUT", now, steps)
        if outcome is ACCEPT:
            outcome = self._walk(packet, "filter/INPUT", now, steps)
        if outcome is ACCEPT:
            outcome = self._virtual(packet, "ipvs/INPUT", now, steps)
        if outcome is ACCEPT:
            outcome = self._translate(packet, "nat/INPUT", True, now, steps)
        return self.conntrack.confirm(packet, now) if outcome is ACCEPT else outcome

    def forward(self, packet: Packet, now: float, steps: Steps = None) -> Outcome:
        """Needs packet.in_link and out_link."""
        outcome = self._walk(packet, "mangle/FORWARD", now, steps)
        if outcome is ACCEPT:
            outcome = self._walk(packet, "filter/FORWARD", now, steps)
        if outcome is ACCEPT:
            self.ipvs.answer(packet, "ipvs/FORWARD", steps)
        return outcome

    def output(self, packet: Packet, now: float, steps: Steps = None) -> Outcome:
        """A locally generated packet, already routed (out_link). Route again if dst or mark changed."""
        outcome = self._arrive(packet, "OUTPUT", now, steps)
        if outcome is ACCEPT:
            outcome = self._virtual(packet, "ipvs/OUTPUT", now, steps)
        if outcome is ACCEPT or outcome is SERVED:
            outcome = self._walk(packet, "filter/OUTPUT", now, steps)
        return outcome

    def served(self, packet: Packet, now: float, steps: Steps = None) -> Outcome:
        """OUTPUT for a packet that came in and that ip_vs sends on. Needs packet.out_link."""
        outcome = self._walk(packet, "mangle/OUTPUT", now, steps)
        return self._walk(packet, "filter/OUTPUT", now, steps) if outcome is ACCEPT else outcome

    def postrouting(self, packet: Packet, now: float, steps: Steps = None) -> Outcome:
        """Needs packet.out_link. The packet may leave after this; its connection is in the table."""
        outcome = self._walk(packet, "mangle/POSTROUTING", now, steps)
        if outcome is ACCEPT:
            outcome = self._translate(packet, "nat/POSTROUTING", True, now, steps)
        return self.conntrack.confirm(packet, now) if outcome is ACCEPT else outcome

    def attach(self, answer: Packet, cause: Packet) -> None:
        """An ICMP error or RST that the stack makes because of `cause` belongs to its connection (nf_ct_attach). Call it
        before `output(answer)`, which then translates it, so that it reaches the sender as if the address that it had
        called answered."""
        if cause.ct is not None:
            answer.ct, answer.ctinfo, answer.direction = cause.ct, RELATED, 1 - cause.direction

    def _virtual(self, packet: Packet, stage: str, now: float, steps: Steps) -> Outcome:
        if packet.direction:
            self.ipvs.answer(packet, stage, steps)
            return ACCEPT
        return self.ipvs.request(packet, stage, now, steps)

    def _arrive(self, packet: Packet, hook: str, now: float, steps: Steps) -> Outcome:
        outcome = self._walk(packet, "raw/" + hook, now, steps)
        if outcome is ACCEPT:
            outcome = self.conntrack.track(packet, now)
            if steps is not None:
                steps.append(explain.tracked(packet, outcome))
        if outcome is ACCEPT:
            outcome = self._walk(packet, "mangle/" + hook, now, steps)
        return self._translate(packet, "nat/" + hook, False, now, steps) if outcome is ACCEPT else outcome

    # --- tables --------------------------------

    def _walk(self, packet: Packet, stage: str, now: float, steps: Steps) -> Outcome:
        """One table at one hook (not nat's), and the nftables chains behind it."""
        chain = self.ruleset.hooks[packet.family].get(stage)
        outcome = ACCEPT if chain is None else self._walk_table(chain, packet, stage, now, steps)
        based = self.nftables.hooks[packet.family].get(stage)
        if based and outcome is ACCEPT:
            for each in based:
                decision = self._walk_based(each, packet, packet.hits, now, steps)
                if decision.operation == DROP_OP:
                    return Outcome("drop", f"nftables.{each.name}")
                if decision.operation == REJECT_OP:
                    return Outcome("reject", f"nftables.{each.name}", decision.argument)
        return outcome

    def _walk_based(self, chain: Chain, packet: Packet, hits: list[Counted] | None, now: float, steps: Steps) -> Decision:
        """A base chain of nftables."""
        self._context.now = now
        if steps is None:
            return nft_walk(chain, packet, hits, None)
        path, mark = Path(), packet.mark
        decision = nft_walk(chain, packet, hits, path)
        steps.append(nft_explain.walked(chain, decision, path, packet, mark))
        return decision

    def _walk_table(self, chain: CompiledChain, packet: Packet, stage: str, now: float, steps: Steps) -> Outcome:
        self._context.now = now
        if steps is None:
            rule = walk(chain, packet, packet.hits, None)
        else:
            record, mark = Walk(), packet.mark
            rule = walk(chain, packet, packet.hits, record)
            steps.append(explain.walked(stage, rule, record, packet, mark))
        if rule.operation == DROP_OP:
            return Outcome("drop", f"netfilter.{stage}")
        if rule.operation == REJECT_OP:
            return Outcome("reject", f"netfilter.{stage}", rule.argument)
        return ACCEPT

    # --- translation --------------------------------

    def _translate(self, packet: Packet, stage: str, source: bool, now: float, steps: Steps) -> Outcome:
        """The nat table for a connection that it has not been asked about, then the connection's translation of the packet."""
        connection = packet.ct
        if connection is None:
            return ACCEPT
        if packet.ctinfo == RELATED and packet.proto in (ICMP, ICMPV6):
            return self._translate_error(packet, connection, stage, source, steps)
        if not connection.status & (SRC_DONE if source else DST_DONE):
            if not connection.status & (CONFIRMED | DYING) and not packet.direction:
                outcome = self._ask(packet, connection, stage, source, now, steps)
                if outcome is not ACCEPT:
                    return outcome
        elif stage == "nat/POSTROUTING" and connection.out_link not in ("", packet.out_link) and not packet.direction:
            self.conntrack.kill(connection)  # masqueraded as a link that it no longer leaves by
            return NO_SOURCE
        before = (packet.src, packet.dst, packet.sport, packet.dport)
        if manipulate(packet, connection, source) and steps is not None:
            steps.append(explain.translated(stage, source, packet, before))
        return ACCEPT

    def _ask(self, packet: Packet, connection: Connection, stage: str, source: bool, now: float, steps: Steps) -> Outcome:
        """Give a new connection its translation, by rule or, without one, a null binding."""
        rule, origin = self._judge(packet, stage, now, steps)
        operation = rule.operation if rule is not None else ACCEPT_OP
        if operation == DROP_OP:
            return Outcome("drop", f"nftables.{stage}")
        if operation == DNAT_OP and rule is not None and not source:
            self._nat.destination(connection, *rule.argument)
            connection.cause = origin
        elif operation == SNAT_OP and rule is not None:
            address, port = rule.argument
            self._nat.source(connection, address, port, False, now)
        elif operation == MASQUERADE_OP and rule is not None and source:
            own = self._masquerade_source(packet.out_link, packet.family)
            if own is None:
                return NO_SOURCE
            connection.out_link = packet.out_link
            self._nat.source(connection, own, 0, rule.argument, now)
        elif source:
            self._nat.source(connection, b"", 0, False, now)
        else:
            connection.status |= DST_DONE
        return ACCEPT

    def _judge(self, packet: Packet, stage: str, now: float, steps: Steps) -> tuple[CompiledRule | Decision | None, str]:
        """What the nat chains of nftables, else the table nat, say of a new connection; and the object that this is for."""
        for each in self.nftables.hooks[packet.family].get(stage, ()):
            decision = self._walk_based(each, packet, None, now, steps)
            if decision.operation != ACCEPT_OP:
                return decision, decision.source.origin
        chain = self.ruleset.hooks[packet.family].get(stage)
        if chain is None:
            return None, ""
        self._context.now = now
        record, mark = (Walk(), packet.mark) if steps is not None else (None, 0)
        rule = walk(chain, packet, None, record)
        if record is not None and steps is not None:
            steps.append(explain.walked(stage, rule, record, packet, mark))
        return rule, rule.source.origin

    def _translate_error(self, packet: Packet, connection: Connection, stage: str, source: bool, steps: Steps) -> Outcome:
        bit = SRC_NAT if source != bool(packet.direction) else DST_NAT
        if packet.family == 4 and packet.dport >> 8 == 5 and connection.translated:
            return REDIRECT
        if connection.status & bit:
            before = (packet.src, packet.dst, packet.sport, packet.dport)
            translate_error(packet, connection, source)
            if steps is not None:
                steps.append(explain.translated(stage, source, packet, before))
        return ACCEPT

    # --- flow cache --------------------------------

    def cacheable(self, packet: Packet) -> bool:
        """After the last hook: may the walk of this packet stand for the next ones of its direction? Remember
        `generation`, `packet.ct`, its `epoch`, `ct.rewrite(packet.direction)`; a cached packet is good while both
        numbers are the same, it has no SYN, FIN, RST (TCP), and `ct.touch(direction, length, now)` says True."""
        return packet.ct is not None and packet.ct.cacheable(packet)

    def credit(self, hits: Iterable[Counted], packets: int, size: int) -> None:
        """Count packets that a flow cache forwarded for the rules that the walk had matched (`packet.hits`, a list
        given before the first hook)."""
        for rule in hits:
            rule.packets += packets
            rule.bytes += size

    # --- conntrack --------------------------------

    def expire(self, now: float, budget: int = 1000) -> int:
        """Look at up to `budget` connections whose time may have come; how many were deleted."""
        return self.conntrack.expire(now, budget)

    def forget(self, now: float) -> None:
        """No connection and no `recent` address is left: for simulations, in which every packet is a first one."""
        for connection in self.conntrack.connections(now):
            self.conntrack.kill(connection)
        self._context.recent.lists.clear()
        self.nftables.forget()
        self.ipvs.forget()

    def dump_conntrack(self, now: float) -> list[ConntrackInfo]:
        return [connection_info(connection, now) for connection in self.conntrack.connections(now)]

    def delete_conntrack(self, which: ConntrackDel, now: float) -> int:
        """`conntrack -D`: how many were deleted. NetlinkError if the filter cannot be read."""
        wanted = connection_filter(which)
        chosen = [connection for connection in self.conntrack.connections(now) if wanted(connection)]
        for connection in chosen:
            self.conntrack.kill(connection)
        return len(chosen)
