"""Deployments: rollouts step by step, and the promise about availability at every write."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from podwire_apiserver.controllers import rollout
from podwire_apiserver.controllers.common import condition_of, deleting, finished, ready
from podwire_apiserver.controllers.deployment import revision_of
from podwire_core.objects import key_of


def web(cluster, template, replicas=4, image="v1", strategy=None, **spec):
    spec |= {"strategy": strategy} if strategy else {}
    selector = {"matchLabels": {"app": "web"}}
    spec |= {"replicas": replicas, "selector": selector, "template": template("web", image)}
    return cluster.put("Deployment", "web", spec=spec)


def images(cluster):
    return sorted(pod["spec"]["containers"][0]["image"] for pod in cluster.live(app="web"))


def test_a_deployment_gets_its_pods_and_says_so(cluster, template):
    web(cluster, template)
    cluster.converge()
    deployment = cluster.get("Deployment", "web")
    status = deployment["status"]
    assert images(cluster) == ["v1"] * 4
    counts = {key: status.get(key) for key in ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")}
    assert set(counts.values()) == {4}
    assert "unavailableReplicas" not in status
    assert status["observedGeneration"] == deployment["metadata"]["generation"]
    assert condition_of(deployment, "Available")["status"] == "True"
    assert condition_of(deployment, "Progressing")["reason"] == "NewReplicaSetAvailable"
    assert revision_of(deployment) == 1
    (only,) = cluster.view.all("ReplicaSet").values()
    assert only["metadata"]["labels"]["pod-template-hash"] == only["spec"]["selector"]["matchLabels"]["pod-template-hash"]


@pytest.mark.parametrize(
    ("replicas", "rolling", "surge", "unavailable"),
    [
        (4, {}, 1, 1),
        (10, {"maxSurge": "25%", "maxUnavailable": "25%"}, 3, 2),
        (10, {"maxSurge": 0, "maxUnavailable": 0}, 0, 1),
        (1, {"maxSurge": "50%", "maxUnavailable": "50%"}, 1, 0),
        (3, {"maxSurge": 2, "maxUnavailable": "100%"}, 2, 3),
    ],
)
def test_limits_round_as_kubernetes_does(replicas, rolling, surge, unavailable):
    spec = {"replicas": replicas, "strategy": {"rollingUpdate": rolling}}
    assert rollout.limits({"spec": spec}) == (surge, unavailable)


def test_a_new_template_is_rolled_out_and_history_trimmed(cluster, template):
    web(cluster, template, revisionHistoryLimit=1)
    for image in ("v2", "v3", "v4"):
        cluster.converge()
        cluster.change("Deployment", "default/web", template=template("web", image))
    cluster.converge()
    assert images(cluster) == ["v4"] * 4
    revisions = sorted((revision_of(each), each["spec"]["replicas"]) for each in cluster.view.all("ReplicaSet").values())
    assert revisions == [(3, 0), (4, 4)]
    assert revision_of(cluster.get("Deployment", "web")) == 4


def test_going_back_takes_the_old_replica_set_with_a_new_revision(cluster, template):
    web(cluster, template)
    cluster.converge()
    cluster.change("Deployment", "default/web", template=template("web", "v2"))
    cluster.converge()
    cluster.change("Deployment", "default/web", template=template("web", "v1"))
    cluster.converge()
    assert sorted(map(revision_of, cluster.view.all("ReplicaSet").values())) == [2, 3]
    assert images(cluster) == ["v1"] * 4


def test_recreate_waits_until_the_old_pods_are_gone(cluster, template):
    web(cluster, template, strategy={"type": "Recreate"})
    cluster.converge()
    together = []
    cluster.watchers.append(lambda: together.append({pod["spec"]["containers"][0]["image"] for pod in cluster.pods()}))
    cluster.change("Deployment", "default/web", template=template("web", "v2"))
    cluster.converge()
    assert images(cluster) == ["v2"] * 4
    assert {"v1", "v2"} not in together


def test_paused_scales_but_does_not_roll(cluster, template):
    web(cluster, template)
    cluster.converge()
    cluster.change("Deployment", "default/web", paused=True, replicas=6, template=template("web", "v2"))
    cluster.converge()
    assert images(cluster) == ["v1"] * 6
    cluster.change("Deployment", "default/web", paused=False)
    cluster.converge()
    assert images(cluster) == ["v2"] * 6


def test_scaling_in_mid_rollout_is_proportional(cluster, template):
    web(cluster, template, replicas=10, strategy={"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}})
    cluster.converge()
    cluster.change("Deployment", "default/web", template=template("web", "broken"))
    cluster.settle()  # the new pods never become ready: 8 old, 5 new
    sizes = sorted(each["spec"]["replicas"] for each in cluster.view.all("ReplicaSet").values())
    assert sizes == [5, 8]
    cluster.change("Deployment", "default/web", replicas=15)
    cluster.settle()
    sizes = sorted(each["spec"]["replicas"] for each in cluster.view.all("ReplicaSet").values())
    assert sum(sizes) == 18
    assert sizes[0] in (6, 7)


def test_min_ready_seconds_hold_a_rollout_back(cluster, template):
    web(cluster, template, replicas=2, minReadySeconds=30, strategy={"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}})
    for _ in range(3):
        cluster.converge()
        cluster.sleep(30)
    cluster.change("Deployment", "default/web", template=template("web", "v2"))
    cluster.converge()
    assert images(cluster) == ["v1", "v1", "v2"]
    for _ in range(4):
        cluster.sleep(30)
        cluster.converge()
    assert images(cluster) == ["v2", "v2"]


def test_a_rollout_that_does_not_progress_says_so(cluster, template):
    web(cluster, template, progressDeadlineSeconds=60)
    cluster.settle()
    cluster.sleep(61)
    assert condition_of(cluster.get("Deployment", "web"), "Progressing")["reason"] == "ProgressDeadlineExceeded"


def test_deletion_takes_replica_sets_and_pods_along(cluster, template):
    web(cluster, template)
    cluster.converge()
    cluster.delete("Deployment", "default/web", cluster.now)
    cluster.converge()
    assert not cluster.view.all("ReplicaSet")
    assert not cluster.pods()


def test_orphaned_replica_sets_are_adopted_again(cluster, template):
    web(cluster, template)
    cluster.converge()
    before = {pod["metadata"]["uid"] for pod in cluster.pods()}
    cluster.delete("Deployment", "default/web", cluster.now, propagation="Orphan")
    cluster.converge()
    assert len(cluster.pods()) == 4
    web(cluster, template)
    cluster.converge()
    assert {pod["metadata"]["uid"] for pod in cluster.pods()} == before


# --- the promise, whatever happens --------------------------------


class Promise:
    """Watches every write: never above replicas + maxSurge, and no controller lets availability fall below the minimum."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.before = 0
        self.broken = ""
        self.at_rest = False
        cluster.watchers.append(self.look)

    def look(self):
        deployment = self.cluster.get("Deployment", "web")
        if deployment is None:
            return
        surge, unavailable = rollout.limits(deployment)
        wanted = deployment["spec"]["replicas"]
        pods = [pod for pod in self.cluster.pods() if not deleting(pod) and not finished(pod)]
        up = sum(map(ready, pods))
        if self.at_rest and len(pods) > wanted + surge:
            self.broken = f"{len(pods)} pods of {wanted} + {surge}"
        if up < self.before and up < wanted - unavailable and self.at_rest:
            self.broken = f"{up} available of {wanted} - {unavailable}"
        self.before = up


EVENTS = st.one_of(
    st.tuples(st.just("rollout"), st.integers(1, 5)),
    st.tuples(st.just("ready"), st.integers(0, 20)),
    st.tuples(st.just("kubelet"), st.integers(1, 5)),
)
LIMIT = st.one_of(st.integers(0, 4), st.integers(0, 100).map(lambda percent: f"{percent}%"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(replicas=st.integers(0, 7), surge=LIMIT, unavailable=LIMIT, events=st.lists(EVENTS, max_size=14))
def test_rollouts_keep_their_promise(make_cluster, template, replicas, surge, unavailable, events):
    cluster = make_cluster()
    strategy = {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
    web(cluster, template, replicas=replicas, strategy=strategy)
    cluster.converge()
    promise = Promise(cluster)
    promise.at_rest = True  # from here on only the Deployment itself takes pods away
    for what, value in events:
        if what == "rollout":
            cluster.change("Deployment", "default/web", template=template("web", f"v{value}"))
        elif what == "ready":
            unready = [pod for pod in cluster.live(app="web") if not ready(pod) and pod["spec"].get("nodeName")]
            if unready:
                cluster.set_ready(key_of(unready[value % len(unready)]))
        else:
            for _ in range(value):
                cluster.kubelet_step()
        cluster.settle()
        assert not promise.broken
    cluster.converge()
    assert not promise.broken
    assert len(cluster.live(app="web")) == replicas


CHAOS = st.one_of(
    EVENTS,
    st.tuples(st.just("scale"), st.integers(0, 6)),
    st.tuples(st.just("kill"), st.integers(0, 20)),
    st.tuples(st.just("fail"), st.integers(0, 20)),
    st.tuples(st.just("unready"), st.integers(0, 20)),
    st.tuples(st.just("pause"), st.integers(0, 1)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(CHAOS, max_size=25))
def test_any_sequence_of_events_converges(make_cluster, template, events):
    cluster = make_cluster()
    web(cluster, template, replicas=3)
    wanted, image = 3, "v1"
    for what, value in events:
        pods = cluster.live(app="web")
        pod = pods[value % len(pods)] if pods else None
        if what == "scale":
            wanted = value
            cluster.change("Deployment", "default/web", replicas=value)
        elif what == "rollout":
            image = f"v{value}"
            cluster.change("Deployment", "default/web", template=template("web", image))
        elif what == "pause":
            cluster.change("Deployment", "default/web", paused=bool(value))
        elif what == "kubelet":
            cluster.kubelet_step()
        elif pod is not None and what == "kill":
            cluster.delete("Pod", key_of(pod), cluster.now, grace=0)
        elif pod is not None and pod.get("status", {}).get("phase") == "Running":
            cluster.end(key_of(pod)) if what == "fail" else cluster.set_ready(key_of(pod), what == "ready")
        cluster.now += 1
        cluster.settle()
    cluster.change("Deployment", "default/web", paused=False)
    cluster.converge()
    live = [pod for pod in cluster.live(app="web") if not finished(pod)]
    assert [pod["spec"]["containers"][0]["image"] for pod in live] == [image] * wanted
    assert condition_of(cluster.get("Deployment", "web"), "Progressing")["reason"] == "NewReplicaSetAvailable"
