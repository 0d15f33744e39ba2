"""A rolling update behind a Service loses no request, whatever mode kube-proxy is in; nor does an open connection notice that the
agents were killed.

Old pods leave the Service as soon as they are to go and answer until their preStop hook is over; new ones join when they are
Ready. A client makes connections all the while, each a request of its own, as fast as several threads care to.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from podwire_nodeagent.proxy.modes import MODES
from tests.support.cluster import until

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.timeout(120)]

MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  containers: [{name: client, image: "python:3.12", command: [sleep, infinity]}]
---
apiVersion: v1
kind: Service
metadata: {name: x}
spec: {selector: {app: x}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: x}
spec:
  replicas: 4
  minReadySeconds: 1
  strategy: {rollingUpdate: {maxUnavailable: 1, maxSurge: 1}}
  selector: {matchLabels: {app: x}}
  template:
    metadata: {labels: {app: x}}
    spec:
      terminationGracePeriodSeconds: 20
      containers:
        - name: x
          image: example.org/stand-in:1
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
          lifecycle: {preStop: {exec: {command: [sh, -c, "sleep 2"]}}}
"""
# Requests in six threads until the file `stop` is there, each on a connection of its own, or (`kept`) each thread's on one.
# Prints what became of them: the count by pod, how each failure called itself, the longest wait in seconds. How many there were
# until now is in `stop`.count.
LOAD = """
import collections, http.client, json, os, sys, threading, time
host, stop, kept = sys.argv[1], sys.argv[2], sys.argv[3] == "kept"
answers, failures, waits = collections.Counter(), [], [0.0]

def ask(connection):
    connection.request("GET", "/hostname")
    reply = connection.getresponse()
    name = reply.read().decode()
    assert reply.status == 200, f"{reply.status}: {name}"
    answers[name] += 1

def new():
    connection = http.client.HTTPConnection(host, timeout=5)
    connection.connect()
    connection.auto_open = 0
    return connection

def work():
    connection = None
    while not os.path.exists(stop):
        began = time.monotonic()
        try:
            connection = connection or new()
            ask(connection)
            waits[0] = max(waits[0], time.monotonic() - began)
        except Exception as error:
            failures.append(f"{time.time():.3f} {type(error).__name__}: {error}")
            if kept:
                return
        if not kept and connection:
            connection.close()
            connection = None
        time.sleep(0.01)

threads = [threading.Thread(target=work) for _ in range(6)]
for each in threads: each.start()
while any(each.is_alive() for each in threads):
    with open(stop + ".new", "w") as file: file.write(str(sum(answers.values())))
    os.rename(stop + ".new", stop + ".count")
    time.sleep(0.05)
print(json.dumps({"answers": answers, "failures": failures, "longest": waits[0]}))
"""


@pytest.fixture(scope="module", params=MODES)
def cluster(request, new_cluster):
    """Two nodes, four pods behind a Service, and a client; in each mode."""
    made = new_cluster("--nodes", "2", "--no-edge", "--proxy", request.param)
    made("apply", "-f", "-", stdin=MANIFEST)
    made("rollout", "status", "deploy/x", "--timeout", "60s", timeout=70)
    made("wait", "pod/client", "--for=condition=Ready", "--timeout", "60s", timeout=70)
    yield made
    made.down()


def names(cluster):
    return {pod["metadata"]["name"] for pod in cluster.pods("app=x")}


def count(cluster, stop):
    """Requests answered up to now."""
    return int(cluster.run("exec", "client", "--", "cat", f"{stop}.count").out or 0)


def test_no_request_is_lost_in_a_rolling_update(cluster, record_property):
    old = names(cluster)
    load = cluster.popen(
        *("exec", "client", "--", "python3", "-c", LOAD, "x", "/tmp/stop", "new"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    until(lambda: count(cluster, "/tmp/stop"), "requests")
    cluster("rollout", "restart", "deploy/x")
    cluster("rollout", "status", "deploy/x", "--timeout", "60s", timeout=70)
    new = until(lambda: (found := names(cluster)) and len(found) == 4 and found, "the end of the old pods")
    cluster("exec", "client", "--", "touch", "/tmp/stop")
    out, err = load.communicate(timeout=20)
    assert load.returncode == 0, err
    result = json.loads(out)
    answered = set(result["answers"])
    record_property("requests", sum(result["answers"].values()))
    record_property("longest wait, seconds", result["longest"])
    assert not result["failures"]
    assert not old & new
    assert new <= answered <= old | new
    assert old & answered
    assert sum(result["answers"].values()) >= 300


def test_open_connections_survive_the_kill_of_the_agents(cluster):
    # Started by a shell that stays behind: an exec ends with the agent that serves it.
    script = 'setsid python3 -c "$0" x /tmp/enough kept >/tmp/kept 2>&1 </dev/null &'
    cluster("exec", "client", "--", "sh", "-c", script, LOAD)
    before = until(lambda: (now := count(cluster, "/tmp/enough")) > 100 and now, "requests on open connections")
    old = cluster.processes("agent")
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(new := cluster.processes("agent")) == len(old) and not {*new} & {*old}, "new agents")
    until(lambda: cluster.run("status", "--cluster", cluster.name).code == 0, "a healthy cluster")
    until(lambda: count(cluster, "/tmp/enough") > before + 100, "more requests on the same connections")
    cluster("exec", "client", "--", "touch", "/tmp/enough")
    result = json.loads(until(lambda: cluster("exec", "client", "--", "cat", "/tmp/kept"), "the end of the requests"))
    assert not result["failures"]
    assert set(result["answers"]) <= names(cluster)
