"""What the hooks decided, as trace steps. Called only for traced packets; decides nothing."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

from podwire_core.trace import Step
from podwire_nodeagent.datapath.netfilter.chains import (
    ACCEPT_OP,
    DNAT_OP,
    DROP_OP,
    MASQUERADE_OP,
    REJECT_OP,
    SNAT_OP,
    CompiledRule,
    Walk,
)
from podwire_nodeagent.datapath.netfilter.connection import ASSURED, Connection
from podwire_nodeagent.datapath.netfilter.outcome import ACCEPT, Outcome
from podwire_nodeagent.datapath.netfilter.tcp import STATES
from podwire_nodeagent.datapath.packet import ICMP, ICMPV6, TCP, Packet

Steps = list[Step] | None
_CTINFO: Final = ("established", "related", "new", "invalid", "untracked")
ACTIONS: Final = {
    ACCEPT_OP: "accept",
    DROP_OP: "drop",
    REJECT_OP: "reject",
    DNAT_OP: "dnat",
    SNAT_OP: "snat",
    MASQUERADE_OP: "masquerade",
}


def endpoint(address: bytes, port: int) -> str:
    text = str(ip_address(address))
    if not port:
        return text
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def tracked(packet: Packet, outcome: Outcome) -> Step:
    """The conntrack stage."""
    if outcome is not ACCEPT:
        return Step("conntrack", "drop", outcome.reason)
    detail = []
    if packet.ct is not None:
        if packet.proto == TCP:
            detail.append(STATES[packet.ct.state])
        detail.append("reply direction" if packet.direction else "original direction")
        if packet.ct.status & ASSURED:
            detail.append("ASSURED")
    return Step("conntrack", _CTINFO[packet.ctinfo], ", ".join(detail), origin=_origin(packet.ct))


def _origin(connection: Connection | None) -> str:
    return connection.cause if connection is not None else ""


def walked(stage: str, rule: CompiledRule, record: Walk, packet: Packet, mark: int) -> Step:
    """A walk of a table: the deciding rule, and everything passed on the way."""
    detail = []
    if rule.operation in (DNAT_OP, SNAT_OP):
        detail.append(f"to {endpoint(*rule.argument)}")
    elif rule.operation == REJECT_OP:
        detail.append(rule.argument)
    if packet.mark != mark:
        detail.append(f"mark {mark:#x} -> {packet.mark:#x}")
    return Step(
        stage=stage,
        action=ACTIONS[rule.operation],
        detail=", ".join(detail),
        rule=rule.text(),
        origin=rule.source.origin or record.origin,
        evaluated=record.evaluated,
        chain=tuple(record.chains),
    )


def translated(stage: str, source: bool, packet: Packet, before: tuple[bytes, bytes, int, int]) -> Step:
    """The packet got new addresses from its connection."""
    portless = packet.proto in (ICMP, ICMPV6)
    src, dst, sport, dport = before
    old = endpoint(src if source else dst, 0 if portless else sport if source else dport)
    new = endpoint(packet.src if source else packet.dst, 0 if portless else packet.sport if source else packet.dport)
    action = ("snat" if source else "dnat") if not packet.direction else ("un-dnat" if source else "un-snat")
    return Step(stage, action, f"{'source' if source else 'destination'} {old} -> {new}", origin=_origin(packet.ct))
