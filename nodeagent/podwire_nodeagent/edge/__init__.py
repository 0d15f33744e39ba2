"""The edge: the router between the node network and the outside, and the outside itself.

The edge is one more participant of the node network, at the nodes' default gateway. It has a datapath process like a node's, but
no pods and no kube-proxy: what comes for a node goes to that node, what comes for a LoadBalancer's address goes to one of the
nodes that serve it. Behind it is a network namespace with a real kernel, the *outside*, where clients run.

Order to read: announcements.py (which address is served by which nodes), desired.py (what the router's kernel looks
like), state.py (keeping it so), outside.py (the namespace), router.py (the process), __main__.py.
"""
