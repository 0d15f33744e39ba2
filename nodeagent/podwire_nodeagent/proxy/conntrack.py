"""Which connection tracking entries a change of a Service makes stale.

Rules it keeps: UDP only (kube-proxy's), since a UDP "connection" lives as long as a client goes on sending, and would go on to a
backend that is gone, or to nobody although there now is one. Entries of TCP end by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from podwire_core.netlink import ConntrackDel
from podwire_nodeagent.proxy.model import Change
from podwire_nodeagent.proxy.ports import ServicePort


def stale_entries(changes: Iterable[Change]) -> list[ConntrackDel]:
    """Deleted after the new rules are in place."""
    return list(dict.fromkeys(op for change in changes for op in _stale(change)))


def _stale(change: Change) -> Iterator[ConntrackDel]:
    new = {(port.name, port.protocol): port for port in change.new}
    for old in change.old:
        if old.protocol == "udp":
            yield from _gone(old, new.get((old.name, old.protocol)))
    had = {(port.name, port.protocol) for port in change.old if port.reachable}
    for port in change.new:
        if port.protocol == "udp" and port.reachable and (port.name, port.protocol) not in had:
            yield from (_entry(address, number) for address, number in _targets(port))


def _gone(old: ServicePort, new: ServicePort | None) -> Iterator[ConntrackDel]:
    """The flows to endpoints, and by addresses, that the port no longer has."""
    kept = {e.name for e in new.reachable} if new else set()
    targets = _targets(old)
    for endpoint in old.reachable:
        if endpoint.name not in kept:
            yield from (_entry(address, number, endpoint.ip) for address, number in targets)
    for address, number in targets:
        if new is not None and (address, number) not in _targets(new):
            yield _entry(address, number)


def _targets(port: ServicePort) -> list[tuple[str, int]]:
    """What clients send to: (address, port), the address "" for a NodePort."""
    addresses = (port.cluster_ip, *port.external_ips, *port.load_balancer_ips)
    return [(address, port.port) for address in addresses] + ([("", port.node_port)] if port.node_port else [])


def _entry(address: str, number: int, backend: str = "") -> ConntrackDel:
    return ConntrackDel(proto="udp", orig_dst=address, orig_dport=number, reply_src=backend)
