"""Rich objects that are right, and each of them with a wrong value at every place: the answer is an error, never a failure."""

from __future__ import annotations

import copy

import pytest

from podwire_apiserver import admission
from podwire_apiserver.apply import apply_all
from podwire_core.errors import ApiError

WRONG = ["No such!", -1, 1.5, None, [], {}, [None], {"a": {"b": []}}]

POD = {
    "hostname": "h",
    "subdomain": "sub",
    "nodeSelector": {"zone": "a"},
    "tolerations": [{"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule", "tolerationSeconds": 5}],
    "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a.b"]}],
    "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a.b"], "options": [{"name": "ndots", "value": "2"}]},
    "volumes": [{"name": "v", "configMap": {"name": "c"}}, {"name": "e"}],
    "securityContext": {"sysctls": []},
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [{"maxSkew": 1}],
    "readinessGates": [{"conditionType": "x/y"}],
    "activeDeadlineSeconds": 5,
    "initContainers": [{"name": "i", "image": "busybox", "command": ["sh"]}],
    "containers": [
        {
            "name": "c",
            "image": "nginx:1",
            "args": ["a"],
            "ports": [{"name": "http", "containerPort": 80, "hostPort": 8080, "hostIP": "1.2.3.4"}],
            "env": [{"name": "A", "value": "b"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "envFrom": [{"prefix": "X_", "configMapRef": {"name": "c", "optional": True}}],
            "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}, "requests": {"cpu": 0.05}},
            "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": True}],
            "livenessProbe": {"httpGet": {"port": "http", "httpHeaders": [{"name": "A", "value": "b"}]}, "periodSeconds": 3},
            "readinessProbe": {"exec": {"command": ["true"]}, "successThreshold": 2},
            "startupProbe": {"grpc": {"port": 80}},
            "lifecycle": {"preStop": {"sleep": {"seconds": 1}}, "postStart": {"tcpSocket": {"port": 80}}},
            "securityContext": {"privileged": False},
        }
    ],
}
TEMPLATE = {"metadata": {"labels": {"a": "b"}, "annotations": {"x": "y"}}, "spec": POD}
SELECTOR = {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}
PEER = {"podSelector": {"matchLabels": {"a": "b"}}, "namespaceSelector": {}}
POLICY = {
    "podSelector": SELECTOR,
    "policyTypes": ["Ingress", "Egress"],
    "ingress": [
        {"from": [PEER, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}], "ports": [{"port": 80, "endPort": 90}]}
    ],
    "egress": [{"to": [PEER], "ports": [{"port": "http", "protocol": "UDP"}]}],
}
SERVICE = {
    "type": "LoadBalancer",
    "selector": {"a": "b"},
    "ports": [
        {"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080, "appProtocol": "http"},
        {"name": "b", "port": 81},
    ],
    "clusterIP": "10.96.0.99",
    "clusterIPs": ["10.96.0.99"],
    "externalIPs": ["1.2.3.4"],
    "sessionAffinity": "ClientIP",
    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}},
    "externalTrafficPolicy": "Local",
    "loadBalancerSourceRanges": ["10.0.0.0/8"],
    "loadBalancerIP": "5.6.7.8",
    "ipFamilies": ["IPv4"],
    "ipFamilyPolicy": "SingleStack",
}
SCHEMA = {
    "type": "object",
    "properties": {"size": {"type": "integer", "enum": [1, 2]}},
    "additionalProperties": {"type": "string"},
}
NODE = {"podCIDR": "10.1.2.0/24", "podCIDRs": ["10.1.2.0/24"], "taints": [{"key": "k", "value": "v", "effect": "NoExecute"}]}
CRD = {
    "group": "example.com",
    "names": {"kind": "Widget", "plural": "widgets", "shortNames": ["w"]},
    "scope": "Namespaced",
    "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": SCHEMA}}],
}
ROLLING = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}}
SMALL = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
JOB = {"template": {"spec": {**SMALL["spec"], "restartPolicy": "Never"}}}
ENDPOINT = {"addresses": ["1.2.3.4"], "conditions": {"ready": True}, "hostname": "h", "hints": {"forZones": [{"name": "a"}]}}
OBJECTS = [
    ("v1", "Pod", {"spec": POD}),
    ("v1", "Service", {"spec": SERVICE}),
    ("v1", "Node", {"spec": NODE, "status": {"addresses": [{"type": "InternalIP", "address": "1.2.3.4"}]}}),
    ("v1", "Namespace", {"spec": {"finalizers": ["kubernetes"]}}),
    ("v1", "ConfigMap", {"data": {"a": "b"}, "binaryData": {"c": "ZA=="}}),
    ("v1", "Secret", {"type": "Opaque", "data": {"a": "Yg=="}, "stringData": {"c": "d"}}),
    ("v1", "Endpoints", {"subsets": [{"addresses": [{"ip": "1.2.3.4", "targetRef": {}}], "ports": [{"name": "a", "port": 80}]}]}),
    ("v1", "ReplicationController", {"spec": {"replicas": 1, "selector": {"a": "b"}, "template": SMALL}}),
    ("v1", "Event", {"involvedObject": {"kind": "Pod", "name": "p"}, "count": 1}),
    ("apps/v1", "Deployment", {"spec": {"replicas": 2, "selector": SELECTOR, "template": TEMPLATE, "strategy": ROLLING}}),
    ("apps/v1", "DaemonSet", {"spec": {"selector": SELECTOR, "template": SMALL, "updateStrategy": ROLLING}}),
    ("apps/v1", "StatefulSet", {"spec": {"selector": SELECTOR, "template": SMALL, "serviceName": "s", "replicas": 1}}),
    ("batch/v1", "Job", {"spec": {**JOB, "completions": 2, "parallelism": 1}}),
    ("batch/v1", "CronJob", {"spec": {"schedule": "@hourly", "jobTemplate": {"spec": JOB}}}),
    ("networking.k8s.io/v1", "NetworkPolicy", {"spec": POLICY}),
    ("networking.k8s.io/v1", "ServiceCIDR", {"spec": {"cidrs": ["10.0.0.0/16"]}}),
    ("discovery.k8s.io/v1", "EndpointSlice", {
        "addressType": "IPv4",
        "endpoints": [ENDPOINT],
        "ports": [{"name": "http", "port": 80}],
    }),
    ("coordination.k8s.io/v1", "Lease", {"spec": {"holderIdentity": "x", "leaseDurationSeconds": 40}}),
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition", {"spec": CRD}),
]  # fmt: skip


def paths(value, path=()):
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths(item, (*path, key))


def replaced(value, path, new):
    result = copy.deepcopy(value)
    at = result
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = new
    return result


def whole(version, kind, body):
    meta = {
        "name": "widgets.example.com" if kind.startswith("Custom") else "x",
        "labels": {"a": "b"},
        "annotations": {"a": "b"},
        "finalizers": ["a.b/c"],
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "u", "controller": True}],
    }
    return {"apiVersion": version, "kind": kind, "metadata": meta, **body}


def outcome(world, obj):
    """200, or the code of the error; anything else than an ApiError fails the test."""
    try:
        apply_all(world.api, [obj], dry_run=True)
    except ApiError as error:
        return error.code
    return 200


@pytest.mark.parametrize(("version", "kind", "body"), OBJECTS, ids=[kind for _, kind, _ in OBJECTS])
def test_a_wrong_value_anywhere(world, version, kind, body):
    obj = whole(version, kind, body)
    [done] = apply_all(world.api, [obj], dry_run=True)
    assert done.what == "created"
    refused = 0
    for path in list(paths(obj))[1:]:
        for wrong in WRONG:
            refused += outcome(world, replaced(obj, path, wrong)) != 200
    assert refused > 5


@pytest.mark.parametrize(("version", "kind", "body"), OBJECTS, ids=[kind for _, kind, _ in OBJECTS])
def test_defaulting_twice_is_defaulting_once(version, kind, body):
    once = admission.default(whole(version, kind, body))
    assert admission.default(once) == once


def test_an_update_with_a_wrong_value_anywhere(world):
    for version, kind, body in OBJECTS:
        obj = whole(version, kind, body)
        world.api.create(obj)
        for path in list(paths(body))[1:]:
            for wrong in ("x", -1, {}):
                outcome(world, replaced(obj, path, wrong))
