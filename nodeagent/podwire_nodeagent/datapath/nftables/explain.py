"""What a walk decided, as a trace step. Called only for traced packets; decides nothing."""

from __future__ import annotations

from podwire_core.trace import Step
from podwire_nodeagent.datapath.netfilter.chains import DNAT_OP, REJECT_OP
from podwire_nodeagent.datapath.netfilter.explain import ACTIONS, endpoint
from podwire_nodeagent.datapath.nftables.compiled import Chain, Decision
from podwire_nodeagent.datapath.nftables.walk import Path
from podwire_nodeagent.datapath.packet import Packet


def walked(chain: Chain, decision: Decision, path: Path, packet: Packet, mark: int) -> Step:
    """The deciding rule or element, the elements that led there, and what it was made for."""
    detail = [element.text() for element in path.elements if element is not decision and element.set]
    if decision.operation == DNAT_OP:
        detail.append(f"to {endpoint(*decision.argument)}")
    elif decision.operation == REJECT_OP:
        detail.append(decision.argument)
    if packet.mark != mark:
        detail.append(f"mark {mark:#x} -> {packet.mark:#x}")
    return Step(
        stage=f"nft/{chain.name}",
        action=ACTIONS[decision.operation],
        detail=", ".join(detail),
        rule=decision.text(),
        origin=decision.source.origin or path.origin,
        evaluated=path.evaluated,
        chain=tuple(path.chains),
    )
