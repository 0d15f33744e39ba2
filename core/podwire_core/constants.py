"""Names and numbers that several components must agree on."""

CLUSTER_DOMAIN = "cluster.local"
SERVICE_CIDR = "10.96.0.0/12"
POD_CIDR = "10.244.0.0/16"
SERVICE_CIDR6 = "fd00:10:96::/112"
POD_CIDR6 = "fd00:10:244::/56"  # a /64 a node
NODE_NETWORK = "192.168.1.0/24"  # InternalIPs: node n has 192.168.1.(10+n)
NODE_NETWORK6 = "fd00:192:168:1::/64"  # node n has fd00:192:168:1::(10+n), in decimal digits
NODE_GATEWAY6 = "fd00:192:168:1::1"
NODE_GATEWAY = "192.168.1.1"  # the nodes' way out, their default route; the edge, if the cluster has one
LOAD_BALANCER_POOL = "198.51.100.0/24"  # addresses of Services of type LoadBalancer
OUTSIDE_NETWORK = "203.0.113.0/24"  # where clients outside the cluster are
OUTSIDE_GATEWAY = "203.0.113.1"  # the edge's address there
OUTSIDE_CLIENT = "203.0.113.10"
DNS_IP = "10.96.0.10"
DNS_IP6 = "fd00:10:96::a"
KUBERNETES_IP = "10.96.0.1"
NODE_PORT_RANGE = (30000, 32767)
VXLAN_PORT = 8472  # Flannel's; the IANA port is 4789
VXLAN_VNI = 1
CABLE_PORT = 8473  # podwire's own: Ethernet frames in UDP between agents
HOST_GATEWAY = "169.254.1.1"  # next hop of every route in a node's host namespace: the datapath
HOST_GATEWAY6 = "fe80::1"
GATEWAY_MAC = "02:00:a9:fe:01:01"  # its MAC, the datapath's end of the host link

NODE_LEASE_NAMESPACE = "kube-node-lease"
NODE_LEASE_SECONDS = 40
