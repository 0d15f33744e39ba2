"""What load balancers are told: which ports, and how many endpoints."""

from __future__ import annotations

import pytest

from podwire_nodeagent.proxy.health import HealthChecks


def service(name="web", port=30000, **spec):
    spec = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port, **spec}
    spec |= {"clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30080}, {"name": "x", "port": 81, "nodePort": 30081}]}
    return {"metadata": {"namespace": "ns", "name": name}, "spec": spec, "status": {}}


def endpoint_slice(*endpoints, name="web"):
    ports = [{"port": 80}, {"name": "x", "port": 81}]
    meta = {"namespace": "ns", "name": f"{name}-1", "labels": {"kubernetes.io/service-name": name}}
    given = [{"addresses": [ip], "nodeName": node, "conditions": conditions} for ip, node, conditions in endpoints]
    return {"metadata": meta, "addressType": "IPv4", "ports": ports, "endpoints": given}


HERE, THERE = ("10.244.1.5", "node1", {}), ("10.244.2.5", "node2", {})
UNREADY = ("10.244.1.6", "node1", {"ready": False})
ENDING = ("10.244.1.7", "node1", {"ready": False, "serving": True, "terminating": True})


def checks(services, slices):
    made = HealthChecks("node1")
    made.change(services, slices, services, slices)
    return made


@pytest.mark.parametrize(
    ("endpoints", "count"),
    [([HERE, THERE], 1), ([THERE], 0), ([HERE, UNREADY], 1), ([ENDING], 0), ([HERE, ("10.244.1.8", "node1", {})], 2), ([], 0)],
)
def test_ready_addresses_on_this_node(endpoints, count):
    made = checks({"ns/web": service()}, {"ns/web-1": endpoint_slice(*endpoints)})
    assert made.ports == {30000: ("ns/web", count)}


@pytest.mark.parametrize("spec", [{"type": "NodePort"}, {"externalTrafficPolicy": "Cluster"}, {"healthCheckNodePort": 0}])
def test_services_without(spec):
    assert checks({"ns/web": service(**spec)}, {}).ports == {}


def test_changes():
    services, slices = {"ns/web": service()}, {"ns/web-1": endpoint_slice(HERE)}
    made = checks(services, slices)
    assert made.change({}, {"ns/other-1": endpoint_slice(HERE, name="other")}, services, slices) is False
    slices["ns/web-1"] = endpoint_slice(THERE)
    assert made.change({}, {"ns/web-1": slices["ns/web-1"]}, services, slices) is True
    assert made.ports == {30000: ("ns/web", 0)}
    services["ns/web"] = service(port=30001)
    assert made.change({"ns/web": services["ns/web"]}, {}, services, slices) is True
    assert list(made.ports) == [30001]
    assert made.change({"ns/web": None}, {}, {}, slices) is True
    assert made.ports == {}
