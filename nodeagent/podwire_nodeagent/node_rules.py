"""What a node's kernel is set to beside its network: sysctls, and the facts from which kube-proxy's rules are compiled.

Pure, and used by the live node (node_state.py) and the simulated one alike.
"""

from __future__ import annotations

from podwire_cni.backends import flannel
from podwire_core.netlink import AddrAdd, SysctlSet
from podwire_core.objects import Json
from podwire_nodeagent.proxy.model import NodeFacts

SYSCTLS = (SysctlSet("net.ipv4.ip_forward", "1"), SysctlSet("net.bridge.bridge-nf-call-iptables", "1"))


def facts_of(node: Json) -> NodeFacts:
    """The node with the addresses that only its interfaces know (its bridge's, its VTEP's). Raises DecodeError."""
    desired = flannel.desired(node, ())
    return NodeFacts.of(node, tuple(op.address.partition("/")[0] for op in desired if isinstance(op, AddrAdd)))
