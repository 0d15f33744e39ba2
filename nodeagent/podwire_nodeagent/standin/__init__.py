"""Stand-ins: what answers on a pod's ports when its image is not a program of this machine.

All stand-ins of a node share one process (`python -m podwire_nodeagent.standin`); its sockets are opened inside each pod's
network namespace, so a hundred pods cost a hundred sockets, not a hundred processes. Order to read: `answers.py` (what is
said; pure), `server.py` (sockets and the control socket), `client.py` (the kubelet's side).
"""
