"""The objects of kube-system that a cluster starts with, as kubeadm makes them: the DNS servers and their Service.

They are ordinary objects: `podwire get -n kube-system`, `edit` by apply, delete. Names, labels, ports and the Corefile are
kubeadm's, so that what books and scripts say of them holds.
"""

from __future__ import annotations

from podwire_core.constants import CLUSTER_DOMAIN, DNS_IP, DNS_IP6, POD_CIDR, POD_CIDR6
from podwire_core.objects import Json

NAMESPACE = "kube-system"
LABELS = {"k8s-app": "kube-dns"}

COREFILE = f"""\
.:53 {{
    errors
    health {{
       lameduck 5s
    }}
    ready
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa ip6.arpa {{
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }}
    prometheus :9153
    forward . /etc/resolv.conf {{
       max_concurrent 1000
    }}
    cache 30
    loop
    reload
    loadbalance
}}
"""


KUBE_PROXY = f"""\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: ""  # as `podwire up --proxy` said; iptables, nftables, ipvs or ebpf puts all nodes on that, without a restart
clusterCIDR: {POD_CIDR},{POD_CIDR6}
"""


def before_nodes(families: tuple[int, ...] = (4,)) -> list[Json]:
    """What nodes may find when they come."""
    return [_config(), _proxy_config(), _service(families)]


def after_nodes(replicas: int = 2) -> list[Json]:
    """What is to be spread over nodes, so applied when they are there."""
    return [_deployment(replicas)]


def _meta(name: str, **more: object) -> Json:
    return {"name": name, "namespace": NAMESPACE, **more}


def _config() -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _meta("coredns"), "data": {"Corefile": COREFILE}}


def _proxy_config() -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _meta("kube-proxy", labels={"app": "kube-proxy"}),
        "data": {"config.conf": KUBE_PROXY},
    }


def _service(families: tuple[int, ...]) -> Json:
    address = {4: DNS_IP, 6: DNS_IP6}[families[0]]
    policy = {"ipFamilyPolicy": "PreferDualStack"} if len(families) > 1 else {}
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
        {"name": "metrics", "port": 9153, "protocol": "TCP", "targetPort": 9153},
    ]
    labels = {**LABELS, "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta("kube-dns", labels=labels),
        "spec": {"clusterIP": address, "clusterIPs": [address], "selector": LABELS, "ports": ports, **policy},
    }


def _deployment(replicas: int) -> Json:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _meta("coredns", labels=LABELS),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": LABELS},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "template": {"metadata": {"labels": LABELS}, "spec": _pod_spec()},
        },
    }


def _pod_spec() -> Json:
    container = {
        "name": "coredns",
        "image": "registry.k8s.io/coredns/coredns:v1.11.1",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [
            {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
            {"name": "metrics", "containerPort": 9153, "protocol": "TCP"},
        ],
        "volumeMounts": [{"name": "config-volume", "mountPath": "/etc/coredns", "readOnly": True}],
        # kubeadm's probes are /health on 8080 and /ready on 8181; periods are shorter, so that a cluster starts in seconds
        "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}, "initialDelaySeconds": 60, "failureThreshold": 5},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
    }
    apart = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": LABELS}}
    anti_affinity = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": apart}]}
    return {
        "priorityClassName": "system-cluster-critical",
        "affinity": {"podAntiAffinity": anti_affinity},
        "dnsPolicy": "Default",
        "containers": [container],
        "volumes": [
            {"name": "config-volume", "configMap": {"name": "coredns", "items": [{"key": "Corefile", "path": "Corefile"}]}}
        ],
    }
