"""`conntrack`: -L (with filters and -o extended), -S, -C, -D, -F. The line about how many goes to stderr, as the real tool's."""

from __future__ import annotations

import sys
from ipaddress import ip_address, ip_network

from msgspec import Struct

from podwire_core.netlink import ConntrackDel, ConntrackInfo, TupleInfo
from podwire_nodeagent.tools.common import Client, ToolError, Words, apply, unsupported

_NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}
_TEXTS = {
    "-s": "orig_src",
    "--orig-src": "orig_src",
    "--src": "orig_src",
    "-d": "orig_dst",
    "--orig-dst": "orig_dst",
    "--dst": "orig_dst",
    "-r": "reply_src",
    "--reply-src": "reply_src",
    "-q": "reply_dst",
    "--reply-dst": "reply_dst",
    "-p": "proto",
    "--proto": "proto",
    "--state": "state",
    "-f": "family",
    "--family": "family",
    "-o": "output",
    "--output": "output",
}
_PORTS = {"--sport": "orig_sport", "--orig-port-src": "orig_sport", "--dport": "orig_dport", "--orig-port-dst": "orig_dport"}
_COMMANDS = {"--dump": "-L", "--stats": "-S", "--count": "-C", "--delete": "-D", "--flush": "-F", "--event": "-E"}


class Filter(Struct):
    """What -L and -D may be narrowed to; empty fields are not tested."""

    proto: str = ""
    orig_src: str = ""
    orig_dst: str = ""
    reply_src: str = ""
    reply_dst: str = ""
    orig_sport: int = 0
    orig_dport: int = 0
    state: str = ""
    family: str = ""
    output: str = ""
    status: str = ""  # UNREPLIED or ASSURED, SRC_NAT, DST_NAT, ANY_NAT

    def wants(self, info: ConntrackInfo) -> bool:
        if self.proto and info.proto != self.proto:
            return False
        pairs = (
            (self.orig_src, info.original.src),
            (self.orig_dst, info.original.dst),
            (self.reply_src, info.reply.src),
            (self.reply_dst, info.reply.dst),
        )
        if not all(not wanted or ip_address(got) in ip_network(wanted, strict=False) for wanted, got in pairs):
            return False
        if (self.orig_sport, self.orig_dport) != (0, 0) and not self._wants_ports(info.original):
            return False
        if self.family and (":" in info.original.src) != (self.family == "ipv6"):
            return False
        nat = {"SRC_NAT": ("SNAT",), "DST_NAT": ("DNAT",), "ANY_NAT": ("SNAT", "DNAT")}.get(self.status, (self.status,))
        return self.state in ("", info.state) and (not self.status or any(name in info.status for name in nat))

    def _wants_ports(self, original: TupleInfo) -> bool:
        return self.orig_sport in (0, original.sport) and self.orig_dport in (0, original.dport)


def main(argv: list[str], client: Client) -> str:
    words = Words(argv)
    if not words:
        raise ToolError("conntrack v1.4.7 (conntrack-tools): one of -L, -S, -C, -D, -F is needed", 2)
    command = words.next()
    command = _COMMANDS.get(command, command)
    if words.peek() == "conntrack":
        words.next()
    if command == "-E":
        raise unsupported("conntrack", ["-E"])
    if command not in ("-L", "-S", "-C", "-D", "-F"):
        raise ToolError(f"conntrack v1.4.7 (conntrack-tools): unknown command `{command}'", 2)
    chosen = _filter(words)
    if command == "-C":
        return f"{len(client.dump('conntrack'))}\n"
    if command == "-S":
        return _statistics(client)
    entries: list[ConntrackInfo] = client.dump("conntrack")
    accounted = client.dump("sysctls").get("net.netfilter.nf_conntrack_acct", "0") == "1"
    if command == "-F":
        apply(client, [ConntrackDel()], 1)
        _say("connection tracking table has been emptied.")
        return ""
    entries = [info for info in entries if chosen.wants(info)]
    if command == "-D":
        apply(client, [_deletion(info) for info in entries], 1)
        _say(f"{len(entries)} flow entries have been deleted.")
        if not entries:
            raise ToolError("", 1)
    else:
        _say(f"{len(entries)} flow entries have been shown.")
    extended = "extended" in chosen.output.split(",")
    return "".join(line(info, accounted, extended) + "\n" for info in entries)


def _say(text: str) -> None:
    print(f"conntrack v1.4.7 (conntrack-tools): {text}", file=sys.stderr)


def _filter(words: Words) -> Filter:
    found = Filter()
    while words:
        word = words.next()
        if word in _TEXTS:
            setattr(found, _TEXTS[word], words.next(word))
        elif word in _PORTS:
            text = words.next(word)
            if not text.isdecimal() or int(text) > 65535:
                raise ToolError(f"conntrack v1.4.7 (conntrack-tools): `{text}' is not a port", 2)
            setattr(found, _PORTS[word], int(text))
        elif word in ("-u", "--status"):
            found.status = words.next(word)
        elif word in ("-n", "--src-nat", "-g", "--dst-nat", "-j", "--any-nat"):
            found.status = {"n": "SRC_NAT", "g": "DST_NAT", "j": "ANY_NAT"}.get(word[1:], word[2:].upper().replace("-", "_"))
        else:
            raise unsupported("conntrack", [word])
    found.proto = found.proto.lower()
    for text in (found.orig_src, found.orig_dst, found.reply_src, found.reply_dst):
        try:
            if text:
                ip_network(text, strict=False)
        except ValueError:
            raise ToolError(f"conntrack v1.4.7 (conntrack-tools): `{text}' is not an address", 2) from None
    return found


def _deletion(info: ConntrackInfo) -> ConntrackDel:
    """As narrow as the operation can be: the datapath has no deletion by source port."""
    dport = 0 if info.proto in ("icmp", "icmpv6") else info.original.dport
    return ConntrackDel(info.proto, info.original.src, info.original.dst, dport, info.reply.src)


def _tuple(found: TupleInfo, proto: str) -> str:
    text = f"src={found.src} dst={found.dst}"
    if proto in ("icmp", "icmpv6"):
        return f"{text} type={found.sport} code={found.dport} id={found.id}"
    return f"{text} sport={found.sport} dport={found.dport}" if proto in _NUMBERS else text


def line(info: ConntrackInfo, accounted: bool, extended: bool) -> str:
    """One entry. Counters are shown as the kernel does, only with nf_conntrack_acct."""
    number = _NUMBERS.get(info.proto, int(info.proto) if info.proto.isdecimal() else 0)
    name = info.proto if info.proto in _NUMBERS else "unknown"
    head = f"{name:<8} {number} {info.timeout} "
    if extended:
        head = ("ipv6     10 " if ":" in info.original.src else "ipv4     2 ") + head
    counters = [
        f"packets={packets} bytes={size} " if accounted else "" for packets, size in zip(info.packets, info.bytes, strict=True)
    ]
    words = head + (f"{info.state} " if info.state else "")
    words += f"{_tuple(info.original, info.proto)} {counters[0]}"
    words += "[UNREPLIED] " if "UNREPLIED" in info.status else ""
    words += f"{_tuple(info.reply, info.proto)} {counters[1]}"
    words += "[ASSURED] " if "ASSURED" in info.status else ""
    return f"{words}mark={info.mark} use=1"


def _statistics(client: Client) -> str:
    counters: dict[str, int] = client.dump("counters")
    names = ("found", "invalid", "insert", "insert_failed", "drop", "early_drop", "error", "search_restart", "clash_resolve")
    values = " ".join(f"{name}={counters.get('conntrack.' + name, 0)}" for name in names)
    return f"cpu=0   \t{values} chaintoolong=0 \n"
