"""Where IPv6 differs from IPv4 on the walk that ip.py describes: what may arrive, groups, sizes, errors.

Rules, all Linux':
- A source that is a group, ::1 but on lo, or a destination that is a group of scope 0 or 1 is a martian. There is no rp_filter.
- Neighbour discovery ends here after INPUT (ndp.py); other groups have no listener. Nothing of link-local scope is
  forwarded: such a source is answered "beyond scope" (Linux would send such a destination back on its link; here it is dropped).
- Nothing is fragmented in transit: "packet too big". What conntrack has put together is sent on in pieces of the size it came in
  (nf_defrag_ipv6).
- Extension headers are passed over and left as they are; options are the destination's to judge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from podwire_nodeagent.datapath import icmp, icmp6, ip, ndp
from podwire_nodeagent.datapath.fib import Route
from podwire_nodeagent.datapath.packet import ICMPV6, Packet

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.links import Link
    from podwire_nodeagent.datapath.stack import Stack
    from podwire_nodeagent.datapath.walk import Walk


def martian(packet: Packet, dev: Link) -> str:
    """ "" or why these addresses may not arrive on this link."""
    src, dst = packet.src, packet.dst
    if src[0] == 0xFF:
        return "martian_source"
    if dst[0] == 0xFF and dst[1] & 15 < 2:
        return "martian_destination"
    if dev.kind == "loopback":
        return ""
    if src == icmp6.LOOPBACK:
        return "martian_source"
    return "martian_destination" if dst == icmp6.LOOPBACK else ""


def group(stack: Stack, walk: Walk, dev: Link) -> None:
    """A packet for a multicast group."""
    if ndp.member(stack, dev, walk.packet.dst):
        own(stack, walk, dev)
    else:
        walk.drop("multicast_not_member", "fib")


def own(stack: Stack, walk: Walk, dev: Link) -> bool:
    """Neighbour discovery and groups, which end in the stack and not in the host namespace. False: a packet for the latter."""
    packet = walk.packet
    discovery = ndp.is_discovery(packet)
    if not discovery and not icmp6.is_multicast(packet.dst):
        return False
    packet.out_link = ""
    if not ip.passes(stack, walk, stack.netfilter.input(packet, walk.now, walk.steps)):
        return True
    if discovery:
        ndp.receive(stack, walk, dev)
    elif packet.proto == ICMPV6 and packet.dport >> 8 in icmp6.LISTENERS:
        walk.consume("multicast_listener")
    else:
        walk.drop("multicast_no_listener", "fib")
    return True


def link_local(stack: Stack, walk: Walk, dev: Link) -> bool:
    """Packets whose destination has link-local scope: for the link's own address, or of nobody's concern. True: done with."""
    packet = walk.packet
    if not icmp6.is_link_local(packet.dst):
        return False
    if not ndp.owns(dev, packet.dst):
        walk.drop("link_local_not_forwarded", "fib")
    elif not own(stack, walk, dev):
        ip.deliver(stack, walk, "local")
    return True


def may_forward(stack: Stack, walk: Walk) -> bool:
    """The source's scope; False: the walk is over."""
    src = walk.packet.src
    if src == icmp6.UNSPECIFIED:
        walk.drop("martian_source", "fib")
        return False
    if icmp6.is_link_local(src):
        error(stack, walk, icmp6.UNREACHABLE, icmp6.NOT_NEIGHBOUR)
        walk.drop("beyond_scope", "fib")
        return False
    return True


def too_big(walk: Walk, mtu: int) -> bool:
    """Whether the packet, a segment of it, or the largest of the fragments it came in, exceeds the MTU."""
    mtu = max(mtu, icmp6.MINIMUM_MTU)
    if walk.largest_fragment:
        walk.mtu = min(walk.mtu, mtu)
        return walk.largest_fragment > mtu
    return ip.too_big(walk, mtu)


# --- answers --------------------------------


def send_error(stack: Stack, walk: Walk, kind: int, code: int, rest: int = 0) -> None:
    """An error in IPv4's terms."""
    error(stack, walk, *icmp6.ERRORS[kind, code], max(rest, icmp6.MINIMUM_MTU) if code == icmp.FRAGMENTATION_NEEDED else 0)


def error(stack: Stack, walk: Walk, kind: int, code: int, rest: int = 0) -> None:
    """An ICMPv6 error to the packet's source, where one is due."""
    packet = walk.packet
    if not icmp6.may_answer(packet, kind) or (walk.frame[10] & 1 and kind != icmp6.PACKET_TOO_BIG):
        return
    route = stack.fib.lookup(packet.src) if not icmp6.is_link_local(packet.src) else Route(packet.src, 128, walk.dev)
    if route is None or route.dev is None:
        return
    if kind != icmp6.PACKET_TOO_BIG and route.dev.kind != "loopback":
        every = icmp6.interval(stack.settings.icmp6_interval, route.plen)
        if not stack.icmp_limit.allow(packet.src, walk.now, every):
            stack.count("icmp.ratelimited")
            return
    source = packet.dst if stack.fib.is_local(packet.dst) else stack.fib.source(route, stack.links, packet.src)
    if source:
        if walk.steps is not None:
            walk.step("icmp", "error", f"icmpv6 type {kind} code {code}")
        ip.originate(stack, walk, icmp6.error(packet, source, kind, code, rest))


def answer(stack: Stack, walk: Walk, kind: str) -> None:
    """`-j REJECT --reject-with kind`."""
    packet = walk.packet
    if not icmp.checksum_ok(packet) or icmp6.is_multicast(packet.dst):
        return
    if kind == "tcp-reset":
        frame = icmp6.reset(packet)
        if frame is not None:
            ip.originate(stack, walk, frame)
    else:
        error(stack, walk, icmp6.UNREACHABLE, icmp6.REJECT_CODES.get(kind, icmp6.PORT))
