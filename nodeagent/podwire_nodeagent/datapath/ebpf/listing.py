"""The load balancer's state for people and tools: its connections as the entries that Cilium would have, its maps as bytes."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from podwire_core import ebpf
from podwire_core.ebpf import CtInfo, NatInfo
from podwire_core.netlink import BpfMapInfo, BpfState
from podwire_nodeagent.datapath.ebpf.lb import LoadBalancer
from podwire_nodeagent.datapath.ebpf.table import Entry
from podwire_nodeagent.datapath.netfilter.connection import SRC_NAT, invert, split

FIRST_ID = 1


def state(lb: LoadBalancer, now: float) -> BpfState:
    entries = lb.table.all(now)
    ct = [info for entry in entries for info in connections(entry, now)]
    return BpfState(lb.config, ct, [info for entry in entries for info in translations(entry, now)])


def connections(entry: Entry, now: float) -> Iterator[CtInfo]:
    """The service's entry and the one towards the backend."""
    src, dst, sport, dport = _text(entry.original)
    left, proto = max(0, int(entry.expires - now)), entry.proto
    packets = entry.packets_original + entry.packets_reply
    if not entry.extra:
        yield CtInfo("SVC", proto, src, sport, dst, dport, left, 0, 0, entry.rev_nat_index, entry.backend_id)
    src, dst, sport, dport = _text(invert(entry.reply))
    kind = "IN" if entry.untracked else "OUT"
    size = entry.bytes_original + entry.bytes_reply
    yield CtInfo(kind, proto, src, sport, dst, dport, left, packets, size, entry.rev_nat_index, 0, flags(entry))


def flags(entry: Entry) -> tuple[str, ...]:
    given = {
        "RxClosing": bool(entry.closing & 2),
        "TxClosing": bool(entry.closing & 1),
        "LBLoopback": entry.loopback,
        "SeenNonSyn": entry.seen_non_syn,
        "NodePort": entry.untracked and not entry.loopback,
        "DSR": entry.dsr,
    }
    return tuple(name for name, on in given.items() if on)


def translations(entry: Entry, now: float) -> Iterator[NatInfo]:
    """The pair of a changed source."""
    if not entry.status & SRC_NAT or entry.extra:
        return
    client, _, cport, _ = _text(entry.original)
    source, backend, port, bport = _text(invert(entry.reply))
    age = int(now - entry.begun)
    yield NatInfo("OUT", entry.proto, client, cport, backend, bport, source, port, age)
    yield NatInfo("IN", entry.proto, backend, bport, source, port, client, cport, age)


def _text(key: bytes) -> tuple[str, str, int, int]:
    src, dst, sport, dport = split(key)
    return str(ip_address(src)), str(ip_address(dst)), sport, dport


def maps(lb: LoadBalancer, now: float) -> list[BpfMapInfo]:
    """All, in a fixed order, with ids that stay."""
    known = state(lb, now)
    own = {
        ebpf.AFFINITY_MAP: lb.affinity,
        ebpf.MAGLEV: lb.maglev_tables(),
        ebpf.CT: {ebpf.pack_ct_key(info): ebpf.pack_ct_value(info) for info in known.ct},
        ebpf.SNAT: {ebpf.pack_ct_key(info): ebpf.pack_nat_value(info) for info in known.snat},
    }
    return [
        BpfMapInfo(
            number, name, spec.type, spec.key_size, spec.value_size, spec.max_entries, dict(own.get(name, lb.maps.get(name, {})))
        )
        for number, (name, spec) in enumerate(ebpf.MAPS.items(), FIRST_ID)
    ]
