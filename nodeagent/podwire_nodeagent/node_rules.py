"""What a node's kernel is set to beside its network: sysctls, and the facts from which kube-proxy's rules are compiled.

Pure, and used by the live node (node_state.py) and the simulated one alike.
"""

from __future__ import annotations

from podwire_cni.backends import flannel
from podwire_core.netlink import AddrAdd, SysctlSet
from podwire_core.objects import Json, Node, decode
from podwire_nodeagent.proxy.model import NodeFacts

SYSCTLS = (SysctlSet("net.ipv4.ip_forward", "1"), SysctlSet("net.bridge.bridge-nf-call-iptables", "1"))
SYSCTLS6 = (
    SysctlSet("net.ipv6.conf.all.disable_ipv6", "0"),
    SysctlSet("net.ipv6.conf.all.forwarding", "1"),
    SysctlSet("net.bridge.bridge-nf-call-ip6tables", "1"),
)
NO_IPV6 = (SysctlSet("net.ipv6.conf.all.disable_ipv6", "1"),)


def sysctls_of(node: Json) -> tuple[SysctlSet, ...]:
    """IPv6 is off on a node that has no pods of that family."""
    return (*SYSCTLS, *(SYSCTLS6 if 6 in flannel.families(decode(Node, node)) else NO_IPV6))


def facts_of(node: Json) -> NodeFacts:
    """The node with the addresses that only its interfaces know (its bridge's, its VTEP's). Raises DecodeError."""
    desired = flannel.desired(node, ())
    return NodeFacts.of(node, tuple(op.address.partition("/")[0] for op in desired if isinstance(op, AddrAdd)))
