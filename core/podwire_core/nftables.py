"""nftables rulesets as values: what kube-proxy's nftables mode compiles to, and what the datapath executes.

Rules the file keeps: a `Rule` is its statements in the order in which `nft list ruleset` prints them, matches first. Addresses
and keys are text in the spelling of nft 1.0.6; the table's family says whether `Address` is printed as ip or ip6. Nothing here
knows Kubernetes, except `origin`, the object that caused a rule or an element, which travels along so that a trace can name it.

Covered is what kube-proxy writes; the words are those of nft(8).

Order to read: verdicts, statements, Rule and Chain, Set (also maps) and its elements, Table. The text form is in `nft_text.py`.
"""

from __future__ import annotations

from msgspec import Struct

# --- verdicts --------------------------------


class Verdict(Struct, frozen=True, gc=False, tag_field="s", tag="verdict", omit_defaults=True):
    """accept, drop, return; jump and goto with the chain."""

    name: str
    chain: str = ""


# --- statements --------------------------------


class Statement(Struct, frozen=True, gc=False, tag_field="s", omit_defaults=True):
    """One step of a rule. A match that does not hold ends the rule."""


class Address(Statement, frozen=True, tag="addr"):
    """`ip saddr != { 10.0.0.0/8, 192.0.2.1 }`: addresses and networks; `side` is saddr or daddr."""

    side: str
    nets: tuple[str, ...]
    invert: bool = False


class InSet(Statement, frozen=True, tag="inset"):
    """`ip daddr @cluster-ips`; several fields are a concatenation. Fields: saddr, daddr, l4proto, dport."""

    fields: tuple[str, ...]
    set: str
    invert: bool = False


class L4Proto(Statement, frozen=True, tag="l4proto"):
    """`meta l4proto tcp`: tcp, udp or sctp."""

    name: str


class DestinationPort(Statement, frozen=True, tag="dport"):
    """`tcp dport 80`."""

    proto: str
    port: int


class Fib(Statement, frozen=True, tag="fib"):
    """`fib saddr type local`."""

    side: str


class InInterface(Statement, frozen=True, tag="iif"):
    """`iifname "cni0"`; a trailing `*` matches every name that begins so."""

    name: str
    invert: bool = False


class CtState(Statement, frozen=True, tag="ctstate"):
    """`ct state new`: invalid, established, related, new, untracked."""

    states: tuple[str, ...]


class MarkBits(Statement, frozen=True, tag="mark"):
    """`meta mark & 0x00004000 == 0x00000000`."""

    mask: int
    value: int


class MarkSet(Statement, frozen=True, tag="markset"):
    """`meta mark set meta mark | 0x00004000`; `operator` is | or ^."""

    operator: str
    value: int


class Lookup(Statement, frozen=True, tag="vmap"):
    """`ip daddr . meta l4proto . th dport vmap @service-ips`: the element's verdict; without one the rule does not hold."""

    fields: tuple[str, ...]
    map: str


class Random(Statement, frozen=True, tag="numgen"):
    """`numgen random mod 2 vmap { 0 : goto a, 1 : goto b }`."""

    verdicts: tuple[Verdict, ...]


class Update(Statement, frozen=True, tag="update"):
    """`update @affinity { ip saddr }`: in the set from now on, for its timeout."""

    set: str
    side: str = "saddr"


class Reject(Statement, frozen=True, tag="reject"):
    """`reject`: with port unreachable."""


class Dnat(Statement, frozen=True, tag="dnat"):
    """`dnat to 10.180.0.1:80`."""

    address: str
    port: int


class Masquerade(Statement, frozen=True, tag="masq"):
    """`masquerade fully-random`."""

    fully_random: bool = False


AnyStatement = (
    Address
    | InSet
    | L4Proto
    | DestinationPort
    | Fib
    | InInterface
    | CtState
    | MarkBits
    | MarkSet
    | Lookup
    | Random
    | Update
    | Reject
    | Dnat
    | Masquerade
    | Verdict
)

# --- chains --------------------------------


class Rule(Struct, frozen=True, gc=False, omit_defaults=True):
    statements: tuple[AnyStatement, ...]
    comment: str = ""
    origin: str = ""  # "Service ns/name:port"


class Hook(Struct, frozen=True):
    """What makes a chain a base chain. `type`: filter, nat; `hook`: prerouting, input, forward, output, postrouting."""

    type: str
    hook: str
    priority: int
    policy: str = "accept"


class Chain(Struct, frozen=True, omit_defaults=True):
    name: str
    rules: tuple[Rule, ...] = ()
    comment: str = ""
    hook: Hook | None = None


# --- sets and maps --------------------------------


class Element(Struct, frozen=True, gc=False, omit_defaults=True):
    """`10.96.0.1 . tcp . 80 : goto service-…`. `expires`: seconds left, of a set with a timeout; 0: not told."""

    key: tuple[str, ...]
    verdict: Verdict | None = None
    comment: str = ""
    origin: str = ""
    expires: float = 0.0


class Set(Struct, frozen=True, omit_defaults=True):
    """A set, or with `verdicts` a verdict map. `types`: ipv4_addr, ipv6_addr, inet_proto, inet_service, of each part of a key.
    `dynamic` sets are updated by packets; `timeout` in seconds."""

    name: str
    types: tuple[str, ...]
    verdicts: bool = False
    comment: str = ""
    dynamic: bool = False
    timeout: int = 0
    size: int = 0
    elements: tuple[Element, ...] = ()


# --- tables --------------------------------

Id = tuple[int, str]  # a table's family and name


class Table(Struct, frozen=True, omit_defaults=True):
    """`family` 4 or 6. Sets, maps and chains stand in the order in which they were made, as `nft list ruleset` has them."""

    family: int
    name: str
    comment: str = ""
    sets: tuple[Set, ...] = ()
    chains: tuple[Chain, ...] = ()

    @property
    def id(self) -> Id:
        return self.family, self.name
