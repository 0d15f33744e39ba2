"""Virtual services, real servers, and what a scheduled connection remembers.

Counters are ip_vs': a connection counts for its real server from its confirmation (the packet has passed the last hook) to its
end in conntrack; TCP that is being opened or is open is active, all else inactive.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from podwire_core.ipvs import FORWARDING, VirtualService
from podwire_nodeagent.datapath.netfilter import tcp
from podwire_nodeagent.datapath.packet import SCTP, TCP, UDP

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.ipvs.schedulers import Scheduler
    from podwire_nodeagent.datapath.netfilter.connection import Connection

NUMBERS: Final = {"tcp": TCP, "udp": UDP, "sctp": SCTP}
NAMES: Final = {number: name for name, number in NUMBERS.items()}
ACTIVE: Final = frozenset((tcp.SYN_SENT, tcp.SYN_RECV, tcp.ESTABLISHED, tcp.SYN_SENT2))
WEIGHING: Final = 4  # of a rate's moving average

Key = tuple[int, bytes, int]  # protocol, address, port


class Traffic:
    """Packets and bytes of one direction; a flow cache credits it like a rule (`Packet.hits`)."""

    __slots__ = ("bytes", "packets")

    def __init__(self) -> None:
        self.packets = self.bytes = 0


class Server:
    """A real server of one service. `available` is False once it is deleted: its connections are to end. `terminating`: it is
    quiescent and goes with its last connection."""

    __slots__ = (
        *("active", "address", "available", "connections", "inactive", "incoming", "outgoing", "persistent", "port"),
        *("rates", "seen", "terminating", "weight"),
    )

    def __init__(self, address: bytes, port: int, weight: int = 1) -> None:
        self.address, self.port, self.weight = address, port, weight
        self.available, self.terminating = True, False
        self.active = self.inactive = self.persistent = self.connections = 0
        self.incoming, self.outgoing = Traffic(), Traffic()
        self.rates = [0.0] * 5
        self.seen = (0, 0, 0, 0, 0)

    @property
    def idle(self) -> bool:
        return not (self.active or self.inactive)

    def totals(self) -> tuple[int, int, int, int, int]:
        """As `ipvsadm --stats` has them."""
        incoming, outgoing = self.incoming, self.outgoing
        return self.connections, incoming.packets, outgoing.packets, incoming.bytes, outgoing.bytes

    def estimate(self, seconds: float) -> bool:
        """Bring the rates up to date; False: nothing moves any more."""
        now = self.totals()
        for index, (new, old) in enumerate(zip(now, self.seen, strict=True)):
            self.rates[index] += ((new - old) / seconds - self.rates[index]) / WEIGHING
        moving = now != self.seen
        self.seen = now
        if not moving and max(self.rates) < 0.5:
            self.rates = [0.0] * 5
            return False
        return True


class Template:
    """What a persistent service remembers of a client."""

    __slots__ = ("connections", "expires", "server")

    def __init__(self, server: Server) -> None:
        self.server, self.expires, self.connections = server, 0.0, 0


class Service:
    """A virtual service. `servers` in the order of Linux's list: the newest first."""

    __slots__ = ("key", "scheduler", "servers", "templates", "value")

    def __init__(self, key: Key, value: VirtualService, scheduler: Scheduler) -> None:
        self.key, self.value, self.scheduler = key, value, scheduler
        self.servers: list[Server] = []
        self.templates: dict[bytes, Template] = {}

    def text(self, server: Server) -> str:
        """The entry that decides, as `ipvsadm -Sn` prints it."""
        value = self.value
        end = _endpoint(server.address, server.port)
        return f"-a {option(value.protocol)} {name(value)} -r {end} -m -w {server.weight} ({value.scheduler}, {FORWARDING})"


class Served:
    """A scheduled connection."""

    __slots__ = ("active", "counted", "server", "service", "template")

    def __init__(self, service: Service, server: Server, template: Template | None) -> None:
        self.service, self.server, self.template = service, server, template
        self.active = self.counted = False

    def begin(self) -> None:
        """The connection is confirmed; it begins inactive, `follow` makes it active."""
        self.counted = True
        self.server.inactive += 1
        if self.template is not None:
            self.template.connections += 1

    def follow(self, connection: Connection) -> None:
        """Its state may have changed."""
        active = connection.original[-1] == TCP and connection.state in ACTIVE
        if self.counted and active != self.active:
            self.active = active
            change = 1 if active else -1
            self.server.active += change
            self.server.inactive -= change

    def end(self) -> None:
        if not self.counted:
            return
        self.counted = False
        if self.active:
            self.server.active -= 1
        else:
            self.server.inactive -= 1
        if self.template is not None:
            self.template.connections -= 1


def option(protocol: str) -> str:
    return {"tcp": "-t", "udp": "-u"}.get(protocol, "--sctp-service")


def name(value: VirtualService) -> str:
    return f"[{value.address}]:{value.port}" if ":" in value.address else f"{value.address}:{value.port}"


def _endpoint(address: bytes, port: int) -> str:
    text = str(ip_address(address))
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"
