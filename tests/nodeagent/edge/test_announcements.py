"""Which nodes serve which address, by changes as at once."""

from __future__ import annotations

import pytest

from podwire_nodeagent.edge.announcements import EXCLUDED, Announcements

KINDS = ("Node", "Service", "EndpointSlice")


def node(name, ready="True", **labels):
    status = {"conditions": [{"type": "Ready", "status": ready}]}
    return {"kind": "Node", "metadata": {"name": name, "labels": labels}, "status": status}


def service(name="web", ip="198.51.100.1", mode="VIP", **spec):
    spec = {"type": "LoadBalancer", "clusterIP": "10.96.0.9", "ports": [{"port": 80}], **spec}
    status = {"loadBalancer": {"ingress": [{"ip": ip, "ipMode": mode}] if ip else []}}
    return {"kind": "Service", "metadata": {"namespace": "ns", "name": name}, "spec": spec, "status": status}


def endpoint(at, **conditions):
    return {"addresses": ["10.244.1.5"], "nodeName": at, "conditions": conditions}


def slice_of(name, *endpoints, kind="IPv4"):
    meta = {"namespace": "ns", "name": f"{name}-1", "labels": {"kubernetes.io/service-name": name}}
    ports = [{"port": 80}]
    return {"kind": "EndpointSlice", "metadata": meta, "addressType": kind, "ports": ports, "endpoints": [*endpoints]}


class World:
    def __init__(self, *objects):
        self.all = {kind: {} for kind in KINDS}
        self.announced = Announcements()
        self.put(*objects)

    def put(self, *objects):
        """Whether anything is announced differently."""
        changes = {kind: {} for kind in KINDS}
        for obj in objects:
            self.all[obj["kind"]][self.key(obj)] = changes[obj["kind"]][self.key(obj)] = obj
        return self._change(changes)

    def remove(self, obj):
        del self.all[obj["kind"]][self.key(obj)]
        return self._change({kind: {self.key(obj): None} if kind == obj["kind"] else {} for kind in KINDS})

    def _change(self, changes):
        return self.announced.change(changes["Service"], changes["EndpointSlice"], changes["Node"], self.all)

    @staticmethod
    def key(obj):
        meta = obj["metadata"]
        return f"{meta['namespace']}/{meta['name']}" if "namespace" in meta else meta["name"]


NODES = [node("n1"), node("n2"), node("n3")]
LOCAL = {"externalTrafficPolicy": "Local"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (service(), {"198.51.100.1": ("n1", "n2", "n3")}),
        (service(mode="Proxy"), {}),
        (service(ip=""), {}),
        (service(ip="2001:db8::1"), {}),
        (service(ip="192.168.1.12"), {}),  # a node's own: the node network leads there
        (service(ip="", type="ClusterIP", externalIPs=["203.0.113.99"]), {"203.0.113.99": ("n1", "n2", "n3")}),
        (service(clusterIP="None"), {}),  # no node serves it
        (service(**LOCAL), {"198.51.100.1": ()}),
    ],
)
def test_what_is_announced(given, expected):
    assert World(*NODES, given).announced.by_address() == expected


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        ([endpoint("n1"), endpoint("n3", ready=True)], ("n1", "n3")),
        ([endpoint("n1", ready=False), endpoint("n2")], ("n2",)),
        ([endpoint("n1", ready=False, serving=True, terminating=True)], ("n1",)),
        ([endpoint("n1", ready=False, serving=True, terminating=True), endpoint("n2")], ("n2",)),
        ([endpoint("gone")], ()),
        ([endpoint(None)], ()),
    ],
)
def test_policy_local(endpoints, expected):
    world = World(*NODES, service(**LOCAL), slice_of("web", *endpoints))
    assert world.announced.by_address() == {"198.51.100.1": expected}


def test_nodes_that_serve():
    world = World(node("n1"), node("n2", "False"), node("n3", **{EXCLUDED: ""}), service())
    assert world.announced.by_address() == {"198.51.100.1": ("n1",)}
    assert world.put(node("n2"))
    assert world.announced.by_address() == {"198.51.100.1": ("n1", "n2")}


def test_changes_one_by_one():
    world = World(*NODES)
    assert world.put(slice_of("web", endpoint("n1"))) is False  # of a Service that is not here yet
    assert world.put(service(**LOCAL))
    assert world.announced.by_address() == {"198.51.100.1": ("n1",)}
    assert world.put(slice_of("web", endpoint("n2")))
    assert world.put(slice_of("other", endpoint("n3"))) is False
    assert world.put(service()) is True
    assert world.announced.by_address() == {"198.51.100.1": ("n1", "n2", "n3")}
    assert world.put(service(**LOCAL))
    assert world.announced.by_address() == {"198.51.100.1": ("n2",)}
    assert world.remove(slice_of("web"))
    assert world.announced.by_address() == {"198.51.100.1": ()}
    assert world.remove(service())
    assert world.announced.by_address() == {}
