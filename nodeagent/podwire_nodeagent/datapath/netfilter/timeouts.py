"""How long a connection is kept, by protocol and state: Linux's defaults and its sysctl names (net.netfilter.nf_conntrack_*)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from podwire_nodeagent.datapath.netfilter import tcp

PREFIX: Final = "net.netfilter.nf_conntrack_"

DEFAULTS: Final[dict[str, int]] = {
    "max": 262_144,
    "acct": 0,
    "tcp_loose": 1,
    "tcp_be_liberal": 1,
    "tcp_timeout_syn_sent": 120,
    "tcp_timeout_syn_recv": 60,
    "tcp_timeout_established": 432_000,
    "tcp_timeout_fin_wait": 120,
    "tcp_timeout_close_wait": 60,
    "tcp_timeout_last_ack": 30,
    "tcp_timeout_time_wait": 120,
    "tcp_timeout_close": 10,
    "tcp_timeout_max_retrans": 300,
    "tcp_timeout_unacknowledged": 300,
    "udp_timeout": 30,
    "udp_timeout_stream": 120,
    "icmp_timeout": 30,
    "icmpv6_timeout": 30,
    "generic_timeout": 600,
    "sctp_timeout_closed": 10,
    "sctp_timeout_cookie_wait": 3,
    "sctp_timeout_cookie_echoed": 3,
    "sctp_timeout_established": 210,
    "sctp_timeout_shutdown_sent": 3,
    "sctp_timeout_shutdown_recd": 3,
    "sctp_timeout_shutdown_ack_sent": 3,
    "sctp_timeout_heartbeat_sent": 30,
}
SYSCTL_DEFAULTS: Final[dict[str, str]] = {PREFIX + name: str(value) for name, value in DEFAULTS.items()}

SCTP_STATES: Final = (
    "NONE",
    "CLOSED",
    "COOKIE_WAIT",
    "COOKIE_ECHOED",
    "ESTABLISHED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT",
    "HEARTBEAT_SENT",
)


class Timeouts:
    """The settings as numbers."""

    __slots__ = (
        "be_liberal",
        "generic",
        "icmp",
        "icmpv6",
        "loose",
        "max",
        "sctp",
        "tcp",
        "tcp_unacknowledged",
        "udp",
        "udp_stream",
    )

    def __init__(self, sysctls: Mapping[str, str]) -> None:
        def get(name: str) -> int:
            text = sysctls.get(PREFIX + name, "")
            return int(text) if text.strip().isdecimal() else DEFAULTS[name]

        self.max = get("max")
        self.loose = bool(get("tcp_loose"))
        tcp_names = {state: f"tcp_timeout_{state.lower()}" for state in tcp.STATES}
        tcp_names["NONE"] = tcp_names["SYN_SENT2"] = "tcp_timeout_syn_sent"
        self.tcp = tuple(get(tcp_names[state]) for state in tcp.STATES)
        self.tcp_unacknowledged = get("tcp_timeout_unacknowledged")
        self.udp, self.udp_stream = get("udp_timeout"), get("udp_timeout_stream")
        self.icmp, self.icmpv6, self.generic = get("icmp_timeout"), get("icmpv6_timeout"), get("generic_timeout")
        self.sctp = (10, *(get(f"sctp_timeout_{state.lower()}") for state in SCTP_STATES[1:]))
