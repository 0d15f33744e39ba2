"""kube-proxy: Services and EndpointSlices to dataplane state. Order to read: ports, endpoints, model, config, then a mode
(iptables: service_rules, iptables, conntrack, compose)."""
