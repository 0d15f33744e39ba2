"""The datapath's "netlink": the messages between a node's daemons (agent, CNI plugin, command shims) and its
userspace kernel.

As Linux daemons talk to the kernel, and with its names (iproute2's words for objects, errno names for errors). Rules
it keeps:

- A request carries a list of operations and is one transaction: all are applied, or none (`NetlinkError` says which failed).
- Operations with `replace` set are idempotent, so that a restarted daemon can state what it wants again.
- Addresses and networks are text in both families ("10.244.1.5", "fd00::/64"), MACs "02:00:0a:f4:01:05", interfaces
are named.
- TAP file descriptors travel beside the request (SCM_RIGHTS); the n-th operation that says `fd=True` takes the n-th of them.

On the wire: a unix stream socket; each message is 4 bytes of length (big endian) and msgpack. File descriptors come with the
first byte of their message. Order to read: operations, dumps, envelopes; the blocking client is in `netlink_client.py`.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from podwire_core import nftables as nft
from podwire_core.ebpf import CtInfo, LbConfig, NatInfo
from podwire_core.ipset import IpSet
from podwire_core.ipvs import ConnectionInfo, RealServer, ServiceInfo, VirtualService
from podwire_core.netfilter import Chain, Rule, Table

MAX_MESSAGE = 256 << 20


class Op(Struct, frozen=True, tag_field="op", omit_defaults=True):
    """One operation of a transaction."""


# --- links --------------------------------


class LinkAdd(Op, frozen=True, tag="link.add"):
    """`ip link add`. Kinds:

    - "tap": a pod's end is a TAP device whose fd is passed (fd=True); this end is named like a veth (vethXXXXXXXX).
    - "host": the TAP of the node's *host* namespace. Frames from it are locally generated (OUTPUT); packets for the node's
      own addresses (INPUT) are delivered to it. One a node. `mac` is this end's; `peer_mac` the TAP device's own.
    - "uplink": the cable to the other nodes (Ethernet in UDP). One a node, "eth0".
    - "bridge", "vxlan" (vni, local, dstport), "dummy".

    With replace: an existing link of that name and kind is updated in place, and a new fd takes the old one's place.
    """

    name: str
    kind: str
    mac: str = ""
    mtu: int = 1500
    up: bool = True
    master: str = ""
    hairpin: bool = False
    peer_mac: str = ""
    vni: int = 0
    local: str = ""
    dstport: int = 8472
    learning: bool = False
    fd: bool = False
    replace: bool = False
    alias: str = ""  # what it belongs to: "pod default/web-0", shown by `ip -d link` and in traces


class LinkDel(Op, frozen=True, tag="link.del"):
    name: str
    missing_ok: bool = False


class LinkSet(Op, frozen=True, tag="link.set"):
    """`ip link set`: fields that are None stay."""

    name: str
    up: bool | None = None
    mtu: int | None = None
    master: str | None = None  # "": nomaster
    hairpin: bool | None = None


# --- addresses, routes, neighbours, forwarding database --------------------------------


class AddrAdd(Op, frozen=True, tag="addr.add"):
    """`ip addr add 10.244.1.1/24 dev cni0`; makes the connected route (not for /32 and /128) and the local one."""

    dev: str
    address: str
    replace: bool = False


class AddrDel(Op, frozen=True, tag="addr.del"):
    dev: str
    address: str
    missing_ok: bool = False


class NextHop(Struct, frozen=True, omit_defaults=True):
    """`nexthop via VIA dev DEV weight WEIGHT` of a multipath route."""

    via: str
    dev: str = ""
    weight: int = 1


class RouteAdd(Op, frozen=True, tag="route.add"):
    """`ip route add DST [via VIA] [dev DEV] [src SRC] [onlink]`; dst "default" or a network. type: unicast,
    blackhole, unreachable, prohibit, local. With `nexthops` (then no via and dev) each flow takes one of them, by its hash."""

    dst: str
    dev: str = ""
    via: str = ""
    src: str = ""
    onlink: bool = False
    metric: int = 0
    proto: str = "static"  # as in /etc/iproute2/rt_protos: kernel, boot, static, bird, bgp …
    type: str = "unicast"
    replace: bool = False
    nexthops: tuple[NextHop, ...] = ()


class RouteDel(Op, frozen=True, tag="route.del"):
    dst: str
    dev: str = ""
    via: str = ""
    metric: int = 0
    missing_ok: bool = False


class NeighAdd(Op, frozen=True, tag="neigh.add"):
    """`ip neigh add IP lladdr MAC dev DEV nud permanent`."""

    dst: str
    lladdr: str
    dev: str
    replace: bool = False


class NeighDel(Op, frozen=True, tag="neigh.del"):
    dst: str
    dev: str
    missing_ok: bool = False


class FdbAdd(Op, frozen=True, tag="fdb.add"):
    """`bridge fdb add MAC dev DEV [dst IP]`: `dst` is the remote VTEP of a vxlan link (a node address); permanent."""

    mac: str
    dev: str
    dst: str = ""
    replace: bool = False


class FdbDel(Op, frozen=True, tag="fdb.del"):
    mac: str
    dev: str
    dst: str = ""
    missing_ok: bool = False


# --- the underlay --------------------------------


class UnderlaySet(Op, frozen=True, tag="underlay.set"):
    """Where a node's address really is: packets for node address `node_ip` (tunnels) go to socket address `host`; cable
    frames for `mac` go there too. `cable_port` is the peer's UDP port for the cable, `tunnel_port` replaces a tunnel's
    dstport where several nodes share one socket address (0: the link's own dstport)."""

    node_ip: str
    mac: str
    host: str
    cable_port: int
    tunnel_port: int = 0


class UnderlayDel(Op, frozen=True, tag="underlay.del"):
    node_ip: str
    missing_ok: bool = True


# --- netfilter, conntrack, settings --------------------------------


class TablesReplace(Op, frozen=True, tag="nf.replace"):
    """The whole content of these tables (iptables-restore without --noflush)."""

    tables: tuple[Table, ...]


class Splice(Struct, frozen=True, array_like=True):
    """One hunk of a patch: of the chain as it was, the rules `old` from place `at` on (0: the first) become `new`. `after` is the
    rule before them, None at the head of the chain."""

    at: int
    after: Rule | None
    old: tuple[Rule, ...]
    new: tuple[Rule, ...]


class ChainSplice(Struct, frozen=True, array_like=True):
    """A long chain's change without the chain: `length` is how many rules it has, splices stand in order of their places and do
    not overlap. If the length or a rule is not what is there, whoever sent this knew another chain and must state it whole:
    EAGAIN, as ip_tables says to a table that changed meanwhile."""

    chain: str
    length: int
    splices: tuple[Splice, ...]


class ChainsUpdate(Op, frozen=True, tag="nf.update"):
    """A delta: these chains get these rules (made if missing), others are spliced, `delete` are removed (they must no longer be
    jumped to). Counters of rules that stay the same in an updated chain are kept. iptables-restore --noflush."""

    table: str
    family: int
    chains: tuple[Chain, ...] = ()
    delete: tuple[str, ...] = ()
    splices: tuple[ChainSplice, ...] = ()


class NftReplace(Op, frozen=True, tag="nft.replace"):
    """`flush ruleset` and these tables: nothing else of nftables is left. Sets that packets update (session affinity) keep what
    they hold where a set of the same name and timeout takes their place."""

    tables: tuple[nft.Table, ...] = ()


class NftUpdate(Op, frozen=True, tag="nft.update", omit_defaults=True):
    """A delta of one table, in the order in which it is done: elements deleted (by set, keys), sets made (or given a new
    timeout), chains given these rules (made if missing; a base chain keeps its hook), elements added (by set), chains and sets
    deleted, which nothing may use any more."""

    family: int
    table: str
    delete_elements: dict[str, tuple[tuple[str, ...], ...]] = {}
    sets: tuple[nft.Set, ...] = ()
    chains: tuple[nft.Chain, ...] = ()
    elements: dict[str, tuple[nft.Element, ...]] = {}
    delete_chains: tuple[str, ...] = ()
    delete_sets: tuple[str, ...] = ()


class ConntrackDel(Op, frozen=True, tag="ct.del"):
    """`conntrack -D`: every field that is not empty must match. `reply_src` is the backend of a translated flow."""

    proto: str = ""
    orig_src: str = ""
    orig_dst: str = ""
    orig_dport: int = 0
    reply_src: str = ""
    zone: int = 0


class SysctlSet(Op, frozen=True, tag="sysctl.set"):
    """Names as under /proc/sys: "net.ipv4.ip_forward", "net.netfilter.nf_conntrack_max",
    "net.ipv4.conf.all.route_localnet" …"""

    name: str
    value: str


# --- host addresses in bulk, ipsets, virtual services --------------------------------


class AddrsUpdate(Op, frozen=True, tag="addr.update"):
    """Many host addresses (/32, /128) of one link at once, as kube-ipvs0 has them: those in `add` that it lacks come, those in
    `delete` that it has go; with `replace` all host addresses go that are not in `add`."""

    dev: str
    add: tuple[str, ...] = ()  # addresses without prefix length
    delete: tuple[str, ...] = ()
    replace: bool = False
    missing_ok: bool = False  # no such link: nothing to do


class IpsetSet(Op, frozen=True, tag="ipset.set"):
    """`ipset create` and, for one that is there, `ipset swap`: the whole content. The type of a set never changes (EINVAL)."""

    set: IpSet


class IpsetUpdate(Op, frozen=True, tag="ipset.update"):
    """`ipset -exist add` and `del`."""

    name: str
    add: tuple[str, ...] = ()
    delete: tuple[str, ...] = ()


class IpsetDestroy(Op, frozen=True, tag="ipset.destroy"):
    """`ipset destroy NAME`, EBUSY while a rule refers to it; "": all that no rule refers to when the transaction is done."""

    name: str = ""
    missing_ok: bool = False


class IpvsSet(Op, frozen=True, tag="ipvs.set"):
    """`ipvsadm -A` or `-E`, with all its real servers. Those that are no longer among them go: at once, or with `graceful` (TCP)
    quiescent, when their last connection has gone."""

    service: VirtualService
    graceful: bool = False


class IpvsDel(Op, frozen=True, tag="ipvs.del"):
    """`ipvsadm -D`."""

    protocol: str
    address: str
    port: int
    missing_ok: bool = False


class IpvsServerSet(Op, frozen=True, tag="ipvs.server.set"):
    """`ipvsadm -a` (EEXIST without `replace`) and `-e`."""

    protocol: str
    address: str
    port: int
    server: RealServer
    replace: bool = False


class IpvsServerDel(Op, frozen=True, tag="ipvs.server.del"):
    """`ipvsadm -d`."""

    protocol: str
    address: str
    port: int
    server: RealServer
    missing_ok: bool = False


class IpvsReplace(Op, frozen=True, tag="ipvs.replace"):
    """The whole table (`ipvsadm -R` after `-C`, but what stays keeps its connections and counters). With `hand_over` the
    connections of services that go are from then on translated by NAT alone, so that they outlive ip_vs."""

    services: tuple[VirtualService, ...] = ()
    graceful: bool = False
    hand_over: bool = False


# --- eBPF: maps and programs (podwire_core.ebpf) --------------------------------


class BpfReplace(Op, frozen=True, tag="bpf.replace"):
    """The load balancer's programs with this configuration, attached at every link, and the whole content of the maps that an
    agent writes (those not named are emptied). Without a configuration: nothing is attached, all maps are empty."""

    config: LbConfig | None = None
    maps: dict[str, dict[bytes, bytes]] = {}


class BpfMapUpdate(Op, frozen=True, tag="bpf.update"):
    """`bpf(BPF_MAP_UPDATE_BATCH)` and `…_DELETE_BATCH`: elements written, then keys deleted (missing ones are none)."""

    map: str
    elements: dict[bytes, bytes] = {}
    delete: tuple[bytes, ...] = ()


AnyOp = (
    LinkAdd
    | LinkDel
    | LinkSet
    | AddrAdd
    | AddrDel
    | RouteAdd
    | RouteDel
    | NeighAdd
    | NeighDel
    | FdbAdd
    | FdbDel
    | UnderlaySet
    | UnderlayDel
    | TablesReplace
    | ChainsUpdate
    | NftReplace
    | NftUpdate
    | ConntrackDel
    | SysctlSet
    | AddrsUpdate
    | IpsetSet
    | IpsetUpdate
    | IpsetDestroy
    | IpvsSet
    | IpvsDel
    | IpvsServerSet
    | IpvsServerDel
    | IpvsReplace
    | BpfReplace
    | BpfMapUpdate
)

# --- what a dump returns --------------------------------


class LinkInfo(Struct, omit_defaults=True):
    """One of `dump("links")`. `stats` has ip -s link's names: rx_packets, rx_bytes, rx_dropped, tx_packets,
    tx_bytes, tx_dropped."""

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    master: str = ""
    hairpin: bool = False
    peer_mac: str = ""
    vni: int = 0
    local: str = ""
    dstport: int = 0
    learning: bool = False
    attached: bool = True  # False: a tap whose fd is gone
    alias: str = ""
    stats: dict[str, int] = {}


class AddrInfo(Struct, omit_defaults=True):
    dev: str
    address: str  # with prefix length


class RouteInfo(Struct, omit_defaults=True):
    dst: str
    dev: str = ""
    via: str = ""
    src: str = ""
    onlink: bool = False
    metric: int = 0
    proto: str = "static"
    type: str = "unicast"
    scope: str = "global"
    table: str = "main"
    nexthops: tuple[NextHop, ...] = ()


class NeighInfo(Struct, omit_defaults=True):
    dst: str
    lladdr: str
    dev: str
    state: str  # PERMANENT, REACHABLE, STALE, DELAY, PROBE, INCOMPLETE, FAILED


class FdbInfo(Struct, omit_defaults=True):
    mac: str
    dev: str
    dst: str = ""
    master: str = ""
    state: str = "permanent"  # permanent, dynamic
    age: float = 0.0


class TupleInfo(Struct, omit_defaults=True):
    src: str
    dst: str
    sport: int = 0  # ICMP: type
    dport: int = 0  # ICMP: code
    id: int = 0  # ICMP


class ConntrackInfo(Struct, omit_defaults=True):
    """One of `dump("conntrack")`, with what `conntrack -L` prints."""

    proto: str
    timeout: int
    original: TupleInfo
    reply: TupleInfo
    state: str = ""  # TCP: SYN_SENT … TIME_WAIT
    status: tuple[str, ...] = ()  # UNREPLIED, ASSURED, DNAT, SNAT
    mark: int = 0
    packets: tuple[int, int] = (0, 0)
    bytes: tuple[int, int] = (0, 0)


class UnderlayInfo(Struct, omit_defaults=True):
    node_ip: str
    mac: str
    host: str
    cable_port: int
    tunnel_port: int = 0


class RuleCounters(Struct, array_like=True):
    packets: int
    bytes: int


class TableDump(Struct, omit_defaults=True):
    """One of `dump("rules")`: a table, and the counters of each chain's rules (and of each built-in chain's policy)."""

    table: Table
    counters: dict[str, list[RuleCounters]]
    policy_counters: dict[str, RuleCounters]


class BpfMapInfo(Struct, omit_defaults=True):
    """One of `dump("bpf.maps")`: a map and its elements, as bytes."""

    id: int
    name: str
    type: str
    key_size: int
    value_size: int
    max_entries: int
    elements: dict[bytes, bytes] = {}


class BpfState(Struct, omit_defaults=True):
    """`dump("bpf")`: the load balancer's connections, and how its programs are configured (None: not attached)."""

    config: LbConfig | None = None
    ct: list[CtInfo] = []
    snat: list[NatInfo] = []


DUMPS: dict[str, Any] = {
    "links": list[LinkInfo],
    "addrs": list[AddrInfo],
    "routes": list[RouteInfo],
    "neighs": list[NeighInfo],
    "fdb": list[FdbInfo],
    "conntrack": list[ConntrackInfo],
    "underlay": list[UnderlayInfo],
    "rules": list[TableDump],
    "nftables": list[nft.Table],  # with what dynamic sets hold now
    "ipsets": list[IpSet],
    "ipvs": list[ServiceInfo],
    "ipvs.connections": list[ConnectionInfo],
    "bpf.maps": list[BpfMapInfo],
    "bpf": BpfState,
    "sysctls": dict[str, str],
    "counters": dict[str, int],  # drops by reason ("drop.ip_header_checksum"), cache hits, generation, …
    "info": dict[str, Any],  # pid, version, started, node
}

# --- envelopes --------------------------------


class Apply(Struct, tag_field="req", tag="apply"):
    seq: int
    ops: tuple[AnyOp, ...]


class Dump(Struct, tag_field="req", tag="dump"):
    seq: int
    what: str


class Subscribe(Struct, tag_field="req", tag="subscribe"):
    """From now on this connection gets `Traced` messages for every packet that matches; closing it ends that.

    A packet matches if `addresses` is empty or one of them is a source or destination of the packet or of its connection
    (either direction, before or after translation), and likewise for `ports` and `protocol` ("" any). At most
    `limit` records.
    """

    seq: int
    addresses: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    protocol: str = ""
    limit: int = 10_000


class Reply(Struct, tag_field="rep", tag="reply"):
    """`error` is "" or an errno name (EEXIST, ENOENT, EINVAL …); then `message` is one line and `failed` the index
    of the operation."""

    seq: int
    error: str = ""
    message: str = ""
    failed: int = -1
    data: Any = None


class Traced(Struct, tag_field="rep", tag="traced"):
    """A journey of one packet through this node: `podwire_core.trace.Hop` as plain data."""

    hop: dict[str, Any]
    lost: int = 0  # records that could not be sent since the last one


class NetlinkError(Exception):
    """A refused request. `errno_name` as in Reply.error, `failed` the index of the operation or -1."""

    def __init__(self, errno_name: str, message: str, failed: int = -1) -> None:
        super().__init__(f"{errno_name}: {message}" + (f" (operation {failed})" if failed >= 0 else ""))
        self.errno_name, self.message, self.failed = errno_name, message, failed
