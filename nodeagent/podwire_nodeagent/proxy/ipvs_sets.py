"""kube-proxy's ipsets in IPVS mode: which there are, and the few iptables rules that refer to them.

Rules it keeps (kube-proxy's): names, types, comments; the order of rules; rules of nat for a set that is empty are left out, most
of filter's are always there. So the rules depend on the configuration and on which sets are empty, never on how many Services
there are.

Order to read: SETS, then `jumps`, `chains` with nat and filter.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from podwire_core import netfilter as nf
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.service_rules import ACCEPT, DROP, FROM_LOCAL, MARK_MASQ, PROTOCOLS, REJECT, TO_LOCAL, Settings

LOOP_BACK, CLUSTER_IP = "KUBE-LOOP-BACK", "KUBE-CLUSTER-IP"
EXTERNAL_IP, EXTERNAL_IP_LOCAL = "KUBE-EXTERNAL-IP", "KUBE-EXTERNAL-IP-LOCAL"
LOAD_BALANCER, LOAD_BALANCER_FW = "KUBE-LOAD-BALANCER", "KUBE-LOAD-BALANCER-FW"
LOAD_BALANCER_LOCAL = "KUBE-LOAD-BALANCER-LOCAL"
LOAD_BALANCER_SOURCE_IP, LOAD_BALANCER_SOURCE_CIDR = "KUBE-LOAD-BALANCER-SOURCE-IP", "KUBE-LOAD-BALANCER-SOURCE-CIDR"
NODE_PORT = {"tcp": "KUBE-NODE-PORT-TCP", "udp": "KUBE-NODE-PORT-UDP", "sctp": "KUBE-NODE-PORT-SCTP-HASH"}
NODE_PORT_LOCAL = {
    "tcp": "KUBE-NODE-PORT-LOCAL-TCP",
    "udp": "KUBE-NODE-PORT-LOCAL-UDP",
    "sctp": "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
}
HEALTH_CHECK, IPVS_IPS = "KUBE-HEALTH-CHECK-NODE-PORT", "KUBE-IPVS-IPS"
HASH_NODE_PORTS = frozenset(("sctp",))  # a bitmap of ports knows TCP and UDP alone


class SetInfo(NamedTuple):
    type: str
    comment: str


SETS: dict[str, SetInfo] = {
    LOOP_BACK: SetInfo("hash:ip,port,ip", "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose"),
    CLUSTER_IP: SetInfo("hash:ip,port", "Kubernetes service cluster ip + port for masquerade purpose"),
    EXTERNAL_IP: SetInfo("hash:ip,port", "Kubernetes service external ip + port for masquerade and filter purpose"),
    EXTERNAL_IP_LOCAL: SetInfo("hash:ip,port", "Kubernetes service external ip + port with externalTrafficPolicy=local"),
    LOAD_BALANCER: SetInfo("hash:ip,port", "Kubernetes service lb portal"),
    LOAD_BALANCER_FW: SetInfo("hash:ip,port", "Kubernetes service load balancer ip + port for load balancer with sourceRange"),
    LOAD_BALANCER_LOCAL: SetInfo("hash:ip,port", "Kubernetes service load balancer ip + port with externalTrafficPolicy=local"),
    LOAD_BALANCER_SOURCE_IP: SetInfo(
        "hash:ip,port,ip", "Kubernetes service load balancer ip + port + source IP for packet filter purpose"
    ),
    LOAD_BALANCER_SOURCE_CIDR: SetInfo(
        "hash:ip,port,net", "Kubernetes service load balancer ip + port + source cidr for packet filter purpose"
    ),
    NODE_PORT["tcp"]: SetInfo("bitmap:port", "Kubernetes nodeport TCP port for masquerade purpose"),
    NODE_PORT_LOCAL["tcp"]: SetInfo("bitmap:port", "Kubernetes nodeport TCP port with externalTrafficPolicy=local"),
    NODE_PORT["udp"]: SetInfo("bitmap:port", "Kubernetes nodeport UDP port for masquerade purpose"),
    NODE_PORT_LOCAL["udp"]: SetInfo("bitmap:port", "Kubernetes nodeport UDP port with externalTrafficPolicy=local"),
    NODE_PORT["sctp"]: SetInfo("hash:ip,port", "Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'"),
    NODE_PORT_LOCAL["sctp"]: SetInfo(
        "hash:ip,port", "Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type 'hash ip:port'"
    ),
    HEALTH_CHECK: SetInfo("bitmap:port", "Kubernetes health check node port"),
    IPVS_IPS: SetInfo("hash:ip", "Addresses on the ipvs interface"),
}


def set_name(name: str, family: int) -> str:
    """IPv6's sets have names of their own: KUBE-6-CLUSTER-IP."""
    return name if family == 4 else "KUBE-6-" + name.removeprefix("KUBE-")


# --- rules --------------------------------


def _jump(chain: str, comment: str) -> nf.Rule:
    return nf.Rule((nf.Comment(comment),), nf.Jump(chain))


def jumps(table: str) -> dict[str, tuple[nf.Rule, ...]]:
    """What kube-proxy puts before everything in built-in chains, the last that it inserts first."""
    if table == "nat":
        portals = (_jump("KUBE-SERVICES", "kubernetes service portals"),)
        postrouting = (_jump("KUBE-POSTROUTING", "kubernetes postrouting rules"),)
        return {"PREROUTING": portals, "OUTPUT": portals, "POSTROUTING": postrouting}
    if table == "filter":
        firewall = _jump("KUBE-PROXY-FIREWALL", "kube-proxy firewall rules")
        return {
            "INPUT": (
                _jump("KUBE-IPVS-FILTER", "kubernetes ipvs access filter"),
                firewall,
                _jump("KUBE-NODE-PORT", "kubernetes health check rules"),
            ),
            "FORWARD": (firewall, _jump("KUBE-FORWARD", "kubernetes forwarding rules")),
        }
    return {}


class _Writer:
    """Rules about sets of one family; `filled` are those with elements."""

    def __init__(self, config: ProxyConfiguration, settings: Settings, filled: Collection[str]) -> None:
        self.config, self.settings, self.filled = config, settings, filled

    def rule(
        self,
        name: str,
        flags: str,
        target: nf.AnyTarget,
        *,
        proto: str = "",
        comment: bool = True,
        before: nf.AnyMatch | None = None,
    ) -> nf.Rule:
        matches: list[nf.AnyMatch] = [before] if before is not None else []
        if proto:
            matches.append(PROTOCOLS[proto])
        if comment:
            matches.append(nf.Comment(SETS[name].comment))
        return nf.Rule((*matches, self.match(name, flags)), target)

    def match(self, name: str, flags: str) -> nf.Set:
        return nf.Set(set_name(name, self.settings.family), tuple(flags.split(",")))

    def if_filled(self, name: str, flags: str, target: nf.AnyTarget, proto: str = "") -> tuple[nf.Rule, ...]:
        return (self.rule(name, flags, target, proto=proto),) if name in self.filled else ()

    # --- nat

    def services(self) -> tuple[nf.Rule, ...]:
        """KUBE-SERVICES: what is to be masqueraded is marked; what has a virtual server needs no other rule (ACCEPT)."""
        loopback = "127.0.0.0/8" if self.settings.family == 4 else "::1/128"
        accepted = [name for name in (CLUSTER_IP, LOAD_BALANCER) if name in self.filled]
        return (
            nf.Rule((nf.Source(loopback),), nf.Verdict("RETURN")),
            *self.if_filled(LOAD_BALANCER, "dst,dst", nf.Jump("KUBE-LOAD-BALANCER")),
            *self.cluster_ip(),
            *self.if_filled(EXTERNAL_IP, "dst,dst", MARK_MASQ),
            *self.external(EXTERNAL_IP),
            *self.external(EXTERNAL_IP_LOCAL),
            nf.Rule((TO_LOCAL,), nf.Jump("KUBE-NODE-PORT")),
            *(self.rule(name, "dst,dst", ACCEPT, comment=False) for name in accepted),
        )

    def cluster_ip(self) -> tuple[nf.Rule, ...]:
        """Traffic from outside the cluster comes back through this node; without a way to tell, that of the node itself,
        whose source is the virtual address (every one of them is local)."""
        if CLUSTER_IP not in self.filled:
            return ()
        if self.settings.masquerade_all:
            return (self.rule(CLUSTER_IP, "dst,dst", MARK_MASQ),)
        if self.settings.if_not_local is not None:
            return (self.rule(CLUSTER_IP, "dst,dst", MARK_MASQ, before=self.settings.if_not_local),)
        return (self.rule(CLUSTER_IP, "src,dst", MARK_MASQ),)

    def external(self, name: str) -> tuple[nf.Rule, ...]:
        """From other machines (neither a pod's bridge nor this node), and to addresses that are local."""
        if name not in self.filled:
            return ()
        matches = (nf.Comment(SETS[name].comment), self.match(name, "dst,dst"))
        elsewhere = (nf.PhysDev(invert=True), nf.AddrType(src_type=FROM_LOCAL.src_type, invert_src=True))
        return nf.Rule((*matches, *elsewhere), ACCEPT), nf.Rule((*matches, TO_LOCAL), ACCEPT)

    def node_port(self) -> tuple[nf.Rule, ...]:
        rules: tuple[nf.Rule, ...] = ()
        for proto in ("tcp", "udp", "sctp"):
            flags = "dst,dst" if proto in HASH_NODE_PORTS else "dst"
            rules += self.if_filled(NODE_PORT_LOCAL[proto], flags, nf.Verdict("RETURN"), proto)
            rules += self.if_filled(NODE_PORT[proto], flags, MARK_MASQ, proto)
        return rules

    def nat(self) -> tuple[nf.Chain, ...]:
        mark = self.config.masquerade_mark
        keeps_source = self.if_filled(LOAD_BALANCER_LOCAL, "dst,dst", nf.Verdict("RETURN"))
        postrouting = (
            *self.if_filled(LOOP_BACK, "dst,dst,src", nf.Masquerade()),
            nf.Rule((nf.Mark(mark, mark, invert=True),), nf.Verdict("RETURN")),
            nf.Rule((), nf.SetMark(mark, 0)),
            nf.Rule((nf.Comment("kubernetes service traffic requiring SNAT"),), nf.Masquerade(random_fully=True)),
        )
        return (
            nf.Chain("KUBE-SERVICES", self.services()),
            nf.Chain("KUBE-POSTROUTING", postrouting),
            nf.Chain("KUBE-NODE-PORT", self.node_port()),
            nf.Chain("KUBE-LOAD-BALANCER", (*keeps_source, nf.Rule((), MARK_MASQ))),
            nf.Chain("KUBE-MARK-MASQ", (nf.Rule((), nf.SetMark(mark, mark)),)),
        )

    # --- filter

    def source_ranges(self) -> tuple[nf.Rule, ...]:
        return (
            *self.if_filled(LOAD_BALANCER_SOURCE_CIDR, "dst,dst,src", nf.Verdict("RETURN")),
            *self.if_filled(LOAD_BALANCER_SOURCE_IP, "dst,dst,src", nf.Verdict("RETURN")),
            nf.Rule((), DROP),
        )

    def access(self) -> tuple[nf.Rule, ...]:
        """KUBE-IPVS-FILTER: the virtual addresses are the node's, but not a way to what listens on the node."""
        served = (LOAD_BALANCER, CLUSTER_IP, EXTERNAL_IP, EXTERNAL_IP_LOCAL)
        refused = (nf.ConntrackState(("NEW",)), self.match(IPVS_IPS, "dst"))
        return (
            *(self.rule(name, "dst,dst", nf.Verdict("RETURN"), comment=False) for name in served),
            self.rule(HEALTH_CHECK, "dst", nf.Verdict("RETURN"), comment=False),
            nf.Rule(refused, REJECT[self.settings.family]),
        )

    def filter(self) -> tuple[nf.Chain, ...]:
        mark = self.config.masquerade_mark
        related = (nf.Comment("kubernetes forwarding conntrack rule"), nf.ConntrackState(("RELATED", "ESTABLISHED")))
        forward = (
            nf.Rule((nf.Comment("kubernetes forwarding rules"), nf.Mark(mark, mark)), ACCEPT),
            nf.Rule(related, ACCEPT),
        )
        firewall = self.if_filled(LOAD_BALANCER_FW, "dst,dst", nf.Jump("KUBE-SOURCE-RANGES-FIREWALL"))
        return (
            nf.Chain("KUBE-FORWARD", forward),
            nf.Chain("KUBE-NODE-PORT", (self.rule(HEALTH_CHECK, "dst", ACCEPT),)),
            nf.Chain("KUBE-PROXY-FIREWALL", firewall),
            nf.Chain("KUBE-SOURCE-RANGES-FIREWALL", self.source_ranges()),
            nf.Chain("KUBE-IPVS-FILTER", self.access()),
        )


def chains(table: str, config: ProxyConfiguration, settings: Settings, filled: Collection[str]) -> tuple[nf.Chain, ...]:
    """kube-proxy's own chains of a table; `filled`: the sets that are not empty."""
    writer = _Writer(config, settings, filled)
    return {"nat": writer.nat, "filter": writer.filter}[table]() if table in ("nat", "filter") else ()
