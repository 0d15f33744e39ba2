"""`podwire check`: what would become of flows, without a cluster, by the code that moves the live packets.

The objects are settled by the live controllers (settle.py), the nodes' stacks programmed by the live agents' code and joined in
memory (simulation/), and the first packet of each flow is sent. Where the dataplane may choose, every choice is played
(simulation/choices.py). What the stacks report of the packet is the answer; nothing here knows a rule of Services.

Order to read: check, Checker.answer, outcomes, the result.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from podwire.check_input import Flow, Reader, World
from podwire.simulation import Choices, Fabric, SimulatedNode, packets
from podwire_core.objects import Json
from podwire_core.trace import Hop, Step

PASSING = ("delivered", "forwarded")
NO_ADDRESS = {"node": "", "stage": "dns", "rule": "no endpoint is ready: the name has no address", "object": None}
EPHEMERAL = (32768, 60999)  # Linux' ip_local_port_range


def check(objects: Iterable[Json], flows: Iterable[Json], *, proxy: str | None = None, cni: str | None = None) -> list[Json]:
    """A result for every flow, in their order. ValueError, one line that says where, if something cannot be understood."""
    world = World(objects, proxy, cni)
    reader, checker = Reader(world), Checker(world)
    asked = [reader.read(flow, f"flows[{number}]") for number, flow in enumerate(flows)]
    return [checker.answer(flow) for flow in asked]


class Outcome(NamedTuple):
    """What became of one packet. `source` "" if nobody saw it."""

    verdict: str
    ip: str
    port: int
    pod: str | None
    node: str | None
    source: str
    snat: bool
    translated: bool
    hops: list[Hop]

    def destination(self) -> Json:
        fields = ("ip", "port", "pod", "node", "verdict", "source", "snat")
        return {field: getattr(self, field) for field in fields}


class Checker:
    """Stacks are made when they are needed and kept for the next flow."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.choices = Choices()
        self.fabric = Fabric(self._make, world.owners)
        self._ports: Iterator[int] = itertools.cycle(range(*EPHEMERAL))
        self._idents = itertools.count(1)

    def _make(self, name: str) -> SimulatedNode:
        world = self.world
        elsewhere = [pod for pod in world.pods.values() if pod["spec"]["nodeName"] != name]
        node = SimulatedNode(world.nodes[name], list(world.nodes.values()), world.pods_of(name), elsewhere, self.choices)
        node.program(world.config, world.of("Service"), world.of("EndpointSlice"))
        return node

    def answer(self, flow: Flow) -> Json:
        found: dict[tuple[object, ...], Outcome] = {}
        for target in flow.targets:
            self.choices.start()
            while True:
                outcome = self._play(flow, *target)
                found.setdefault(outcome[:8], outcome)
                if not self.choices.advance():
                    break
        return result(flow, sorted(found.values(), key=lambda each: each[:3]), self.world.warnings)

    # --- one packet --------------------------------

    def _play(self, flow: Flow, ip: str, port: int) -> Outcome:
        fabric, origin = self.fabric, flow.origin
        fabric.begin(flow.protocol)
        node = fabric.node(origin.node)
        source = origin.addresses.get(6 if ":" in ip else 4) or node.source_towards(ip)
        nobody = "::" if ":" in ip else "0.0.0.0"
        packet = packets.first_packet(flow.protocol, source or nobody, ip, next(self._ports), port, next(self._idents))
        if origin.kind == "pod":
            end = node.pod_end(origin.pod)
            assert end is not None, "the reader has looked"
            if not fabric.send_from_pod(node, end, packet, ip):
                return self._lost_in_pod(origin.node, origin.pod, source, ip, port)
        elif origin.kind == "host" or node.owns(source):
            fabric.send_from_host(node, packet)
        else:
            fabric.send_from_outside(node, packet)
        return self._outcome(flow, source, ip, port)

    def _outcome(self, flow: Flow, source: str, ip: str, port: int) -> Outcome:
        hops = self.fabric.flow_hops()
        translated = any(step.action == "dnat" and step.rule for step in _steps(hops))
        if self.fabric.arrivals:
            seen, pod, node = self.fabric.arrivals[-1]
            at = pod or (self.world.listener(node, seen.port, flow.protocol) if node else None)
            verdict = "delivered" if node else "forwarded"
            snat = seen.source != source
            return Outcome(verdict, seen.destination, seen.port, at, node or None, seen.source, snat, translated, hops)
        verdict = hops[-1].verdict if hops and hops[-1].verdict in ("dropped", "rejected") else "dropped"
        ip, port = _translated(hops, ip, port)
        pod = self.world.by_address.get(ip, "")
        node = self.world.pods[pod]["spec"]["nodeName"] if pod else self.world.owners.get(ip, "")
        return Outcome(verdict, ip, port, pod or None, node or None, "", False, translated, hops)

    def _lost_in_pod(self, node: str, pod: str, source: str, ip: str, port: int) -> Outcome:
        """The pod's own kernel gives up: nobody answers for the address on its network."""
        step = Step("neighbour", "drop", f"{ip} does not answer")
        digest = packets.digest(source, ip, port)
        hop = Hop(node, 0, self.fabric.now, "", digest, [step], "dropped", reason="neighbour_failed", in_alias=f"pod {pod}")
        return Outcome("dropped", ip, port, None, None, "", False, False, [hop])


def _steps(hops: Iterable[Hop]) -> Iterator[Step]:
    return (step for hop in hops for step in hop.steps)


_REWRITTEN = re.compile(r"destination \S+ -> \[?(\S+?)\]?:(\d+)")


def _translated(hops: list[Hop], ip: str, port: int) -> tuple[str, int]:
    """Where a packet that did not arrive was going in the end."""
    for step in _steps(hops):
        match = _REWRITTEN.fullmatch(step.detail) if step.action == "dnat" else None
        if match:
            ip, port = match[1], int(match[2])
    return ip, port


# --- the result --------------------------------


def result(flow: Flow, outcomes: list[Outcome], warnings: list[str]) -> Json:
    verdicts = {outcome.verdict for outcome in outcomes}
    seen = [outcome for outcome in outcomes if outcome.source]
    first = next((each for each in outcomes if each.verdict not in PASSING), outcomes[0] if outcomes else None)
    return {
        "id": flow.id,
        "verdict": verdicts.pop() if len(verdicts) == 1 else "mixed" if verdicts else "rejected",
        "destinations": [outcome.destination() for outcome in outcomes if _is_backend(outcome)],
        "translated": any(outcome.translated for outcome in outcomes),
        "source": seen[0].source if seen else None,
        "snat": any(outcome.snat for outcome in outcomes),
        "decided_by": decided_by(first.hops) if first else {**NO_ADDRESS, "node": flow.origin.node},
        "hops": [msgspec.to_builtins(hop) for hop in first.hops] if first else [],
        "warnings": list(warnings),
    }


def _is_backend(outcome: Outcome) -> bool:
    """A virtual address at which a packet ended untranslated is no destination."""
    known = outcome.pod is not None or outcome.node is not None
    return outcome.verdict in PASSING or outcome.translated or known


def decided_by(hops: list[Hop]) -> Json | None:
    """The step that ended the packet, else the one that translated it; null if it just went where it was sent."""
    ends = [(hop, step) for hop in hops for step in hop.steps if step.action in ("drop", "reject")]
    if hops and hops[-1].verdict not in PASSING:
        hop, step = ends[-1] if ends else (hops[-1], hops[-1].steps[-1] if hops[-1].steps else Step("link", "drop"))
        return _decision(hop, step, hop.reason)
    found = next(((hop, step) for hop in hops for step in hop.steps if step.action == "dnat" and step.rule), None)
    return _decision(*found) if found else None


def _decision(hop: Hop, step: Step, reason: str = "") -> dict[str, Any]:
    rule = step.rule or step.detail or reason
    return {"node": hop.node, "stage": step.stage, "rule": rule, "object": step.origin or None}
