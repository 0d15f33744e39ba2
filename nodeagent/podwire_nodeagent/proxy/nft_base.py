"""The fixed part of kube-proxy's nftables table: base chains, the sets and maps, and the chains that ask them.

Rules it keeps: names, comments and priorities are kube-proxy's (1.31 to 1.35). Firewalling and translation see the packet's own
destination (base chains before or at dstnat); what no endpoint answers for is rejected or dropped behind the translation, where
only packets to untranslated addresses still match. All depends on the configuration and the node alone, no Service changes it.

Order to read: BASE, base_sets, base_chains.
"""

from __future__ import annotations

from podwire_core import nftables as nft
from podwire_nodeagent.proxy.addresses import family_of
from podwire_nodeagent.proxy.config import PRIMARY, ProxyConfiguration
from podwire_nodeagent.proxy.model import LOOPBACK, NodeFacts

TABLE, COMMENT = "kube-proxy", "rules for kube-proxy"
CLUSTER_IPS, NODE_PORT_IPS = "cluster-ips", "nodeport-ips"
SERVICE_IPS, SERVICE_NODE_PORTS, FIREWALL_IPS = "service-ips", "service-nodeports", "firewall-ips"
NO_ENDPOINT_SERVICES, NO_ENDPOINT_NODE_PORTS = "no-endpoint-services", "no-endpoint-nodeports"
MARK_FOR_MASQUERADE, REJECT_CHAIN = "mark-for-masquerade", "reject-chain"

BASE = (  # name, type, hook, priority, where its packets go (new connections only, but for nat)
    ("filter-prerouting-pre-dnat", "filter", "prerouting", -110, ("firewall-check",)),
    ("filter-output-pre-dnat", "filter", "output", -110, ("firewall-check",)),
    ("filter-input", "filter", "input", 0, ("nodeport-endpoints-check", "service-endpoints-check")),
    ("filter-forward", "filter", "forward", 0, ("service-endpoints-check", "cluster-ips-check")),
    ("filter-output", "filter", "output", 0, ("service-endpoints-check", "cluster-ips-check")),
    ("nat-prerouting", "nat", "prerouting", -100, ("services",)),
    ("nat-output", "nat", "output", -100, ("services",)),
    ("nat-postrouting", "nat", "postrouting", 100, ("masquerading",)),
)
DESTINATION = ("daddr", "l4proto", "dport")
PORT = ("l4proto", "dport")
NEW = nft.CtState(("new",))
LOOPBACK_NET = {4: "127.0.0.0/8", 6: "::1"}


def jump(chain: str) -> nft.Verdict:
    return nft.Verdict("jump", chain)


def goto(chain: str) -> nft.Verdict:
    return nft.Verdict("goto", chain)


def node_port_ips(config: ProxyConfiguration, node: NodeFacts, family: int) -> tuple[str, ...] | None:
    """The addresses that serve NodePorts, by default the node's primary one, never the loopback's; None: all."""
    served = node.node_port_addresses(config.node_port_addresses or (PRIMARY,), family)
    return None if served is None else tuple(a for a in served if a != LOOPBACK[family])


# --- sets and maps --------------------------------


def base_sets(config: ProxyConfiguration, node: NodeFacts, family: int) -> tuple[nft.Set, ...]:
    """Without the elements of Services."""
    address = f"ipv{family}_addr"
    to_service, to_port = (address, "inet_proto", "inet_service"), ("inet_proto", "inet_service")
    served = node_port_ips(config, node, family)
    no_endpoints = "vmap to drop or reject packets to {} with no endpoints"
    own = nft.Set(NODE_PORT_IPS, (address,), comment="IPs that accept NodePort traffic", elements=elements_of(served or ()))
    return (
        nft.Set(CLUSTER_IPS, (address,), comment="Active ClusterIPs"),
        *((own,) if served is not None else ()),
        nft.Set(NO_ENDPOINT_SERVICES, to_service, True, no_endpoints.format("services")),
        nft.Set(NO_ENDPOINT_NODE_PORTS, to_port, True, no_endpoints.format("service nodeports")),
        nft.Set(FIREWALL_IPS, to_service, True, "destinations that are subject to LoadBalancerSourceRanges"),
        nft.Set(SERVICE_IPS, to_service, True, "ClusterIP, ExternalIP and LoadBalancer IP traffic"),
        nft.Set(SERVICE_NODE_PORTS, to_port, True, "NodePort traffic"),
    )


def elements_of(addresses: tuple[str, ...]) -> tuple[nft.Element, ...]:
    return tuple(nft.Element((address,)) for address in addresses)


# --- chains --------------------------------


def base_chains(config: ProxyConfiguration, node: NodeFacts, family: int) -> tuple[nft.Chain, ...]:
    based = (_base_chain(*each) for each in BASE)
    everywhere = node_port_ips(config, node, family) is None
    return (
        *based,
        _chain("nodeport-endpoints-check", _node_port_rule(everywhere, False, NO_ENDPOINT_NODE_PORTS, family)),
        _chain("service-endpoints-check", nft.Rule((nft.Lookup(DESTINATION, NO_ENDPOINT_SERVICES),))),
        _chain("firewall-check", nft.Rule((nft.Lookup(DESTINATION, FIREWALL_IPS),))),
        _chain(
            "services",
            nft.Rule((nft.Lookup(DESTINATION, SERVICE_IPS),)),
            _node_port_rule(everywhere, True, SERVICE_NODE_PORTS, family),
        ),
        _chain("cluster-ips-check", *_cluster_ip_rules(config, family)),
        _chain("masquerading", *_masquerading_rules(config.masquerade_mark)),
        _chain(MARK_FOR_MASQUERADE, nft.Rule((nft.MarkSet("|", config.masquerade_mark),))),
        nft.Chain(
            REJECT_CHAIN, (nft.Rule((nft.Reject(),)),), "helper for @no-endpoint-services / @no-endpoint-nodeports"
        ),
    )  # fmt: skip


def _chain(name: str, *rules: nft.Rule) -> nft.Chain:
    return nft.Chain(name, rules)


def _base_chain(name: str, kind: str, hook: str, priority: int, targets: tuple[str, ...]) -> nft.Chain:
    rules = (nft.Rule((jump(target),)) if kind == "nat" else nft.Rule((NEW, jump(target))) for target in targets)
    return nft.Chain(name, tuple(rules), hook=nft.Hook(kind, hook, priority))


def _node_port_rule(everywhere: bool, local_only: bool, verdicts: str, family: int) -> nft.Rule:
    """`local_only`: where it is not clear yet that the destination is the node's own."""
    lookup = nft.Lookup(PORT, verdicts)
    if not everywhere:
        return nft.Rule((nft.InSet(("daddr",), NODE_PORT_IPS), lookup))
    not_loopback = nft.Address("daddr", (LOOPBACK_NET[family],), invert=True)
    return nft.Rule((nft.Fib("daddr"), not_loopback, lookup) if local_only else (not_loopback, lookup))


def _cluster_ip_rules(config: ProxyConfiguration, family: int) -> tuple[nft.Rule, ...]:
    known = nft.Rule((nft.InSet(("daddr",), CLUSTER_IPS), nft.Reject()), comment="Reject traffic to invalid ports of ClusterIPs")
    ranges = tuple(cidr for cidr in config.service_cidrs if family_of(cidr) == family)
    if not ranges:
        return (known,)
    drop = nft.Rule((nft.Address("daddr", ranges), nft.Verdict("drop")), comment="Drop traffic to unallocated ClusterIPs")
    return known, drop


def _masquerading_rules(mark: int) -> tuple[nft.Rule, ...]:
    return (
        nft.Rule((nft.MarkBits(mark, 0), nft.Verdict("return"))),
        nft.Rule((nft.MarkSet("^", mark),)),  # a packet that comes by again must not be masqueraded again
        nft.Rule((nft.Masquerade(fully_random=True),)),
    )
