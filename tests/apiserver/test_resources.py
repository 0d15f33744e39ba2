"""The verbs, as Kubernetes means them."""

from __future__ import annotations

import pytest

from podwire_core.errors import Cause

POD = {"containers": [{"name": "c", "image": "nginx"}]}
TEMPLATE = {"metadata": {"labels": {"app": "web"}}, "spec": POD}
DEPLOYMENT = {"selector": {"matchLabels": {"app": "web"}}, "template": TEMPLATE}


def bound_pod(world, name="p", **metadata):
    pod = world.make("Pod", name, metadata=metadata, spec=POD)
    return world.api.bind(f"default/{name}", pod["metadata"]["uid"], "node1").object


# --- create, get, list --------------------------------


def test_create_sets_the_servers_fields_and_not_the_writers(world):
    given = {"uid": "mine", "resourceVersion": "7", "creationTimestamp": "2001-01-01T00:00:00Z", "generation": 9}
    made = world.make("Deployment", "web", metadata=given, spec=DEPLOYMENT, status={"replicas": 3})
    meta = made["metadata"]
    assert meta["uid"] != "mine"
    assert meta["creationTimestamp"] == "2023-11-14T22:13:20Z"
    assert (meta["generation"], meta["namespace"]) == (1, "default")
    assert int(meta["resourceVersion"]) == world.state.revision
    assert "status" not in made
    assert world.api.get("deploy", "web") == made == world.api.get("Deployment.apps", "web", "default")


def test_unknown_fields_survive(world):
    world.make("ConfigMap", "c", metadata={"x-meta": [1]}, data={"a": "b"}, extra={"deep": [{"er": 1.5}]})
    found = world.api.get("ConfigMap", "c")
    assert found["extra"] == {"deep": [{"er": 1.5}]}
    assert found["metadata"]["x-meta"] == [1]


def test_a_name_is_taken_once(world):
    world.make("ConfigMap", "c")
    error = world.refused(world.make, "ConfigMap", "c")
    assert (error.code, error.reason, error.message) == (409, "AlreadyExists", 'configmaps "c" already exists')


def test_generated_names(world):
    obj = world.obj("ConfigMap", "")
    obj["metadata"] = {"generateName": "job-"}
    names = {world.api.create(obj).object["metadata"]["name"] for _ in range(20)}
    assert len(names) == 20
    assert all(name.startswith("job-") and len(name) == 9 for name in names)


def test_a_namespace_must_exist_and_live(world):
    error = world.refused(world.make, "ConfigMap", "c", "nowhere")
    assert (error.code, error.causes) == (404, [Cause("$.metadata.namespace", 'no namespace "nowhere"')])
    world.make("Namespace", "ns")
    world.make("ConfigMap", "c", "ns")
    world.api.delete("Namespace", "ns")
    error = world.refused(world.make, "ConfigMap", "d", "ns")
    assert (error.code, error.reason) == (403, "Forbidden")


def test_what_every_cluster_has(world):
    names = [namespace["metadata"]["name"] for namespace in world.api.select("Namespace")]
    assert names == ["default", "kube-node-lease", "kube-public", "kube-system"]
    assert world.api.get("Service", "kubernetes")["spec"]["clusterIP"] == "10.96.0.1"
    assert world.api.get("Namespace", "default")["metadata"]["labels"] == {"kubernetes.io/metadata.name": "default"}
    revision = world.state.revision
    world.restart()
    assert world.state.revision == revision


def test_missing_things_are_404(world):
    assert world.refused(world.api.get, "Pod", "p").message == 'pods "p" not found'
    assert world.refused(world.api.get, "Deployment", "d").message == 'deployments.apps "d" not found'
    assert world.refused(world.api.get, "Gadget", "g").code == 404


def test_lists_by_namespace_labels_and_fields(world):
    for name, labels in (("a", {"app": "x"}), ("b", {"app": "y", "tier": "1"}), ("c", {})):
        world.make("Pod", name, "kube-system" if name == "c" else "default", metadata={"labels": labels}, spec=POD)
    world.api.bind("default/b", world.api.get("Pod", "b")["metadata"]["uid"], "node1")

    def names(*args):
        return [pod["metadata"]["name"] for pod in world.api.select("Pod", *args)]

    assert names() == ["a", "b", "c"]
    assert names("default") == ["a", "b"]
    assert names("", "app in (x,y),!tier") == ["a"]
    assert names("", "app") == ["a", "b"]
    assert names("", "", "spec.nodeName=node1") == ["b"]
    assert names("", "", "spec.nodeName!=node1,metadata.namespace=default") == ["a"]
    assert names("default", "", "metadata.name=b") == ["b"]
    assert names("default", "app=x", "metadata.name=b") == []
    assert names("", "", "status.phase=Pending,metadata.name=c") == ["c"]


@pytest.mark.parametrize(
    ("labels", "fields", "message"),
    [
        ("a=b=c", "", "bad label selector"),
        ("a in b", "", "bad label selector"),
        ("", "spec.image=x", "Pod has no selectable field 'spec.image'; it has metadata.name, metadata.namespace, spec.nodeName"),
        ("", "spec.nodeName", "bad field selector 'spec.nodeName': expected FIELD=VALUE or FIELD!=VALUE"),
    ],
)
def test_bad_selectors_are_400(world, labels, fields, message):
    error = world.refused(world.api.select, "Pod", "", labels, fields)
    assert error.code == 400
    assert message in error.message


def test_lists_as_it_was(world):
    world.make("ConfigMap", "a", data={"v": "1"})
    then = world.state.revision
    world.api.patch("ConfigMap", "a", "default", {"data": {"v": "2"}})
    world.make("ConfigMap", "b")
    [old] = world.api.select("ConfigMap", revision=then)
    assert old["data"] == {"v": "1"}
    assert old["metadata"]["resourceVersion"] == str(then)
    world.store.compact(then + 1)
    assert world.refused(world.api.select, "ConfigMap", revision=then).code == 410
    assert world.refused(world.api.select, "ConfigMap", revision=then + 1000).code == 410


# --- update, patch --------------------------------


def test_update_against_an_older_revision_is_a_conflict(world):
    first = world.make("ConfigMap", "c", data={"v": "1"})
    second = world.api.update({**first, "data": {"v": "2"}}).object
    error = world.refused(world.api.update, {**first, "data": {"v": "3"}})
    assert (error.code, error.reason) == (409, "Conflict")
    world.api.update({**second, "data": {"v": "4"}})
    without = world.obj("ConfigMap", "c", data={"v": "5"})
    assert world.api.update(without).object["data"] == {"v": "5"}
    wrong = {**without, "metadata": {**without["metadata"], "uid": "another"}}
    assert world.refused(world.api.update, wrong).code == 409


def test_a_write_that_changes_nothing_makes_no_revision(world):
    made = world.make("Deployment", "web", spec=DEPLOYMENT)
    revision = world.state.revision
    assert world.api.update(made).object == made
    assert world.api.patch("Deployment", "web", "default", {"spec": {"replicas": 1}}).object == made
    assert world.state.revision == revision


def test_generation_counts_changes_of_the_spec_only(world):
    world.make("Deployment", "web", spec=DEPLOYMENT)

    def patched(patch, subresource=""):
        return world.api.patch("Deployment", "web", "default", patch, subresource).object["metadata"]["generation"]

    assert patched({"metadata": {"labels": {"a": "b"}}}) == 1
    assert patched({"status": {"replicas": 1}}, "status") == 1
    assert patched({"spec": {"replicas": 3}}) == 2


def test_status_is_written_by_itself(world):
    made = world.make("Deployment", "web", spec=DEPLOYMENT)
    both = {**made, "spec": {**made["spec"], "replicas": 7}, "status": {"replicas": 7}}
    assert "status" not in world.api.update(both).object
    newest = world.api.get("Deployment", "web")
    done = world.api.update({**newest, "spec": {}, "status": {"replicas": 1}}, "status").object
    assert (done["spec"]["replicas"], done["status"]) == (7, {"replicas": 1})
    assert world.refused(world.api.update, done, "scale").code == 404


def test_merge_patch(world):
    world.make("ConfigMap", "c", metadata={"labels": {"a": "1", "b": "2"}}, data={"k": "v"})
    patch = {"metadata": {"labels": {"a": None, "c": "3"}}, "data": {"n": "w"}}
    done = world.api.patch("ConfigMap", "c", "", patch).object
    assert done["metadata"]["labels"] == {"b": "2", "c": "3"}
    assert done["data"] == {"k": "v", "n": "w"}
    uid, version = done["metadata"]["uid"], done["metadata"]["resourceVersion"]
    world.api.patch("ConfigMap", "c", "default", {"metadata": {"uid": uid, "resourceVersion": version}, "data": {"x": "y"}})
    late = {"metadata": {"resourceVersion": version}, "data": {"x": "z"}}
    assert world.refused(world.api.patch, "ConfigMap", "c", "default", late).code == 409
    assert world.refused(world.api.patch, "ConfigMap", "c", "default", {"metadata": {"uid": "x"}}).code == 409
    assert world.refused(world.api.patch, "ConfigMap", "c", "default", {"kind": "Secret"}).code == 422
    assert world.refused(world.api.patch, "ConfigMap", "c", "default", {"data": {"n": 5}}).causes == [
        Cause("$.data.n", "expected str, got int")
    ]


IMMUTABLE = [
    ("Deployment", DEPLOYMENT, {"selector": {"matchLabels": {"tier": "x"}}}, "$.spec.template.metadata.labels"),
    (
        "Deployment",
        DEPLOYMENT,
        {"selector": {"matchLabels": {"x": "y"}}, "template": {"metadata": {"labels": {"x": "y"}}}},
        "$.spec.selector",
    ),
    ("Pod", POD, {"restartPolicy": "Never"}, "$.spec.restartPolicy"),
    ("Pod", POD, {"nodeName": "node2"}, "$.spec.nodeName"),
    ("Pod", POD, {"containers": [{"name": "c", "image": "nginx", "command": ["sh"]}]}, "$.spec.containers[0]"),
    ("Pod", {**POD, "tolerations": [{"key": "a", "operator": "Exists"}]}, {"tolerations": []}, "$.spec.tolerations"),
    ("Service", {"ports": [{"port": 80}]}, {"clusterIP": "10.96.0.99", "clusterIPs": ["10.96.0.99"]}, "$.spec.clusterIP"),
    ("Service", {"ports": [{"port": 80}]}, {"clusterIP": "10.96.0.99"}, "$.spec.clusterIP"),
    ("Node", {"podCIDR": "10.244.1.0/24"}, {"podCIDR": "10.244.2.0/24"}, "$.spec.podCIDR"),
]


@pytest.mark.parametrize(("kind", "spec", "change", "field"), IMMUTABLE)
def test_what_an_update_may_not_change(world, kind, spec, change, field):
    world.make(kind, "x", spec=spec)
    error = world.refused(world.api.patch, kind, "x", "default", {"spec": change})
    assert error.code == 422
    assert field in [cause.field for cause in error.causes]


def test_of_a_pod_the_image_may_change_and_a_toleration_be_added(world):
    pod = world.make("Pod", "p", spec=POD)
    world.api.patch("Pod", "p", "default", {"spec": {"containers": [{"name": "c", "image": "a/nginx"}]}})
    more = [*pod["spec"]["tolerations"], {"key": "x", "operator": "Exists"}]
    done = world.api.patch("Pod", "p", "default", {"spec": {"tolerations": more}}).object
    assert done["spec"]["containers"][0]["image"] == "a/nginx"
    assert done["spec"]["tolerations"] == more


def test_an_immutable_config_map(world):
    world.make("ConfigMap", "c", data={"a": "b"}, immutable=True)
    assert world.refused(world.api.patch, "ConfigMap", "c", "default", {"data": {"a": "c"}}).code == 422
    world.api.patch("ConfigMap", "c", "default", {"metadata": {"labels": {"a": "b"}}})


def test_bind(world):
    pod = bound_pod(world)
    assert pod["spec"]["nodeName"] == "node1"
    assert pod["status"]["conditions"][0] == {
        "type": "PodScheduled",
        "status": "True",
        "lastTransitionTime": "2023-11-14T22:13:20Z",
    }
    assert world.refused(world.api.bind, "default/p", pod["metadata"]["uid"], "node2").code == 409
    world.make("Pod", "q", spec=POD)
    assert world.refused(world.api.bind, "default/q", "wrong uid", "node2").code == 409


# --- delete --------------------------------


def test_delete_is_at_once_without_finalizers(world):
    world.make("ConfigMap", "c")
    world.api.delete("ConfigMap", "c")
    assert world.refused(world.api.get, "ConfigMap", "c").code == 404
    assert world.refused(world.api.delete, "ConfigMap", "c").code == 404


def test_finalizers_hold_an_object(world):
    world.make("ConfigMap", "c", metadata={"finalizers": ["example.com/a", "example.com/b"]})
    world.api.delete("ConfigMap", "c")
    held = world.api.get("ConfigMap", "c")
    assert held["metadata"]["deletionTimestamp"] == "2023-11-14T22:13:20Z"
    world.now += 5
    world.api.delete("ConfigMap", "c")
    assert world.api.get("ConfigMap", "c") == held
    world.api.patch("ConfigMap", "c", "default", {"metadata": {"finalizers": ["example.com/b"], "deletionTimestamp": None}})
    assert world.api.get("ConfigMap", "c")["metadata"]["deletionTimestamp"]
    world.api.patch("ConfigMap", "c", "default", {"metadata": {"finalizers": None}})
    assert world.refused(world.api.get, "ConfigMap", "c").code == 404


def test_a_bound_pod_has_a_grace_period_and_its_kubelet_ends_it(world):
    bound_pod(world)
    marked = world.api.delete("Pod", "p")["metadata"]
    assert (marked["deletionTimestamp"], marked["deletionGracePeriodSeconds"]) == ("2023-11-14T22:13:50Z", 30)
    assert world.api.delete("Pod", "p", grace=60)["metadata"]["deletionGracePeriodSeconds"] == 30
    assert world.api.delete("Pod", "p", grace=5)["metadata"]["deletionGracePeriodSeconds"] == 5
    world.api.patch("Pod", "p", "default", {"status": {"phase": "Running"}}, "status")
    world.api.delete("Pod", "p", grace=0, uid=marked["uid"])
    assert world.refused(world.api.get, "Pod", "p").code == 404


def test_an_unbound_or_finished_pod_goes_at_once(world):
    world.make("Pod", "p", spec=POD)
    world.api.delete("Pod", "p")
    bound_pod(world, "q")
    world.api.patch("Pod", "q", "default", {"status": {"phase": "Succeeded"}}, "status")
    world.api.delete("Pod", "q")
    assert world.api.select("Pod") == []


def test_a_pod_with_a_finalizer_waits_for_both(world):
    bound_pod(world, finalizers=["example.com/a"])
    world.api.delete("Pod", "p")
    world.api.patch("Pod", "p", "default", {"metadata": {"finalizers": None}})
    assert world.api.get("Pod", "p")
    world.api.delete("Pod", "p", grace=0)
    assert world.api.select("Pod") == []


def test_deletion_checks_the_uid_and_its_arguments(world):
    world.make("ConfigMap", "c")
    assert world.refused(world.api.delete, "ConfigMap", "c", uid="another").code == 409
    assert world.refused(world.api.delete, "ConfigMap", "c", propagation="Sideways").code == 422
    assert world.refused(world.api.delete, "ConfigMap", "c", grace=-1).code == 422
    assert world.refused(world.api.delete, "Namespace", "kube-system").code == 403


@pytest.mark.parametrize(("propagation", "finalizer"), [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")])
def test_propagation_is_a_finalizer(world, propagation, finalizer):
    world.make("ReplicaSet", "r", spec=DEPLOYMENT)
    world.api.delete("ReplicaSet", "r", propagation=propagation)
    assert world.api.get("ReplicaSet", "r")["metadata"]["finalizers"] == [finalizer]
    world.api.delete("ReplicaSet", "r", propagation="Background")
    assert world.refused(world.api.get, "ReplicaSet", "r").code == 404


def test_a_namespace_is_marked_and_waits_for_its_controller(world):
    world.make("Namespace", "ns")
    world.api.delete("Namespace", "ns")
    assert world.api.get("Namespace", "ns")["status"]["phase"] == "Terminating"
    world.api.patch("Namespace", "ns", "", {"spec": {"finalizers": None}})
    assert world.refused(world.api.get, "Namespace", "ns").code == 404


# --- Services, Nodes, definitions --------------------------------


def test_services_hold_and_release_their_addresses(world):
    first = world.make("Service", "a", spec={"ports": [{"port": 80}], "clusterIP": "10.96.0.50"})
    assert first["spec"]["clusterIPs"] == ["10.96.0.50"]
    error = world.refused(world.make, "Service", "b", spec={"ports": [{"port": 80}], "clusterIP": "10.96.0.50"})
    assert error.causes == [Cause("$.spec.clusterIP", "10.96.0.50 is taken by Service default/a")]
    world.restart()
    assert world.refused(world.make, "Service", "b", spec={"ports": [{"port": 80}], "clusterIP": "10.96.0.50"}).code == 422
    world.api.patch("Service", "a", "default", {"spec": {"type": "ExternalName", "externalName": "x.y", "clusterIP": None}})
    assert "clusterIP" not in world.api.get("Service", "a")["spec"]
    world.make("Service", "b", spec={"ports": [{"port": 80}], "clusterIP": "10.96.0.50"})
    world.api.delete("Service", "b")
    world.make("Service", "c", spec={"ports": [{"port": 80}], "clusterIP": "10.96.0.50"})


def test_pod_networks_of_nodes_may_not_overlap(world):
    world.make("Node", "node1", spec={"podCIDR": "10.244.1.0/24"})
    error = world.refused(world.make, "Node", "node2", spec={"podCIDR": "10.244.0.0/16"})
    assert error.causes == [Cause("$.spec.podCIDR", "10.244.0.0/16 overlaps 10.244.1.0/24 of Node node1")]


def definition(world, **version):
    schema = {
        "type": "object",
        "properties": {
            "spec": {"type": "object", "required": ["size"], "properties": {"size": {"type": "integer", "minimum": 1}}}
        },
    }
    names = {"kind": "Widget", "plural": "widgets", "shortNames": ["wd"]}
    versions = [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}, **version}]
    spec = {"group": "example.com", "names": names, "scope": "Namespaced", "versions": versions}
    return world.obj("CustomResourceDefinition", "widgets.example.com", spec=spec)


def test_instances_of_a_definition(world):
    widget = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": 3, "more": None}}
    assert "is its CustomResourceDefinition missing?" in world.refused(world.api.create, widget).message
    world.api.create(definition(world))
    made = world.api.create(widget).object
    assert made["spec"] == {"size": 3, "more": None}
    bad = {**widget, "metadata": {"name": "x"}, "spec": {"size": "3"}}
    assert world.refused(world.api.create, bad).causes == [Cause("$.spec.size", "expected integer, got str")]
    for spec, message in (({}, "missing"), ({"size": 0}, "0 is less than 1")):
        assert world.refused(world.api.create, {**bad, "spec": spec}).causes == [Cause("$.spec.size", message)]
    for word in ("wd", "widgets", "Widget.example.com", "widget"):
        assert [obj["metadata"]["name"] for obj in world.api.select(word)] == ["w"]
    world.restart()
    assert world.api.get("Widget", "w") == made
    world.api.delete("CustomResourceDefinition", "widgets.example.com")
    assert world.refused(world.api.select, "Widget").code == 404
    world.api.create(definition(world))
    assert world.api.select("Widget") == []


def test_the_status_of_an_instance_is_apart_only_if_its_definition_says_so(world):
    world.api.create(definition(world))
    widget = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": 3}}
    assert world.api.create({**widget, "status": {"a": 1}}).object["status"] == {"a": 1}
    assert world.api.update({**widget, "status": {"a": 2}}).object["status"] == {"a": 2}
    world.api.patch("crd", "widgets.example.com", "", {"spec": definition(world, subresources={"status": {}})["spec"]})
    assert world.api.update({**widget, "status": {"a": 3}}).object["status"] == {"a": 2}


def test_kinds_that_nothing_acts_on_are_stored_with_a_warning(world):
    stored = world.api.create(world.obj("Ingress", "i", spec={"rules": []}))
    assert stored.warnings == ["Ingress is stored, but nothing in podwire acts on it"]
    assert world.api.create(world.obj("ConfigMap", "c")).warnings == []
    assert world.api.get("ing", "i")["spec"] == {"rules": []}
    typo = world.api.create({**world.obj("ConfigMap", "d"), "Data": {"a": "b"}})
    assert typo.warnings == ["unknown field $.Data"]


@pytest.mark.parametrize("kind", ["Pod", "Deployment"])
def test_a_host_port_is_warned_of(world, kind):
    pod = {
        "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}, {"containerPort": 81, "hostPort": 81}]}]
    }
    template = {"metadata": {"labels": {"a": "b"}}, "spec": pod}
    spec, path = (
        (pod, "$.spec")
        if kind == "Pod"
        else ({"selector": {"matchLabels": {"a": "b"}}, "template": template}, "$.spec.template.spec")
    )
    (warning,) = world.api.create(world.obj(kind, "x", spec=spec)).warnings
    assert warning == f"{path}.containers[0].ports[1].hostPort is stored, but nothing in podwire maps it to the pod"
    on_host = {**pod, "hostNetwork": True, "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}]}]}
    assert world.api.create(world.obj("Pod", "h", spec=on_host)).warnings == []


def test_a_transaction_that_fails_leaves_nothing(world):
    seen = []
    world.state.listeners.append(seen.append)
    revision = world.state.revision

    def fail():
        with world.state.transaction():
            world.make("Service", "s", spec={"ports": [{"port": 80}], "clusterIP": "10.96.0.77"})
            world.api.create(definition(world))
            world.api.delete("Service", "kubernetes")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == []
    assert world.state.revision == revision
    assert [service["metadata"]["name"] for service in world.api.select("Service")] == ["kubernetes"]
    assert world.refused(world.api.info, "Widget").code == 404
    world.make("Service", "t", spec={"ports": [{"port": 80}], "clusterIP": "10.96.0.77"})


def test_a_full_disk_in_a_transaction_leaves_nothing_either(world):
    [pages] = world.store._db.execute("PRAGMA page_count").fetchone()
    world.store._db.execute(f"PRAGMA max_page_count = {pages + 2}")

    def fill():
        with world.state.transaction():
            for number in range(50):
                world.refused(world.make, "ConfigMap", f"c{number}", data={"x": "y" * 100_000})

    error = world.refused(fill)
    assert (error.code, "full; free some space" in error.message) == (500, True)
    assert world.api.select("ConfigMap") == []
    world.store._db.execute("PRAGMA max_page_count = 100000")
    world.make("ConfigMap", "c")
    world.restart()
    assert [obj["metadata"]["name"] for obj in world.api.select("ConfigMap")] == ["c"]


def test_objects_that_are_too_large(world):
    error = world.refused(world.make, "ConfigMap", "c", extra="x" * 2_000_000)
    assert error.code == 413
    assert "the limit is 1500000" in error.message
