"""Cilium's load-balancer maps: their keys and values as C structs (after bpf/lib/common.h), packed as in the kernel.

Rules it keeps:

- Names, fields and flag bits are Cilium's. Addresses and ports are in network byte order, all other numbers in the host's
  (little endian), so that a hex dump shows what `bpftool map dump` shows on a real node.
- A map's content is bytes to bytes; only the functions here know what is inside.
- One map is ours: `podwire_lb_names` tells which Service a rev_nat_index belongs to. No program decides by it; traces name it.

Order to read: the structs in the order in which a packet meets them, MAPS, LbConfig, `describe`.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from msgspec import Struct

TCP, UDP, SCTP = 6, 17, 132
PROTOCOLS = {"tcp": TCP, "udp": UDP, "sctp": SCTP}
PROTOCOL_NAMES = {number: name.upper() for name, number in PROTOCOLS.items()}
SCOPE_EXT, SCOPE_INT = 0, 1  # LB_LOOKUP_SCOPE_EXT, LB_LOOKUP_SCOPE_INT

# struct lb4_service.flags and .flags2
EXTERNAL_IP, NODEPORT, EXT_LOCAL_SCOPE, HOSTPORT, AFFINITY, LOADBALANCER, ROUTABLE, SOURCE_RANGE = (1 << n for n in range(8))
INT_LOCAL_SCOPE, TWO_SCOPES = 1 << 4, 1 << 5  # in flags2
ACTIVE = 0  # BE_STATE_ACTIVE, of a backend
LOOPBACK = "169.254.42.1"  # IPV4_LOOPBACK: the source that a pod sees which reaches itself through a Service
DSR_OPTION = 0x9A  # an IPv4 option of 8 bytes: type, length, port, address (struct dsr_opt_v4)

# --- cilium_lb4_services_v2: slot 0 is the service ("master"), slots 1..count are its backends ---------------------


class ServiceKey(NamedTuple):
    """struct lb4_key {__be32 address; __be16 dport; __u16 backend_slot; __u8 proto; __u8 scope; __u8 pad[2];}"""

    address: bytes
    dport: int
    slot: int
    proto: int
    scope: int


class Service(NamedTuple):
    """struct lb4_service {union {__u32 backend_id; __u32 affinity_timeout;}; __u16 count; __u16 rev_nat_index; __u8 flags;
    __u8 flags2; __u16 qcount;}: `first` is the union, the timeout in slot 0; `backend_count` is count."""

    first: int
    backend_count: int
    rev_nat_index: int
    flags: int = 0
    flags2: int = 0
    qcount: int = 0


_ADDRESS_PORT = struct.Struct("!4sH")
_SLOT = struct.Struct("<HBB2x")
_SERVICE = struct.Struct("<IHHBBH")


def pack_service_key(address: bytes, dport: int, proto: int, scope: int = SCOPE_EXT, slot: int = 0) -> bytes:
    return _ADDRESS_PORT.pack(address, dport) + _SLOT.pack(slot, proto, scope)


def unpack_service_key(key: bytes) -> ServiceKey:
    return ServiceKey(*_ADDRESS_PORT.unpack_from(key), *_SLOT.unpack_from(key, 6))


def pack_service(service: Service) -> bytes:
    return _SERVICE.pack(*service)


def unpack_service(value: bytes) -> Service:
    return Service(*_SERVICE.unpack(value))


# --- cilium_lb4_backends_v3: __u32 id -> ---------------------


class Backend(NamedTuple):
    """struct lb4_backend {__be32 address; __be16 port; __u8 proto; __u8 flags; __u16 cluster_id; __u8 zone; __u8 pad;}"""

    address: bytes
    port: int
    proto: int
    flags: int = ACTIVE


_ID = struct.Struct("<I")
_BACKEND_TAIL = struct.Struct("<BBHBx")


def pack_backend_key(number: int) -> bytes:
    return _ID.pack(number)


def unpack_backend_key(key: bytes) -> int:
    number: int = _ID.unpack(key)[0]
    return number


def pack_backend(backend: Backend) -> bytes:
    return _ADDRESS_PORT.pack(backend.address, backend.port) + _BACKEND_TAIL.pack(backend.proto, backend.flags, 0, 0)


def unpack_backend(value: bytes) -> Backend:
    address, port = _ADDRESS_PORT.unpack_from(value)
    return Backend(address, port, value[6], value[7])


# --- cilium_lb4_reverse_nat: __u16 rev_nat_index -> struct lb4_reverse_nat {__be32 address; __be16 port;} ---------------------

_INDEX = struct.Struct("<H")


def pack_index(index: int) -> bytes:
    return _INDEX.pack(index)


def unpack_index(key: bytes) -> int:
    index: int = _INDEX.unpack(key)[0]
    return index


def pack_reverse_nat(address: bytes, port: int) -> bytes:
    return _ADDRESS_PORT.pack(address, port)


def unpack_reverse_nat(value: bytes) -> tuple[bytes, int]:
    address, port = _ADDRESS_PORT.unpack(value)
    return address, port


# --- cilium_lb_affinity_match, cilium_lb4_affinity, cilium_lb4_source_range ---------------------

_MATCH = struct.Struct("<IHH")  # struct lb_affinity_match {__u32 backend_id; __u16 rev_nat_id; __u16 pad;} -> __u8
_CLIENT = struct.Struct("<4s4xHBB4x")  # struct lb4_affinity_key {union client_id; __u16 rev_nat_id; __u8 netns_cookie:1, …}
_AFFINITY = struct.Struct("<QII")  # struct lb_affinity_val {__u64 last_used; __u32 backend_id; __u32 pad;}
_RANGE = struct.Struct("<IHH4s")  # struct lb4_src_range_key {lpm prefixlen; __u16 rev_nat_id; __u16 pad; __u32 addr;} -> __u8
RANGE_STATIC_BITS = 32  # of prefixlen: rev_nat_id and pad are matched exactly


def pack_affinity_match(backend: int, index: int) -> bytes:
    return _MATCH.pack(backend, index, 0)


def unpack_affinity_match(key: bytes) -> tuple[int, int]:
    backend, index, _ = _MATCH.unpack(key)
    return backend, index


def pack_affinity_key(client: bytes, index: int) -> bytes:
    return _CLIENT.pack(client, index, 0, 0)


def unpack_affinity_key(key: bytes) -> tuple[bytes, int]:
    client, index, _, _ = _CLIENT.unpack(key)
    return client, index


def pack_affinity(last_used: int, backend: int) -> bytes:
    return _AFFINITY.pack(last_used, backend, 0)


def unpack_affinity(value: bytes) -> tuple[int, int]:
    last_used, backend, _ = _AFFINITY.unpack(value)
    return last_used, backend


def pack_source_range_key(index: int, plen: int, address: bytes) -> bytes:
    return _RANGE.pack(RANGE_STATIC_BITS + plen, index, 0, address)


def pack_source_range(index: int, network: str) -> bytes:
    net = ip_network(network)
    return pack_source_range_key(index, net.prefixlen, net.network_address.packed)


def unpack_source_range(key: bytes) -> tuple[int, int, bytes]:
    """rev_nat_index, prefix length of the address, address."""
    prefix, index, _, address = _RANGE.unpack(key)
    return index, prefix - RANGE_STATIC_BITS, address


# --- cilium_ct4_global and cilium_snat_v4_external: only read (dumps) ---------------------

_CT_KEY = struct.Struct("!4s4sHHBB")  # struct ipv4_ct_tuple {daddr; saddr; dport; sport; nexthdr; flags;}
_CT_VALUE = struct.Struct("<QQIHHHBBIIII")
# struct ct_entry {__u64 backend_id (services); __u64 packets; bytes (low half); lifetime as below …}, shortened to 44 bytes
_NAT_VALUE = struct.Struct("<Q8x")  # struct ipv4_nat_entry {__u64 created; __u64 needs_ct; __be32 addr; __be16 port; …}
TUPLE_OUT, TUPLE_IN, TUPLE_SERVICE = 0, 1, 4  # TUPLE_F_*


class CtInfo(Struct, omit_defaults=True):
    """An entry of cilium_ct4_global: the tuple, and of struct ct_entry what `cilium-dbg bpf ct list` prints. `kind` as it says:
    OUT, IN or SVC."""

    kind: str
    proto: int
    src: str
    sport: int
    dst: str
    dport: int
    expires: int  # seconds left
    packets: int = 0
    bytes: int = 0
    rev_nat_index: int = 0
    backend_id: int = 0
    flags: tuple[str, ...] = ()  # RxClosing, TxClosing, LBLoopback, SeenNonSyn, NodePort, DSR


class NatInfo(Struct, omit_defaults=True):
    """An entry of cilium_snat_v4_external: OUT rewrites the source of what goes to a backend, IN the destination of answers."""

    kind: str
    proto: int
    src: str
    sport: int
    dst: str
    dport: int
    to: str
    to_port: int
    created: int = 0  # seconds ago


def pack_ct_key(info: CtInfo | NatInfo) -> bytes:
    flags = {"OUT": TUPLE_OUT, "IN": TUPLE_IN, "SVC": TUPLE_SERVICE}[info.kind]
    daddr, saddr = ip_address(info.dst).packed, ip_address(info.src).packed
    return _CT_KEY.pack(daddr, saddr, info.dport, info.sport, info.proto, flags)


_CT_FLAGS = ("RxClosing", "TxClosing", "Nat46", "LBLoopback", "SeenNonSyn", "NodePort", "ProxyRedirect", "DSR")


def pack_ct_value(info: CtInfo) -> bytes:
    """The first 44 bytes of struct ct_entry: backend_id, packets, lifetime, flags, rev_nat_index, and bytes."""
    flags = sum(1 << _CT_FLAGS.index(name) for name in info.flags)
    return _CT_VALUE.pack(info.backend_id, info.packets, info.expires, flags, info.rev_nat_index, 0, 0, 0, info.bytes, 0, 0, 0)


def pack_nat_value(info: NatInfo) -> bytes:
    return _NAT_VALUE.pack(info.created) + _ADDRESS_PORT.pack(ip_address(info.to).packed, info.to_port) + bytes(2)


# --- the maps ---------------------


class MapSpec(NamedTuple):
    """As the program declares it; `of_agent`: written by netlink, else by the programs themselves."""

    type: str
    key_size: int
    value_size: int
    max_entries: int
    of_agent: bool = True


SERVICES, BACKENDS, REVERSE_NAT = "cilium_lb4_services_v2", "cilium_lb4_backends_v3", "cilium_lb4_reverse_nat"
AFFINITY_MAP, AFFINITY_MATCH, SOURCE_RANGES = "cilium_lb4_affinity", "cilium_lb_affinity_match", "cilium_lb4_source_range"
MAGLEV, CT, SNAT, NAMES = "cilium_lb4_maglev", "cilium_ct4_global", "cilium_snat_v4_external", "podwire_lb_names"

MAPS: dict[str, MapSpec] = {
    SERVICES: MapSpec("hash", 12, 12, 524288),
    BACKENDS: MapSpec("hash", 4, 12, 262144),
    REVERSE_NAT: MapSpec("hash", 2, 6, 65536),
    AFFINITY_MATCH: MapSpec("hash", 8, 1, 65536),
    SOURCE_RANGES: MapSpec("lpm_trie", 12, 1, 65536),
    NAMES: MapSpec("hash", 2, 0, 65536),
    AFFINITY_MAP: MapSpec("lru_hash", 16, 16, 65536, False),
    MAGLEV: MapSpec("hash_of_maps", 2, 4, 65536, False),
    CT: MapSpec("lru_hash", 14, 44, 524288, False),
    SNAT: MapSpec("lru_hash", 14, 24, 524288, False),
}


class LbConfig(Struct, frozen=True, omit_defaults=True):
    """What Cilium compiles into the programs (node_config.h).

    `algorithm`: random or maglev (maglev for what comes from outside, as Cilium; inside is always random); `mode`: snat or dsr,
    how requests from outside reach a backend elsewhere; `native_cidrs`: sources that are the cluster's own; `socket_lb`: hostns
    (only the node's own sockets) or all (pods' too); `masquerade_all`: what goes to a ClusterIP gets the node's source.
    """

    algorithm: str = "random"
    maglev_table_size: int = 16381
    mode: str = "snat"
    native_cidrs: tuple[str, ...] = ()
    socket_lb: str = "hostns"
    masquerade_all: bool = False


# --- for people ---------------------


def describe(name: str, key: bytes, value: bytes) -> str:
    """One element with its fields named: what a trace shows as the rule."""
    if name == SERVICES:
        k, s = unpack_service_key(key), unpack_service(value)
        where = f"{ip_address(k.address)}:{k.dport}/{PROTOCOL_NAMES.get(k.proto, k.proto)} scope {k.scope} slot {k.slot}"
        if k.slot:
            return f"{name}[{where}] = backend_id {s.first} rev_nat_index {s.rev_nat_index}"
        words = f"count {s.backend_count} rev_nat_index {s.rev_nat_index} flags {s.flags:#x} flags2 {s.flags2:#x}"
        return f"{name}[{where}] = {words}" + (f" affinity_timeout {s.first}" if s.first else "")
    if name == BACKENDS:
        b = unpack_backend(value)
        state = f"{PROTOCOL_NAMES.get(b.proto, b.proto)} flags {b.flags:#x}"
        return f"{name}[{unpack_backend_key(key)}] = {ip_address(b.address)}:{b.port}/{state}"
    if name == REVERSE_NAT:
        address, port = unpack_reverse_nat(value)
        return f"{name}[{unpack_index(key)}] = {ip_address(address)}:{port}"
    if name == SOURCE_RANGES:
        index, plen, address = unpack_source_range(key)
        return f"{name}[{index} {ip_address(address)}/{plen}]"
    return f"{name}[{key.hex()}] = {value.hex()}"
