"""The names in which addresses are written: dashed (10-1-2-3) and reverse (3.2.1.10.in-addr.arpa). Pure."""

from __future__ import annotations

import ipaddress


def version(ip: str) -> int:
    """4 or 6, of a well-formed address."""
    return 6 if ":" in ip else 4


def dashed(ip: str) -> str:
    """10.1.2.3 → 10-1-2-3; fd00::1 → fd00--1."""
    return ip.replace(".", "-").replace(":", "-")


def undashed(label: str) -> str | None:
    """10-1-2-3 → 10.1.2.3; fd00--1 → fd00::1; None if it is no address. Three dashes and no pair of them: IPv4."""
    separator = "." if label.count("-") == 3 and "--" not in label else ":"
    try:
        return str(ipaddress.ip_address(label.replace("-", separator)))
    except ValueError:
        return None


def is_reverse(zone: str) -> bool:
    """Is the zone (lower case, no trailing dot) one of reverse names?"""
    return any(zone == root or zone.endswith(f".{root}") for root in ("in-addr.arpa", "ip6.arpa"))


def address_of_reverse(name: str) -> str | None:
    """10.0.96.10.in-addr.arpa. → 10.96.0.10; None if it isn't a whole address."""
    labels = name.rstrip(".").split(".")
    try:
        if labels[-2:] == ["in-addr", "arpa"] and len(labels) == 6:
            return str(ipaddress.IPv4Address(".".join(reversed(labels[:4]))))
        if labels[-2:] == ["ip6", "arpa"] and len(labels) == 34 and all(len(nibble) == 1 for nibble in labels[:32]):
            return str(ipaddress.IPv6Address(int("".join(reversed(labels[:32])), 16)))
    except ValueError:
        return None
    return None
