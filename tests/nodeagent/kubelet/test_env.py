"""Environments: references, expansion, Service variables, by tables."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_core import objects
from podwire_nodeagent.kubelet.env import ConfigError, Context, compose, expand, field, resource, service_variables

CONFIG = {"kind": "ConfigMap", "data": {"color": "red", "bad=key": "x"}}
SECRET = {"kind": "Secret", "data": {"password": base64.b64encode(b"geheim").decode()}}
POD = {
    "metadata": {
        "name": "web-0",
        "namespace": "shop",
        "uid": "u1",
        "labels": {"app": "web", "tier": 'a"b'},
        "annotations": {"note": "two\nlines"},
    },
    "spec": {
        "serviceAccountName": "robot",
        "containers": [
            {"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}},
            {"name": "free"},
        ],
    },
}


def context(services=()):
    stored = {("ConfigMap", "cm"): CONFIG, ("Secret", "s"): SECRET}
    return Context(
        POD,
        objects.decode(objects.Pod, POD).spec,
        "192.168.1.11",
        ["10.244.1.2", "fd00::2"],
        "node1",
        {"cpu": "4", "memory": "8Gi"},
        list(services),
        lambda _, name: stored.get(("ConfigMap", name)),
        lambda _, name: stored.get(("Secret", name)),
        [],
    )


def composed(services=(), **fields):
    container = objects.decode(objects.Container, {"name": "c", **fields})
    return compose(container, context(services))


def test_order_and_expansion():
    env = [
        {"name": "A", "value": "1"},
        {"name": "B", "value": "$(A)-$(color)-$(C)-$$(A)-$$"},
        {"name": "C", "value": "later"},
        {"name": "color", "value": "blue"},
        {"name": "EMPTY"},
    ]
    found = composed(env=env, envFrom=[{"configMapRef": {"name": "cm"}}, {"prefix": "S_", "secretRef": {"name": "s"}}])
    assert found == {"A": "1", "B": "1-red-$(C)-$(A)-$", "C": "later", "color": "blue", "EMPTY": "", "S_password": "geheim"}


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ({"fieldRef": {"fieldPath": "metadata.name"}}, "web-0"),
        ({"fieldRef": {"fieldPath": "metadata.labels['app']"}}, "web"),
        ({"fieldRef": {"fieldPath": "metadata.annotations['none']"}}, ""),
        ({"fieldRef": {"fieldPath": "spec.nodeName"}}, "node1"),
        ({"fieldRef": {"fieldPath": "spec.serviceAccountName"}}, "robot"),
        ({"fieldRef": {"fieldPath": "status.hostIP"}}, "192.168.1.11"),
        ({"fieldRef": {"fieldPath": "status.podIP"}}, "10.244.1.2"),
        ({"fieldRef": {"fieldPath": "status.podIPs"}}, "10.244.1.2,fd00::2"),
        ({"resourceFieldRef": {"resource": "limits.cpu"}}, "2"),
        ({"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}, "1500"),
        ({"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}, "64"),
        ({"resourceFieldRef": {"resource": "requests.memory"}}, "0"),
        ({"resourceFieldRef": {"resource": "limits.memory", "containerName": "free", "divisor": "1Gi"}}, "8"),
        ({"configMapKeyRef": {"name": "cm", "key": "color"}}, "red"),
        ({"secretKeyRef": {"name": "s", "key": "password"}}, "geheim"),
    ],
)
def test_references(source, value):
    assert composed(env=[{"name": "X", "valueFrom": source}]) == {"X": value}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k"}}}]}, 'configmap "no" not found'),
        (
            {"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]},
            "couldn't find key k in Secret shop/s",
        ),
        ({"envFrom": [{"secretRef": {"name": "no"}}]}, 'secret "no" not found'),
        ({"env": [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "spec.nope"}}}]}, "unsupported fieldPath: spec.nope"),
    ],
)
def test_what_is_missing_is_named(fields, message):
    with pytest.raises(ConfigError) as caught:
        composed(**fields)
    assert str(caught.value) == message


def test_optional_references_and_keys_that_are_no_names():
    env = [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "no", "key": "k", "optional": True}}}]
    assert composed(env=env, envFrom=[{"configMapRef": {"name": "no", "optional": True}}]) == {}
    assert composed(envFrom=[{"configMapRef": {"name": "cm"}}]) == {"color": "red"}  # "bad=key" is left out


def test_downward_files():
    assert field("metadata.labels", context()) == 'app="web"\ntier="a\\"b"'
    assert field("metadata.annotations", context()) == 'note="two\\nlines"'
    with pytest.raises(ConfigError):
        resource("limits.cpu", "nobody", "1", context())


def service(name, namespace, ports, ip="10.96.0.9"):
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"clusterIP": ip, "ports": ports}}


SERVICES = [
    service("redis-cart", "shop", [{"port": 6379, "name": "tls-redis"}, {"port": 53, "protocol": "UDP"}]),
    service("headless", "shop", [{"port": 1}], "None"),
    service("elsewhere", "other", [{"port": 1}]),
    service("kubernetes", "default", [{"port": 443, "name": "https"}], "10.96.0.1"),
]


def test_service_variables():
    found = service_variables(SERVICES, "shop", links=True)
    assert {name for name in found if not name.startswith(("REDIS_CART_", "KUBERNETES_"))} == set()
    assert found["REDIS_CART_SERVICE_HOST"] == "10.96.0.9"
    assert found["REDIS_CART_SERVICE_PORT"] == "6379"
    assert found["REDIS_CART_SERVICE_PORT_TLS_REDIS"] == "6379"
    assert found["REDIS_CART_PORT"] == "tcp://10.96.0.9:6379"
    assert found["REDIS_CART_PORT_53_UDP"] == "udp://10.96.0.9:53"
    assert found["REDIS_CART_PORT_53_UDP_PROTO"] == "udp"
    assert found["REDIS_CART_PORT_6379_TCP_ADDR"] == "10.96.0.9"
    assert found["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"
    without = service_variables(SERVICES, "shop", links=False)
    assert {name.split("_")[0] for name in without} == {"KUBERNETES"}


def test_own_variables_win_over_service_variables():
    found = composed(
        SERVICES, env=[{"name": "REDIS_CART_PORT", "value": "mine"}, {"name": "H", "value": "$(REDIS_CART_SERVICE_HOST)"}]
    )
    assert (found["REDIS_CART_PORT"], found["H"]) == ("mine", "10.96.0.9")


@given(st.text(alphabet="$()AB ", max_size=30))
def test_expansion_of_anything_ends_and_unknown_names_stay(text):
    result = expand(text, {})
    assert result.count("(") == text.count("(")
    if "$$" not in text:
        assert result == text
