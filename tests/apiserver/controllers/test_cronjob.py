"""CronJobs and PodDisruptionBudgets, in a cluster in memory."""

from __future__ import annotations

import pytest

from podwire_core.objects import key_of


@pytest.fixture
def cron(cluster, template):
    """Makes the CronJob `c`, every minute; START is 20 seconds after a full one."""

    def make(**spec):
        job = {"template": template("c", restartPolicy="Never"), "parallelism": 1, "completions": 1}
        given = {"schedule": "* * * * *", "jobTemplate": {"metadata": {"labels": {"of": "c"}}, "spec": job}, **spec}
        cluster.put("CronJob", "c", spec=given)
        cluster.settle()
        return cluster

    return make


def jobs(cluster):
    return sorted(job["metadata"]["name"] for job in cluster.view.all("Job").values())


def run_jobs(cluster, phase="Succeeded"):
    """All pods run and end."""
    cluster.converge()
    for pod in cluster.pods():
        if pod["status"]["phase"] == "Running":
            cluster.end(key_of(pod), phase)
    cluster.converge()


def reasons(cluster):
    return [event.reason for event in cluster.events if event.regarding["kind"] == "CronJob"]


def test_a_job_each_minute_named_after_its_time(cron):
    cluster = cron()
    assert jobs(cluster) == []
    cluster.sleep(60 - cluster.now % 60 + 0.2)
    minute = int(cluster.now // 60)
    assert jobs(cluster) == [f"c-{minute}"]
    job = cluster.get("Job", f"c-{minute}")
    assert job["metadata"]["labels"] == {"of": "c"}
    assert job["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"].endswith(":00Z")
    active = cluster.get("CronJob", "c")["status"]["active"]
    assert [(ref["kind"], ref["name"], ref["uid"]) for ref in active] == [("Job", f"c-{minute}", job["metadata"]["uid"])]
    run_jobs(cluster)
    status = cluster.get("CronJob", "c")["status"]
    assert "active" not in status
    assert status["lastSuccessfulTime"] == cluster.get("Job", f"c-{minute}")["status"]["completionTime"]
    assert reasons(cluster) == ["SuccessfulCreate", "SawCompletedJob"]


def test_history_is_kept_to_its_limits(cron):
    cluster = cron(successfulJobsHistoryLimit=2, failedJobsHistoryLimit=1)
    for _ in range(5):
        cluster.sleep(60)
        run_jobs(cluster)
    assert len(jobs(cluster)) == 2
    assert jobs(cluster)[-1] == f"c-{int(cluster.now // 60)}"
    assert not [pod for pod in cluster.live(app="c") if pod["status"]["phase"] != "Succeeded"]
    assert len(cluster.pods()) == 2, "a Job's pods go with it"


@pytest.mark.parametrize(("policy", "running"), [("Allow", 3), ("Forbid", 1), ("Replace", 1)])
def test_concurrency(cron, policy, running):
    cluster = cron(concurrencyPolicy=policy)
    for _ in range(3):
        cluster.sleep(60)
        cluster.converge()
    assert len(jobs(cluster)) == running
    newest = f"c-{int(cluster.now // 60)}"
    assert (newest in jobs(cluster)) == (policy != "Forbid")
    assert ("JobAlreadyActive" in reasons(cluster)) == (policy == "Forbid")
    if policy == "Forbid":  # the time that was missed is made up for
        run_jobs(cluster)
        assert newest in jobs(cluster)


def test_only_the_latest_of_the_missed_times_is_made_up_for(cron):
    cluster = cron()
    cluster.sleep(150 * 60)
    assert jobs(cluster) == [f"c-{int(cluster.now // 60)}"]
    assert "TooManyMissedTimes" in reasons(cluster)


def test_too_late_is_never(cron):
    cluster = cron(startingDeadlineSeconds=10, schedule="0 * * * *")
    hour = cluster.now - cluster.now % 3600 + 3600
    cluster.sleep(hour + 30 - cluster.now)
    assert jobs(cluster) == []


def test_suspended(cron):
    cluster = cron(suspend=True)
    cluster.sleep(300)
    assert jobs(cluster) == []
    cluster.change("CronJob", "default/c", suspend=False)
    cluster.settle()
    assert len(jobs(cluster)) == 1


def test_its_jobs_go_with_it(cron):
    cluster = cron()
    cluster.sleep(60)
    cluster.converge()
    cluster.delete("CronJob", "default/c", cluster.now)
    cluster.converge()
    assert jobs(cluster) == []


# --- PodDisruptionBudget --------------------------------


@pytest.mark.parametrize(
    ("budget", "allowed", "desired"),
    [
        ({"minAvailable": 2}, 2, 2),
        ({"minAvailable": "60%"}, 1, 3),
        ({"maxUnavailable": 1}, 1, 3),
        ({"maxUnavailable": "30%"}, 2, 2),
    ],
)
def test_what_a_budget_allows(cluster, template, budget, allowed, desired):
    selector = {"matchLabels": {"app": "web"}}
    cluster.put("Deployment", "web", spec={"replicas": 4, "selector": selector, "template": template("web")})
    cluster.put("PodDisruptionBudget", "web", spec={"selector": selector, **budget})
    cluster.converge()
    status = cluster.get("PodDisruptionBudget", "web")["status"]
    assert (status["expectedPods"], status["currentHealthy"]) == (4, 4)
    assert (status["disruptionsAllowed"], status["desiredHealthy"]) == (allowed, desired)
    cluster.set_ready(key_of(cluster.live(app="web")[0]), False)
    cluster.settle()
    assert cluster.get("PodDisruptionBudget", "web")["status"]["disruptionsAllowed"] == allowed - 1
