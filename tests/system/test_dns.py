"""The ConfigMap kube-system/coredns on a real cluster: a change reaches the running servers, a wrong one does not; and how many
questions a name from the outside costs a pod."""

from __future__ import annotations

import pytest

from tests.support.cluster import until

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.timeout(300)]

RELOAD_SECONDS = 120.0  # kubeadm's `reload` looks every 30 to 45 s; later ones of this test every 2 to 3 s
CONFIG_MAP = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: coredns
  namespace: kube-system
data:
  Corefile: |
    .:53 {
        errors
        log . "asked {type} {name} {rcode}"
        health
        ready
        %s
        hosts {
           203.0.113.10 example.com
           %s
           fallthrough
        }
        kubernetes cluster.local in-addr.arpa ip6.arpa {
           pods verified
           fallthrough in-addr.arpa ip6.arpa
        }
        forward . /etc/resolv.conf
        reload 2s 1s
    }
"""


@pytest.fixture(scope="module")
def dns(new_cluster):
    """A cluster of its own, since its DNS is broken and mended here, with one DNS server and a client."""
    made = new_cluster("--nodes", "1", "--no-edge")
    made("scale", "deploy/coredns", "-n", "kube-system", "--replicas=1")
    made("apply", "-f", "-", stdin=CLIENT)
    made("wait", "pod/client", "--for=condition=Ready", "--timeout", "60s", timeout=70)
    until(lambda: len(made.pods("k8s-app=kube-dns", "kube-system")) == 1, "one DNS server", 60)
    made("apply", "-f", "-", stdin=CONFIG_MAP % ("", "192.0.2.1 first.example"))
    until(lambda: resolves(made, "first.example") == "192.0.2.1", "the first change", RELOAD_SECONDS)
    return made


CLIENT = """\
apiVersion: v1
kind: Pod
metadata:
  name: client
spec:
  containers:
    - name: client
      image: curlimages/curl:8.10.1
      command: ["sleep", "infinity"]
"""


def resolves(cluster, name: str) -> str:
    words = cluster.run("exec", "client", "--", "getent", "ahostsv4", name).out.split()
    return words[0] if words else ""


def server_log(cluster) -> list[str]:
    [pod] = cluster.pods("k8s-app=kube-dns", "kube-system")
    return cluster("logs", "-n", "kube-system", pod["metadata"]["name"]).splitlines()


def questions(cluster, *command: str) -> list[str]:
    """What the server is asked while the client runs a command: type and name."""
    before = len(server_log(cluster))
    cluster.run("exec", "client", "--", *command)
    new = server_log(cluster)[before:]
    return [" ".join(line.split(" asked ")[1].split()[:2]) for line in new if " asked " in line and "health" not in line]


def test_a_wrong_corefile_is_logged_with_its_line_and_the_next_right_one_taken(dns):
    dns("apply", "-f", "-", stdin=CONFIG_MAP % ("nonsense", "192.0.2.2 first.example"))
    errors = until(lambda: [line for line in server_log(dns) if "reload: " in line], "the error")
    assert "/etc/coredns/Corefile:6: plugin nonsense: unknown" in errors[-1]
    assert "the running configuration stays" in errors[-1]
    assert resolves(dns, "first.example") == "192.0.2.1"
    assert resolves(dns, "kubernetes.default") == "10.96.0.1"
    dns("apply", "-f", "-", stdin=CONFIG_MAP % ("", "192.0.2.3 first.example"))
    until(lambda: resolves(dns, "first.example") == "192.0.2.3", "the mended file")


def test_a_name_of_the_outside_costs_a_search_path_and_autopath_one_question_each(dns):
    searched = questions(dns, "getent", "ahostsv4", "example.com")
    names = ["example.com.default.svc.cluster.local.", "example.com.svc.cluster.local.", "example.com.cluster.local."]
    assert list(dict.fromkeys(q.split()[1] for q in searched))[:3] == names
    assert searched[-1].split()[1] == "example.com."
    assert {q.split()[1] for q in questions(dns, "getent", "ahostsv4", "example.com.")} == {"example.com."}
    dns("apply", "-f", "-", stdin=CONFIG_MAP % ("autopath @kubernetes", "192.0.2.4 first.example"))
    until(lambda: resolves(dns, "first.example") == "192.0.2.4", "autopath")
    assert resolves(dns, "example.com") == "203.0.113.10"
    assert {q.split()[1] for q in questions(dns, "getent", "ahostsv4", "example.com")} == {names[0]}
