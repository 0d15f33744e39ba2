"""MAC addresses made of IP addresses, so that who reads a dump or a capture sees whose they are."""

from __future__ import annotations

from ipaddress import ip_address


def mac_of(address: str, prefix: str = "02:00") -> str:
    """A locally administered MAC: 10.244.1.5 is 02:00:0a:f4:01:05; of IPv6 the last four bytes."""
    return ":".join([prefix, *(f"{byte:02x}" for byte in ip_address(address).packed[-4:])])
