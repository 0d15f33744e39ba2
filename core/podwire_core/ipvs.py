"""IP Virtual Server as values: virtual services and their real servers, which the datapath schedules connections to.

Rules the file keeps: names, flags and limits are ipvsadm(8)'s; forwarding is by masquerading (NAT) alone, which is what
kube-proxy uses. It says nothing of how a connection is scheduled (datapath/ipvs) and of Kubernetes, except `origin`,
the object that caused a virtual service, for traces.
"""

from __future__ import annotations

from msgspec import Struct

SCHEDULERS = ("rr", "wrr", "lc", "wlc", "sh", "dh", "sed", "nq", "mh")
FLAGS = ("ops", "sh-fallback", "sh-port", "mh-fallback", "mh-port")
PROTOCOLS = ("tcp", "udp", "sctp")
MAX_WEIGHT = 65535
FORWARDING = "Masq"

Key = tuple[str, str, int]  # protocol, address, port


class RealServer(Struct, frozen=True, array_like=True):
    """`-a … -r ADDRESS:PORT -m -w WEIGHT`. Weight 0: no new connections (quiescent)."""

    address: str
    port: int
    weight: int = 1


class VirtualService(Struct, frozen=True, omit_defaults=True):
    """`-A -t ADDRESS:PORT -s SCHEDULER [-p PERSISTENT] [-b FLAGS]` with its real servers. `persistent` is a timeout in
    seconds, 0: every connection is scheduled on its own."""

    protocol: str
    address: str
    port: int
    scheduler: str = "rr"
    persistent: int = 0
    flags: tuple[str, ...] = ()
    servers: tuple[RealServer, ...] = ()
    origin: str = ""

    @property
    def key(self) -> Key:
        return self.protocol, self.address, self.port


class ServerInfo(Struct, omit_defaults=True):
    """A real server in a dump: what it is, and what `ipvsadm -L` counts. `terminating`: it is no longer given, and goes when
    its last connection has gone."""

    address: str
    port: int
    weight: int
    active: int = 0
    inactive: int = 0
    persistent: int = 0
    terminating: bool = False
    stats: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)  # connections, packets in, out, bytes in, out
    rates: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)  # the same a second


class ServiceInfo(Struct, omit_defaults=True):
    """One of `dump("ipvs")`."""

    protocol: str
    address: str
    port: int
    scheduler: str
    persistent: int = 0
    flags: tuple[str, ...] = ()
    origin: str = ""
    servers: list[ServerInfo] = []
    stats: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    rates: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)


class ConnectionInfo(Struct, omit_defaults=True):
    """One of `dump("ipvs.connections")`: a connection, or (state "NONE", client port 0) what a persistent service remembers."""

    protocol: str
    expires: int
    state: str
    client: str
    client_port: int
    virtual: str
    virtual_port: int
    server: str
    server_port: int
