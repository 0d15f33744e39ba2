"""Addresses with leading zeros and blanks, which API servers have let in for years: kube-proxy reads them, and so does check."""

from __future__ import annotations

import pytest

from podwire.check import check
from podwire.check_spelling import respell
from podwire_nodeagent.proxy import modes

NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "node1"},
    "spec": {"podCIDR": "10.244.1.0/24"},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.168.1.11"}]},
}
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "type": "LoadBalancer",
        "clusterIP": "10.96.000.007",
        "externalIPs": ["192.0.02.1"],
        "loadBalancerSourceRanges": [" 203.0.113.000/025"],
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
    },
    "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.009"}]}},
}
SLICE = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
    "addressType": "IPv4",
    "endpoints": [{"addresses": ["10.244.01.005"], "nodeName": "node1"}],
    "ports": [{"name": "http", "port": 8080}],
}


@pytest.mark.parametrize("mode", modes.MODES)
def test_they_are_the_addresses_that_they_spell(mode):
    inside, blocked = "203.0.113.5", "203.0.113.200"
    asked = [("10.244.1.9", "10.96.0.7"), (inside, "192.0.2.1"), (inside, "198.51.100.9"), (blocked, "198.51.100.9")]
    flows = [
        {"id": str(number), "from": {"ip": source, "node": "node1"}, "to": {"ip": to}, "port": 80, "protocol": "TCP"}
        for number, (source, to) in enumerate(asked)
    ]
    *through, refused = check([NODE, SERVICE, SLICE], flows, proxy=mode)
    assert [[(d["ip"], d["port"]) for d in result["destinations"]] for result in through] == [[("10.244.1.5", 8080)]] * 3
    assert refused["verdict"] == "dropped"


def test_what_is_no_address_is_refused_as_it_was_given():
    spec = {**SERVICE["spec"], "clusterIP": "10.96.0.256"}
    with pytest.raises(ValueError, match=r'\$\.spec\.clusterIP: "10\.96\.0\.256" is not an IP address'):
        check([NODE, {**SERVICE, "spec": spec}], [])


@pytest.mark.parametrize(
    "odd", [{}, {"spec": 1, "status": []}, {"spec": {"clusterIP": 5, "externalIPs": "x"}, "status": {"loadBalancer": 1}}]
)
def test_other_shapes_are_left_to_the_validation(odd):
    for kind in ("Service", "EndpointSlice"):
        obj = {"kind": kind, "endpoints": ["x"], **odd}
        before = repr(obj)
        respell(obj)
        assert repr(obj) == before
