"""What breaks when a process is killed, for how long, and that it heals. A cluster of its own, since it is broken on purpose.

A loop of requests runs in a pod the whole time, one every 20 ms with at most a second each; the outage is the longest time
between two that succeeded.
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.cluster import ROOT, until

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.timeout(300)]

LOOP = """
while :; do
  if curl -s -o /dev/null -m 1 {url}; then echo "ok $(date +%s.%N)"; else echo "no $(date +%s.%N)"; fi
  sleep 0.02
done
"""
# Holds one TCP connection to a Service and sends a byte on it every 100 ms; ends with 1 when it breaks.
HOLD = """
import socket, sys, time
s = socket.create_connection((sys.argv[1], 7), 5)
s.settimeout(10)
print("open", flush=True)
while True:
    s.sendall(b"x")
    if s.recv(1) != b"x":
        sys.exit(1)
    print("echo", flush=True)
    time.sleep(0.1)
"""
ECHO = """
import socket, threading
def serve(c):
    while d := c.recv(100):
        c.sendall(d)
l = socket.create_server(("", 7))
while True:
    threading.Thread(target=serve, args=(l.accept()[0],), daemon=True).start()
"""
ECHO_MANIFEST = f"""
apiVersion: v1
kind: Pod
metadata: {{name: echo, labels: {{app: echo}}}}
spec:
  containers:
    - name: echo
      image: python:3.12
      command: [python3, -c, {json.dumps(ECHO)}]
      ports: [{{containerPort: 7}}]
      readinessProbe: {{tcpSocket: {{port: 7}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: echo}}
spec: {{selector: {{app: echo}}, ports: [{{port: 7}}]}}
"""


@pytest.fixture(scope="module")
def broken(new_cluster):
    made = new_cluster()
    made("apply", "-f", str(ROOT / "examples/web.yaml"))
    made("rollout", "status", "deploy/web", "--timeout", "60s", timeout=70)
    made("wait", "pod/client", "--for=condition=Ready", "--timeout", "60s", timeout=70)
    yield made
    made.down()


class Requests:
    """A loop of requests in the client, detached from the agent that started it, and what became of them."""

    def __init__(self, cluster, url="http://web.default.svc.cluster.local"):
        self.cluster = cluster
        script = f"setsid sh -c '{LOOP.format(url=url)}' >/tmp/outcomes 2>/dev/null </dev/null & echo $! >/tmp/loop"
        cluster("exec", "client", "--", "sh", "-c", script)

    def outcomes(self):
        """(succeeded, when) of all requests so far."""
        lines = self.cluster("exec", "client", "--", "cat", "/tmp/outcomes").split("\n")[:-1]
        return [(word == "ok", float(when)) for word, when in (line.split() for line in lines)]

    def good_after(self, when, count=10):
        """The last `count` requests all succeeded, after `when`."""
        last = self.outcomes()[-count:]
        return len(last) == count and all(ok and at > when for ok, at in last)

    def outage(self, since):
        """The longest time without a success, from `since` on."""
        good = [since, *(at for ok, at in self.outcomes() if ok and at > since)]
        return max((b - a for a, b in pairwise(good)), default=float("inf"))

    def stop(self):
        self.cluster("exec", "client", "--", "sh", "-c", "kill -KILL -$(cat /tmp/loop)")


@contextmanager
def requests(cluster):
    loop = Requests(cluster)
    try:
        until(lambda: loop.good_after(0), "ten good requests")
        yield loop
    finally:
        loop.stop()


def kill(pids):
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return time.time()


def healthy(cluster):
    return cluster.run("status", "--cluster", cluster.name).code == 0


def node_of(cluster, pod):
    return cluster("get", "pod", pod, "-o", "jsonpath={.spec.nodeName}")


def test_the_api_server_is_killed(broken, record_property):
    """Requests go on as if nothing were; objects are still there; changes reach the nodes again."""
    with requests(broken) as loop:
        killed = kill(broken.processes("apiserver"))
        until(lambda: broken.run("get", "pods").code == 0, "the API server's return")
        record_property("seconds until the API server is back", time.time() - killed)
        until(lambda: loop.good_after(time.time() - 2), "good requests")
        outage = loop.outage(killed - 1)
    record_property("seconds without an answer", outage)
    assert outage < 1.0
    assert len(broken.pods("app=web")) == 2
    broken("scale", "deploy/web", "--replicas", "3")
    broken("rollout", "status", "deploy/web", "--timeout", "60s", timeout=70)
    broken("scale", "deploy/web", "--replicas", "2")


def test_an_agent_is_killed(broken, record_property):
    """Its node's packets flow on; the agent comes back and takes over what is there, without restarting a container."""
    node = node_of(broken, "client")
    before = {pod["metadata"]["uid"]: restarts(pod) for pod in broken.pods("app=web") + broken.pods("app=client")}
    with requests(broken) as loop:
        old = broken.processes("agent", node)
        killed = kill(old)
        until(lambda: (new := broken.processes("agent", node)) and new != old, "the agent's return")
        until(lambda: broken.run("exec", "client", "--", "true").code == 0, "an answer of the agent")
        record_property("seconds until the agent answers", time.time() - killed)
        until(lambda: loop.good_after(killed), "good requests")
        outage = loop.outage(killed - 1)
    record_property("seconds without an answer", outage)
    assert outage < 1.0
    until(lambda: healthy(broken), "a healthy cluster")
    after = {pod["metadata"]["uid"]: restarts(pod) for pod in broken.pods("app=web") + broken.pods("app=client")}
    assert after == before
    broken("exec", "client", "--", "curl", "-sS", "-m", "2", "http://web")


def restarts(pod):
    return [status["restartCount"] for status in pod["status"]["containerStatuses"]]


def test_a_datapath_is_killed(broken, record_property):
    """Requests fail until it is replaced; devices are taken over and the state is replayed."""
    node = node_of(broken, "client")
    with requests(broken) as loop:
        killed = kill(broken.processes("datapath", node))
        until(lambda: loop.good_after(killed), "good requests")
        outage = loop.outage(killed - 1)
    record_property("seconds without an answer", outage)
    assert outage < 5.0
    assert healthy(broken)


def test_a_pods_process_is_killed(broken, record_property):
    """The container is started again, and its pod is Ready again."""
    broken("exec", "client", "--", "sh", "-c", "echo before >/tmp/mark")
    [pod] = broken.pods("app=client")
    started = pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]
    count = restarts(pod)[0]
    killed = kill(main_process(broken, "sleep infinity"))
    until(lambda: restarts(broken.pods("app=client")[0])[0] == count + 1, "the restart")
    broken("wait", "pod/client", "--for=condition=Ready", "--timeout", "30s", timeout=40)
    record_property("seconds until Ready", time.time() - killed)
    [pod] = broken.pods("app=client")
    assert pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 137
    assert pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] >= started
    broken("exec", "client", "--", "curl", "-sS", "-m", "2", "http://web")


def main_process(cluster, command):
    [found] = json.loads(cluster.run("status", "--cluster", cluster.name, "-o", "json").out)
    return [each["pid"] for each in found["processes"] if each["command"] == command]


def test_an_open_connection_survives_the_kill_of_agents_and_of_the_api_server(broken):
    broken("apply", "-f", "-", stdin=ECHO_MANIFEST)
    broken("wait", "pod/echo", "--for=condition=Ready", "--timeout", "60s", timeout=70)
    # Started by a shell that stays behind: an exec ends with the agent that serves it, the program in the pod must not.
    script = f"setsid python3 -c '{HOLD}' echo >/tmp/hold.out 2>&1 </dev/null & echo started"
    broken("exec", "client", "--", "sh", "-c", script)
    count = lambda: int(broken("exec", "client", "--", "sh", "-c", "grep -c echo /tmp/hold.out || true"))  # noqa: E731
    until(lambda: count() > 3, "echoes")
    kill(broken.processes("apiserver"))
    kill(broken.processes("agent"))
    until(lambda: len(broken.processes("agent")) == 3 and healthy(broken), "a healthy cluster")
    until(lambda: broken.run("exec", "client", "--", "true").code == 0, "an answer of the agent")
    now = count()
    until(lambda: count() > now + 5, "more echoes on the same connection")
    assert "rror" not in broken("exec", "client", "--", "cat", "/tmp/hold.out")
    assert broken("exec", "client", "--", "grep", "-c", "open", "/tmp/hold.out").strip() == "1"


def test_no_process_outlives_the_cluster(new_cluster):
    """Even if agents were killed before, whose pods and datapaths have lost their parents."""
    made = new_cluster("--nodes", "2")
    made("apply", "-f", "-", stdin=ECHO_MANIFEST)
    made("wait", "pod/echo", "--for=condition=Ready", "--timeout", "60s", timeout=70)
    kill(made.processes("agent"))
    [found] = json.loads(made.run("status", "--cluster", made.name, "-o", "json").out)
    made.down()
    left = [each for each in found["processes"] if is_same(each)]
    assert not left
    assert made.name not in Path("/proc/self/mountinfo").read_text()


def is_same(process):
    try:
        with open(f"/proc/{process['pid']}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode().strip() == process["command"]
    except (FileNotFoundError, ProcessLookupError):
        return False
