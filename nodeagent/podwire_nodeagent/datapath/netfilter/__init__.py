"""Netfilter of a node's userspace kernel: tables and chains, connection tracking, NAT.

How the stack uses it (Linux's order; every hook returns an `Outcome`, `ACCEPT` by identity, or the stack drops / rejects):

    arriving:   prerouting → route → input  (for this node)      or  forward → postrouting → out
    from here:  output     → route again if addresses or mark changed → postrouting → out

A packet must be whole (reassembled) before `prerouting` and `output`. Hooks rewrite the packet's buffer and view in place.

Order to read: outcome.py, connection.py (an entry), tcp.py and protocols.py (states and timeouts), conntrack.py (the
table), nat.py, matches.py, targets.py and chains.py (compiled rules and their walk), ruleset.py and graph.py (transactions),
hooks.py (`Netfilter`, all together).
"""

from podwire_nodeagent.datapath.netfilter.connection import Connection
from podwire_nodeagent.datapath.netfilter.hooks import Netfilter
from podwire_nodeagent.datapath.netfilter.outcome import ACCEPT, SERVED, Outcome

__all__ = ["ACCEPT", "SERVED", "Connection", "Netfilter", "Outcome"]
