"""Reading one rule, in the words of an iptables(8) command line.

It understands the matches and targets of `netfilter.py` and nothing else, with the spellings of
iptables-extensions(8). What it doesn't understand is a `RulesetError`. Order to read: words of a line, `RuleParser`:
options, matches, targets.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from podwire_core import netfilter as nf

_VERDICTS = ("ACCEPT", "DROP", "RETURN")
_PORT_MODULES = ("tcp", "udp", "sctp", "dccp", "udplite")
_MODULES = (
    *_PORT_MODULES,
    *("comment", "mark", "conntrack", "state", "addrtype", "statistic", "recent", "icmp", "icmp6", "set", "physdev"),
)
# What the tools print for a number (as /etc/protocols has it), and the names that values use.
PROTOCOL_NAMES = {
    "1": "icmp",
    "2": "igmp",
    "4": "ipencap",
    "6": "tcp",
    "17": "udp",
    "33": "dccp",
    "41": "ipv6",
    "47": "gre",
    "50": "esp",
    "51": "ah",
    "58": "ipv6-icmp",
    "89": "ospf",
    "112": "vrrp",
    "132": "sctp",
    "136": "udplite",
    "icmpv6": "ipv6-icmp",
}
_PROTOCOL_NUMBERS = {name: number for number, name in PROTOCOL_NAMES.items() if number.isdecimal()}
# Kept by number: only these have a name in a Protocol match
_NAMED = ("all", "tcp", "udp", "sctp", "icmp", "ipv6-icmp", "gre", "esp", "ah", "dccp", "udplite", "igmp")
_ICMP_NAMES = {
    "any": 255,
    "echo-reply": 0,
    "pong": 0,
    "destination-unreachable": 3,
    "redirect": 5,
    "echo-request": 8,
    "ping": 8,
    "time-exceeded": 11,
    "ttl-exceeded": 11,
    "parameter-problem": 12,
}
_ICMP6_NAMES = {
    "destination-unreachable": 1,
    "packet-too-big": 2,
    "time-exceeded": 3,
    "parameter-problem": 4,
    "echo-request": 128,
    "ping": 128,
    "echo-reply": 129,
    "pong": 129,
}


class RulesetError(ValueError):
    """Text that is no ruleset; the message begins with "line N: " where it came from a file."""


def split_words(line: str) -> list[str]:
    """The words of a line: blanks separate them, double quotes keep them together, a backslash in quotes escapes."""
    words: list[str] = []
    word: str | None = None
    quoted = escaped = False
    for c in line:
        if escaped:
            word, escaped = (word or "") + c, False
        elif quoted and c == "\\":
            escaped = True
        elif c == '"':
            quoted, word = not quoted, word or ""
        elif c.isspace() and not quoted:
            if word is not None:
                words.append(word)
            word = None
        else:
            word = (word or "") + c
    if quoted:
        raise RulesetError('missing closing "')
    return words if word is None else [*words, word]


def _number(text: str, high: int, what: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = int(text) if text.isdecimal() else -1
    if not 0 <= value <= high:
        raise RulesetError(f'invalid {what} "{text}"')
    return value


class RuleParser:
    """One rule's words. A fresh one for each rule."""

    def __init__(self, words: list[str], family: int) -> None:
        self._words, self._at, self._family = words, 0, family
        self._matches: list[nf.AnyMatch] = []
        self._modules: set[str] = set()
        self._recent: dict[str, int | str | bool] = {}
        self._statistic: dict[str, str] = {}
        self._target: nf.AnyTarget | None = None
        self._target_name = ""
        self._options: dict[str, str] = {}  # of the target
        self._invert = False
        self._ports_of = ""  # `-m tcp` that had no option yet

    def parse(self) -> nf.Rule:
        while self._at < len(self._words):
            word = self._next("an option")
            if word == "!":
                if self._invert:
                    raise RulesetError('two "!" in a row')
                self._invert = True
                continue
            self._option(word)
            if self._invert:
                raise RulesetError(f'"!" cannot stand before {word}')
        self._finish_match()
        matches = sorted(self._matches, key=_header_order)
        return nf.Rule(tuple(matches), self._build_target())

    def _next(self, what: str) -> str:
        if self._at >= len(self._words):
            raise RulesetError(f"{what} is missing at the end of the line")
        self._at += 1
        return self._words[self._at - 1]

    def _take_invert(self) -> bool:
        invert, self._invert = self._invert, False
        return invert

    def _value(self, option: str) -> str:
        value = self._next(f"the value of {option}")
        if value == "!" and not self._invert:  # the old spelling, `--dport ! 80`
            self._invert = True
            value = self._next(f"the value of {option}")
        return value

    def _option(self, option: str) -> None:
        if option in ("-s", "--source", "--src"):
            net = self._network(self._value(option))
            self._matches.append(nf.Source(net, self._take_invert()))
        elif option in ("-d", "--destination", "--dst"):
            net = self._network(self._value(option))
            self._matches.append(nf.Destination(net, self._take_invert()))
        elif option in ("-i", "--in-interface"):
            name = self._value(option)
            self._matches.append(nf.InInterface(name, self._take_invert()))
        elif option in ("-o", "--out-interface"):
            name = self._value(option)
            self._matches.append(nf.OutInterface(name, self._take_invert()))
        elif option in ("-p", "--protocol", "--proto"):
            self._protocol(self._value(option).lower())
        elif option in ("-m", "--match"):
            self._module(self._next("the name of a match"))
        elif option in ("-j", "--jump", "-g", "--goto"):
            self._jump(option, self._next("a target"))
        elif not self._match_option(option) and not self._target_option(option):
            raise RulesetError(f'unknown option "{option}"')

    def _network(self, text: str) -> str:
        if "," in text:
            raise RulesetError(f'several addresses in one rule are not supported: "{text}"')
        try:
            net = ip_network(text, strict=False)
        except ValueError:
            raise RulesetError(f'invalid address "{text}"') from None
        if net.version != self._family:
            raise RulesetError(f'"{text}" is not an IPv{self._family} address')
        return str(net)

    def _protocol(self, name: str) -> None:
        name = PROTOCOL_NAMES.get(name, name)
        if name not in _NAMED:
            number = _PROTOCOL_NUMBERS.get(name, name)
            if not number.isdecimal() or int(number) > 255:
                raise RulesetError(f'unknown protocol "{name}"')
            name = str(int(number)) if int(number) else "all"
        self._matches.append(nf.Protocol(name, self._take_invert()))
        self._modules.add(name)

    def _module(self, name: str) -> None:
        if name not in _MODULES:
            raise RulesetError(f'unknown match "{name}"')
        self._finish_match()
        self._modules.add(name)
        if name in _PORT_MODULES:
            self._ports_of = name

    def _finish_match(self) -> None:
        """At the end of a match's options. `-m tcp` alone holds for every port."""
        if self._ports_of:
            self._matches.append(nf.DestinationPort(self._ports_of, 0, 65535))
            self._ports_of = ""
        self._finish_recent()
        self._finish_statistic()

    # --- matches --------------------------------

    def _match_option(self, option: str) -> bool:
        if option in ("--sport", "--source-port", "--dport", "--destination-port"):
            self._ports(option)
        elif option == "--comment" and "comment" in self._modules:
            self._matches.append(nf.Comment(self._next("the comment")))
        elif option == "--mark" and "mark" in self._modules:
            value, _, mask = self._value(option).partition("/")
            numbers = _number(value, 0xFFFFFFFF, "mark"), _number(mask or "0xffffffff", 0xFFFFFFFF, "mask")
            self._matches.append(nf.Mark(*numbers, self._take_invert()))
        elif option in ("--ctstate", "--state") and self._modules & {"conntrack", "state"}:
            self._states(self._value(option))
        elif option in ("--src-type", "--dst-type") and "addrtype" in self._modules:
            self._address_type(option, self._value(option).upper())
        elif option in ("--mode", "--probability") and "statistic" in self._modules:
            self._statistic[option] = self._next(f"the value of {option}")
        elif option in ("--icmp-type", "--icmpv6-type"):
            self._icmp(option, self._value(option))
        elif option == "--match-set" and "set" in self._modules:
            self._set(self._value(option), self._next("the flags of --match-set"))
        elif option == "--physdev-is-in" and "physdev" in self._modules:
            self._matches.append(nf.PhysDev(self._take_invert()))
        else:
            return "recent" in self._modules and self._recent_option(option)
        return True

    def _ports(self, option: str) -> None:
        proto = next((match.name for match in self._matches if isinstance(match, nf.Protocol)), "")
        if proto not in _PORT_MODULES:
            raise RulesetError(f"{option} needs -p tcp, udp or sctp")
        self._ports_of = ""
        low, colon, high = self._value(option).partition(":")
        first = _number(low or "0", 65535, "port")
        last = _number(high or "65535", 65535, "port") if colon else first
        if first > last:
            raise RulesetError(f'invalid port range "{low}:{high}" (min > max)')
        kind = nf.SourcePort if option in ("--sport", "--source-port") else nf.DestinationPort
        self._matches.append(kind(proto, first, last, self._take_invert()))

    def _states(self, text: str) -> None:
        states = tuple(text.upper().split(","))
        for state in states:
            if state not in ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT"):
                raise RulesetError(f'bad ctstate "{state}"')
        self._matches.append(nf.ConntrackState(states, self._take_invert()))

    def _address_type(self, option: str, kind: str) -> None:
        if kind not in ("LOCAL", "UNICAST", "BROADCAST", "MULTICAST"):
            raise RulesetError(f'bad address type "{kind}"')
        last = self._matches[-1] if self._matches else None
        invert = self._take_invert()
        old = nf.AddrType()
        if isinstance(last, nf.AddrType) and not (last.src_type if option == "--src-type" else last.dst_type):
            old = last
            self._matches.pop()
        if option == "--src-type":
            self._matches.append(nf.AddrType(kind, old.dst_type, invert, old.invert_dst))
        else:
            self._matches.append(nf.AddrType(old.src_type, kind, old.invert_src, invert))

    def _set(self, name: str, text: str) -> None:
        flags = tuple(text.split(","))
        if not all(flag in ("src", "dst") for flag in flags):
            raise RulesetError(f'--match-set {name}: flags are src and dst, not "{text}"')
        self._matches.append(nf.Set(name, flags, self._take_invert()))

    def _icmp(self, option: str, text: str) -> None:
        v6 = option == "--icmpv6-type"
        if v6 != (self._family == 6):
            raise RulesetError(f"{option} is for the other family")
        kind, _, code = text.partition("/")
        names = _ICMP6_NAMES if v6 else _ICMP_NAMES
        if self._take_invert():
            raise RulesetError(f"! {option} is not supported")
        number = names[kind] if kind in names else _number(kind, 255, "ICMP type")
        self._matches.append(nf.IcmpType(number, _number(code, 255, "ICMP code") if code else None, v6))

    def _recent_option(self, option: str) -> bool:
        if option in ("--set", "--rcheck", "--reap"):
            self._recent[option] = True
        elif option == "--seconds":
            self._recent[option] = _number(self._next("the value of --seconds"), 1 << 31, "number of seconds")
        elif option == "--name":
            self._recent[option] = self._next("the value of --name")
        elif option == "--mask":
            mask = self._next("the value of --mask")
            if mask not in ("255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"):
                raise RulesetError(f'recent: mask "{mask}" is not supported')
            self._recent[option] = True
        elif option == "--rsource":
            self._recent[option] = True
        else:
            return False
        return True

    def _finish_recent(self) -> None:
        if not self._recent:
            return
        given, self._recent = self._recent, {}
        if ("--set" in given) == ("--rcheck" in given):
            raise RulesetError("recent: one of --set and --rcheck is needed")
        name, seconds = str(given.get("--name", "DEFAULT")), int(given.get("--seconds", 0))
        self._matches.append(nf.Recent(name, "--set" in given, "--rcheck" in given, seconds, "--reap" in given))

    def _finish_statistic(self) -> None:
        if not self._statistic:
            return
        given, self._statistic = self._statistic, {}
        try:
            probability = float(given.get("--probability", ""))
        except ValueError:
            probability = -1.0
        if given.get("--mode") != "random" or not 0 <= probability <= 1:
            raise RulesetError("statistic: --mode random --probability P with P between 0 and 1 is needed")
        self._matches.append(nf.Statistic(probability))

    # --- targets --------------------------------

    def _jump(self, option: str, name: str) -> None:
        if self._target_name:
            raise RulesetError("a rule has one target")
        self._target_name = name
        if option in ("-g", "--goto"):
            self._target = nf.Jump(name, True)
        elif name in _VERDICTS:
            self._target = nf.Verdict(name)
        elif name not in ("MARK", "REJECT", "DNAT", "SNAT", "MASQUERADE"):
            self._target = nf.Jump(name)

    def _target_option(self, option: str) -> bool:
        allowed = {
            "MARK": ("--set-xmark", "--set-mark", "--or-mark", "--xor-mark", "--and-mark"),
            "REJECT": ("--reject-with",),
            "DNAT": ("--to-destination",),
            "SNAT": ("--to-source",),
            "MASQUERADE": ("--random-fully",),
        }.get(self._target_name, ())
        if option not in allowed:
            return False
        self._options[option] = "" if option == "--random-fully" else self._next(f"the value of {option}")
        return True

    def _build_target(self) -> nf.AnyTarget:
        if self._target is not None:
            return self._target
        name, options = self._target_name, self._options
        if not name:
            return nf.NoTarget()
        if name == "MASQUERADE":
            return nf.Masquerade("--random-fully" in options)
        if name == "REJECT":
            return nf.Reject(
                options.get("--reject-with") or ("icmp6-port-unreachable" if self._family == 6 else "icmp-port-unreachable")
            )
        if not options:
            raise RulesetError(f"{name} needs an option")
        option, value = next(iter(options.items()))
        if name == "MARK":
            return _mark_target(option, value)
        address, port = self._endpoint(value)
        return nf.Dnat(address, port) if name == "DNAT" else nf.Snat(address, port)

    def _endpoint(self, text: str) -> tuple[str, int]:
        address, port = text, ""
        if text.startswith("["):
            address, _, port = text[1:].partition("]")
            port = port.removeprefix(":")
        elif self._family == 4:
            address, _, port = text.partition(":")
        try:
            parsed = ip_address(address)
        except ValueError:
            raise RulesetError(f'invalid address "{text}" (ranges are not supported)') from None
        if parsed.version != self._family:
            raise RulesetError(f'"{address}" is not an IPv{self._family} address')
        return str(parsed), _number(port, 65535, "port") if port else 0


def _header_order(match: nf.AnyMatch) -> int:
    kinds: tuple[type, ...] = (nf.Source, nf.Destination, nf.InInterface, nf.OutInterface, nf.Protocol)
    return kinds.index(type(match)) if type(match) in kinds else len(kinds)


def _mark_target(option: str, text: str) -> nf.SetMark:
    head, slash, tail = text.partition("/")
    value = _number(head, 0xFFFFFFFF, "mark")
    mask = _number(tail, 0xFFFFFFFF, "mask") if slash else 0xFFFFFFFF
    if option == "--set-xmark":
        return nf.SetMark(value, mask)
    if option == "--set-mark":
        return nf.SetMark(value, value | mask)
    if slash:
        raise RulesetError(f"{option} takes no mask")
    if option == "--or-mark":
        return nf.SetMark(value, value)
    return nf.SetMark(value, 0) if option == "--xor-mark" else nf.SetMark(0, ~value & 0xFFFFFFFF)


def parse_rule(words: list[str], family: int) -> nf.Rule:
    """A rule from its words without the chain (`-s 10.0.0.0/8 -j ACCEPT`)."""
    return RuleParser(words, family).parse()
