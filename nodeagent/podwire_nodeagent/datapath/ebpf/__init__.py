"""The eBPF load balancer: what a node does instead of kube-proxy's rules, as Cilium does it.

Programs run at the hooks of real Cilium, before netfilter sees a packet and after it has: from-container at tc ingress of a
pod's link, from-netdev at that of the uplink, from-overlay behind the tunnel, to-container and the way to the host namespace on
the way back. They look Services up in maps whose content an agent writes (podwire_core.ebpf), choose a backend, and keep a
connection table of their own.

Rules:
- A client on this node (a pod, the node's own sockets) is translated on its way in, and back on its way out: between the two,
  netfilter tracks the translated connection and Flannel's masquerading works on it.
- Traffic from outside is translated on its way in, both ways; netfilter does not track it (as Cilium's NOTRACK rules), and its
  source is not validated (as behind bpf_redirect).
- Without configuration nothing new is translated, but connections that exist go on until they end.

Order to read: table.py (connections), maglev.py, lb.py (maps, lookup, choice), programs.py (the hooks), listing.py (dumps).
"""
