"""The work queue and the View: incremental, and as a fresh look would have it."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_apiserver.controllers import Engine, View, view_of
from podwire_core.objects import key_of


class Echo:
    name = "echo"
    kinds = ("ConfigMap",)

    def wakes(self, view, change):
        return [change.key]

    def reconcile(self, view, key, now):
        return ()


def config(name):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "d"}}


def test_a_key_is_queued_once_and_in_order():
    view, echo = View(), Echo()
    engine = Engine(view, [echo])
    for name in ("b", "a", "b"):
        engine.changed(view.apply("ConfigMap", f"d/{name}", config(name)))
    engine.changed(view.apply("Secret", "d/s", {**config("s"), "kind": "Secret"}))
    assert [engine.take(0).key, engine.take(0).key] == ["d/b", "d/a"]
    assert engine.take(0) is None
    assert engine.next_time() is None


def test_timers_wake_once_at_the_earliest_time():
    view = View()
    engine = Engine(view, [Echo()])
    engine.changed(view.apply("ConfigMap", "d/a", config("a")))
    task = engine.take(0)
    for at in (30, 10, 20):
        engine.again(task, at)
    assert engine.next_time() == 10
    assert engine.take(9) is None
    assert engine.take(10) == task
    assert engine.take(100) is None


PODS = st.builds(
    lambda name, node, app, owner, phase: {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"p{name}",
            "namespace": "d",
            "uid": f"u{name}",
            "labels": {"app": app},
            "ownerReferences": [{"uid": owner, "controller": True}],
        },
        "spec": {"nodeName": node, "containers": [{"name": "c", "resources": {"requests": {"cpu": "100m"}}}]},
        "status": {"phase": phase},
    },
    st.integers(0, 5),
    st.sampled_from(["", "n1", "n2"]),
    st.sampled_from(["web", "db"]),
    st.sampled_from(["o1", "o2"]),
    st.sampled_from(["Running", "Failed"]),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(PODS, st.booleans()), max_size=30))
def test_indexes_equal_those_of_a_fresh_view(changes):
    view, left = View(), {}
    for pod, there in changes:
        key = key_of(pod)
        view.apply("Pod", key, pod if there else None)
        left.pop(key, None)
        left |= {key: pod} if there else {}
    fresh = view_of(left.values())
    for node in ("", "n1", "n2"):
        assert view.pods_on(node) == fresh.pods_on(node)
        for field in ("pods", "requested", "owners"):
            mine, other = getattr(view.usage(node), field), getattr(fresh.usage(node), field)
            assert mine == other if field == "pods" else +mine == +other
    for app in ("web", "db"):
        assert view.pods_matching("d", {"app": app}) == [
            left[key] for key in sorted(left) if left[key]["metadata"]["labels"]["app"] == app
        ]
    for owner in ("o1", "o2"):
        assert view.dependents(owner) == fresh.dependents(owner)
    assert view.everything_in("d") == [("Pod", key) for key in sorted(left)]


def test_ten_thousand_pods_stay_cheap(make_cluster, template):
    """A Deployment of 2 000 among 10 000 pods: making and placing them takes seconds, one more pod's change microseconds."""
    cluster = make_cluster(nodes=100)
    for number in range(8_000):
        spec = {"nodeName": f"node{number % 100 + 1}", "containers": []}
        cluster.put("Pod", f"p{number}", labels={"app": "other"}, spec=spec)
    cluster.settle()
    spec = {"replicas": 2_000, "selector": {"matchLabels": {"app": "web"}}, "template": template("web")}
    began = time.perf_counter()
    cluster.put("Deployment", "web", spec=spec)
    cluster.put("Service", "web", spec={"selector": {"app": "web"}, "ports": [{"port": 80}]})
    cluster.settle()
    assert len(cluster.live(app="web")) == 2_000
    assert all(pod["spec"]["nodeName"] for pod in cluster.pods())
    assert time.perf_counter() - began < 60
    began = time.perf_counter()
    cluster.set_ready("default/p0")
    cluster.settle()
    assert time.perf_counter() - began < 0.5
