"""kube-proxy's names of chains: a hash of what the chain is for.

Rules it keeps: names depend only on the Service port (namespace, name, port name, protocol) and, for endpoints, on the address,
so that every node and every restart computes the same ones, and scripts that look for kube-proxy's names find them.
"""

from __future__ import annotations

from hashlib import sha256

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"  # base32's
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]  # ten bits each


def _hash16(text: str) -> str:
    """The first 16 of base32's characters. `base64.b32encode` takes four times as long, and a full load needs 100 000."""
    bits = int.from_bytes(sha256(text.encode()).digest()[:10], "big")
    return "".join([_PAIRS[bits >> shift & 1023] for shift in (70, 60, 50, 40, 30, 20, 10, 0)])


def port_hash(service_port: str, protocol: str) -> str:
    """Of "ns/name:port" and "tcp": what stands behind KUBE-SVC-, KUBE-SVL-, KUBE-EXT- and KUBE-FW-."""
    return _hash16(service_port + protocol)


def endpoint_chain(service_port: str, protocol: str, endpoint: str) -> str:
    """KUBE-SEP-… of the endpoint "10.180.0.1:80" of that Service port."""
    return "KUBE-SEP-" + _hash16(service_port + protocol + endpoint)
