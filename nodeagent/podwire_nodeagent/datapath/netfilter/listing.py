"""The connection table for people: entries as `conntrack -L` shows them, and the filters of `conntrack -D`."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from podwire_core.netlink import ConntrackDel, ConntrackInfo, NetlinkError, TupleInfo
from podwire_nodeagent.datapath.netfilter.connection import Connection, split
from podwire_nodeagent.datapath.netfilter.conntrack import nat_names
from podwire_nodeagent.datapath.netfilter.matches import protocol_number
from podwire_nodeagent.datapath.netfilter.tcp import STATES
from podwire_nodeagent.datapath.netfilter.timeouts import SCTP_STATES
from podwire_nodeagent.datapath.packet import ICMP, ICMPV6, SCTP, TCP, UDP

_NAMES = {TCP: "tcp", UDP: "udp", SCTP: "sctp", ICMP: "icmp", ICMPV6: "icmpv6"}


def _tuple_info(key: bytes) -> TupleInfo:
    src, dst, sport, dport = split(key)
    texts = str(ip_address(src)), str(ip_address(dst))
    if key[-1] in (ICMP, ICMPV6):
        return TupleInfo(*texts, sport=dport >> 8, dport=dport & 255, id=sport)
    return TupleInfo(*texts, sport=sport, dport=dport)


def connection_info(connection: Connection, now: float) -> ConntrackInfo:
    proto = connection.original[-1]
    state = STATES[connection.state] if proto == TCP else SCTP_STATES[connection.state] if proto == SCTP else ""
    return ConntrackInfo(
        proto=_NAMES.get(proto, str(proto)),
        timeout=max(0, int(connection.expires - now)),
        original=_tuple_info(connection.original),
        reply=_tuple_info(connection.reply),
        state=state,
        status=nat_names(connection.status),
        mark=connection.mark,
        packets=(connection.packets_original, connection.packets_reply),
        bytes=(connection.bytes_original, connection.bytes_reply),
    )


def connection_filter(which: ConntrackDel) -> Callable[[Connection], bool]:
    """Every field that is not empty must match."""
    try:
        proto = protocol_number(which.proto) if which.proto else -1
        orig_src, orig_dst, reply_src = (
            ip_address(text).packed if text else b"" for text in (which.orig_src, which.orig_dst, which.reply_src)
        )
    except ValueError as error:
        raise NetlinkError("EINVAL", str(error)) from None

    def wanted(connection: Connection) -> bool:
        if proto >= 0 and connection.original[-1] != proto:
            return False
        src, dst, _, dport = split(connection.original)
        if (orig_src and src != orig_src) or (orig_dst and dst != orig_dst) or (which.orig_dport and dport != which.orig_dport):
            return False
        return not reply_src or split(connection.reply)[0] == reply_src

    return wanted
