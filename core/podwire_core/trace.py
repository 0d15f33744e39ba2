"""What a packet's journey through one node looks like: the values that the datapath's stages return, in packet order.

A `Step` is a decision of one stage, not a log line: the same value drives the packet and explains it, in the live datapath
and in `podwire check`. A `Hop` is all steps of one packet at one node. Hops are joined across nodes by their digests: the
packet that leaves one node (`out`) is the packet that enters another (`entered`).
"""

from __future__ import annotations

from msgspec import Struct


class Digest(Struct, omit_defaults=True):
    """What identifies a packet on the wire. For TCP `seq`/`ack` and `flags` ("SA"), for ICMP type and code in the
    ports, else 0.
    `ident` is the IPv4 identification. `length` is the IP packet's."""

    src: str = ""
    dst: str = ""
    proto: str = ""  # tcp, udp, icmp, arp …
    sport: int = 0
    dport: int = 0
    ident: int = 0
    seq: int = 0
    ack: int = 0
    flags: str = ""
    length: int = 0
    ttl: int = 0


class Step(Struct, omit_defaults=True):
    """One stage's decision.

    `stage` in Linux's words: link, bridge, conntrack, raw/PREROUTING, nat/PREROUTING, fib, filter/INPUT, filter/FORWARD,
    filter/OUTPUT, nat/OUTPUT, nat/POSTROUTING, ipvs/INPUT (a request is scheduled; also ipvs/OUTPUT), ipvs/FORWARD
    (an answer gets the virtual address), neighbour, tunnel, reassembly, fragment, icmp; and of the eBPF load balancer
    ebpf/from-container, ebpf/connect4 (socket LB), ebpf/from-netdev, ebpf/from-overlay, ebpf/to-container, ebpf/to-host.
    `action`: pass, new, established, related, dnat, snat, masquerade, accept, drop, reject, route, local, forward,
    flood, resolve, encapsulate,
    decapsulate, deliver, transmit, error, lookup, select.
    """

    stage: str
    action: str
    detail: str = ""  # "to 10.244.2.3:8080", "via 10.244.2.0 dev flannel.1"
    rule: str = ""  # the rule in iptables-save form, a route in ip-route form
    origin: str = ""  # the object that caused it: "Service default/web:http"
    evaluated: int = 0  # rules evaluated in this stage
    chain: tuple[str, ...] = ()  # chains walked, in order
    ns: int = 0  # nanoseconds spent in the stage, 0 if not measured


class Hop(Struct, omit_defaults=True):
    """A packet's way through one node. `verdict`: forwarded (left by a link), delivered (to a pod or the host),
    dropped, rejected
    (answered with an error), consumed (ARP, fragments held …). `reason` names a drop's counter. `seq` orders hops of
    a node."""

    node: str
    seq: int
    time: float  # seconds, CLOCK_REALTIME live, simulated time in check
    in_link: str
    entered: Digest
    steps: list[Step]
    verdict: str
    out_link: str = ""
    out: Digest | None = None
    reason: str = ""
    tunnel_dst: str = ""  # node address of the remote tunnel end
    in_alias: str = ""  # "pod default/client"
    out_alias: str = ""
    ns: int = 0
