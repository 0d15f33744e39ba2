"""Addresses of LoadBalancers: given, kept, asked for, refused, released."""

from __future__ import annotations

import pytest

from podwire_apiserver.controllers import settle
from podwire_apiserver.controllers.loadbalancer import LoadBalancerController, addresses_of

from .conftest import Cluster


@pytest.fixture
def cluster():
    return Cluster(0)


def put(cluster, name, *, status=None, **spec):
    spec = {"type": "LoadBalancer", "ports": [{"port": 80}], "selector": {"app": "web"}, **spec}
    cluster.put("Service", name, spec=spec, status=status or {})


def addresses(cluster, *names):
    cluster.settle()
    return [addresses_of(cluster.get("Service", name)) for name in names]


def test_the_lowest_free_address_as_vip(cluster):
    put(cluster, "a")
    put(cluster, "b")
    assert addresses(cluster, "a", "b") == [["198.51.100.1"], ["198.51.100.2"]]
    assert cluster.get("Service", "a")["status"]["loadBalancer"] == {"ingress": [{"ip": "198.51.100.1", "ipMode": "VIP"}]}
    assert LoadBalancerController().reconcile(cluster.view, "default/a", 0) == []  # and that is all


@pytest.mark.parametrize(
    "spec", [{"type": "NodePort"}, {"type": "ClusterIP"}, {"loadBalancerClass": "example.com/x"}, {"ipFamilies": ["IPv6"]}]
)
def test_others_get_none(cluster, spec):
    put(cluster, "a", **spec)
    assert addresses(cluster, "a") == [[]]


def test_the_address_asked_for(cluster):
    put(cluster, "a", loadBalancerIP="198.51.100.77")
    assert addresses(cluster, "a") == [["198.51.100.77"]]
    cluster.change("Service", "default/a", loadBalancerIP="198.51.100.78")
    assert addresses(cluster, "a") == [["198.51.100.78"]]


@pytest.mark.parametrize(("asked", "why"), [("198.51.100.1", "taken"), ("10.0.0.1", "pool"), ("nonsense", "pool")])
def test_what_cannot_be_given_is_said(cluster, asked, why):
    put(cluster, "a")
    cluster.settle()
    put(cluster, "b", loadBalancerIP=asked)
    assert addresses(cluster, "b") == [[]]
    [said] = LoadBalancerController().reconcile(cluster.view, "default/b", 0)
    assert (said.reason, said.type) == ("SyncLoadBalancerFailed", "Warning")
    assert why in said.message


def test_given_status_is_kept(cluster):
    given = {"loadBalancer": {"ingress": [{"hostname": "lb.example.com"}]}}
    put(cluster, "a", status=given)
    assert addresses(cluster, "a") == [["lb.example.com"]]
    put(cluster, "b", status={"loadBalancer": {"ingress": [{"ip": "5.6.7.8"}]}}, loadBalancerIP="198.51.100.9")
    assert addresses(cluster, "b") == [["5.6.7.8"]]


def test_released_when_the_type_changes_and_given_to_who_waits(cluster):
    for name in "ab":
        put(cluster, name)
    cluster.settle()
    put(cluster, "c", loadBalancerIP="198.51.100.1")
    assert addresses(cluster, "c") == [[]]
    cluster.change("Service", "default/a", type="ClusterIP")
    assert addresses(cluster, "a", "c") == [[], ["198.51.100.1"]]
    assert cluster.get("Service", "a")["status"] == {"loadBalancer": {}}


def test_released_when_the_service_goes(cluster):
    put(cluster, "a")
    cluster.settle()
    cluster.delete("Service", "default/a", cluster.now)
    put(cluster, "b")
    assert addresses(cluster, "b") == [["198.51.100.1"]]


def test_an_empty_pool(cluster):
    for name in "abc":
        put(cluster, name)
    controller = LoadBalancerController("198.51.100.0/30")  # two addresses
    cluster.settle()
    cluster.view.apply("Service", "default/c", {**cluster.get("Service", "c"), "status": {}})
    [said] = controller.reconcile(cluster.view, "default/c", 0)
    assert said.message == "no address is left in the pool 198.51.100.0/30"


def service(name, **more):
    spec = {"type": "LoadBalancer", "ports": [{"port": 80}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec, **more}


def test_settle_fills_in_what_is_missing_and_keeps_what_is_given():
    given = {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}}
    other = service("c", status=given)
    other["spec"]["type"] = "ClusterIP"
    settled = settle([service("a"), service("b", status=given), other])
    found = {obj["metadata"]["name"]: addresses_of(obj) for obj in settled if obj["kind"] == "Service"}
    assert found == {"a": ["198.51.100.2"], "b": ["198.51.100.1"], "c": ["198.51.100.1"]}
