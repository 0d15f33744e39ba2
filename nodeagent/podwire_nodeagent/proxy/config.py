"""KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1): the fields that podwire acts on, checked.

Rules it keeps: a configuration is refused whole with every error and its path; defaults are kube-proxy's; fields that podwire
does not act on are accepted and ignored, since real configurations are full of them.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct, field

from podwire_core.constants import POD_CIDR, POD_CIDR6, SERVICE_CIDR
from podwire_core.errors import Cause
from podwire_core.ipvs import SCHEDULERS
from podwire_core.objects import DecodeError, Json, Kube, decode
from podwire_nodeagent.proxy.addresses import family_of, network

API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"
KIND = "KubeProxyConfiguration"
MODES = ("iptables", "nftables", "ipvs", "ebpf")
DETECT_LOCAL_MODES = ("ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")
PRIMARY = "primary"  # a nodePortAddresses entry: the node's InternalIPs


class EbpfSettings(Struct, frozen=True):
    """podwire's own section `ebpf`, with Cilium's words: `algorithm` random or maglev, `mode` snat or dsr, `socket_lb` hostns or
    all."""

    algorithm: str = "random"
    maglev_table_size: int = 16381
    mode: str = "snat"
    socket_lb: str = "hostns"


class ProxyConfiguration(Struct, frozen=True):
    """`cluster_cidrs` empty with detectLocalMode ClusterCIDR: local traffic is not detected. `node_port_addresses` empty: the
    mode's default."""

    mode: str = "iptables"
    cluster_cidrs: tuple[str, ...] = (POD_CIDR, POD_CIDR6)
    detect_local_mode: str = "ClusterCIDR"
    bridge_interface: str = ""
    interface_name_prefix: str = ""
    node_port_addresses: tuple[str, ...] = ()
    masquerade_all: bool = False
    masquerade_bit: int = 14
    localhost_node_ports: bool = True
    conntrack_tcp_be_liberal: bool = False
    service_cidrs: tuple[str, ...] = (SERVICE_CIDR,)  # not of the configuration: the cluster's ServiceCIDR objects
    ipvs_scheduler: str = "rr"
    ebpf: EbpfSettings = EbpfSettings()

    @property
    def masquerade_mark(self) -> int:
        return 1 << self.masquerade_bit

    def cluster_cidr(self, family: int) -> str:
        """The cluster's pod network of that family, "" if none is given."""
        return next((cidr for cidr in self.cluster_cidrs if family_of(cidr) == family), "")


class ConfigurationError(ValueError):
    """A configuration with wrong fields; one line, all of them in `causes`."""

    def __init__(self, causes: list[Cause]) -> None:
        super().__init__("; ".join(f"{cause.field}: {cause.message}" for cause in causes))
        self.causes = causes


# --- the shape as given --------------------------------


class _RuleMode(Kube):
    masquerade_all: bool = False
    masquerade_bit: int | None = None
    localhost_node_ports: bool | None = None


class _DetectLocal(Kube):
    bridge_interface: str = ""
    interface_name_prefix: str = ""


class _Conntrack(Kube):
    tcp_be_liberal: bool = False


class _Ipvs(Kube):
    scheduler: str = ""


class _Ebpf(Kube):
    algorithm: str = "random"
    maglev_table_size: int = 16381
    mode: str = "snat"
    socket_lb: str = field(default="hostns", name="socketLB")


class _Given(Kube):
    api_version: str = ""
    kind: str = ""
    mode: str | None = None
    cluster_cidr: str | None = field(default=None, name="clusterCIDR")
    detect_local_mode: str | None = None
    detect_local: _DetectLocal | None = None
    node_port_addresses: list[str] | None = None
    iptables: _RuleMode | None = None
    nftables: _RuleMode | None = None
    ipvs: _Ipvs | None = None
    conntrack: _Conntrack | None = None
    ebpf: _Ebpf | None = None


def load(obj: Json) -> ProxyConfiguration:
    """Raises ConfigurationError."""
    if not isinstance(obj, dict):
        raise ConfigurationError([Cause("$", f"expected object, got {type(obj).__name__}")])
    try:
        given = decode(_Given, obj)
    except DecodeError as error:
        path, _, message = str(error).partition(": ")
        raise ConfigurationError([Cause(path, message)]) from None
    mode = given.mode or "iptables"
    rules = (given.nftables if mode == "nftables" else given.iptables) or _RuleMode()
    detect = given.detect_local or _DetectLocal()
    bpf = given.ebpf or _Ebpf()
    config = ProxyConfiguration(
        mode=mode,
        cluster_cidrs=_split(given.cluster_cidr),
        detect_local_mode=given.detect_local_mode or "ClusterCIDR",
        bridge_interface=detect.bridge_interface,
        interface_name_prefix=detect.interface_name_prefix,
        node_port_addresses=tuple(given.node_port_addresses or ()),
        masquerade_all=rules.masquerade_all,
        masquerade_bit=14 if rules.masquerade_bit is None else rules.masquerade_bit,
        localhost_node_ports=rules.localhost_node_ports is not False,
        ipvs_scheduler=(given.ipvs or _Ipvs()).scheduler or "rr",
        conntrack_tcp_be_liberal=(given.conntrack or _Conntrack()).tcp_be_liberal,
        ebpf=EbpfSettings(bpf.algorithm, bpf.maglev_table_size, bpf.mode, bpf.socket_lb),
    )
    causes = _identity_causes(given) + _causes(config)
    if causes:
        raise ConfigurationError(causes)
    return msgspec.structs.replace(
        config,
        cluster_cidrs=tuple(network(cidr) or "" for cidr in config.cluster_cidrs),
        node_port_addresses=tuple(a if a == PRIMARY else network(a) or "" for a in config.node_port_addresses),
    )


def _split(cidrs: str | None) -> tuple[str, ...]:
    """Not given is the cluster's own pod network; given empty means none."""
    if cidrs is None:
        return (POD_CIDR, POD_CIDR6)
    return tuple(cidr.strip() for cidr in cidrs.split(",")) if cidrs.strip() else ()


# --- checks --------------------------------


def _identity_causes(given: _Given) -> list[Cause]:
    wanted = (("apiVersion", given.api_version, API_VERSION), ("kind", given.kind, KIND))
    return [Cause(f"$.{name}", f"expected {want}, got {got!r}") for name, got, want in wanted if got != want]


def _causes(config: ProxyConfiguration) -> list[Cause]:
    rules = "nftables" if config.mode == "nftables" else "iptables"
    causes = []
    if config.mode not in MODES:
        causes.append(Cause("$.mode", f"expected one of {', '.join(MODES)}, got {config.mode!r}"))
    if not 0 <= config.masquerade_bit <= 31:
        causes.append(Cause(f"$.{rules}.masqueradeBit", f"expected 0 to 31, got {config.masquerade_bit}"))
    if config.ipvs_scheduler not in SCHEDULERS:
        causes.append(Cause("$.ipvs.scheduler", f"expected one of {', '.join(SCHEDULERS)}, got {config.ipvs_scheduler!r}"))
    causes += _ebpf_causes(config.ebpf)
    return causes + _cluster_cidr_causes(config) + _detect_local_causes(config) + _node_port_causes(config)


MAGLEV_SIZES = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071)  # primes, those that Cilium takes


def _ebpf_causes(settings: EbpfSettings) -> list[Cause]:
    words = {"algorithm": ("random", "maglev"), "mode": ("snat", "dsr"), "socketLB": ("hostns", "all")}
    given = {"algorithm": settings.algorithm, "mode": settings.mode, "socketLB": settings.socket_lb}
    causes = [
        Cause(f"$.ebpf.{name}", f"expected one of {', '.join(words[name])}, got {value!r}")
        for name, value in given.items()
        if value not in words[name]
    ]
    if settings.maglev_table_size not in MAGLEV_SIZES:
        sizes = ", ".join(map(str, MAGLEV_SIZES))
        causes.append(Cause("$.ebpf.maglevTableSize", f"expected one of {sizes}, got {settings.maglev_table_size}"))
    return causes


def _cluster_cidr_causes(config: ProxyConfiguration) -> list[Cause]:
    path, cidrs = "$.clusterCIDR", config.cluster_cidrs
    causes = [Cause(path, f"{cidr!r} is not a network in CIDR form") for cidr in cidrs if network(cidr) is None]
    if not causes and len({family_of(cidr) for cidr in cidrs}) != len(cidrs):
        causes.append(Cause(path, "at most one network of each family"))
    return causes


def _detect_local_causes(config: ProxyConfiguration) -> list[Cause]:
    mode, path = config.detect_local_mode, "$.detectLocal"
    if mode not in DETECT_LOCAL_MODES:
        return [Cause("$.detectLocalMode", f"expected one of {', '.join(DETECT_LOCAL_MODES)}, got {mode!r}")]
    fields = {
        "BridgeInterface": ("bridgeInterface", config.bridge_interface),
        "InterfaceNamePrefix": ("interfaceNamePrefix", config.interface_name_prefix),
    }
    causes = [
        Cause(f"{path}.{name}", f"needed with detectLocalMode {m}") for m, (name, v) in fields.items() if m == mode and not v
    ]
    for m, (name, value) in fields.items():
        longest = 15 if m == "BridgeInterface" else 14  # a prefix is written with a + behind it
        if len(value.encode()) > longest or not value.isprintable() or any(c in value for c in "/: \"'\\!"):
            causes.append(Cause(f"{path}.{name}", f"{value!r} is not an interface name of at most {longest} characters"))
    return causes


def _node_port_causes(config: ProxyConfiguration) -> list[Cause]:
    addresses, path = config.node_port_addresses, "$.nodePortAddresses"
    if PRIMARY in addresses and len(addresses) > 1:
        return [Cause(path, "primary must stand alone")]
    return [
        Cause(f"{path}[{i}]", f"{cidr!r} is not a network in CIDR form")
        for i, cidr in enumerate(addresses)
        if cidr != PRIMARY and network(cidr) is None
    ]
