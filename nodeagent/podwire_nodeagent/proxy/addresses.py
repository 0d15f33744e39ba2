"""Addresses and networks as Kubernetes objects may spell them, brought to the one form that rules use.

Rules it keeps: what cannot be read is None, never an exception (the API server has refused it, or kube-proxy would skip it).
Leading zeros are decimal ("010.0.0.1" is 10.0.0.1), blanks around are ignored, IPv4-mapped IPv6 is IPv4: as kube-proxy reads
them. IPv4 addresses do not go through `ipaddress`, which would double the time of a full compile.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_is_canonical_v4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}").fullmatch


def family_of(address: str) -> int:
    """4 or 6, of an address or network in canonical form."""
    return 6 if ":" in address else 4


def canonical(text: str) -> str | None:
    """The address in canonical form, None if it is not one."""
    if _is_canonical_v4(text):
        return text
    text = text.strip()
    if ":" in text:
        return _canonical_v6(text)
    parts = text.split(".")
    if len(parts) != 4 or not text.isascii():
        return None
    numbers = [int(part) for part in parts if part.isdigit() and len(part) <= 8]
    if len(numbers) != 4 or max(numbers) > 255:
        return None
    return "{}.{}.{}.{}".format(*numbers)


def _canonical_v6(text: str) -> str | None:
    try:
        address = IPv6Address(text)
    except ValueError:
        return None
    if address.scope_id is not None:
        return None
    return str(address.ipv4_mapped or address)


@lru_cache(maxsize=4096)
def network(text: str) -> str | None:
    """The network in canonical form, host bits zero; None if it is not one. A bare address is not a network."""
    address, slash, length = text.strip().partition("/")
    host = canonical(address)
    if host is None or not slash or not (length.isascii() and length.isdigit()):
        return None
    try:
        return str(ip_network(f"{host}/{int(length)}", strict=False))
    except ValueError:
        return None


def contains(net: str, address: str) -> bool:
    """Whether the network holds the address; both canonical. Never across families."""
    return ip_address(address) in ip_network(net)


def host_network(address: str) -> str:
    """The network of that address alone: /32 or /128."""
    return f"{address}/128" if ":" in address else f"{address}/32"


def host_port(address: str, port: int) -> str:
    """ "10.244.1.5:80", "[fd00::5]:80"."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
