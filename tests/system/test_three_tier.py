"""examples/three-tier: a frontend asks a backend, which asks a database; how they are rolled out, and taken back."""

from __future__ import annotations

import re

import pytest

from tests.support.cluster import ROOT, until

pytestmark = pytest.mark.root
SHOP = ("-n", "shop")


@pytest.fixture(scope="module")
def shop(cluster):
    cluster("apply", "-f", str(ROOT / "examples/three-tier"))
    for workload in ("deploy/frontend", "deploy/backend", "sts/database"):
        cluster("rollout", "status", workload, *SHOP, "--timeout", "60s", timeout=70)
    yield cluster
    cluster("delete", "ns", "shop")


def addresses(cluster, tier):
    return {pod["status"]["podIP"] for pod in cluster.pods(f"tier={tier}", "shop")}


def test_each_tier_says_what_it_saw(shop):
    text = shop("exec", "client", "--", "curl", "-sS", "http://frontend.shop")
    client = shop.json("get", "pod", "client")["status"]["podIP"]
    backend_ip = shop.json("get", "svc", "backend", *SHOP)["spec"]["clusterIP"]
    hops = re.findall(r"(\S+) on (node\d): (?:GET /|INCR visits) from (\S+):(\d+) to (\S+):(\d+)", text)
    assert [name.split("-")[0] for name, *_ in hops] == ["frontend", "backend", "database"], text
    (_, _, from1, _, to1, port1), (_, _, from2, sport2, to2, port2), (_, _, from3, sport3, to3, port3) = hops
    assert (from1, port1, port2, port3) == (client, "8080", "8080", "5432"), (
        "the ports are the pods', the client's address is kept"
    )
    assert to1 in addresses(shop, "frontend")
    assert from2 == to1
    assert to2 in addresses(shop, "backend")
    assert from3 == to2
    assert to3 in addresses(shop, "database")
    assert f"backend resolves to {backend_ip}" in text, "a Service's name is its ClusterIP"
    assert f"asks {backend_ip}:8080 from {to1}:{sport2}" in text, "the frontend went to the ClusterIP, the backend was reached"
    assert f"database-0.database resolves to {to3}" in text, "a headless Service's pod is reached itself"
    assert f"asks {to3}:5432 from {to2}:{sport3}" in text


def test_a_job_of_the_cron_job(shop):
    assert shop("create", "job", "now", *SHOP, "--from", "cronjob/visitor") == "job.batch/now created\n"
    shop("wait", "job/now", *SHOP, "--for=condition=Complete", "--timeout", "60s", timeout=70)
    assert "INCR visits" in shop("logs", "job/now", *SHOP)
    assert "Completed" in shop("describe", "job", "now", *SHOP)


def test_a_rollout_is_taken_back(shop):
    image = shop.json("get", "deploy", "backend", *SHOP)["spec"]["template"]["spec"]["containers"][0]["image"]
    text = (ROOT / "examples/three-tier/three-tier.yaml").read_text()
    broken = text.replace(image, "no-such-program:1").replace("replicas: 2", "replicas: 2\n  progressDeadlineSeconds: 600")
    shop("apply", "-f", "-", stdin=broken.replace("/tiers/", "/nowhere/"))
    history = lambda: shop("rollout", "history", "deploy/backend", *SHOP)  # noqa: E731
    until(lambda: re.search(r"^2 ", history(), re.M), "a second revision")
    assert "no-such-program:1" in shop("rollout", "history", "deploy/backend", *SHOP, "--revision", "2")
    for workload in ("deploy/frontend", "deploy/backend", "sts/database"):
        assert "rolled back" in shop("rollout", "undo", workload, *SHOP)
        shop("rollout", "status", workload, *SHOP, "--timeout", "60s", timeout=70)
    assert re.findall(r"^(\d+) ", history(), re.M) == ["2", "3"], "the old template is the newest revision"
    assert "visits are now" in shop("exec", "client", "--", "curl", "-sS", "http://frontend.shop")
