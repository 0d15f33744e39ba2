"""A live cluster in mode ebpf: names, node ports, a pod that reaches itself, refusals, the trace, and the maps by their tools."""

from __future__ import annotations

import json

import pytest

from tests.support.cluster import ROOT, Cluster, until

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.timeout(120)]

SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: out}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: http, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: self}
spec:
  selector: {app: client}
  ports: [{port: 80, targetPort: 8000}]
---
apiVersion: v1
kind: Service
metadata: {name: none}
spec:
  selector: {app: nobody}
  ports: [{port: 80}]
"""


@pytest.fixture(scope="module")
def cluster(new_cluster):
    made: Cluster = new_cluster("--nodes", "2", "--proxy", "ebpf")
    made("apply", "-f", str(ROOT / "examples/web.yaml"))
    made("apply", "-f", "-", stdin=SERVICES)
    made("rollout", "status", "deploy/web", "--timeout", "60s", timeout=70)
    made("wait", "pod/client", "--for=condition=Ready", "--timeout", "60s", timeout=70)
    return made


def curl(cluster, *where, url):
    return cluster.run(*where, "--", "curl", "-s", "-m", "5", url)


def test_pods_and_nodes_reach_the_service(cluster):
    assert "client: 10.244." in curl(cluster, "exec", "client", url="http://web").out
    for node in ("node1", "node2"):
        for address in ("192.168.1.11", "192.168.1.12"):
            assert "pod: default/web-" in curl(cluster, "node", node, url=f"http://{address}:30080").out


def test_a_service_without_backend_refuses_at_once(cluster):
    assert curl(cluster, "exec", "client", url="http://none").code == 7


def test_a_pod_reaches_itself(cluster):
    server = cluster.popen("exec", "client", "--", "python3", "-m", "http.server", "8000")
    try:
        until(lambda: curl(cluster, "exec", "client", url="http://self").code == 0, "the pod's own Service answers")
    finally:
        server.terminate()
        server.wait(10)


def test_the_trace_and_the_tools_show_the_maps(cluster):
    text = cluster("trace", "client", "http://web")
    assert "ebpf/from-container" in text
    assert "cilium_lb4_services_v2[" in text
    assert "cilium_lb4_reverse_nat[" in text
    listed = json.loads(cluster("node", "node1", "--", "cilium-dbg", "service", "list", "-o", "json"))
    assert any(each["type"] == "NodePort" and len(each["backends"]) == 2 for each in listed)
    assert "Found " in cluster("node", "node1", "--", "bpftool", "map", "dump", "name", "cilium_lb4_backends_v3")
    assert "KUBE-SVC" not in cluster("node", "node1", "--", "iptables-save")
