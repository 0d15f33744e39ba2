"""A cluster in memory with a kubelet that does as it is told."""

from __future__ import annotations

import pytest

from podwire_apiserver.controllers import all_controllers
from podwire_apiserver.controllers.common import deleting, finished, ready, timestamp, with_condition
from podwire_apiserver.controllers.memory import Memory
from podwire_core.objects import key_of

START = 1_700_000_000.0


class Cluster(Memory):
    """`now` moves only when it is told to."""

    def __init__(self, nodes: int = 3) -> None:
        super().__init__(all_controllers())
        self.now = START
        self.addresses = 0
        for name in ("default", "kube-node-lease"):
            self.put("Namespace", name, namespace="", spec={"finalizers": ["kubernetes"]})
        for number in range(1, nodes + 1):
            self.add_node(f"node{number}")

    def add_node(self, name: str, **fields) -> None:
        labels = {"kubernetes.io/hostname": name, **fields.pop("labels", {})}
        status = {"conditions": [{"type": "Ready", "status": "True"}], **fields.pop("status", {})}
        self.put("Node", name, namespace="", labels=labels, status=status, spec=fields)
        self.renew(name)

    def renew(self, node: str) -> None:
        lease = self.view.get("Lease", f"kube-node-lease/{node}")
        spec = {"renewTime": timestamp(self.now)}
        if lease is None:
            self.put("Lease", node, namespace="kube-node-lease", spec=spec)
        else:
            self.update({**lease, "spec": spec})

    def put(self, kind: str, name: str, namespace: str = "default", labels=None, annotations=None, **fields):
        versions = {"Deployment": "apps/v1", "ReplicaSet": "apps/v1", "StatefulSet": "apps/v1", "DaemonSet": "apps/v1"}
        meta = {"name": name, "labels": labels or {}} | ({"namespace": namespace} if namespace else {})
        meta |= {"annotations": annotations} if annotations else {}
        versions |= {
            "Job": "batch/v1",
            "CronJob": "batch/v1",
            "PodDisruptionBudget": "policy/v1",
            "EndpointSlice": "discovery.k8s.io/v1",
        }
        return self.create({"apiVersion": versions.get(kind, "v1"), "kind": kind, "metadata": meta, **fields}, self.now)

    def change(self, kind: str, key: str, **spec) -> None:
        obj = self.view.get(kind, key)
        self.update({**obj, "spec": {**obj["spec"], **spec}})

    def get(self, kind: str, name: str, namespace: str = "default"):
        return self.view.get(kind, f"{namespace}/{name}" if namespace else name)

    def settle(self) -> int:
        return self.run(self.now)

    def sleep(self, seconds: float, alive: bool = True) -> None:
        """`alive`: the nodes keep renewing their leases."""
        self.now += seconds
        for node in list(self.view.all("Node")) if alive else ():
            self.renew(node)
        self.settle()

    # --- the kubelet --------------------------------

    def set_ready(self, key: str, value: bool = True) -> None:
        pod = self.view.get("Pod", key)
        self.addresses += 1
        status = pod.get("status") or {}
        conditions = with_condition(status.get("conditions"), "Ready", str(value), "", "", self.now)
        address = status.get("podIP") or f"10.244.{self.addresses // 250}.{self.addresses % 250 + 2}"
        status = {**status, "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": conditions}
        self.update_status({**pod, "status": status})

    def end(self, key: str, phase: str = "Failed") -> None:
        pod = self.view.get("Pod", key)
        conditions = with_condition(pod["status"].get("conditions"), "Ready", "False", "", "", self.now)
        self.update_status({**pod, "status": {**pod["status"], "phase": phase, "conditions": conditions}})

    def kubelet_step(self) -> bool:
        """The first thing there is to do; False if there is none."""
        for pod in self.pods():
            if deleting(pod):
                self.finish(key_of(pod))
                return True
            if pod["spec"].get("nodeName") and not finished(pod) and not ready(pod):
                self.set_ready(key_of(pod))
                return True
        return False

    def converge(self) -> None:
        """Controllers and kubelet, until nothing is left to do."""
        for _ in range(10_000):
            self.settle()
            if not self.kubelet_step():
                return
        raise AssertionError("the cluster does not converge")

    def live(self, **labels: str):
        return [pod for pod in self.pods() if not deleting(pod) and labels.items() <= pod["metadata"]["labels"].items()]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def make_cluster():
    return Cluster


def _template(app: str, image: str = "nginx", **spec):
    return {"metadata": {"labels": {"app": app}}, "spec": {"containers": [{"name": "c", "image": image}], **spec}}


@pytest.fixture
def template():
    return _template
