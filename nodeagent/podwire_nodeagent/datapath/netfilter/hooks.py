"""`Netfilter`: the hooks in Linux's order, put together from the tables, conntrack and NAT.

    PREROUTING   raw, conntrack, mangle, nat (destination)      OUTPUT   raw, conntrack, mangle, nat (destination), filter
    INPUT        mangle, filter, nat (source), confirm          FORWARD  mangle, filter
    POSTROUTING  mangle, nat (source), confirm

The nat table is asked once a connection and direction of translation; all later packets are translated by the conntrack entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from podwire_core.netfilter import Table
from podwire_core.netlink import ChainsUpdate, ConntrackDel, ConntrackInfo, TableDump
from podwire_core.trace import Step

from podwire_nodeagent.datapath.chooser import Chooser
from podwire_nodeagent.datapath.netfilter.chains import CompiledRule
from podwire_nodeagent.datapath.netfilter.outcome import ACCEPT, Outcome
from podwire_nodeagent.datapath.packet import Packet

Steps = list[Step] | None


class Transaction:
    """A change of tables in the making: nothing is visible before `commit`, and `commit` cannot fail. The methods raise
    `NetlinkError` (EINVAL, ENOENT, ELOOP, EBUSY …); then the transaction is to be thrown away."""

    def replace(self, tables: Iterable[Table]) -> None:
        """TablesReplace: the whole content of these tables."""

    def update(self, change: ChainsUpdate) -> None:
        """ChainsUpdate: these chains, and counters of unchanged rules stay."""

    def commit(self) -> None: ...


class Netfilter:
    """Tables of both families, the connection table and the hooks.

    - `sysctls`: the stack's own dict, names with dots ("net.netfilter.nf_conntrack_max"); after a change of it call `reconfigure()`.
    - `local_address_test(address) -> bool`: is it one of the node's own (`--dst-type LOCAL`)?
    - `masquerade_source(out_link, address_family) -> bytes | None`: the primary address of a link.
    - `generation` is bumped by every committed transaction: cached walks of older generations are void.
    - `counters`: "conntrack.*", "nat.*" events by name (drops are counted by the stack under `Outcome.reason`).
    """

    def __init__(
        self,
        chooser: Chooser,
        sysctls: Mapping[str, str],
        local_address_test: Callable[[bytes], bool],
        masquerade_source: Callable[[str, int], bytes | None],
    ) -> None:
        self.generation = 0
        self.counters: dict[str, int] = {}

    # --- settings and tables --------------------------------

    def reconfigure(self) -> None:
        """Read the sysctls again (net.netfilter.nf_conntrack_*)."""

    def begin(self) -> Transaction:
        return Transaction()

    def replace(self, tables: Iterable[Table]) -> None:
        """A transaction of its own."""

    def update(self, change: ChainsUpdate) -> None:
        """A transaction of its own."""

    def dump(self) -> list[TableDump]:
        return []

    # --- hooks, in packet order --------------------------------

    def prerouting(self, packet: Packet, now: float, steps: Steps = None) -> Outcome:
        """Needs packet.in_link. Afterwards packet.ct, ctinfo, direction are set and the destination may be new."""
        return ACCEPT

    def input(self, packet: Packet, now: float, steps: Steps = None) -> Outcome:
        return ACCEPT

    def forward(self, packet: Packet, now: float, steps: Steps = None) -> Outcome:
        """Needs packet.in_link and out_link."""
        return ACCEPT

    def output(self, packet: Packet, now: float, steps: Steps = None) -> Outcome:
        """A locally generated packet, already routed (out_link). Route again if dst or mark changed."""
        return ACCEPT

    def postrouting(self, packet: Packet, now: float, steps: Steps = None) -> Outcome:
        """Needs packet.out_link. The packet may leave after this; its connection is in the table."""
        return ACCEPT

    def attach(self, answer: Packet, cause: Packet) -> None:
        """An ICMP error or RST that the stack makes because of `cause` belongs to its connection (nf_ct_attach). Call it before
        `output(answer)`, which then translates it, so that it reaches the sender as if the sender's own address had answered."""

    # --- flow cache --------------------------------

    def cacheable(self, packet: Packet) -> bool:
        """After the last hook: may the walk of this packet stand for the next ones of its direction? Remember `generation`, `packet.ct`, its
        `epoch`, `ct.rewrite(packet.direction)`; a cached packet is good while both numbers are the same, it has no SYN, FIN, RST (TCP), and
        `ct.touch(direction, length, now)` says True."""
        return False

    def credit(self, hits: Iterable[CompiledRule], packets: int, size: int) -> None:
        """Count packets that a flow cache forwarded for the rules that the walk had matched (`packet.hits`, a list given before the
        first hook)."""

    # --- conntrack --------------------------------

    def expire(self, now: float, budget: int = 1000) -> int:
        """Look at up to `budget` connections whose time may have come; how many were deleted."""
        return 0

    def dump_conntrack(self, now: float) -> list[ConntrackInfo]:
        return []

    def delete_conntrack(self, which: ConntrackDel) -> int:
        return 0
