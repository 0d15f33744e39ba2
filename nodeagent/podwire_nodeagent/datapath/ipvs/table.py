"""`Ipvs`: the virtual services of a node and what they do to packets.

Rules, ip_vs':

- TCP is scheduled by its SYN alone. Another first packet of TCP has no connection here: the node's socket layer, which
  has no socket at a virtual address, answers with a reset.
- No real server to choose: the client gets ICMP port unreachable, whatever the protocol.
- A real server that was deleted ends its connections: with net.ipv4.vs.expire_nodest_conn the next packet is dropped and its
  connection forgotten, so that the client's retry is scheduled anew; otherwise its packets are dropped.
- A persistent service remembers each client's server (a template) until `persistent` seconds after the last new connection, and
  as long as one is there. A quiescent server's template is void (net.ipv4.vs.expire_quiescent_template).

A chooser that plays all outcomes (`exhaustive`) gets every server that history might have chosen.

Order to read: Ipvs.request, schedule, then answer, errors, timers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from podwire_core.trace import Step
from podwire_nodeagent.datapath.chooser import Chooser
from podwire_nodeagent.datapath.ipvs.servers import Key, Served, Server, Service, Template
from podwire_nodeagent.datapath.netfilter import explain
from podwire_nodeagent.datapath.netfilter.connection import CONFIRMED, ORIGINAL, Connection, invert, make_key, split
from podwire_nodeagent.datapath.netfilter.embedded import translate_error
from podwire_nodeagent.datapath.netfilter.explain import Steps
from podwire_nodeagent.datapath.netfilter.outcome import ACCEPT, SERVED, Outcome
from podwire_nodeagent.datapath.packet import ACK, RELATED, SYN, TCP, Packet
from podwire_nodeagent.datapath.rewrite import translate

NO_SERVER: Final = Outcome("reject", "ipvs.no_real_server", "icmp-port-unreachable")
NO_CONNECTION: Final = Outcome("reject", "ipvs.no_connection", "tcp-reset")
SERVER_GONE: Final = Outcome("drop", "ipvs.real_server_gone")
UNSCHEDULED: Final = Outcome("drop", "ipvs.older_connection")

ESTIMATE: Final = 2.0  # seconds between two looks at the rates, as ip_vs_est
TERMINATION: Final = 60.0  # kube-proxy's rsCheckDeleteInterval
SYSCTLS: Final = {
    "net.ipv4.vs.conntrack": "0",
    "net.ipv4.vs.conn_reuse_mode": "1",
    "net.ipv4.vs.expire_nodest_conn": "0",
    "net.ipv4.vs.expire_quiescent_template": "0",
}


class Ipvs:
    """`services` by protocol number, address and port. `kill` forgets a connection (Conntrack.kill)."""

    def __init__(
        self,
        chooser: Chooser,
        sysctls: Mapping[str, str],
        is_local: Callable[[bytes], bool],
        kill: Callable[[Connection], None],
    ) -> None:
        self._chooser, self._sysctls, self._is_local, self._kill = chooser, sysctls, is_local, kill
        self.services: dict[Key, Service] = {}
        self.terminating: list[tuple[Service, Server]] = []
        self._busy: dict[Server, None] = {}
        self._estimated = self._checked = 0.0

    # --- requests --------------------------------

    def request(self, packet: Packet, stage: str, now: float, steps: Steps) -> Outcome:
        """INPUT or OUTPUT. ACCEPT: it goes on as it came, or to a real server that is this node itself; SERVED: it has a
        new destination elsewhere."""
        connection = packet.ct
        if connection is None:
            return ACCEPT
        served = connection.served
        if packet.ctinfo == RELATED:
            return self._error(packet, connection, stage, steps) if served is not None else ACCEPT
        if packet.direction != ORIGINAL:
            return ACCEPT
        if served is None:
            service = self.services.get((packet.proto, packet.dst, packet.dport))
            if service is None:
                return ACCEPT
            if connection.status & CONFIRMED:  # it is older than the service
                self._kill(connection)
                return self._refused(UNSCHEDULED, service, stage, steps)
            if packet.proto == TCP and packet.flags & (SYN | ACK) != SYN:
                return self._refused(NO_CONNECTION, service, stage, steps)
            server, template = self._schedule(service, packet, now)
            if server is None:
                return self._refused(NO_SERVER, service, stage, steps)
            served = self._bind(connection, service, server, template)
        elif not served.server.available:
            if self._sysctls.get("net.ipv4.vs.expire_nodest_conn") != "0":
                self._kill(connection)
            return self._refused(SERVER_GONE, served.service, stage, steps)
        return self._send(packet, connection, served, stage, steps)

    def _bind(self, connection: Connection, service: Service, server: Server, template: Template | None) -> Served:
        """The connection is that server's from now on: its answers come from there."""
        src, _, sport, _ = split(connection.original)
        connection.reply = invert(make_key(src, server.address, sport, server.port, connection.original[-1]))
        served = connection.served = Served(service, server, template)
        server.connections += 1
        return served

    def _send(self, packet: Packet, connection: Connection, served: Served, stage: str, steps: Steps) -> Outcome:
        server = served.server
        if (packet.dst, packet.dport) == (server.address, server.port):
            return ACCEPT  # looped: a request of the node to itself comes by twice
        served.follow(connection)
        self._count(packet, server, server.incoming)
        old = packet.dst, packet.dport
        translate(packet, packet.src, server.address, packet.sport, server.port)
        if steps is not None:
            steps.append(_translated(stage, served, "dnat", old, (server.address, server.port)))
        return ACCEPT if self._is_local(server.address) else SERVED

    def _count(self, packet: Packet, server: Server, traffic: object) -> None:
        incoming = traffic is server.incoming
        counter = server.incoming if incoming else server.outgoing
        counter.packets += 1
        counter.bytes += packet.length
        if packet.hits is not None:
            packet.hits.append(counter)
        self._busy[server] = None

    def _refused(self, outcome: Outcome, service: Service, stage: str, steps: Steps) -> Outcome:
        if steps is not None:
            value = service.value
            rule = f"{value.protocol.upper()} {explain.endpoint(service.key[1], value.port)} {value.scheduler}"
            detail = outcome.reject_with or outcome.reason
            steps.append(Step(stage, outcome.action, detail, rule, value.origin, len(service.servers)))
        return outcome

    # --- scheduling --------------------------------

    def _schedule(self, service: Service, packet: Packet, now: float) -> tuple[Server | None, Template | None]:
        if not service.value.persistent:
            return self._pick(service, packet), None
        template = service.templates.get(packet.src)
        if template is None or not self._valid(template, now):
            server = self._pick(service, packet)
            if server is None:
                return None, None
            template = service.templates[packet.src] = Template(server)
        template.expires = now + service.value.persistent
        return template.server, template

    def _valid(self, template: Template, now: float) -> bool:
        server = template.server
        if not server.available or (not template.connections and template.expires <= now):
            return False
        return server.weight > 0 or self._sysctls.get("net.ipv4.vs.expire_quiescent_template") == "0"

    def _pick(self, service: Service, packet: Packet) -> Server | None:
        if not (getattr(self._chooser, "exhaustive", False) and service.scheduler.by_history):
            return service.scheduler.pick(packet)
        possible = [server for server in service.servers if server.weight > 0]
        for index, server in enumerate(possible):
            if self._chooser.chance(1 / (len(possible) - index)):
                return server
        return None

    # --- answers and errors --------------------------------

    def answer(self, packet: Packet, stage: str, steps: Steps) -> None:
        """FORWARD, INPUT or OUTPUT: what a real server sends back gets the virtual service's address."""
        connection = packet.ct
        if connection is None or connection.served is None or packet.direction == ORIGINAL:
            return
        served = connection.served
        if packet.ctinfo == RELATED:
            self._error(packet, connection, stage, steps)
            return
        _, address, _, port = split(connection.original)
        old = packet.src, packet.sport
        if old == (address, port):
            return
        served.follow(connection)
        self._count(packet, served.server, served.server.outgoing)
        translate(packet, address, packet.dst, port, packet.dport)
        if steps is not None:
            steps.append(_translated(stage, served, "un-dnat", old, (address, port)))

    def _error(self, packet: Packet, connection: Connection, stage: str, steps: Steps) -> Outcome:
        """An ICMP error about a served connection, in either direction."""
        forth = packet.direction == ORIGINAL
        before = packet.src, packet.dst
        translate_error(packet, connection, source=not forth)
        if steps is not None and connection.served is not None:
            old, new = (before[1], packet.dst) if forth else (before[0], packet.src)
            steps.append(_translated(stage, connection.served, "dnat" if forth else "un-dnat", (old, 0), (new, 0)))
        return SERVED if forth and packet.dst != before[1] and not self._is_local(packet.dst) else ACCEPT

    # --- timers --------------------------------

    def tick(self, now: float) -> bool:
        """Rates, forgotten clients, real servers whose last connection has gone. True if a server went."""
        if not self._estimated:
            self._estimated = self._checked = now
        if now >= self._estimated + ESTIMATE:
            seconds = now - self._estimated
            self._estimated = now
            for server in [server for server in self._busy if not server.estimate(seconds)]:
                del self._busy[server]
        if now < self._checked + TERMINATION:
            return False
        self._checked = now
        for service in self.services.values():
            if service.templates:
                stale = [c for c, t in service.templates.items() if not t.connections and t.expires <= now]
                for client in stale:
                    del service.templates[client]
        return self._finish_termination()

    def _finish_termination(self) -> bool:
        done = [(service, server) for service, server in self.terminating if server.idle or not server.terminating]
        for service, server in done:
            self.terminating.remove((service, server))
            if server.terminating and server in service.servers:
                server.available = False
                service.servers = [other for other in service.servers if other is not server]
                service.scheduler.update(service.servers)
        return bool(done)

    def forget(self) -> None:
        """No client is remembered: for simulations."""
        for service in self.services.values():
            service.templates.clear()

    def __iter__(self) -> Iterator[Service]:
        return iter(self.services.values())


def _translated(stage: str, served: Served, action: str, old: tuple[bytes, int], new: tuple[bytes, int]) -> Step:
    side = "destination" if action == "dnat" else "source"
    value, server = served.service.value, served.server
    detail = f"{side} {explain.endpoint(*old)} -> {explain.endpoint(*new)}"
    return Step(stage, action, detail, served.service.text(server), value.origin, 1)
