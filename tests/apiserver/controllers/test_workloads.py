"""ReplicaSet, ReplicationController, StatefulSet, DaemonSet and Job."""

from __future__ import annotations

import pytest

from podwire_apiserver.controllers.common import condition_of, controller_ref
from podwire_core.objects import key_of


def names(pods):
    return [pod["metadata"]["name"] for pod in pods]


# --- ReplicaSet, ReplicationController --------------------------------


def test_orphans_are_adopted_and_strangers_released(cluster, template):
    orphan = cluster.put("Pod", "orphan", labels={"app": "web"}, spec={"containers": []})
    selector = {"matchLabels": {"app": "web"}}
    owner = cluster.put("ReplicaSet", "web", spec={"replicas": 2, "selector": selector, "template": template("web")})
    cluster.converge()
    assert len(cluster.live(app="web")) == 2
    adopted = cluster.get("Pod", "orphan")
    assert controller_ref(adopted)["uid"] == owner["metadata"]["uid"]
    cluster.update({**adopted, "metadata": {**adopted["metadata"], "labels": {"app": "other"}}})
    cluster.converge()
    assert controller_ref(cluster.get("Pod", "orphan")) is None
    assert len(cluster.live(app="web")) == 2
    assert orphan["metadata"]["uid"] not in {pod["metadata"]["uid"] for pod in cluster.live(app="web")}


def test_a_replication_controller_selects_by_its_template_labels(cluster, template):
    cluster.put("ReplicationController", "rc", spec={"replicas": 3, "template": template("rc")})
    cluster.converge()
    assert len(cluster.live(app="rc")) == 3
    assert cluster.get("ReplicationController", "rc")["status"]["readyReplicas"] == 3


def test_scale_down_takes_what_is_worth_least(cluster, template):
    selector = {"matchLabels": {"app": "web"}}
    cluster.put("ReplicaSet", "web", spec={"replicas": 4, "selector": selector, "template": template("web")})
    cluster.converge()
    unready, cheap, *keep = cluster.live(app="web")
    cluster.set_ready(key_of(unready), False)
    annotations = {"controller.kubernetes.io/pod-deletion-cost": "-5"}
    cluster.update({**cheap, "metadata": {**cheap["metadata"], "annotations": annotations}})
    cluster.change("ReplicaSet", "default/web", replicas=3)
    cluster.settle()
    assert key_of(unready) not in map(key_of, cluster.live(app="web"))
    cluster.change("ReplicaSet", "default/web", replicas=2)
    cluster.settle()
    assert names(cluster.live(app="web")) == names(keep)


def test_failed_pods_are_replaced(cluster, template):
    selector = {"matchLabels": {"app": "web"}}
    cluster.put("ReplicaSet", "web", spec={"replicas": 1, "selector": selector, "template": template("web")})
    cluster.converge()
    (pod,) = cluster.pods()
    cluster.end(key_of(pod))
    cluster.converge()
    assert [each["status"]["phase"] for each in cluster.pods()].count("Running") == 1


# --- StatefulSet --------------------------------


def database(cluster, template, replicas=3, **spec):
    selector = {"matchLabels": {"app": "db"}}
    spec = {"serviceName": "db", "replicas": replicas, "selector": selector, "template": template("db", "v1"), **spec}
    return cluster.put("StatefulSet", "db", spec=spec)


def test_pods_come_in_order_one_after_the_other(cluster, template):
    database(cluster, template)
    seen = []
    cluster.watchers.append(lambda: seen.append(names(cluster.pods())))
    cluster.settle()
    assert names(cluster.pods()) == ["db-0"]
    cluster.converge()
    assert names(cluster.pods()) == ["db-0", "db-1", "db-2"]
    assert all(each == sorted(each) and each[:1] in ([], ["db-0"]) for each in seen)
    pod = cluster.get("Pod", "db-1")
    assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == ("db-1", "db")
    assert pod["metadata"]["labels"]["statefulset.kubernetes.io/pod-name"] == "db-1"
    assert pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"] == "1"
    status = cluster.get("StatefulSet", "db")["status"]
    assert (status["replicas"], status["readyReplicas"], status["currentReplicas"]) == (3, 3, 3)


def test_parallel_makes_all_at_once_and_ordinals_may_start_elsewhere(cluster, template):
    database(cluster, template, podManagementPolicy="Parallel", ordinals={"start": 5})
    cluster.settle()
    assert names(cluster.pods()) == ["db-5", "db-6", "db-7"]


def test_scale_down_goes_from_the_end_one_at_a_time(cluster, template):
    database(cluster, template)
    cluster.converge()
    cluster.change("StatefulSet", "default/db", replicas=1)
    cluster.settle()
    assert names(cluster.live(app="db")) == ["db-0", "db-1"]
    cluster.converge()
    assert names(cluster.pods()) == ["db-0"]


def test_a_rolling_update_stops_at_the_partition(cluster, template):
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}
    database(cluster, template, updateStrategy=strategy)
    cluster.converge()
    cluster.change("StatefulSet", "default/db", template=template("db", "v2"))
    cluster.settle()
    assert names(cluster.live(app="db")) == ["db-0", "db-1"]  # the highest goes first
    cluster.converge()
    assert [pod["spec"]["containers"][0]["image"] for pod in cluster.pods()] == ["v1", "v2", "v2"]
    cluster.delete("Pod", "default/db-0", cluster.now, grace=0)
    cluster.converge()
    assert cluster.get("Pod", "db-0")["spec"]["containers"][0]["image"] == "v1"  # it comes back as it was
    cluster.change("StatefulSet", "default/db", updateStrategy={"type": "RollingUpdate"})
    cluster.converge()
    status = cluster.get("StatefulSet", "db")["status"]
    assert status["currentRevision"] == status["updateRevision"]
    assert status["updatedReplicas"] == 3


def test_claims_are_made_and_mounted(cluster, template):
    claim = {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}
    database(cluster, template, replicas=1, volumeClaimTemplates=[claim])
    cluster.converge()
    assert cluster.get("PersistentVolumeClaim", "data-db-0") is not None
    (volume,) = cluster.get("Pod", "db-0")["spec"]["volumes"]
    assert volume == {"name": "data", "persistentVolumeClaim": {"claimName": "data-db-0"}}


# --- DaemonSet --------------------------------


def agent(cluster, template, spec=None, **more):
    selector = {"matchLabels": {"app": "agent"}}
    fields = {"selector": selector, "template": template("agent", "v1", **(spec or {})), **more}
    return cluster.put("DaemonSet", "agent", spec=fields)


def test_one_pod_on_every_node_that_fits(cluster, template):
    cluster.add_node("special", labels={"disk": "ssd"}, taints=[{"key": "only", "effect": "NoSchedule"}])
    agent(cluster, template)
    cluster.converge()
    assert sorted(pod["spec"]["nodeName"] for pod in cluster.pods()) == ["node1", "node2", "node3"]
    cluster.add_node("node4")
    cluster.converge()
    assert len(cluster.pods()) == 4
    tolerant = {"nodeSelector": {"disk": "ssd"}, "tolerations": [{"operator": "Exists"}]}
    cluster.change("DaemonSet", "default/agent", template=template("agent", "v1", **tolerant))
    cluster.converge()
    assert [pod["spec"]["nodeName"] for pod in cluster.pods()] == ["special"]
    assert cluster.get("DaemonSet", "agent")["status"]["numberReady"] == 1


def test_daemons_also_run_on_cordoned_nodes(cluster, template):
    cluster.change("Node", "node1", unschedulable=True)
    agent(cluster, template)
    cluster.converge()
    assert len(cluster.pods()) == 3


@pytest.mark.parametrize(
    ("rolling", "least", "most"), [({"maxUnavailable": 1}, 2, 3), ({"maxSurge": 1, "maxUnavailable": 0}, 3, 4)]
)
def test_a_rolling_update_of_daemons(cluster, template, rolling, least, most):
    agent(cluster, template, updateStrategy={"type": "RollingUpdate", "rollingUpdate": rolling})
    cluster.converge()
    seen = []

    def look():
        ready = [pod for pod in cluster.live(app="agent") if (condition_of(pod, "Ready") or {}).get("status") == "True"]
        seen.append((len(ready), len(cluster.live(app="agent"))))

    cluster.watchers.append(look)
    cluster.change("DaemonSet", "default/agent", template=template("agent", "v2"))
    cluster.converge()
    assert {pod["spec"]["containers"][0]["image"] for pod in cluster.pods()} == {"v2"}
    assert min(up for up, _ in seen) >= least
    assert max(live for _, live in seen) <= most


# --- Job --------------------------------


def job(cluster, template, **spec):
    return cluster.put("Job", "job", spec={"template": template("job", restartPolicy="Never"), **spec})


def test_a_job_runs_to_completion(cluster, template):
    job(cluster, template, completions=3, parallelism=2)
    cluster.converge()
    assert len(cluster.pods()) == 2
    for _ in range(3):
        running = [pod for pod in cluster.pods() if pod["status"]["phase"] == "Running"]
        cluster.end(key_of(running[0]), "Succeeded")
        cluster.converge()
    done = cluster.get("Job", "job")
    assert (done["status"]["succeeded"], len(cluster.pods())) == (3, 3)
    assert condition_of(done, "Complete")["status"] == "True"
    assert done["status"]["completionTime"]


def test_failures_wait_and_have_a_limit(cluster, template):
    job(cluster, template, completions=1, backoffLimit=1)
    cluster.converge()
    cluster.end(key_of(cluster.pods()[0]))
    cluster.converge()
    assert len(cluster.pods()) == 1  # the next one waits
    cluster.sleep(10)
    cluster.converge()
    (again,) = [pod for pod in cluster.pods() if pod["status"]["phase"] == "Running"]
    cluster.end(key_of(again))
    cluster.settle()
    failed = condition_of(cluster.get("Job", "job"), "Failed")
    assert failed["reason"] == "BackoffLimitExceeded"


def test_a_deadline_ends_the_job_and_its_pods(cluster, template):
    job(cluster, template, completions=1, activeDeadlineSeconds=20)
    cluster.converge()
    cluster.sleep(20)
    cluster.converge()
    assert condition_of(cluster.get("Job", "job"), "Failed")["reason"] == "DeadlineExceeded"
    assert not cluster.pods()


def test_a_finished_job_is_deleted_after_its_time(cluster, template):
    job(cluster, template, completions=1, ttlSecondsAfterFinished=60)
    cluster.converge()
    cluster.end(key_of(cluster.pods()[0]), "Succeeded")
    cluster.settle()
    cluster.sleep(59)
    assert cluster.get("Job", "job") is not None
    cluster.sleep(2)
    cluster.converge()
    assert cluster.get("Job", "job") is None
    assert not cluster.pods()


def test_indexed_jobs_number_their_pods(cluster, template):
    job(cluster, template, completions=3, parallelism=3, completionMode="Indexed")
    cluster.converge()
    indexes = {pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] for pod in cluster.pods()}
    assert indexes == {"0", "1", "2"}
    assert all(pod["spec"]["containers"][0]["env"][-1]["name"] == "JOB_COMPLETION_INDEX" for pod in cluster.pods())
