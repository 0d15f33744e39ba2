"""The rules of the rewrite plugin, read from the Corefile: what each does to a question, and what it then does to the answer.
Pure.

Order to read: Rule, the name rules, the others, rule_of.
"""

from __future__ import annotations

import copy
import ipaddress
import re
from collections.abc import Callable

from dnslib import QTYPE, RR

from podwire_dns.corefile import Directive, Option
from podwire_dns.message import Query, label

MATCHES = ("exact", "prefix", "suffix", "substring", "regex")
CLASSES = {"IN": 1, "CH": 3, "HS": 4}
NSID, SUBNET = 3, 8
NAMES_IN_DATA = {
    QTYPE.CNAME: "label",
    QTYPE.PTR: "label",
    QTYPE.NS: "label",
    QTYPE.MX: "label",
    QTYPE.SRV: "target",
    QTYPE.DNAME: "label",
}
OnAnswer = Callable[[RR], RR]
Bad = Callable[[str], Exception]


class Rule:
    """`apply` changes the question in place; True if the rule fits. `go_on`: further rules are looked at behind it."""

    go_on = False

    def apply(self, query: Query) -> bool:
        raise NotImplementedError

    def on_answer(self, query: Query) -> OnAnswer | None:
        """What is to be done to each record of the answer; asked directly after `apply` with the question as it was before."""
        return None

    def rcode(self, code: int) -> int:
        return code


class Names:
    """One of the five ways to match a name. `replace` is None where it does not fit."""

    def __init__(self, how: str, pattern: str, bad: Bad) -> None:
        self._how = how
        self._text = pattern.lower() if how != "exact" else pattern.rstrip(".").lower() + "."
        try:
            self._regex = re.compile(pattern) if how == "regex" else None
        except re.error as error:
            raise bad(f"{pattern!r}: {error}") from None

    def replace(self, name: str, to: str) -> str | None:
        """The name with what matched replaced; {1} in `to` is a regular expression's first group."""
        match self._how:
            case "exact":
                return full(to) if name == self._text else None
            case "prefix":
                return to + name[len(self._text) :] if name.startswith(self._text) else None
            case "suffix":
                cut = self._suffix(name)
                return None if cut is None else full(name[:cut] + to)
            case "substring":
                return name.replace(self._text, to) if self._text in name else None
        assert self._regex is not None
        found = self._regex.search(name.removesuffix(".")) or self._regex.search(name)
        return None if found is None else full(groups(to, found))

    def fits(self, name: str) -> bool:
        return self.replace(name, "") is not None

    def _suffix(self, name: str) -> int | None:
        text = self._text if self._text.endswith(".") else self._text + "."
        return len(name) - len(text) if name.endswith(text) else None


class NameRule(Rule):
    """`auto`: names in the answer that the question was rewritten to become what was asked; always so for exact."""

    def __init__(self, how: str, pattern: str, to: str, bad: Bad) -> None:
        self._how, self._pattern, self._to = how, pattern, to.lower()
        self._names = Names(how, pattern, bad)
        self._auto = how == "exact"
        self._explicit: list[tuple[str, Names, str]] = []
        self._before = self._after = ""

    def answer(self, words: list[str], bad: Bad) -> None:
        """`auto`, `name FROM TO`, `value FROM TO`."""
        match words:
            case ["auto"]:
                self._auto = True
            case ["name" | "value" as what, pattern, to]:
                self._explicit.append((what, Names("regex", pattern, bad), to.lower()))
            case _:
                raise bad(f"answer {' '.join(words)}: expected auto, name FROM TO or value FROM TO")

    def apply(self, query: Query) -> bool:
        renamed = self._names.replace(query.lower, self._to)
        if renamed is None:
            return False
        self._before, self._after = query.name, renamed
        query.name, query.lower = renamed, renamed.lower()
        return True

    def on_answer(self, query: Query) -> OnAnswer | None:
        if not self._auto and not self._explicit:
            return None
        before, after = self._before, self._after

        def revert(record: RR) -> RR:
            return self._reverted(record, before, after)

        return revert

    def _reverted(self, record: RR, before: str, after: str) -> RR:
        owner = str(record.rname)
        changed = copy.copy(record)
        if self._auto and owner.lower() == after:
            changed.rname = label(before)
        elif self._auto and self._how == "suffix":
            back = Names("suffix", full(self._to.removeprefix(".")), ValueError).replace(
                owner.lower(), self._pattern.removeprefix(".")
            )
            changed.rname = label(back or owner)
        for what, names, to in self._explicit:
            if what == "name" and (renamed := names.replace(str(changed.rname).lower(), to)) is not None:
                changed.rname = label(renamed)
            elif what == "value" and record.rtype in NAMES_IN_DATA:
                field = NAMES_IN_DATA[record.rtype]
                renamed = names.replace(str(getattr(record.rdata, field)).lower(), to)
                if renamed is not None:
                    changed.rdata = copy.copy(record.rdata)
                    setattr(changed.rdata, field, label(renamed))
        return changed


class TypeRule(Rule):
    def __init__(self, before: str, after: str, bad: Bad) -> None:
        try:
            self._before, self._after = QTYPE.reverse[before.upper()], QTYPE.reverse[after.upper()]
        except KeyError as error:
            raise bad(f"type {error} is not known") from None

    def apply(self, query: Query) -> bool:
        fits: bool = query.qtype == self._before
        if fits:
            query.qtype = self._after
        return fits


class ClassRule(Rule):
    def __init__(self, before: str, after: str, bad: Bad) -> None:
        if before.upper() not in CLASSES or after.upper() not in CLASSES:
            raise bad(f"the classes are {', '.join(CLASSES)}")
        self._before, self._after = CLASSES[before.upper()], CLASSES[after.upper()]

    def apply(self, query: Query) -> bool:
        fits = query.qclass == self._before
        if fits:
            query.qclass = self._after
        return fits


class TtlRule(Rule):
    """TTL, or a range LEAST-MOST with either side left out."""

    def __init__(self, how: str, pattern: str, ttl: str, bad: Bad) -> None:
        self._names = Names(how, pattern, bad)
        least, dash, most = ttl.partition("-")
        if not all(part == "" or part.isdigit() for part in (least, most)) or not (least or most):
            raise bad(f"{ttl!r} is neither a TTL nor a range of them")
        self._least = int(least or 0)
        self._most = int(most or 2**31 - 1) if dash else self._least

    def apply(self, query: Query) -> bool:
        return self._names.fits(query.lower)

    def on_answer(self, query: Query) -> OnAnswer | None:
        def limit(record: RR) -> RR:
            changed = copy.copy(record)
            changed.ttl = min(max(record.ttl, self._least), self._most)
            return changed

        return limit


class RcodeRule(Rule):
    def __init__(self, how: str, pattern: str, before: int, after: int, bad: Bad) -> None:
        self._names, self._before, self._after = Names(how, pattern, bad), before, after

    def apply(self, query: Query) -> bool:
        return self._names.fits(query.lower)

    def rcode(self, code: int) -> int:
        return self._after if code == self._before else code


class EdnsRule(Rule):
    """Adds an EDNS0 option to the question. `data` makes it of the question."""

    def __init__(self, action: str, code: int, data: Callable[[Query], bytes]) -> None:
        self._action, self._code, self._data = action, code, data

    def apply(self, query: Query) -> bool:
        has = any(code == self._code for code, _ in query.options)
        if (self._action == "append" and has) or (self._action == "replace" and not has):
            return False
        others = tuple(option for option in query.options if option[0] != self._code)
        query.options = (*others, (self._code, self._data(query)))
        return True


# --- from the Corefile --------------------------------


def rule_of(directive: Directive, words: list[str], option: Option | None = None) -> Rule:
    """The rule of a line: FIELD and its arguments. Raises CorefileError."""

    def bad(message: str) -> Exception:
        return directive.error(message, option)

    match words:
        case ["name", how, pattern, to, *rest] if how in MATCHES:
            return _name_rule(how, pattern, to, rest, bad)
        case ["name", pattern, to, *rest]:
            return _name_rule("exact", pattern, to, rest, bad)
        case ["type", before, after]:
            return TypeRule(before, after, bad)
        case ["class", before, after]:
            return ClassRule(before, after, bad)
        case ["ttl", how, pattern, ttl] if how in MATCHES:
            return TtlRule(how, pattern, ttl, bad)
        case ["ttl", pattern, ttl]:
            return TtlRule("exact", pattern, ttl, bad)
        case ["rcode", how, pattern, before, after] if how in MATCHES:
            return RcodeRule(how, pattern, _code(before, bad), _code(after, bad), bad)
        case ["rcode", pattern, before, after]:
            return RcodeRule("exact", pattern, _code(before, bad), _code(after, bad), bad)
        case ["edns0", "local", ("set" | "append" | "replace") as action, code, data]:
            return EdnsRule(action, _option_code(code, bad), _local(data, bad))
        case ["edns0", "nsid", ("set" | "append" | "replace") as action]:
            return EdnsRule(action, NSID, lambda query: b"")
        case ["edns0", "subnet", ("set" | "append" | "replace") as action, four, six] if four.isdigit() and six.isdigit():
            if int(four) > 32 or int(six) > 128:
                raise bad(f"subnet: {four} and {six} are not the lengths of prefixes")
            return EdnsRule(action, SUBNET, lambda query: _subnet(query.client, int(four), int(six)))
    raise bad(f"unknown or wrong rule: {' '.join(words)}")


def _name_rule(how: str, pattern: str, to: str, rest: list[str], bad: Bad) -> NameRule:
    rule = NameRule(how, pattern, to, bad)
    while rest:
        if rest[0] != "answer":
            raise bad(f"unexpected {rest[0]!r}")
        length = 2 if rest[1:2] == ["auto"] else 4
        rule.answer(rest[1:length], bad)
        rest = rest[length:]
    return rule


def _code(text: str, bad: Bad) -> int:
    names = {"NOERROR": 0, "FORMERR": 1, "SERVFAIL": 2, "NXDOMAIN": 3, "NOTIMP": 4, "REFUSED": 5}
    if text.isdigit() and int(text) < 16:
        return int(text)
    if text.upper() not in names:
        raise bad(f"{text!r} is not a response code")
    return names[text.upper()]


def _option_code(text: str, bad: Bad) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise bad(f"{text!r} is not the code of an option") from None


def _local(text: str, bad: Bad) -> Callable[[Query], bytes]:
    """0x… is hexadecimal, {client_ip} and so on is of the question, anything else is text."""
    if text in VARIABLES:
        return VARIABLES[text]
    if text.startswith("{"):
        raise bad(f"the variables are {', '.join(VARIABLES)}")
    try:
        data = bytes.fromhex(text[2:]) if text.startswith("0x") else text.encode()
    except ValueError:
        raise bad(f"{text!r} is not hexadecimal") from None
    return lambda query: data


VARIABLES: dict[str, Callable[[Query], bytes]] = {
    "{qname}": lambda query: query.name.encode(),
    "{qtype}": lambda query: query.qtype.to_bytes(2, "big"),
    "{client_ip}": lambda query: ipaddress.ip_address(query.client).packed,
    "{client_port}": lambda query: query.source_port.to_bytes(2, "big"),
    "{protocol}": lambda query: b"tcp" if query.tcp else b"udp",
}


def _subnet(client: str, four: int, six: int) -> bytes:
    """RFC 7871 section 6: family, source and scope prefix lengths, the address' leading bytes."""
    ip = ipaddress.ip_address(client)
    length = four if ip.version == 4 else six
    network = ipaddress.ip_network((ip, length), strict=False).network_address.packed
    return bytes([0, 1 if ip.version == 4 else 2, length, 0]) + network[: (length + 7) // 8]


def full(name: str) -> str:
    """With one trailing dot."""
    return name.rstrip(".") + "."


def groups(to: str, found: re.Match[str]) -> str:
    """{0}, {1}… of a regular expression."""
    return re.sub(r"\{(\d+)\}", lambda m: (found[int(m[1])] or "") if int(m[1]) <= found.re.groups else "", to)
