"""IP in packet order (IPv4, and with ip6.py's differences IPv6): enter (parse, reassemble, PREROUTING) → route → local
delivery or forward → POSTROUTING → neighbour; and the node's own packets: OUTPUT → route again → POSTROUTING.

Rules, all Linux':
- Martians: a source that is multicast, limited broadcast, 0.0.0.0/8, a local address that did not come from here, or 127/8
  unless route_localnet; a destination in 0/8 or 127/8 likewise. rp_filter is 0 (off) by default; 1 strict, 2 loose.
- TTL is checked, then the MTU, then the hook FORWARD; all before the TTL is decremented in the quoted packet. A superframe is
  judged by the size of its segments.
- No ICMP redirects are sent. Loose and strict source routes are refused (accept_source_route=0), other options pass.
- Packets for the node's own addresses end at the host link, whose kernel answers pings and refuses closed ports.
- A packet from the node to itself is looped: POSTROUTING, then PREROUTING and INPUT with `lo` on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from podwire_core.trace import Step
from podwire_nodeagent.datapath import egress, fragments, icmp, icmp6, ip6
from podwire_nodeagent.datapath.ebpf.translate import answer as bpf_answer
from podwire_nodeagent.datapath.ebpf.translate import leave
from podwire_nodeagent.datapath.fib import UNREACHABLE_TYPES, Route, flow_hash
from podwire_nodeagent.datapath.netfilter import ACCEPT, SERVED, Outcome
from podwire_nodeagent.datapath.netfilter.connection import packet_key
from podwire_nodeagent.datapath.packet import RELATED, UNTRACKED, Packet
from podwire_nodeagent.datapath.walk import Walk
from podwire_nodeagent.datapath.wire import L3, TCP, UDP, VNET, Buffer

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.links import Link
    from podwire_nodeagent.datapath.stack import Stack

Hook = Callable[[Packet, float, list[Step] | None], Outcome]
LIMITED_BROADCAST = b"\xff\xff\xff\xff"
SOURCE_ROUTES = (131, 137)
UNREACHABLE_CODES = {
    ("unreachable", 4): icmp.HOST,
    ("unreachable", 6): icmp.NET,
    ("prohibit", 4): icmp.FILTERED,
    ("prohibit", 6): icmp.FILTERED,
}


# --- arriving --------------------------------


def receive(stack: Stack, walk: Walk) -> None:
    """An IP packet for this node's MAC, or one that a bridge passes up."""
    if walk.prerouted or enter(stack, walk):
        route_input(stack, walk)


def enter(stack: Stack, walk: Walk) -> bool:
    """Everything up to PREROUTING. False: the walk is over."""
    assert walk.dev is not None
    if not parse(stack, walk, walk.dev.name):
        return False
    walk.packet.in_link = walk.dev.name
    walk.packet.bridged = walk.port is not None
    walk.prerouted = True
    return passes(stack, walk, stack.netfilter.prerouting(walk.packet, walk.now, walk.steps))


def parse(stack: Stack, walk: Walk, where: str) -> bool:
    """Look at the packet, put fragments together, cut off padding. False: the walk is over."""
    packet = walk.packet = Packet()
    reason = packet.parse(walk.frame) or ("ip_version" if (walk.frame[L3 - 2] == 8) != (packet.family == 4) else "")
    if not reason and packet.family == 4 and packet.l4 - L3 > 20 and source_routed(walk.frame[L3 + 20 : packet.l4]):
        reason = "ip_source_route"
    if reason:
        walk.drop(reason, "link")
        return False
    if packet.fragment:
        whole = stack.reassembly.add(packet, where, walk.now)
        if whole is None:
            return held(stack, walk)
        walk.frame, walk.largest_fragment, walk.cacheable = whole, stack.reassembly.largest, False
        walk.step("reassembly", "pass", f"{len(whole) - L3} bytes")
        reason = packet.parse(whole)
        if reason:
            walk.drop(reason, "reassembly")
            return False
    if packet.end < len(walk.frame):
        walk.frame = packet.buf = memoryview(walk.frame)[: packet.end]
        walk.cacheable = False
    packet.hits = []
    if walk.untracked:
        packet.ctinfo = UNTRACKED
    return True


def held(stack: Stack, walk: Walk) -> bool:
    """The piece is kept, or was refused."""
    reason = stack.reassembly.reason
    if reason:
        walk.drop(reason, "reassembly")
    else:
        walk.step("reassembly", "pass", "held")
        walk.consume("fragment_held")
    return False


def source_routed(options: Buffer) -> bool:
    """Whether a loose or strict source route is among the options."""
    at = 0
    while at < len(options) and options[at] != 0:
        if options[at] in SOURCE_ROUTES:
            return True
        size = 1 if options[at] == 1 else options[at + 1] if at + 1 < len(options) else 0
        if size < 1:
            return False
        at += size
    return False


def passes(stack: Stack, walk: Walk, outcome: Outcome) -> bool:
    """What a hook's verdict means for the walk."""
    if walk.steps is not None:
        walk.timed()
    if outcome is ACCEPT or outcome.action == "accept":
        return True
    if outcome.action == "reject":
        answer(stack, walk, outcome.reject_with)
        walk.reject(outcome.reason)
    else:
        walk.drop(outcome.reason)
    return False


def route_input(stack: Stack, walk: Walk) -> None:
    """Local, to be forwarded, or refused."""
    packet, dev = walk.packet, walk.dev
    assert dev is not None
    dst = packet.dst
    reason = "" if walk.untracked else martian(stack, packet, dev) if packet.family == 4 else ip6.martian(packet, dev)
    if reason:
        walk.drop(reason, "fib")
        return
    if packet.family == 6 and dst[0] >= 0xFE and (dst[0] == 0xFF or ip6.link_local(stack, walk, dev)):
        if dst[0] == 0xFF:
            ip6.group(stack, walk, dev)
        return
    if dst == LIMITED_BROADCAST:
        deliver(stack, walk, "broadcast")
        return
    if dst[0] & 0xF0 == 0xE0 and packet.family == 4:
        walk.drop("multicast_not_member", "fib")
        return
    route = way(stack, packet)
    if walk.steps is not None:
        walk.step("fib", "route" if route else "error", route.text() if route else "network unreachable")
    if route is not None and route.table == "local" and route.type in ("local", "broadcast"):
        if packet.family == 4 or not ip6.own(stack, walk, dev):
            deliver(stack, walk, route.type)
    elif not (stack.settings.forwarding if packet.family == 4 else stack.settings.forwarding6):
        walk.drop("forwarding_disabled", "fib")
    elif walk.frame[10] & 1:
        walk.drop("group_frame_not_forwarded", "fib")
    else:
        forward(stack, walk, route)


def way(stack: Stack, packet: Packet) -> Route | None:
    """The route for a packet; of several next hops its flow's. An ICMP error goes where the flow that it is about goes."""
    route = stack.fib.lookup(packet.dst)
    if route is None or not route.hops:
        return route
    key = packet_key(packet)
    if packet.ctinfo == RELATED and packet.ct is not None:
        key = packet.ct.reply if packet.direction else packet.ct.original
    return route.towards(flow_hash(key if stack.settings.multipath_ports else key[: 2 * len(packet.dst)]))


def martian(stack: Stack, packet: Packet, dev: Link) -> str:
    """ "" or why these addresses may not arrive on this link."""
    src, dst = packet.src, packet.dst
    first = src[0]
    if 224 <= first < 240 or src == LIMITED_BROADCAST:
        return "martian_source"
    if first == 0 and not (src == b"\0\0\0\0" and dst == LIMITED_BROADCAST):
        return "martian_source"
    if dst[0] == 0:
        return "martian_destination"
    if (first == 127 or dst[0] == 127) and dev.kind != "loopback" and not stack.settings.route_localnet(dev.name):
        return "martian_source" if first == 127 else "martian_destination"
    if dev.kind == "loopback":
        return ""
    route = stack.fib.lookup(src)
    if route is not None and route.type == "local" and not stack.settings.accept_local(dev.name):
        return "martian_source"
    mode = stack.settings.rp_filter(dev.name)
    if mode and (route is None or route.dev is None or (mode == 1 and route.dev is not dev)):
        return "rp_filter"
    return ""


# --- for this node --------------------------------


def deliver(stack: Stack, walk: Walk, kind: str) -> None:
    """INPUT, then out to the host namespace."""
    host = stack.links.host
    walk.packet.out_link = ""
    outcome = stack.netfilter.input(walk.packet, walk.now, walk.steps)
    if not passes(stack, walk, outcome):
        return
    if outcome is SERVED:
        send_on(stack, walk)
        return
    if host is None:
        walk.drop("no_host_link", "link")
        return
    if stack.lb.attached:
        leave(stack, walk)
    if walk.steps is not None:
        walk.step("fib", "deliver", kind)
    egress.to_neighbour(stack, walk, host, walk.packet.dst, walk.frame)


def send_on(stack: Stack, walk: Walk) -> None:
    """A request of which ip_vs knows a real server: out by the hook OUTPUT, not FORWARD."""
    walk.packet.in_link = ""
    route = stack.fib.lookup(walk.packet.dst)
    if walk.steps is not None:
        walk.step("fib", "route" if route else "error", route.text() if route else "network unreachable")
    forward(stack, walk, route, stack.netfilter.served)


# --- through this node --------------------------------


def forward(stack: Stack, walk: Walk, route: Route | None, hook: Hook | None = None) -> None:
    dev = usable(stack, walk, route)
    if dev is None or route is None:
        return
    packet = walk.packet
    if packet.ttl <= 1:
        send_error(stack, walk, icmp.TIME_EXCEEDED, 0)
        walk.drop("ttl_exceeded", "fib")
        return
    if packet.family == 6 and not ip6.may_forward(stack, walk):
        return
    if not fits(stack, walk, dev):
        return
    packet.out_link = dev.name
    decrement_ttl(packet)
    if passes(stack, walk, (hook or stack.netfilter.forward)(packet, walk.now, walk.steps)):
        finish_output(stack, walk, route, dev)


def fits(stack: Stack, walk: Walk, dev: Link) -> bool:
    """The MTU, for a packet that must not be fragmented; False: the walk is over, with an error that says it."""
    if walk.packet.family == 6:
        if not ip6.too_big(walk, dev.mtu):
            return True
    elif not too_big(walk, dev.mtu) or not (walk.frame[L3 + 6] & 0x40 or walk.frame[1]):
        return True
    send_error(stack, walk, icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED, dev.mtu)
    walk.drop("fragmentation_needed", "fib")
    return False


def usable(stack: Stack, walk: Walk, route: Route | None) -> Link | None:
    """The device of a route; None after the error that its absence deserves."""
    if route is None:
        send_error(stack, walk, icmp.UNREACHABLE, icmp.NET)
        walk.drop("network_unreachable", "fib")
        return None
    if route.type in UNREACHABLE_TYPES:
        if route.type != "blackhole":
            send_error(stack, walk, icmp.UNREACHABLE, UNREACHABLE_CODES[route.type, walk.packet.family])
        walk.drop(UNREACHABLE_TYPES[route.type], "fib")
        return None
    if route.dev is None:
        walk.drop("network_unreachable", "fib")
    return route.dev


def decrement_ttl(packet: Packet) -> None:
    """With RFC 1624's update of the checksum, where there is one."""
    buf, l3 = packet.buf, packet.l3
    packet.ttl -= 1
    buf[l3 + packet.hop] = packet.ttl
    if packet.family == 6:
        return
    total = ((buf[l3 + 10] << 8 | buf[l3 + 11]) + 0x100) % 65535
    buf[l3 + 10], buf[l3 + 11] = total >> 8, total & 255


def too_big(walk: Walk, mtu: int) -> bool:
    """Whether the packet, or a segment of the superframe, exceeds the MTU."""
    walk.mtu = min(walk.mtu, mtu)
    packet = walk.packet
    if packet.length <= mtu:
        return False
    if not walk.frame[1]:
        return True
    return segment_length(packet) > mtu


def segment_length(packet: Packet) -> int:
    """The IP length of a superframe's segments."""
    headers = packet.l4 - packet.l3
    if packet.proto == TCP:
        headers += (packet.buf[packet.l4 + 12] >> 4) << 2
    elif packet.proto == UDP:
        headers += 8
    size: int = VNET.unpack_from(packet.buf, 0)[3]
    return headers + size if size else packet.length


# --- out --------------------------------


def finish_output(stack: Stack, walk: Walk, route: Route, dev: Link) -> None:
    """POSTROUTING, fragmentation, neighbour. For a local route the packet is looped."""
    packet = walk.packet
    packet.out_link = dev.name
    if not passes(stack, walk, stack.netfilter.postrouting(packet, walk.now, walk.steps)):
        return
    if dev.kind == "loopback":
        loop(stack, walk, dev)
        return
    if stack.lb.attached:
        leave(stack, walk)
    nexthop = route.gateway or packet.dst
    if not fits(stack, walk, dev):
        return
    if too_big(walk, dev.mtu) or (packet.family == 6 and packet.length > walk.largest_fragment > 0):
        send_fragments(stack, walk, dev, nexthop)
    else:
        egress.to_neighbour(stack, walk, dev, nexthop, walk.frame)


def send_fragments(stack: Stack, walk: Walk, dev: Link, nexthop: bytes) -> None:
    mtu = min(dev.mtu, walk.largest_fragment or dev.mtu)
    pieces = fragments.split(walk.frame, walk.packet, mtu, stack.next_ident())
    stack.count("fragments.created", len(pieces))
    walk.cacheable = False
    if walk.steps is not None:
        walk.step("fragment", "pass", f"{len(pieces)} fragments for mtu {mtu}")
    original = walk.packet
    for piece in pieces:
        walk.packet = Packet()
        walk.packet.parse(piece)
        walk.packet.ct, walk.packet.ctinfo, walk.packet.direction = original.ct, original.ctinfo, original.direction
        egress.to_neighbour(stack, walk, dev, nexthop, piece)


def loop(stack: Stack, walk: Walk, lo: Link) -> None:
    """The packet arrives where it was sent."""
    walk.dev, walk.prerouted = lo, True
    walk.packet.in_link, walk.packet.out_link = lo.name, ""
    walk.seen += [(lo, True), (lo, False)]
    size = len(walk.frame) - 10
    lo.tx_packets, lo.tx_bytes, lo.rx_packets, lo.rx_bytes = (
        lo.tx_packets + 1,
        lo.tx_bytes + size,
        lo.rx_packets + 1,
        lo.rx_bytes + size,
    )
    if passes(stack, walk, stack.netfilter.prerouting(walk.packet, walk.now, walk.steps)):
        deliver(stack, walk, "local")


# --- the node's own --------------------------------


def host_output(stack: Stack, walk: Walk) -> None:
    """A frame from the host namespace is a packet that the node itself sends."""
    if parse(stack, walk, "output"):
        output(stack, walk)


def output(stack: Stack, walk: Walk) -> None:
    """OUTPUT, and the route that its translation asks for."""
    packet = walk.packet
    route = output_route(stack, walk)
    dev = out_device(stack, walk, route)
    if dev is None:
        return
    packet.out_link = dev.name
    before = packet.dst, packet.mark
    if not passes(stack, walk, stack.netfilter.output(packet, walk.now, walk.steps)):
        return
    if (packet.dst, packet.mark) != before:
        route = output_route(stack, walk)
        dev = out_device(stack, walk, route)
    if dev is not None and route is not None:
        finish_output(stack, walk, route, dev)


def output_route(stack: Stack, walk: Walk) -> Route | None:
    """A link-local address is on the link that the walk says, or nowhere; groups are nowhere."""
    dst = walk.packet.dst
    if len(dst) == 16 and (icmp6.is_link_local(dst) or icmp6.is_multicast(dst)):
        return Route(dst, 128, walk.dev) if walk.dev is not None and icmp6.is_link_local(dst) else None
    return way(stack, walk.packet)


def out_device(stack: Stack, walk: Walk, route: Route | None) -> Link | None:
    """As `usable`, with `lo` for the node's own addresses."""
    if walk.steps is not None:
        walk.step("fib", "route" if route else "error", route.text() if route else "network unreachable")
    if route is not None and route.type == "local":
        return stack.loopback
    if route is not None and route.type == "broadcast":
        return route.dev
    return usable(stack, walk, route)


# --- answers --------------------------------


def answer(stack: Stack, walk: Walk, kind: str) -> None:
    """`-j REJECT --reject-with kind`."""
    packet = walk.packet
    if packet.family == 6:
        ip6.answer(stack, walk, kind)
        return
    if kind == "tcp-reset":
        frame = icmp.reset(packet) if icmp.checksum_ok(packet) else None
        if frame is not None:
            originate(stack, walk, frame)
        return
    if icmp.checksum_ok(packet):
        send_error(stack, walk, icmp.UNREACHABLE, icmp.REJECT_CODES.get(kind, icmp.PORT))


def send_error(stack: Stack, walk: Walk, kind: int, code: int, rest: int = 0) -> None:
    """An ICMP error to the packet's source, where one is due."""
    packet = walk.packet
    if packet.family == 6:
        ip6.send_error(stack, walk, kind, code, rest)
        return
    if not icmp.may_answer(packet) or walk.frame[10] & 1 or stack.fib.address_type(packet.dst) == "BROADCAST":
        return
    route = stack.fib.lookup(packet.src)
    if route is None or route.dev is None:
        return
    limited = icmp.limited(kind, code, stack.settings.icmp_mask)
    if limited and not stack.icmp_limit.allow(packet.src, walk.now, stack.settings.icmp_interval):
        stack.count("icmp.ratelimited")
        return
    source = packet.dst if stack.fib.is_local(packet.dst) else stack.fib.source(route, stack.links)
    if source:
        if walk.steps is not None:
            walk.step("icmp", "error", f"type {kind} code {code}")
        originate(stack, walk, icmp.error(packet, source, kind, code, stack.next_ident(), rest))


def originate(stack: Stack, cause: Walk, frame: bytearray) -> None:
    """Send a packet that the stack made because of another one; it belongs to the same connection."""
    own = stack.new_walk(frame, None, cause.now, cause.emits)
    stack.count("tcp.resets_sent" if frame[L3 + 9 if frame[L3] >> 4 == 4 else L3 + 6] == TCP else "icmp.sent")
    own.dev = cause.dev  # the scope of link-local addresses
    if parse(stack, own, "output"):
        stack.netfilter.attach(own.packet, cause.packet)
        if cause.untracked:
            bpf_answer(stack, own)
        output(stack, own)
    stack.finish(own)
