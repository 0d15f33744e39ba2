"""Names, manifests, waiting and describing, without a server."""

import pytest

from podwire.cli.apply import Placed, located, read_all
from podwire.cli.describe import text_of
from podwire.cli.get import parse_what
from podwire.cli.rollout import unfinished
from podwire.cli.session import Session
from podwire.cli.wait import parse_goal, seconds
from podwire.paths import ClusterError
from podwire_core.errors import ApiError, Cause
from podwire_core.rpc.messages import ResourceInfo


@pytest.fixture
def session():
    made = Session()
    made.__dict__["resources"] = [  # the cached property's value
        ResourceInfo("Pod", "", "v1", "pods", "pod", ("po",)),
        ResourceInfo("Service", "", "v1", "services", "service", ("svc",)),
        ResourceInfo("Node", "", "v1", "nodes", "node", ("no",), namespaced=False),
        ResourceInfo("Deployment", "apps", "v1", "deployments", "deployment", ("deploy",)),
        ResourceInfo("Ingress", "networking.k8s.io", "v1", "ingresses", "ingress", ("ing",)),
        ResourceInfo("Ingress", "example.com", "v1", "ingresses", "ingress"),
    ]
    return made


class TestNames:
    @pytest.mark.parametrize(
        ("text", "kind", "name", "namespace"),
        [
            ("web", "Pod", "web", "default"),
            ("ns/web", "Pod", "web", "ns"),
            ("pod/web", "Pod", "web", "default"),
            ("deploy/web", "Deployment", "web", "default"),
            ("deployments.apps/ns/web", "Deployment", "web", "ns"),
            ("no/node1", "Node", "node1", ""),
            ("ingresses.example.com/x", "Ingress.example.com", "x", "default"),
        ],
    )
    def test_what_a_name_means(self, session, text, kind, name, namespace):
        ref = session.ref(text, None)
        assert (ref.kind, ref.name, ref.namespace) == (kind, name, namespace)

    def test_the_namespace_option(self, session):
        assert session.ref("web", "other").namespace == "other"
        assert session.ref("ns/web", "other").namespace == "ns"

    @pytest.mark.parametrize("text", ["", "/", "pod/", "a/b/c", "pod/a/b/c"])
    def test_what_is_not_a_name(self, session, text):
        with pytest.raises(ClusterError) as caught:
            session.ref(text, None)
        assert caught.value.code == 2

    def test_lists_of_kinds_and_names(self, session):
        assert [(q.kind, q.names) for q in parse_what(session, ("po,svc",))] == [("Pod", []), ("Service", [])]
        assert [(q.kind, q.names) for q in parse_what(session, ("pod", "a", "b"))] == [("Pod", ["a", "b"])]
        assert [(q.kind, q.names) for q in parse_what(session, ("pod/a", "svc/b", "po/c"))] == [
            ("Pod", ["a", "c"]),
            ("Service", ["b"]),
        ]
        for wrong in (("thing",), ("pod/a", "b"), ("pod/",)):
            with pytest.raises(ClusterError):
                parse_what(session, wrong)


class TestManifests:
    def test_files_and_directories(self, tmp_path):
        one = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\n"
        (tmp_path / "b.yaml").write_text(one % "b")
        (tmp_path / "a.yml").write_text(one % "a1" + "---\n" + one % "a2")
        (tmp_path / "notes.txt").write_text("no")
        (tmp_path / "below").mkdir()
        (tmp_path / "below/c.json").write_text('{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}')
        names = [each.object["metadata"]["name"] for each in read_all((str(tmp_path),))]
        assert names == ["a1", "a2", "b"]
        assert len(read_all((str(tmp_path),), recursive=True)) == 4

    @pytest.mark.parametrize("name", ["missing.yaml", "empty.yaml", "dir", "broken.yaml"])
    def test_what_cannot_be_read(self, tmp_path, name):
        (tmp_path / "empty.yaml").write_text("# nothing\n")
        (tmp_path / "dir").mkdir()
        (tmp_path / "broken.yaml").write_text("a: [")
        with pytest.raises(ClusterError, match=name) as caught:
            read_all((str(tmp_path / name),))
        assert caught.value.code == 2

    def test_errors_name_file_and_line(self):
        placed = [Placed({}, "a.yaml:1"), Placed({}, "a.yaml:9")]
        causes = [Cause("$[1].spec.ports[0].port", "expected int"), Cause("$[0]", "is bad"), Cause("", "and more")]
        error = located(ApiError(422, "invalid", causes=causes), placed)
        assert error.code == 2
        assert str(error).split("\npodwire: ") == [
            "a.yaml:9: $.spec.ports[0].port: expected int",
            "a.yaml:1: $: is bad",
            "and more",
        ]
        assert str(located(ApiError(500, "oops"), placed)) == "oops"


class TestWaiting:
    CONDITIONS = ({"type": "Ready", "status": "True"}, {"type": "Odd", "status": "False"})

    @pytest.mark.parametrize(
        ("goal", "of_pod", "of_nothing"),
        [
            ("condition=Ready", True, False),
            ("condition=ready=true", True, False),
            ("condition=Odd", False, False),
            ("condition=Odd=False", True, False),
            ("delete", False, True),
            ("create", True, False),
            ("jsonpath={.status.phase}=Running", True, False),
            ("jsonpath='{.status.phase}'=Pending", False, False),
            ("jsonpath={.status.podIP}", False, False),
        ],
    )
    def test_goals(self, goal, of_pod, of_nothing):
        reached = parse_goal(goal)
        assert (reached({"status": {"phase": "Running", "conditions": self.CONDITIONS}}), reached(None)) == (of_pod, of_nothing)

    def test_times(self):
        assert [seconds(text) for text in ("5", "5s", "2m", "1h", "250ms", "1.5s", "0")] == [5, 5, 120, 3600, 0.25, 1.5, 0]


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ({"observedGeneration": 1}, "the new spec has not been observed yet"),
        ({"observedGeneration": 2, "updatedReplicas": 1}, "1 out of 3 new replicas have been updated"),
        ({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 4}, "1 old replicas are pending termination"),
        ({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3}, "0 of 3 updated replicas are available"),
        ({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 3}, ""),
    ],
)
def test_what_a_rollout_waits_for(status, text):
    assert unfinished({"kind": "Deployment", "metadata": {"generation": 2}, "spec": {"replicas": 3}, "status": status}) == text


class TestDescribe:
    def test_a_pod(self):
        container = {"name": "c", "image": "nginx", "ports": [{"containerPort": 80}], "readinessProbe": {"httpGet": {"port": 80}}}
        state = {"name": "c", "ready": True, "restartCount": 2, "state": {"running": {"startedAt": "T"}}}
        pod = {
            "metadata": {"name": "p", "namespace": "ns", "labels": {"b": "2", "a": "1"}},
            "spec": {"nodeName": "node1", "containers": [container]},
            "status": {"phase": "Running", "podIP": "10.244.1.2", "hostIP": "192.168.1.11", "containerStatuses": [state]},
        }
        event = {
            "metadata": {},
            "type": "Warning",
            "reason": "BackOff",
            "message": "again",
            "count": 3,
            "source": {"component": "kubelet"},
        }
        text = text_of("Pod", pod, [event], None)
        lines = text.splitlines()
        assert lines[0].split() == ["Name:", "p"]
        assert [line.split() for line in lines[2:4]] == [["Labels:", "a=1"], ["b=2"]]
        for part in ("node1/192.168.1.11", "Image:", "nginx", "80/TCP", "http-get http://:80/", "Restart Count:", "BackOff"):
            assert part in text

    @pytest.mark.parametrize("kind", ["Pod", "Node", "Service", "Deployment", "ConfigMap"])
    def test_empty_objects(self, kind):
        lines = text_of(kind, {"kind": kind, "metadata": {"name": "x"}}, [], None).splitlines()
        assert lines[0].split() == ["Name:", "x"]
        assert lines[-1].split() == ["Events:", "<none>"]

    def test_any_other_kind_shows_its_fields(self):
        obj = {"kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"Corefile": "a\nb\n", "n": "1"}, "list": [1, 2]}
        text = text_of("ConfigMap", obj, [], None)
        assert "Corefile:\n    a\n    b" in text


def test_probes_are_described_as_kubectl_does():
    container = {"name": "c", "image": "busybox", "livenessProbe": {"exec": {"command": ["cat", "/tmp/ok"]}, "periodSeconds": 1}}
    pod = {"metadata": {"name": "p", "namespace": "default"}, "spec": {"containers": [container]}}
    assert "exec [cat /tmp/ok] delay=0s timeout=1s period=1s #success=1 #failure=3" in text_of("Pod", pod, [], None)
