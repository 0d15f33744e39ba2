"""Netfilter rulesets as values: what kube-proxy and CNI daemons compile to, and what the datapath executes.

Rules the file keeps: a `Rule` is a list of matches and one target, in the order in which iptables-save prints them. It says
nothing about how it is executed (datapath/netfilter compiles it) and nothing about Kubernetes, except `origin`, the object
that caused it, which travels along so that a trace can name it. Names are those of iptables-extensions(8). Values refer to
values, never in a circle, and there may be a million of them: Python's garbage collector need not know them (`gc=False`).

Order to read: matches, targets, Rule, Chain, Table. Printing and parsing the text form is in `iptables_save.py`.
"""

from __future__ import annotations

from msgspec import Struct

# --- matches --------------------------------


class Match(Struct, frozen=True, tag_field="m", gc=False):
    """One condition of a rule. All conditions of a rule must hold."""


class Source(Match, frozen=True, tag="src"):
    """`-s 10.244.0.0/16`: an IPv4 or IPv6 network in CIDR form, host bits zero."""

    net: str
    invert: bool = False


class Destination(Match, frozen=True, tag="dst"):
    """`-d 10.96.0.10/32`."""

    net: str
    invert: bool = False


class InInterface(Match, frozen=True, tag="iif"):
    """`-i cni0`; a trailing `+` matches every name that begins so."""

    name: str
    invert: bool = False


class OutInterface(Match, frozen=True, tag="oif"):
    """`-o eth0`."""

    name: str
    invert: bool = False


class Protocol(Match, frozen=True, tag="proto"):
    """`-p tcp`: "tcp", "udp", "sctp", "icmp", "ipv6-icmp" or a decimal number."""

    name: str
    invert: bool = False


class SourcePort(Match, frozen=True, tag="sport"):
    """`-m tcp --sport 1024:65535`, inclusive. `proto` names the module (tcp, udp, sctp); a Protocol match stands
    before it."""

    proto: str
    low: int
    high: int
    invert: bool = False


class DestinationPort(Match, frozen=True, tag="dport"):
    """`-m tcp --dport 80`."""

    proto: str
    low: int
    high: int
    invert: bool = False


class Comment(Match, frozen=True, tag="comment"):
    """`-m comment --comment "default/web cluster IP"`: always holds."""

    text: str


class Mark(Match, frozen=True, tag="mark"):
    """`-m mark --mark 0x4000/0x4000`."""

    value: int
    mask: int = 0xFFFFFFFF
    invert: bool = False


class ConntrackState(Match, frozen=True, tag="ctstate"):
    """`-m conntrack --ctstate RELATED,ESTABLISHED`: NEW, ESTABLISHED, RELATED, INVALID, UNTRACKED, DNAT, SNAT."""

    states: tuple[str, ...]
    invert: bool = False


class AddrType(Match, frozen=True, tag="addrtype"):
    """`-m addrtype --dst-type LOCAL`; also UNICAST, BROADCAST, MULTICAST. An empty side is not tested."""

    src_type: str = ""
    dst_type: str = ""
    invert_src: bool = False
    invert_dst: bool = False


class Statistic(Match, frozen=True, tag="statistic"):
    """`-m statistic --mode random --probability 0.50000000000`."""

    probability: float


class Recent(Match, frozen=True, tag="recent"):
    """`-m recent --name N --rcheck --seconds 10800 --reap --mask 255.255.255.255 --rsource` (rcheck) or `--set`
    (holds always)."""

    name: str
    set: bool = False
    rcheck: bool = False
    seconds: int = 0
    reap: bool = False


class IcmpType(Match, frozen=True, tag="icmp"):
    """`-m icmp --icmp-type 8` (family by the table's); code None: any."""

    type: int
    code: int | None = None
    v6: bool = False


class Set(Match, frozen=True, tag="set"):
    """`-m set --match-set KUBE-CLUSTER-IP dst,dst`: the packet's addresses and ports, by `flags`, are in that set (ipset.py)."""

    name: str
    flags: tuple[str, ...]  # "src" or "dst", one for each dimension of the set
    invert: bool = False


class PhysDev(Match, frozen=True, tag="physdev"):
    """`-m physdev --physdev-is-in`: the packet came in by a bridge port."""

    invert: bool = False


AnyMatch = (
    Source
    | Destination
    | InInterface
    | OutInterface
    | Protocol
    | SourcePort
    | DestinationPort
    | Comment
    | Mark
    | ConntrackState
    | AddrType
    | Statistic
    | Recent
    | IcmpType
    | Set
    | PhysDev
)

# --- targets --------------------------------


class Target(Struct, frozen=True, tag_field="t", gc=False):
    """What happens to a packet for which all matches hold."""


class Verdict(Target, frozen=True, tag="verdict"):
    """ACCEPT, DROP or RETURN."""

    name: str


class Jump(Target, frozen=True, tag="jump"):
    """`-j CHAIN` (`-g CHAIN` with goto)."""

    chain: str
    goto: bool = False


class Reject(Target, frozen=True, tag="reject"):
    """`-j REJECT --reject-with icmp-port-unreachable`; also icmp-host-unreachable, icmp-net-unreachable,
    icmp-admin-prohibited,
    tcp-reset, icmp6-port-unreachable, icmp6-adm-prohibited, icmp6-addr-unreachable, icmp6-no-route."""

    with_: str = "icmp-port-unreachable"


class SetMark(Target, frozen=True, tag="setmark"):
    """`-j MARK --set-xmark value/mask`: mark = (mark & ~mask) ^ value. `--or-mark V` is V/V, `--xor-mark V` is V/0,
    as iptables-save prints them."""

    value: int
    mask: int


class Dnat(Target, frozen=True, tag="dnat"):
    """`-j DNAT --to-destination 10.244.1.5:8080`; port 0 leaves the port. Only in nat PREROUTING and OUTPUT."""

    address: str
    port: int = 0


class Snat(Target, frozen=True, tag="snat"):
    """`-j SNAT --to-source 192.0.2.1`. Only in nat POSTROUTING and INPUT."""

    address: str
    port: int = 0


class Masquerade(Target, frozen=True, tag="masquerade"):
    """`-j MASQUERADE [--random-fully]`: SNAT to the address of the outgoing interface."""

    random_fully: bool = False


class NoTarget(Target, frozen=True, tag="none"):
    """A rule without -j: it only counts (or sets a `recent` entry)."""


AnyTarget = Verdict | Jump | Reject | SetMark | Dnat | Snat | Masquerade | NoTarget

# --- rules, chains, tables --------------------------------


class Rule(Struct, frozen=True, array_like=True, gc=False):
    """`origin` is "kind namespace/name[:port]" of the object that caused it, "" if none, e.g. "Service default/web:http"."""

    matches: tuple[AnyMatch, ...]
    target: AnyTarget
    origin: str = ""


class Chain(Struct, frozen=True, array_like=True, gc=False):
    """`policy` is ACCEPT or DROP for built-in chains (PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING), "" (`-` in
    text) otherwise."""

    name: str
    rules: tuple[Rule, ...] = ()
    policy: str = ""


class Table(Struct, frozen=True, array_like=True, gc=False):
    """One of raw, mangle, nat, filter of one family (4 or 6)."""

    name: str
    family: int
    chains: tuple[Chain, ...] = ()


BUILTIN_CHAINS: dict[str, tuple[str, ...]] = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}
