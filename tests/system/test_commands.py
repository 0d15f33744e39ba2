"""What a user types, on a real cluster, and what comes out: the commands of the README and of books about Kubernetes' network."""

from __future__ import annotations

import ipaddress
import json
import os
import pty
import re
import select
import subprocess
import time

import pytest

from tests.support.cluster import PODWIRE, ROOT, read_new, until

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.timeout(300)]


def node_of(cluster, pod):
    return cluster("get", "pod", pod, "-o", "jsonpath={.spec.nodeName}")


@pytest.fixture(scope="session")
def web_ip(cluster):
    return cluster("get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}")


class TestObjects:
    def test_pods_of_all_namespaces(self, cluster):
        lines = cluster("get", "pods", "-A", "-o", "wide").splitlines()
        assert lines[0].split()[:9] == ["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "NOMINATED"]
        rows = {line.split()[1]: line.split() for line in lines[1:]}
        assert rows["client"][2:4] == ["1/1", "Running"]
        assert sum(name.startswith("coredns-") for name in rows) == 2
        assert sum(name.startswith("web-") for name in rows) == 2

    def test_nodes(self, cluster):
        lines = cluster("get", "nodes", "-o", "wide").splitlines()
        assert [line.split()[:2] for line in lines[1:]] == [[f"node{n}", "Ready"] for n in (1, 2, 3)]
        assert "192.168.1.11" in lines[1]
        cidrs = {item["spec"]["podCIDR"] for item in cluster.json("get", "nodes")["items"]}
        assert len(cidrs) == 3
        assert all(ipaddress.ip_network(cidr).subnet_of(ipaddress.ip_network("10.244.0.0/16")) for cidr in cidrs)

    def test_kube_dns(self, cluster):
        service = cluster.json("get", "svc", "kube-dns", "-n", "kube-system")
        assert service["spec"]["clusterIP"] == "10.96.0.10"
        assert [port["name"] for port in service["spec"]["ports"]] == ["dns", "dns-tcp", "metrics"]
        assert "kubernetes cluster.local" in cluster("get", "cm", "coredns", "-n", "kube-system", "-o", "yaml")

    def test_several_kinds_and_names(self, cluster):
        text = cluster("get", "all")
        assert "pod/client" in text
        assert "deployment.apps/web" in text
        assert "service/web" in text
        assert cluster("get", "pod/client", "svc/web", "-o", "name").split() == ["pod/client", "service/web"]

    def test_apply_again_changes_nothing(self, cluster):
        text = cluster("apply", "-f", str(ROOT / "examples/web.yaml"))
        assert sorted(text.splitlines()) == ["deployment.apps/web unchanged", "pod/client unchanged", "service/web unchanged"]

    def test_describe(self, cluster):
        text = cluster("describe", "pod", "client")
        assert "curlimages/curl" in text
        assert "Events:" in text
        endpoints = cluster("describe", "svc", "web")
        assert len(re.findall(r"10\.244\.\d+\.\d+:80", endpoints)) == 2

    def test_life_of_an_object(self, cluster):
        manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: life}\ndata: {a: b}\n"
        assert cluster("apply", "-f", "-", stdin=manifest) == "configmap/life created\n"
        assert cluster("apply", "-f", "-", stdin=manifest.replace("b}", "c}")) == "configmap/life configured\n"
        assert cluster("get", "cm", "life", "-o", "jsonpath={.data.a}") == "c"
        assert cluster("delete", "cm", "life") == 'configmaps "life" deleted\n'
        code, error = cluster.fails("get", "cm", "life")
        assert (code, error) == (1, 'podwire: configmaps "life" not found in namespace default\n')

    def test_watch_prints_changes(self, cluster):
        with cluster.popen("get", "cm", "-w", "-o", "name", stdout=subprocess.PIPE) as watch:
            seen = ""

            def read():
                nonlocal seen
                seen += read_new(watch)
                return seen

            until(
                lambda: cluster("apply", "-f", "-", stdin=WATCHED % time.monotonic()) and "configmap/watched" in read(),
                "the change",
            )
            watch.terminate()
        cluster("delete", "cm", "watched")

    def test_scale_and_wait(self, cluster):
        manifest = WORKLOAD.replace("NAME", "scaled")
        cluster("apply", "-f", "-", stdin=manifest)
        cluster("rollout", "status", "deploy/scaled", "--timeout", "60s")
        assert cluster("scale", "deploy/scaled", "--replicas", "3") == "deployment.apps/scaled scaled\n"
        cluster("rollout", "status", "deploy/scaled", "--timeout", "60s")
        assert len(cluster.pods("app=scaled")) == 3
        cluster("delete", "-f", "-", stdin=manifest)
        until(lambda: not cluster.pods("app=scaled"), "the end of the pods")

    def test_get_pods_is_fast(self, cluster):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([ROOT / ".venv/bin/podwire", "get", "pods"], env=cluster.environ, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        assert sorted(times)[0] <= 0.3


WATCHED = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: watched}\ndata: {t: '%s'}\n"
WORKLOAD = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME}
spec:
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: registry.example/x:1, ports: [{containerPort: 8080}]}]
"""


class TestPods:
    def test_curl_by_every_name(self, cluster):
        for name in ("web", "web.default", "web.default.svc", "web.default.svc.cluster.local"):
            assert cluster("exec", "client", "--", "curl", "-sS", "-m", "5", f"http://{name}")

    def test_a_pod_of_another_node_answers(self, cluster):
        here = node_of(cluster, "client")
        assert all(pod["spec"]["nodeName"] != here for pod in cluster.pods("app=web"))

    def test_resolv_conf(self, cluster):
        text = cluster("exec", "client", "--", "cat", "/etc/resolv.conf")
        assert "nameserver 10.96.0.10" in text
        assert "search default.svc.cluster.local svc.cluster.local cluster.local" in text
        assert "options ndots:5" in text

    def test_routes_of_a_pod(self, cluster):
        third = node_of(cluster, "client").removeprefix("node")
        text = cluster("exec", "client", "--", "ip", "route")
        cidr = cluster("get", "node", f"node{third}", "-o", "jsonpath={.spec.podCIDR}")
        gateway = str(ipaddress.ip_network(cidr)[1])
        assert f"default via {gateway} dev eth0" in text

    def test_exit_status_and_streams(self, cluster):
        done = cluster.run("exec", "client", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
        assert (done.code, done.out, done.err) == (7, "out\n", "err\n")

    def test_standard_input(self, cluster):
        assert cluster("exec", "-i", "client", "--", "wc", "-c", stdin="12345").strip() == "5"
        assert cluster("exec", "client", "--", "wc", "-c", stdin="12345").strip() == "0"

    def test_a_command_that_is_not_there(self, cluster):
        code, error = cluster.fails("exec", "client", "--", "no-such-command")
        assert code in (126, 127)
        assert "no-such-command" in error

    def test_a_terminal(self, cluster):
        """Keys go in raw, the size is passed on, the exit status comes back, and the local terminal is as before."""
        process, master = _in_terminal([*PODWIRE, "exec", "-it", "client", "--", "sh"], cluster.environ, (33, 111))
        try:
            _expect(master, b"# ", b"$ ")
            os.write(master, b"stty size; exit 5\n")
            assert b"33 111" in _expect(master, b"33 111")
            assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 5
        finally:
            os.close(master)

    def test_logs(self, cluster):
        cluster("exec", "client", "--", "curl", "-sS", "http://web")
        text = until(lambda: cluster("logs", "deploy/web") + cluster("logs", "deploy/web", "--tail", "1"), "a line of log")
        assert text

    def test_signals_reach_the_command(self, cluster):
        with cluster.popen(
            "exec", "client", "--", "sh", "-c", "trap 'exit 9' TERM; echo on; while :; do sleep 0.1; done", stdout=subprocess.PIPE
        ) as running:
            assert running.stdout.readline() == "on\n"
            running.terminate()
            assert running.wait(10) == 9


def _in_terminal(argv, environ, size):
    import fcntl
    import struct
    import termios

    pid, master = pty.fork()
    if pid == 0:
        os.execve(argv[0], argv, environ)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    return pid, master


def _expect(master, *wanted, seconds=15):
    seen, end = b"", time.monotonic() + seconds
    while not any(each in seen for each in wanted):
        ready, _, _ = select.select([master], [], [], max(0, end - time.monotonic()))
        assert ready, f"waited for {wanted}, saw {seen!r}"
        seen += os.read(master, 4096)
    return seen


class TestNodes:
    def test_iptables_save(self, cluster, web_ip):
        text = cluster("node", "node1", "--", "iptables-save")
        assert re.search(rf"-A KUBE-SERVICES -d {re.escape(web_ip)}/32 .*--dport 80 -j KUBE-SVC-", text)
        assert text.count("-A KUBE-SEP-") >= 4
        assert "--to-destination" in text

    def test_the_tunnel(self, cluster):
        link = cluster("node", "node1", "--", "ip", "-d", "link", "show", "flannel.1")
        assert re.search(r"vxlan id 1 .*dstport 8472 nolearning", link)
        assert "mtu 1450" in link
        entries = cluster("node", "node1", "--", "bridge", "fdb")
        assert len(re.findall(r"dev flannel.1 dst 192\.168\.1\.1[23]", entries)) == 2

    def test_routes_of_a_node(self, cluster):
        routes = cluster("node", "node1", "--", "ip", "route")
        assert len(re.findall(r"10\.244\.\d+\.0/24 via 10\.244\.\d+\.0 dev flannel\.1 .*onlink", routes)) == 2
        assert re.search(r"10\.244\.\d+\.0/24 dev cni0", routes)

    def test_conntrack(self, cluster, web_ip):
        client = cluster("get", "pod", "client", "-o", "jsonpath={.status.podIP}")
        cluster("exec", "client", "--", "curl", "-sS", "http://web")
        text = cluster("node", node_of(cluster, "client"), "--", "conntrack", "-L")
        assert re.search(
            rf"tcp\s+6 \d+ \w+ src={re.escape(client)} dst={re.escape(web_ip)} sport=\d+ dport=80 src=10\.244\.", text
        )

    def test_curl_from_every_node(self, cluster, web_ip):
        for node in ("node1", "node2", "node3"):
            assert cluster("node", node, "--", "curl", "-sS", "-m", "5", f"http://{web_ip}")

    def test_an_unknown_node(self, cluster):
        assert cluster.fails("node", "node9", "--", "true") == (1, 'podwire: nodes "node9" not found\n')


class TestNetwork:
    def test_trace_tells_the_way(self, cluster, web_ip):
        story = cluster.json("trace", "client", "http://web")
        assert story["exit"] == 0
        [connection] = [each for each in story["connections"] if each["server"] == web_ip]
        forward, back = connection["passages"][0], next(p for p in connection["passages"] if p.get("reply"))
        here, there = node_of(cluster, "client"), forward["hops"][-1]["node"]
        assert [hop["node"] for hop in forward["hops"]] == [here, there]
        assert [hop["node"] for hop in back["hops"]] == [there, here]
        dnat = next(step for step in forward["hops"][0]["steps"] if step["action"] == "dnat")
        assert dnat["origin"] == "Service default/web:http"
        assert "--to-destination" in dnat["rule"]
        assert dnat["evaluated"] > 0
        assert any(each["server"] == "10.96.0.10" for each in story["connections"]), "the DNS lookup"

    def test_trace_for_people(self, cluster):
        text = cluster("trace", "client", "http://web")
        for part in (
            "DNS",
            "TCP SYN",
            "the way back: TCP SYN-ACK",
            "-j DNAT",
            "Service default/web:http",
            "in a tunnel to",
            "exit status 0",
        ):
            assert part in text

    def test_trace_of_what_fails(self, cluster):
        done = cluster.run("trace", "client", "http://web:81", "--timeout", "1")
        assert done.code == 1
        assert "exit status 28" in done.out or "exit status 7" in done.out

    def test_trace_from_a_node_to_a_pod(self, cluster):
        address = cluster("get", "pod", "client", "-o", "jsonpath={.status.podIP}")
        other = next(f"node{n}" for n in (1, 2, 3) if f"node{n}" != node_of(cluster, "client"))
        assert "ICMP echo request" in cluster("trace", f"node/{other}", address)

    def test_flows(self, cluster, web_ip):
        cluster("exec", "client", "--", "curl", "-sS", "http://web")
        found = cluster.json("flows", "--service", "web")
        assert any(flow["destination"] == web_ip and len(flow["nodes"]) == 2 for flow in found)
        assert "Service default/web" in cluster("flows", "--pod", "client")

    def test_check_agrees_with_the_cluster(self, cluster):
        done = cluster.run(
            "check", "-f", str(ROOT / "examples/web.yaml"), "--flows", str(ROOT / "examples/flows.yaml"), "-o", "json"
        )
        assert done.code == 0, done.err
        assert [result["verdict"] for result in json.loads(done.out)] == ["delivered", "delivered"]


class TestBadUsage:
    @pytest.mark.parametrize(
        ("argv", "line"),
        [
            (["up", "--cni", "none"], "podwire up: --cni: there is no 'none'; there is: flannel"),
            (["up", "--proxy", "none"], "podwire up: --proxy: there is no 'none'; there is: iptables"),
            (["up", "--nodes", "0"], "--nodes"),
            (["get"], "Missing argument"),
            (["get", "things"], "there is no kind 'things'"),
            (["get", "pods", "-o", "xml"], "there is no 'xml'"),
            (["apply", "-f", "/nonexistent"], "podwire: /nonexistent: No such file or directory"),
            (["exec", "client"], "Missing argument"),
            (["wait", "pod/client", "--for=ready"], "--for"),
            (["wait", "pod/client", "--for=condition=Ready", "--timeout", "soon"], "--timeout"),
            (["trace", "client", "web:http"], "not a port number"),
        ],
    )
    def test_exit_status_2_and_one_line(self, cluster, argv, line):
        code, error = cluster.fails(*argv)
        assert code == 2
        assert line in error
        assert error.count("\n") == 1

    @pytest.mark.parametrize(
        ("argv", "line"),
        [
            (["get", "pod", "nobody"], 'podwire: pods "nobody" not found in namespace default'),
            (["get", "pod", "coredns", "-n", "nowhere"], "not found"),
            (["logs", "nobody"], "not found"),
            (["exec", "client", "-c", "nobody", "--", "true"], "has no container 'nobody'; it has: client"),
            (
                ["wait", "pod/client", "--for=condition=Never", "--timeout", "0"],
                "timed out waiting for the condition on pods/client",
            ),
            (["--cluster", "nobody", "get", "pods"], "cluster 'nobody' is not running"),
        ],
    )
    def test_exit_status_1_and_one_line(self, cluster, argv, line):
        code, error = cluster.fails(*argv)
        assert code == 1
        assert line in error
        assert error.count("\n") == 1

    def test_a_bad_manifest_stores_nothing(self, cluster):
        good = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: half}\n---\n"
        bad = "apiVersion: v1\nkind: Service\nmetadata: {name: half}\nspec: {ports: [{port: http}]}\n"
        code, error = cluster.fails("apply", "-f", "-", stdin=good + bad)
        assert code == 2
        assert "stdin:5: $.spec.ports[0].port: expected int" in error
        assert cluster.fails("get", "cm", "half")[0] == 1
