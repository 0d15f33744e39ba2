"""apply: create or merge, all or nothing; and the merges by themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_apiserver.apply import LAST_APPLIED, apply_all
from podwire_apiserver.patch import merge_patch, three_way
from podwire_core.errors import ApiError, Cause


def deployment(world, image="nginx:1.25", **spec):
    pod = {"containers": [{"name": "c", "image": image, "ports": [{"containerPort": 80}]}]}
    template = {"metadata": {"labels": {"app": "web"}}, "spec": pod}
    return world.obj("Deployment", "web", spec={"selector": {"matchLabels": {"app": "web"}}, "template": template, **spec})


def service(world, **spec):
    ports = [{"name": "http", "port": 80}]
    return world.obj("Service", "web", spec={"type": "NodePort", "selector": {"app": "web"}, "ports": ports, **spec})


def whats(world, *objs, **options):
    return [outcome.what for outcome in apply_all(world.api, list(objs), **options)]


def test_created_unchanged_configured(world):
    first = [deployment(world), service(world)]
    assert whats(world, *first) == ["created", "created"]
    before = world.api.get("Service", "web")
    world.api.patch("Deployment", "web", "default", {"status": {"replicas": 1}}, "status")
    assert whats(world, *first) == ["unchanged", "unchanged"]
    assert whats(world, deployment(world, replicas=3), service(world)) == ["configured", "unchanged"]
    assert world.api.get("Deployment", "web")["spec"]["replicas"] == 3
    assert whats(world, service(world, ports=[{"name": "http", "port": 80}, {"name": "b", "port": 81}])) == ["configured"]
    after = world.api.get("Service", "web")
    assert after["spec"]["clusterIP"] == before["spec"]["clusterIP"]
    assert after["spec"]["ports"][0] == before["spec"]["ports"][0]


def test_what_others_set_stays_and_what_was_applied_and_is_no_more_goes(world):
    apply_all(world.api, [deployment(world, replicas=2, minReadySeconds=5)])
    world.api.patch("Deployment", "web", "default", {"metadata": {"annotations": {"rev": "1"}}, "spec": {"paused": True}})
    apply_all(world.api, [deployment(world, replicas=2)])
    done = world.api.get("Deployment", "web")
    assert done["metadata"]["annotations"]["rev"] == "1"
    assert done["spec"]["paused"] is True
    assert "minReadySeconds" not in done["spec"]


def test_an_image_may_be_changed_whatever_was_defaulted_beside_it(world):
    pod = world.obj("Pod", "p", spec={"containers": [{"name": "c", "image": "nginx"}]})
    apply_all(world.api, [pod])
    newer = world.obj("Pod", "p", spec={"containers": [{"name": "c", "image": "nginx:1.25"}]})
    assert whats(world, newer) == ["configured"]


def test_all_or_nothing_with_every_error_of_every_object(world):
    revision = world.state.revision
    bad = service(world, type="Nope", ports=[{"port": 70000}])
    with pytest.raises(ApiError) as caught:
        apply_all(world.api, [deployment(world), bad, {"kind": "Pod"}, world.obj("ConfigMap", "c", "nowhere")])
    assert caught.value.causes == [
        Cause("$[1].spec.type", '"Nope" is not one of ClusterIP, NodePort, LoadBalancer, ExternalName'),
        Cause("$[1].spec.ports[0].port", "70000 is not a port (1-65535)"),
        Cause("$[1].spec.ports[0].targetPort", "70000 is not a port (1-65535)"),
        Cause("$[2].apiVersion", "missing"),
        Cause("$[3].metadata.namespace", 'no namespace "nowhere"'),
    ]
    assert caught.value.code == 422
    assert world.state.revision == revision
    assert world.api.select("Deployment") == []


def test_objects_may_need_those_before_them(world):
    assert whats(world, world.obj("Namespace", "ns"), world.obj("ConfigMap", "c", "ns")) == ["created", "created"]


def test_a_dry_run_changes_nothing(world):
    revision = world.state.revision
    [outcome] = apply_all(world.api, [service(world)], dry_run=True)
    assert outcome.what == "created"
    assert outcome.object["spec"]["clusterIP"]
    assert world.state.revision == revision
    assert world.refused(world.api.get, "Service", "web").code == 404


def test_a_dump_can_be_applied(world):
    apply_all(world.api, [deployment(world)])
    dump = world.api.get("Deployment", "web")
    assert LAST_APPLIED in dump["metadata"]["annotations"]
    assert whats(world, dump) == ["configured"]  # it says more than the manifest did
    world.api.delete("Deployment", "web")
    assert whats(world, dump) == ["created"]


@pytest.mark.parametrize("meta", [None, 5, {}, {"name": 5}, {"name": "x", "namespace": 5}, {"name": "x", "annotations": [1]}])
def test_strange_metadata_is_refused(world, meta):
    with pytest.raises(ApiError) as caught:
        apply_all(world.api, [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}])
    assert caught.value.code == 422
    assert caught.value.causes[0].field.startswith("$[0].metadata")


# --- the merges --------------------------------

json_values = st.recursive(
    st.one_of(st.integers(), st.text(max_size=3), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abcd"), inner, max_size=3)),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from("abcd"), json_values, max_size=4)


def difference(old, new):
    """The merge patch between two objects."""
    patch = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if key not in old or before != value or type(before) is not type(value):
            both = isinstance(before, dict) and isinstance(value, dict)
            patch[key] = difference(before, value) if both else value
    return patch


@given(objects, objects)
def test_a_merge_patch_of_the_difference_gives_the_new_object(old, new):
    assert merge_patch(old, difference(old, new)) == new


@given(objects, objects)
def test_three_way_without_others_gives_what_is_wanted(last, wanted):
    assert three_way(last, last, wanted) == wanted


@given(objects, objects)
def test_three_way_says_everything_wanted_and_is_stable(live, wanted):
    merged = three_way({}, live, wanted)
    assert three_way(wanted, merged, wanted) == merged
    assert merge_patch(live, wanted) == merged


def test_rfc_7386_examples():
    cases = [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ]
    for target, patch, result in cases:
        assert merge_patch(target, patch) == result


def test_applying_the_same_again_changes_nothing_whatever_the_kind(world):
    pod = {
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 1}]}]},
    }
    once = {"spec": {**pod["spec"], "restartPolicy": "Never"}}
    selector = {"matchLabels": {"a": "b"}}
    objs = [
        world.obj(
            "Pod", "p", spec={**pod["spec"], "tolerations": [{"key": "k", "operator": "Exists"}], "volumes": [{"name": "v"}]}
        ),
        world.obj("Deployment", "d", spec={"selector": selector, "template": pod}),
        world.obj("StatefulSet", "s", spec={"selector": selector, "template": pod, "serviceName": "x"}),
        world.obj("DaemonSet", "d", spec={"selector": selector, "template": pod}),
        world.obj("ReplicationController", "r", spec={"template": pod}),
        world.obj("Job", "j", spec={"template": once}),
        world.obj("CronJob", "c", spec={"schedule": "@daily", "jobTemplate": {"spec": {"template": once}}}),
        world.obj(
            "Service", "s", spec={"type": "LoadBalancer", "clusterIP": "", "ports": [{"port": 1}], "sessionAffinity": "ClientIP"}
        ),
        world.obj("Service", "h", spec={"clusterIP": "None", "ports": None}),
        world.obj("Service", "e", spec={"type": "ExternalName", "externalName": "a.b"}),
        world.obj("Secret", "s", stringData={"a": "b"}),
        world.obj("NetworkPolicy", "n", spec={"podSelector": {}, "egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}]}),
        world.obj("EndpointSlice", "e", addressType="IPv4", endpoints=[{"addresses": ["1.2.3.4"]}], ports=[{"port": 1}]),
        world.obj("Endpoints", "e", subsets=[{"addresses": [{"ip": "1.2.3.4"}], "ports": [{"port": 1}]}]),
        world.obj("Namespace", "ns"),
        world.obj("Node", "n", spec={"podCIDR": "10.1.0.0/24"}),
        world.obj("Ingress", "i", spec={"rules": [{"host": "a"}]}),
    ]
    assert set(whats(world, *objs)) == {"created"}
    revision = world.state.revision
    assert whats(world, *objs) == ["unchanged"] * len(objs)
    assert world.state.revision == revision
