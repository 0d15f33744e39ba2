"""A packet's walk through the stack: what the stages hand to each other, and what they decided.

Rules:
- A stage ends a walk by one of `drop`, `consume`, `reject`, or by handing the frame to a link (egress.py calls `sent`).
- Steps are collected only while tracing (`steps` is a list); a stage writes them by `step`. They are the decisions
  themselves: there is no second implementation that explains.
- What the flow cache needs to know of a walk (links passed, entries used, anything that forbids caching) is kept here,
  so that stages needn't know the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from podwire_core.trace import Digest, Step
from podwire_nodeagent.datapath.packet import Packet
from podwire_nodeagent.datapath.wire import Buffer, Emit, Tunnel

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.bridge import FdbEntry
    from podwire_nodeagent.datapath.ebpf.table import Entry
    from podwire_nodeagent.datapath.links import Link
    from podwire_nodeagent.datapath.neigh import Neighbour

NO_TIME: Callable[[], int] = lambda: 0  # noqa: E731


class Walk:
    """`link` is where the frame came in (None: the stack made it), `dev` the interface that IP sees (a port's bridge),
    `port` the bridge port it came by. `prerouted` says that the bridge has already been through PREROUTING (br_netfilter).
    `bpf` is the load balancer's entry that translated the packet, `bpf_direction` which way; `untracked`: it goes past
    conntrack and source validation. `received` walks are those of frames that came in (not copies, not what the stack makes).
    `largest_fragment` is the size of the biggest piece a packet was put together from."""

    __slots__ = (
        "bpf",
        "bpf_direction",
        "cacheable",
        "clock",
        "dev",
        "emits",
        "entered",
        "expires",
        "fdb_source",
        "frame",
        "lap",
        "largest_fragment",
        "link",
        "mtu",
        "neighbour",
        "now",
        "out_link",
        "packet",
        "port",
        "prerouted",
        "reason",
        "received",
        "seen",
        "started",
        "steps",
        "tunnel",
        "untracked",
        "verdict",
    )

    def __init__(self, frame: Buffer, link: Link | None, now: float, emits: list[Emit]) -> None:
        self.frame, self.link, self.now, self.emits = frame, link, now, emits
        self.dev: Link | None = link
        self.port: Link | None = None
        self.packet: Packet = _NO_PACKET
        self.prerouted = self.received = self.untracked = False
        self.bpf: Entry | None = None
        self.bpf_direction = 0
        self.largest_fragment = 0
        self.verdict = self.reason = ""
        self.out_link: Link | None = None
        self.tunnel: Tunnel | None = None
        self.steps: list[Step] | None = None
        self.entered: Digest | None = None
        self.clock: Callable[[], int] = NO_TIME
        self.started = self.lap = 0
        self.cacheable = True
        self.expires = now + 1e9
        self.mtu = 65535
        self.seen: list[tuple[Link, bool]] = []  # links passed; True: sent by
        self.fdb_source: FdbEntry | None = None
        self.neighbour: Neighbour | None = None

    def step(self, stage: str, action: str, detail: str = "", rule: str = "") -> None:
        """Record a decision. Callers test `steps is not None` first, so that text is made only when it is read."""
        if self.steps is not None:
            at = self.clock()
            self.steps.append(Step(stage, action, detail, rule, ns=at - self.lap))
            self.lap = at

    def timed(self) -> None:
        """The time since the last step belongs to the step that a hook has written."""
        at = self.clock()
        if self.steps and not self.steps[-1].ns:
            self.steps[-1].ns = at - self.lap
        self.lap = at

    def drop(self, reason: str, stage: str = "") -> None:
        if not self.verdict:
            self.verdict, self.reason = "dropped", reason
        self.cacheable = False
        if self.steps is not None and stage:
            self.step(stage, "drop", reason)

    def consume(self, reason: str) -> None:
        """The frame was for the stack itself, or is kept."""
        if not self.verdict:
            self.verdict, self.reason = "consumed", reason
        self.cacheable = False

    def reject(self, reason: str) -> None:
        self.verdict, self.reason = "rejected", reason
        self.cacheable = False

    def sent(self, link: Link, frame: Buffer, tunnel: Tunnel | None, verdict: str) -> None:
        """The frame (or a copy, or a fragment of it) leaves by `link`."""
        self.emits.append((link.index, frame, tunnel))
        self.verdict, self.reason = verdict, ""
        self.out_link, self.tunnel = link, tunnel


class Waiting(NamedTuple):
    """A packet that waits for its neighbour: a copy of its frame, and its walk, which goes on when the neighbour is known."""

    frame: bytearray
    packet: Packet
    walk: Walk

    def resume(self, now: float, emits: list[Emit]) -> Walk:
        walk = self.walk
        walk.frame = self.packet.buf = self.frame
        walk.received = False
        walk.packet, walk.now, walk.emits, walk.verdict = self.packet, now, emits, ""
        return walk


_NO_PACKET = Packet()
