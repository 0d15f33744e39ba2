"""The programs at tc ingress of every link: `arrive`. (What happens on the way back to a client on this node: translate.py.)

    link      hook                        what it does
    tap       ebpf/from-container         Service lookup for a pod; answers to clients outside get the Service's address
    host      ebpf/connect4               the same for the node's own sockets (socket LB, seen from the TAP: see docs)
    uplink    ebpf/from-netdev            NodePort, LoadBalancer and external addresses for clients outside; their answers
    vxlan     ebpf/from-overlay           answers to SNATed requests; DSR's option

A client's source is changed where the answer would not come back otherwise: to the node's address for outside traffic under
policy Cluster whose backend is not the node itself, to 169.254.42.1 for a pod that reaches itself, and for the node's sockets
to the address that the route to the backend asks for, as after a real connect4.

Order to read: arrive, established, serve (lookup → ranges → choice → source → entry), translate.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from podwire_core import ebpf
from podwire_nodeagent.datapath import egress, ip
from podwire_nodeagent.datapath.ebpf import dsr
from podwire_nodeagent.datapath.ebpf.lb import Choice, Found
from podwire_nodeagent.datapath.ebpf.table import Entry
from podwire_nodeagent.datapath.ebpf.translate import PROTOCOLS, arrived_icmp, note, rewritten
from podwire_nodeagent.datapath.netfilter.connection import DST_NAT, ORIGINAL, REPLY, invert, make_key, packet_key
from podwire_nodeagent.datapath.netfilter.tcp import SYN_RECV, SYN_SENT
from podwire_nodeagent.datapath.packet import ACK, ICMP, SYN, TCP, Packet
from podwire_nodeagent.datapath.wire import ETH, ETHERTYPE_IPV4, L3, address_bytes

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.fib import Route
    from podwire_nodeagent.datapath.links import Link
    from podwire_nodeagent.datapath.stack import Stack
    from podwire_nodeagent.datapath.walk import Walk

STAGES = {"tap": "from-container", "host": "connect4", "uplink": "from-netdev", "vxlan": "from-overlay"}
LOOPBACK = address_bytes(ebpf.LOOPBACK)
FIRST_NAT_PORT, NAT_PORTS = 32768, 32768  # NODEPORT_PORT_MIN_NAT and how many there are


def arrive(stack: Stack, walk: Walk, link: Link) -> bool:
    """A frame came in by a link. False: the walk is over."""
    kind, frame = link.kind, walk.frame
    if kind not in STAGES or frame[L3 - 2] << 8 | frame[L3 - 1] != ETHERTYPE_IPV4:
        return True
    if kind == "uplink" and bytes(frame[ETH : ETH + 6]) != link.mac:
        return True
    packet = Packet()
    if packet.parse(frame) or packet.family != 4:
        return True  # the stack says what is wrong with it
    if packet.fragment:
        whole = stack.reassembly.add(packet, "tc", walk.now)
        if whole is None:
            return ip.held(stack, walk)
        walk.frame, walk.largest_fragment, walk.cacheable = whole, stack.reassembly.largest, False
        if packet.parse(whole):
            return True
    if packet.proto == ICMP:
        return arrived_icmp(stack, walk, packet)
    if packet.proto not in PROTOCOLS:
        return True
    stage = f"ebpf/{STAGES['host' if kind == 'tap' and stack.lb.settings.socket_lb == 'all' else kind]}"
    if packet.l4 - L3 == 28 and kind in ("vxlan", "uplink") and dsr.receive(stack, walk, packet, stage):
        return True
    entry = established(stack, packet, walk.now)
    if entry is not None:
        key = packet_key(packet)
        direction = REPLY if key == entry.reply else ORIGINAL
        if key == entry.extra:
            return dsr.follow(walk, packet, entry)
        if direction == REPLY and not entry.untracked:
            return True  # a client on this node: translated when it leaves
        return translate(stack, walk, link, packet, entry, direction, stage)
    if kind == "vxlan":
        return True
    return serve(stack, walk, link, packet, stage)


def established(stack: Stack, packet: Packet, now: float) -> Entry | None:
    """The packet's entry, unless a new choice is due: the client begins anew, or a first packet's backend is gone."""
    key = packet_key(packet)
    entry = stack.lb.table.find(key, now)
    if entry is None or key == entry.reply:
        return entry
    begins = packet.proto != TCP or packet.flags & (SYN | ACK) == SYN
    stale = begins and not entry.extra and stack.lb.config is not None and not stack.lb.keeps(entry)
    if stale or entry.reopened(packet):
        stack.lb.table.kill(entry)
        return None
    return entry


# --- new connections --------------------------------


def serve(stack: Stack, walk: Walk, link: Link, packet: Packet, stage: str) -> bool:
    """The first packet of a connection, perhaps to a Service."""
    lb = stack.lb
    inside = link.kind != "uplink" or is_native(stack, packet.src)
    found = lb.lookup(packet, inside)
    if found is None:
        forget_service(stack, packet, walk.now)
        return True
    if translated_by_netfilter(stack, packet):
        return True
    origin, service = lb.origin(found.service.rev_nat_index), found.service
    if walk.steps is not None:
        rule = ebpf.describe(ebpf.SERVICES, found.key, found.value)
        how = "socket LB" if stage == "ebpf/connect4" else "inside" if inside else "outside"
        note(walk, stage, "lookup", how, rule, origin, found.lookups)
    reason = refusal(stack, walk, found, packet, inside, stage)
    if reason:
        if walk.steps is not None:
            note(walk, stage, "drop", reason, ebpf.describe(ebpf.SERVICES, found.key, found.value), origin)
        walk.drop(f"bpf_{reason}")
        return False
    if not service.backend_count:
        if walk.steps is not None:
            rule = ebpf.describe(ebpf.SERVICES, found.key, found.value)
            note(walk, stage, "reject", "no backend: icmp-port-unreachable", rule, origin)
        walk.packet = packet
        ip.answer(stack, walk, "icmp-port-unreachable")
        walk.reject("bpf_no_service")
        return False
    choice = lb.choose(found, packet, inside, walk.now)
    if choice is None:
        walk.drop("bpf_no_backend", stage)
        return False
    if walk.steps is not None:
        key = ebpf.pack_backend_key(choice.number)
        rule = ebpf.describe(ebpf.BACKENDS, key, ebpf.pack_backend(choice.backend))
        note(walk, stage, "select", choice.how, rule, origin, choice.lookups)
    entry = connect(stack, walk, link, packet, found, choice, inside)
    return translate(stack, walk, link, packet, entry, ORIGINAL, stage, found)


def is_native(stack: Stack, source: bytes) -> bool:
    """An address of the cluster's own pods, though it came by the uplink."""
    return any(ip_address(source) in ip_network(cidr) for cidr in stack.lb.settings.native_cidrs)


def forget_service(stack: Stack, packet: Packet, now: float) -> None:
    """A client that came to a backend by way of a Service now comes to it directly, from the same port: the answers are for the
    backend's own address (bpf_lxc.c: an entry whose rev_nat_index is another one's is made anew)."""
    entry = stack.lb.table.find(invert(packet_key(packet)), now)
    begins = packet.proto != TCP or packet.flags & (SYN | ACK) == SYN
    if entry is not None and begins and entry.reply == invert(packet_key(packet)):
        stack.lb.table.kill(entry)


def translated_by_netfilter(stack: Stack, packet: Packet) -> bool:
    """A connection that was there before the programs were: kube-proxy's rules have translated it, and conntrack remembers."""
    connection = stack.netfilter.conntrack.entries.get(packet_key(packet))
    if connection is None or not connection.status & DST_NAT:
        return False
    begins = packet.proto == TCP and packet.flags & (SYN | ACK) == SYN
    return not begins or connection.state in (SYN_SENT, SYN_RECV)  # a SYN again, whose answer was lost, is no new beginning


def refusal(stack: Stack, walk: Walk, found: Found, packet: Packet, inside: bool, stage: str) -> str:
    """ "" or why this client does not get through."""
    flags, flags2 = found.service.flags, found.service.flags2
    if not inside and not flags & ebpf.ROUTABLE:
        return "is_cluster_ip"
    if flags & ebpf.SOURCE_RANGE:
        element = stack.lb.source_allowed(found, packet.src)
        if not element:
            return "not_in_source_range"
        if walk.steps is not None:
            note(walk, stage, "pass", "source range", ebpf.describe(ebpf.SOURCE_RANGES, element, b""))
    if not found.service.backend_count and (flags & ebpf.EXT_LOCAL_SCOPE or flags2 & ebpf.INT_LOCAL_SCOPE):
        return "no_local_backend"
    return ""


def connect(stack: Stack, walk: Walk, link: Link, packet: Packet, found: Found, choice: Choice, inside: bool) -> Entry:
    """The connection's entry: its translation is fixed now."""
    index, backend = found.service.rev_nat_index, choice.backend
    route = stack.fib.lookup(backend.address)
    direct = dsr.wanted(stack, found, route, inside)
    source = packet.src if direct else source_for(stack, link, packet, found, choice, route, inside)
    sport = free_port(stack, packet, source, choice, walk.now)
    reply = make_key(backend.address, source, backend.port, sport, packet.proto)
    entry = Entry(packet_key(packet), reply, walk.now, choice.number, index, stack.lb.origin(index))
    entry.loopback = source == LOOPBACK
    entry.untracked = link.kind == "uplink" or (link.kind == "tap" and source != packet.src)
    entry.dsr = direct
    stack.lb.table.add(entry, walk.now)
    return entry


def source_for(
    stack: Stack, link: Link, packet: Packet, found: Found, choice: Choice, route: Route | None, inside: bool
) -> bytes:
    """See the head of the file."""
    itself = choice.backend.address == packet.src
    everything = stack.lb.settings.masquerade_all and not found.service.flags & ebpf.ROUTABLE
    if link.kind == "tap" and not everything:
        return LOOPBACK if itself else packet.src
    if route is None or route.type == "local":
        return packet.src
    keeps = (inside and not everything) or bool(found.service.flags & ebpf.EXT_LOCAL_SCOPE)
    if link.kind == "uplink" and keeps and not itself:
        return packet.src
    return stack.fib.source(route, stack.links) or packet.src


def free_port(stack: Stack, packet: Packet, source: bytes, choice: Choice, now: float) -> int:
    """The client's own port, or another where it would be mistaken for another connection's."""
    port = packet.sport
    for _ in range(128):
        reply = make_key(choice.backend.address, source, choice.backend.port, port, packet.proto)
        known = stack.netfilter.conntrack.lookup(reply, now) if source != packet.src else None
        if known is None and stack.lb.table.find(reply, now) is None:
            break
        port = FIRST_NAT_PORT + stack.lb.chooser.below(NAT_PORTS)
    return port


# --- translating --------------------------------


def translate(
    stack: Stack,
    walk: Walk,
    link: Link,
    packet: Packet,
    entry: Entry,
    direction: int,
    stage: str,
    found: Found | None = None,
) -> bool:
    """Rewrite the frame, tell the rest of the walk, and, for a pod that reaches itself, send it back."""
    rewritten(walk, packet, entry, direction, stage, stack, found)
    walk.untracked = entry.untracked
    if entry.dsr and direction == ORIGINAL:
        dsr.send(stack, walk, packet, entry, stage)
    if not entry.loopback:
        return True
    frame = walk.frame
    frame[ETH : ETH + 12] = bytes(frame[ETH + 6 : ETH + 12]) + bytes(frame[ETH : ETH + 6])
    packet.hits = []
    walk.packet = packet
    if walk.steps is not None:
        walk.step(stage, "forward", f"bpf_redirect to {link.name}")
    egress.transmit(stack, walk, link, frame)
    return False
