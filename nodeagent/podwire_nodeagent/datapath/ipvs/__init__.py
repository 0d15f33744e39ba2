"""IP Virtual Server of a node's userspace kernel: connections to a virtual address are given a real server (Linux's ip_vs, with
masquerading and net.ipv4.vs.conntrack=1).

Where it stands among netfilter's hooks, as in Linux:

    INPUT    after filter: a request to a virtual service is scheduled, translated and sent on (OUTPUT's filter, POSTROUTING)
    OUTPUT   after nat, before filter: the same for the node's own requests
    FORWARD, INPUT, OUTPUT   a real server's answer gets the virtual address as its source

Which connection a packet belongs to is conntrack's to say: a connection that was scheduled carries a `Served`. Its answers' key
has the real server in it, so conntrack and NAT (masquerading) see one connection.

Order to read: servers.py (services, real servers, connections), schedulers.py, maglev.py, table.py (`Ipvs`: what happens to
packets), configure.py (operations), listing.py (dumps).
"""

import podwire_nodeagent.datapath.netfilter  # noqa: F401  (hooks.py there and table.py here need each other)
