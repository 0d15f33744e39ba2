"""The syntax of names, labels, ports, addresses and quantities. Each check returns what is wrong, "" if nothing is."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from podwire_core import quantity
from podwire_core.errors import Cause

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")
_LABEL_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?\Z")
_NAME = re.compile(r"[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?\Z")
_PORT_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?\Z")
_CONFIG_KEY = re.compile(r"[-._a-zA-Z0-9]+\Z")
_PERCENT = re.compile(r"[0-9]+%\Z")

PROTOCOLS = ("TCP", "UDP", "SCTP")
OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


class Problems:
    """What was found so far."""

    def __init__(self) -> None:
        self.causes: list[Cause] = []

    def add(self, path: str, what: str) -> None:
        self.causes.append(Cause(path, what))

    def check(self, path: str, value: Any, check: Callable[[Any], str]) -> bool:
        """Run a check of this file; true if it found nothing."""
        what = check(value)
        if what:
            self.add(path, what)
        return not what

    def one_of(self, path: str, value: Any, allowed: Collection[str]) -> None:
        if value not in allowed:
            self.add(path, f"{quoted(value)} is not one of {', '.join(allowed)}")

    def at_least(self, path: str, value: Any, least: int) -> None:
        if value is not None and value < least:
            self.add(path, f"{value} is less than {least}")


def quoted(value: Any) -> str:
    text = str(value)
    return '"' + (text if len(text) <= 80 else text[:77] + "…") + '"'


# --- names --------------------------------


def dns_label(text: str) -> str:
    if len(text) <= 63 and _LABEL.match(text):
        return ""
    return f"{quoted(text)} is not a DNS label (RFC 1123): a-z, 0-9 and '-', not first or last, at most 63 characters"


def dns_label_1035(text: str) -> str:
    if len(text) <= 63 and _LABEL_1035.match(text):
        return ""
    return f"{quoted(text)} is not a DNS label (RFC 1035): a-z, 0-9 and '-', beginning with a letter, at most 63 characters"


def dns_subdomain(text: str) -> str:
    if len(text) <= 253 and text and all(_LABEL.match(part) for part in text.split(".")):
        return ""
    return f"{quoted(text)} is not a DNS name (RFC 1123): a-z, 0-9, '-' and '.', a letter or digit at the ends of each part"


def path_segment(text: str) -> str:
    return f"{quoted(text)} may not be '.', '..' or contain '/' or '%'" if text in (".", "..") or set(text) & set("/%") else ""


def qualified_name(text: str) -> str:
    """A label's or annotation's key, a finalizer: [dns.prefix/]name."""
    prefix, slash, name = text.rpartition("/")
    if slash and dns_subdomain(prefix):
        return f"{quoted(text)}: the prefix {quoted(prefix)} is not a DNS name"
    if len(name) <= 63 and _NAME.match(name):
        return ""
    return f"{quoted(text)}: the name has letters, digits, '-', '_', '.', a letter or digit at both ends, at most 63"


def label_value(text: str) -> str:
    if not text or (len(text) <= 63 and _NAME.match(text)):
        return ""
    return f"{quoted(text)} is not a label value: letters, digits, '-', '_', '.', a letter or digit at both ends, at most 63"


def check_labels(found: Problems, path: str, labels: Mapping[str, str] | None) -> None:
    for key, value in (labels or {}).items():
        found.check(f"{path}.{key}", key, qualified_name)
        found.check(f"{path}.{key}", value, label_value)


def check_label_selector(found: Problems, path: str, selector: Mapping[str, Any] | None) -> None:
    selector = selector or {}
    check_labels(found, f"{path}.matchLabels", selector.get("matchLabels"))
    for index, requirement in enumerate(selector.get("matchExpressions") or []):
        at = f"{path}.matchExpressions[{index}]"
        operator, values = requirement.get("operator"), requirement.get("values") or []
        found.check(f"{at}.key", requirement.get("key", ""), qualified_name)
        found.one_of(f"{at}.operator", operator, OPERATORS)
        if operator in ("In", "NotIn") and not values:
            found.add(f"{at}.values", f"missing; {operator} needs some")
        elif operator in ("Exists", "DoesNotExist") and values:
            found.add(f"{at}.values", f"{operator} takes none")


def config_key(text: str) -> str:
    if len(text) <= 253 and _CONFIG_KEY.match(text) and text not in (".", ".."):
        return ""
    return f"{quoted(text)} is not a key: letters, digits, '-', '_', '.', at most 253 characters"


# --- numbers --------------------------------


def port_number(number: Any) -> str:
    return "" if isinstance(number, int) and 1 <= number <= 65535 else f"{number} is not a port (1-65535)"


def port_name(text: str) -> str:
    good = len(text) <= 15 and _PORT_NAME.match(text) and "--" not in text and any(c.isalpha() for c in text)
    return "" if good else f"{quoted(text)} is not a port name: a-z, 0-9 and single '-', with a letter, at most 15 characters"


def port_reference(value: Any) -> str:
    return port_name(value) if isinstance(value, str) else port_number(value)


def quantity_text(value: Any) -> str:
    try:
        quantity.parse(str(value))
    except ValueError as error:
        return str(error)
    return ""


def number_or_percent(value: Any) -> str:
    if isinstance(value, int):
        return "" if value >= 0 else f"{value} is less than 0"
    return "" if _PERCENT.match(value) else f"{quoted(value)} is neither a number nor a percentage"


# --- addresses --------------------------------


def ip_address(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return f"{quoted(text)} is not an IP address"
    return ""


def cidr(text: str) -> str:
    try:
        if "/" not in text:
            raise ValueError
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return f"{quoted(text)} is not a CIDR (such as 10.0.0.0/8)"
    return ""


def network_cidr(text: str) -> str:
    """A CIDR that is a network's own address."""
    what = cidr(text)
    if what:
        return what
    network = ipaddress.ip_network(text, strict=False)
    return (
        ""
        if str(network.network_address) == str(ipaddress.ip_address(text.split("/")[0]))
        else f'"{text}" has host bits set; did you mean {network}?'
    )
