"""`cilium-dbg service list`, `cilium-dbg bpf lb list [--revnat]`, `cilium-dbg bpf ct list global`, `cilium-dbg bpf nat list`,
in the columns and words of Cilium 1.16; `-o json` for the lists of Services. `cilium` is the same command's older name.

The agent's own list (`service list`) is read from the maps as well: there is no other place where it could differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from ipaddress import ip_address
from typing import NamedTuple

from podwire_core import ebpf
from podwire_core.ebpf import Backend, CtInfo, NatInfo, Service, ServiceKey
from podwire_core.netlink import BpfMapInfo, BpfState
from podwire_nodeagent.tools.common import Client, unsupported

_CT_FLAG_BITS = {"RxClosing": 1, "TxClosing": 2, "LBLoopback": 8, "SeenNonSyn": 16, "NodePort": 32, "DSR": 128}


class Maps(NamedTuple):
    services: dict[ServiceKey, Service]
    backends: dict[int, Backend]
    reverse: dict[int, tuple[bytes, int]]


def main(argv: list[str], client: Client) -> str:
    words = [word for word in argv if not word.startswith("-")]
    flags = [word for word in argv if word.startswith("-")]
    as_json = words[-1:] == ["json"] and "-o" in flags
    words = words[:-1] if as_json else words
    if words == ["service", "list"]:
        return service_list(read(client), as_json)
    if words == ["bpf", "lb", "list"]:
        maps = read(client)
        return revnat_list(maps) if "--revnat" in flags else backends_list(maps) if "--backends" in flags else lb_list(maps)
    if words in (["bpf", "ct", "list", "global"], ["bpf", "ct", "list"]):
        return "".join(ct_line(info) for info in state(client).ct)
    if words == ["bpf", "nat", "list"]:
        return "".join(nat_line(info) for info in state(client).snat)
    raise unsupported("cilium-dbg", argv)


def state(client: Client) -> BpfState:
    found: BpfState = client.dump("bpf")
    return found


def read(client: Client) -> Maps:
    dumped: list[BpfMapInfo] = client.dump("bpf.maps")
    by_name = {each.name: each.elements for each in dumped}
    services = {ebpf.unpack_service_key(k): ebpf.unpack_service(v) for k, v in by_name[ebpf.SERVICES].items()}
    backends = {ebpf.unpack_backend_key(k): ebpf.unpack_backend(v) for k, v in by_name[ebpf.BACKENDS].items()}
    reverse = {ebpf.unpack_index(k): ebpf.unpack_reverse_nat(v) for k, v in by_name[ebpf.REVERSE_NAT].items()}
    return Maps(services, backends, reverse)


def address(packed: bytes, port: int, proto: int | None = None) -> str:
    return f"{ip_address(packed)}:{port}" + (f"/{ebpf.PROTOCOL_NAMES.get(proto, 'ANY')}" if proto is not None else "")


def kind(flags: int) -> str:
    for bit, name in ((ebpf.EXTERNAL_IP, "ExternalIPs"), (ebpf.NODEPORT, "NodePort"), (ebpf.LOADBALANCER, "LoadBalancer")):
        if flags & bit:
            return name
    return "ClusterIP"


def words_of(service: Service) -> str:
    """What stands in brackets behind a Service of `bpf lb list`."""
    pairs = (
        (service.flags & ebpf.EXT_LOCAL_SCOPE, "Local"),
        (service.flags2 & ebpf.INT_LOCAL_SCOPE, "InternalLocal"),
        (service.flags2 & ebpf.TWO_SCOPES, "two-scopes"),
        (service.flags & ebpf.AFFINITY, "sessionAffinity"),
        (service.flags & ebpf.SOURCE_RANGE, "check source-range"),
        (not service.flags & ebpf.ROUTABLE, "non-routable"),
    )
    return ", ".join([kind(service.flags), *(word for on, word in pairs if on)])


def masters(maps: Maps) -> list[ServiceKey]:
    found = [key for key in maps.services if key.slot == 0]
    return sorted(found, key=lambda key: (maps.services[key].rev_nat_index, key.scope))


def slots(maps: Maps, master: ServiceKey) -> Iterable[tuple[int, int, Backend | None]]:
    """Slot, backend id, backend."""
    for slot in range(1, maps.services[master].backend_count + 1):
        entry = maps.services.get(master._replace(slot=slot))
        if entry is not None:
            yield slot, entry.first, maps.backends.get(entry.first)


def scope(key: ServiceKey) -> str:
    return "/i" if key.scope == ebpf.SCOPE_INT else ""


def service_list(maps: Maps, as_json: bool) -> str:
    rows, objects = [], []
    for key in masters(maps):
        service = maps.services[key]
        front = address(key.address, key.dport, key.proto) + scope(key)
        behind = [(address(b.address, b.port, b.proto), number) for _, number, b in slots(maps, key) if b]
        objects.append(
            {
                "id": service.rev_nat_index,
                "frontend": front,
                "type": kind(service.flags),
                "backends": [{"id": number, "address": where, "state": "active"} for where, number in behind],
            }
        )
        first = [str(service.rev_nat_index), front, kind(service.flags)]
        lines = [f"{n} => {where} (active)" for n, (where, _) in enumerate(behind, 1)] or [""]
        rows.append([*first, lines[0]])
        rows += [["", "", "", line] for line in lines[1:]]
    return json.dumps(objects, indent=2) + "\n" if as_json else table(("ID", "Frontend", "Service Type", "Backend"), rows)


def lb_list(maps: Maps) -> str:
    rows = []
    for key in masters(maps):
        service, front = maps.services[key], address(key.address, key.dport, key.proto) + scope(key)
        rows.append([f"{front} (0)", f"0.0.0.0:0 ({service.rev_nat_index}) (0) [{words_of(service)}]"])
        for slot, _, backend in slots(maps, key):
            where = address(backend.address, backend.port, backend.proto) if backend else "backend not found"
            rows.append([f"{front} ({slot})", f"{where} ({service.rev_nat_index}) ({slot})"])
    return table(("SERVICE ADDRESS", "BACKEND ADDRESS (REVNAT_ID) (SLOT)"), rows)


def revnat_list(maps: Maps) -> str:
    rows = [[str(index), address(*where)] for index, where in sorted(maps.reverse.items())]
    return table(("ID", "BACKEND ADDRESS (REVNAT_ID) (SLOT)"), rows)


def backends_list(maps: Maps) -> str:
    rows = [[str(number), address(b.address, b.port, b.proto)] for number, b in sorted(maps.backends.items())]
    return table(("ID", "BACKEND ADDRESS"), rows)


def table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """Go's tabwriter: columns as wide as their widest cell and three spaces."""
    lines = [list(head), *rows]
    widths = [max(len(line[column]) for line in lines) + 3 for column in range(len(head))]
    return "".join("".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines)


def ct_line(info: CtInfo) -> str:
    bits = sum(_CT_FLAG_BITS[name] for name in info.flags)
    names = f"[ {' '.join(info.flags)} ] " if info.flags else ""
    head = f"{ebpf.PROTOCOL_NAMES.get(info.proto, info.proto)} {info.kind} {info.src}:{info.sport} -> {info.dst}:{info.dport}"
    counts = (
        f"expires={info.expires} Packets={info.packets} Bytes={info.bytes} Flags={bits:#06x} {names}RevNAT={info.rev_nat_index}"
    )
    return f"{head} {counts} SourceSecurityID=0 IfIndex=0 BackendID={info.backend_id}\n"


def nat_line(info: NatInfo) -> str:
    head = f"{ebpf.PROTOCOL_NAMES.get(info.proto, info.proto)} {info.kind} {info.src}:{info.sport} -> {info.dst}:{info.dport}"
    xlate = "XLATE_SRC" if info.kind == "OUT" else "XLATE_DST"
    return f"{head} {xlate} {info.to}:{info.to_port} Created={info.created}sec ago NeedsCT=0\n"
