"""`check(proxy="ebpf")`: every backend is played, with random choice and with Maglev; who decided is an element of a map."""

from __future__ import annotations

import pytest

from podwire.check import check

NODES = [
    {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"node{n}"},
        "spec": {"podCIDR": f"10.244.{n}.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": f"192.168.1.{10 + n}"}]},
    }
    for n in (1, 2)
]


def pod(name, node, ip, app):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": app}},
        "spec": {"nodeName": f"node{node}", "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}]}]},
        "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]},
    }


WEB = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {
        "type": "NodePort",
        "clusterIP": "10.96.0.50",
        "selector": {"app": "web"},
        "ports": [{"port": 80, "nodePort": 30080}],
    },
}
BACKENDS = [f"10.244.{1 + n % 2}.{20 + n}" for n in range(5)]
OBJECTS = [
    *NODES,
    pod("client", 1, "10.244.1.10", "client"),
    *(pod(f"web-{n}", 1 + n % 2, ip, "web") for n, ip in enumerate(BACKENDS)),
    WEB,
]


@pytest.mark.parametrize("settings", [{}, {"algorithm": "maglev", "maglevTableSize": 251}, {"mode": "dsr"}, {"socketLB": "all"}])
def test_all_backends_are_played(settings):
    config = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "ebpf": settings}
    flows = [
        {"id": "pod", "from": {"pod": "default/client"}, "to": {"service": "default/web"}, "port": 80},
        {"id": "host", "from": {"node": "node1"}, "to": {"service": "default/web"}, "port": 80},
        {"id": "outside", "from": {"ip": "203.0.113.9", "node": "node1"}, "to": {"ip": "192.168.1.11"}, "port": 30080},
        {"id": "self", "from": {"pod": "default/web-0"}, "to": {"service": "default/web"}, "port": 80},
    ]
    for result in check([*OBJECTS, config], [{"protocol": "TCP", **flow} for flow in flows], proxy="ebpf"):
        assert result["verdict"] == "delivered"
        assert sorted(d["ip"] for d in result["destinations"]) == sorted(BACKENDS)
        assert result["translated"]
        assert result["decided_by"]["rule"].startswith("cilium_lb4_services_v2[")
        assert result["decided_by"]["object"] == "Service default/web"
        if result["id"] == "outside":
            dsr = settings.get("mode") == "dsr"
            kept = {d["source"] == "203.0.113.9" for d in result["destinations"] if d["node"] == "node2"}
            assert kept == {dsr}
