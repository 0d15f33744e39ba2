"""nftables: a table's chains, sets and verdict maps in force, beside the iptables tables.

A packet meets base chains by hook and priority (`tables.place`); the engine decides with the operations of `netfilter.chains`, so
that translation, rejection and tracing are the hooks' own, whoever wrote the rule.

Order to read: compiled.py (what is in force), statements.py (a rule compiled), walk.py (a packet), tables.py (transactions,
dumps), explain.py (trace steps).
"""

from podwire_nodeagent.datapath.nftables.tables import Nftables
from podwire_nodeagent.datapath.nftables.walk import Path, walk

__all__ = ["Nftables", "Path", "walk"]
