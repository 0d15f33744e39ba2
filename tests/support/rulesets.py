"""Generated tables, of every match and target, that the real iptables-restore accepts."""

from __future__ import annotations

from hypothesis import strategies as st

from podwire_core import netfilter as nf

COMMENTS = st.text(st.sampled_from("abcXYZ019 -_:/.\"'\\()!#"), min_size=1, max_size=20).map(str.strip).filter(bool)
NETS = {
    4: ["10.96.0.10/32", "10.244.0.0/16", "192.0.2.0/25", "0.0.0.0/0"],
    6: ["fd00::a/128", "fd00:10:244::/48", "2001:db8::/33", "::/0"],
}
ADDRESSES = {4: "10.244.1.5", 6: "fd00:10:244:1::5"}
STATES = ["INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT"]
CHAINS = ["KUBE-SVC-A", "X", "zz-9"]
marks = st.integers(0, 0xFFFFFFFF)


@st.composite
def matches(draw, family: int, chain: str) -> tuple[nf.AnyMatch, ...]:
    invert = st.booleans()
    found: list[nf.AnyMatch] = []
    if draw(st.booleans()):
        found.append(nf.Source(draw(st.sampled_from(NETS[family][:3])), draw(invert)))
    if draw(st.booleans()):
        found.append(nf.Destination(draw(st.sampled_from(NETS[family])), False))
    if draw(st.booleans()) and chain not in ("OUTPUT", "POSTROUTING"):
        found.append(nf.InInterface(draw(st.sampled_from(["eth0", "veth+"])), draw(invert)))
    if draw(st.booleans()) and chain not in ("PREROUTING", "INPUT"):
        found.append(nf.OutInterface(draw(st.sampled_from(["cni0", "flannel.1"])), draw(invert)))
    icmp = "icmp" if family == 4 else "ipv6-icmp"
    proto = draw(st.sampled_from(["", "tcp", "udp", "sctp", icmp, "gre"]))
    if proto:
        ports = proto in ("tcp", "udp", "sctp") and draw(st.booleans())
        found.append(nf.Protocol(proto, not ports and draw(invert)))
        if ports:
            found += draw(port_matches(proto))
    found += draw(st.permutations(draw(others(found, family))))
    return tuple(found)


@st.composite
def port_matches(draw, proto: str) -> list[nf.AnyMatch]:
    found: list[nf.AnyMatch] = []
    if draw(st.booleans()):
        low = draw(st.integers(1, 65535))
        found.append(nf.SourcePort(proto, low, draw(st.sampled_from([low, 65535])), draw(st.booleans())))
    if not found or draw(st.booleans()):
        low = draw(st.integers(1, 65535))
        found.append(nf.DestinationPort(proto, low, draw(st.sampled_from([low, 65535])), draw(st.booleans())))
    return found


@st.composite
def others(draw, header: list[nf.AnyMatch], family: int) -> list[nf.AnyMatch]:
    invert = st.booleans()
    mask = draw(st.sampled_from([0x4000, 0xFFFFFFFF]))
    states = draw(st.lists(st.sampled_from(STATES), min_size=1, unique=True))
    possible: list[nf.AnyMatch] = [
        nf.Comment(draw(COMMENTS)),
        nf.Mark(draw(marks) & mask, mask, draw(invert)),
        nf.ConntrackState(tuple(states), draw(invert)),
        nf.AddrType(draw(st.sampled_from(["", "UNICAST"])), "LOCAL", False, draw(invert)),
        nf.Statistic(draw(st.floats(0, 1))),
        nf.Recent("AFFINITY", rcheck=True, seconds=draw(st.integers(1, 10800)), reap=draw(st.booleans())),
        nf.Recent("AFFINITY", set=True),
    ]
    protocols = [match.name for match in header if isinstance(match, nf.Protocol) and not match.invert]
    if protocols == ["icmp"]:
        possible.append(nf.IcmpType(draw(st.sampled_from([0, 3, 8])), draw(st.sampled_from([None, 4]))))
    if protocols == ["ipv6-icmp"]:
        possible.append(nf.IcmpType(draw(st.sampled_from([1, 128])), None, v6=True))
    return draw(st.lists(st.sampled_from(possible), max_size=3, unique_by=type))


@st.composite
def targets(draw, name: str, family: int, chain: str, ports: bool, tcp: bool) -> nf.AnyTarget:
    possible: list[nf.AnyTarget] = [
        nf.Verdict("ACCEPT"),
        nf.Verdict("RETURN"),
        nf.NoTarget(),
        nf.SetMark(draw(marks), draw(marks)),
    ]
    if chain not in CHAINS:
        possible += [nf.Jump(draw(st.sampled_from(CHAINS)), draw(st.booleans()))] * 2
    port = draw(st.integers(1, 65535)) if ports and draw(st.booleans()) else 0
    if name == "filter":
        kinds = (
            ["icmp-port-unreachable", "icmp-admin-prohibited"] if family == 4 else ["icmp6-port-unreachable", "icmp6-no-route"]
        )
        possible += [nf.Verdict("DROP"), nf.Reject(draw(st.sampled_from(kinds + (["tcp-reset"] if tcp else []))))]
    elif chain in ("PREROUTING", "OUTPUT"):
        possible.append(nf.Dnat(ADDRESSES[family], port))
    elif chain == "POSTROUTING":
        possible += [nf.Snat(ADDRESSES[family], port), nf.Masquerade(draw(st.booleans()))]
    return draw(st.sampled_from(possible))


@st.composite
def tables(draw, families: tuple[int, ...] = (4, 6)) -> nf.Table:
    name, family = draw(st.sampled_from(["filter", "nat"])), draw(st.sampled_from(families))
    chains = []
    for chain in [*nf.BUILTIN_CHAINS[name], *CHAINS]:
        rules = []
        for _ in range(draw(st.integers(0, 4))):
            found = draw(matches(family, chain))
            named = {match.name for match in found if isinstance(match, nf.Protocol) and not match.invert}
            target = draw(targets(name, family, chain, bool(named & {"tcp", "udp"}), "tcp" in named))
            rules.append(nf.Rule(found, target))
        chains.append(nf.Chain(chain, tuple(rules), "ACCEPT" if chain not in CHAINS else ""))
    return nf.Table(name, family, tuple(chains))
