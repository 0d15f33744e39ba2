"""kube-proxy's mode is changed on a live cluster, on all nodes and on one, while a client connects and holds a connection."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from podwire_nodeagent.proxy.modes import MODES
from tests.support.cluster import ROOT, Cluster, until

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.timeout(120)]

CLIENT = """
import json, os, socket
def ask(sock):
    sock.sendall(b"GET /hostname HTTP/1.1\\r\\nHost: web\\r\\n\\r\\n")
    return b" 200 " in sock.recv(4096)
held, asked, failed = socket.create_connection(("web", 80), 5), 0, []
while not os.path.exists("/tmp/stop"):
    asked += 1
    try:
        with socket.create_connection(("web", 80), 5) as fresh:
            assert ask(fresh)
    except Exception as error:
        failed.append(f"new connection {asked}: {error!r}")
    try:
        assert ask(held)
    except Exception as error:
        failed.append(f"held connection {asked}: {error!r}")
        break
print(json.dumps({"asked": asked, "failed": failed}))
"""
CONFIGURATION = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {}\n"
# What shows that a mode is in force on a node, and that it is not.
SIGNS = {
    "iptables": (["iptables-save", "-t", "nat"], "-j KUBE-SVC-"),
    "nftables": (["nft", "list", "tables"], "table ip kube-proxy"),
    "ipvs": (["ipvsadm", "-Ln"], "TCP "),
    "ebpf": (["cilium-dbg", "service", "list"], "ClusterIP"),
}


def in_force(cluster: Cluster, node: str) -> set[str]:
    return {mode for mode, (command, sign) in SIGNS.items() if sign in cluster("node", node, "--", *command)}


def put_all_on(cluster: Cluster, mode: str) -> None:
    meta = {"name": "kube-proxy", "namespace": "kube-system"}
    data = {"config.conf": CONFIGURATION.format(mode)}
    cluster("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}))


def put_node_on(cluster: Cluster, node: str, mode: str) -> None:
    meta: dict[str, Any] = {"name": node, "annotations": {"podwire.dev/proxy-mode": mode}}
    cluster("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": meta}))


@pytest.fixture(scope="module")
def cluster(new_cluster):
    made: Cluster = new_cluster("--nodes", "2")
    made("apply", "-f", str(ROOT / "examples/web.yaml"))
    made("rollout", "status", "deploy/web")
    made("wait", "pod/client", "--for=condition=Ready")
    return made


def test_connections_last_through_every_change(cluster: Cluster, record_property):
    client = cluster.popen("exec", "client", "--", "python3", "-c", CLIENT, stdout=subprocess.PIPE)
    for mode in [*MODES[1:], MODES[0]]:
        put_all_on(cluster, mode)
        for node in ("node1", "node2"):
            until(lambda node=node, mode=mode: in_force(cluster, node) == {mode}, f"{node} in mode {mode} alone")
    for mode in MODES[1:]:
        put_node_on(cluster, "node1", mode)
        until(lambda mode=mode: in_force(cluster, "node1") == {mode}, f"node1 in mode {mode} alone")
        assert in_force(cluster, "node2") == {MODES[0]}
    cluster("exec", "client", "--", "touch", "/tmp/stop")
    found = json.loads(client.communicate(timeout=30)[0])
    record_property("requests while modes changed", found["asked"])
    assert found["failed"] == []
    assert found["asked"] > 50


def test_a_wrong_configuration_changes_nothing_and_is_told(cluster: Cluster):
    before = in_force(cluster, "node2")
    put_all_on(cluster, "warp")
    until(lambda: "'warp'" in cluster("get", "events"), "an event that says so")
    assert in_force(cluster, "node2") == before
