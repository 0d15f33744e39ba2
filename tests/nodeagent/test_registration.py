"""A node registers itself, keeps what others wrote into its Node, and renews its Lease; the server refuses and goes away."""

from __future__ import annotations

import copy
import datetime
from typing import Any

import pytest
import trio
import trio.testing

from podwire_core.errors import ApiError
from podwire_nodeagent import registration
from podwire_nodeagent.registration import NodeIdentity

ME = NodeIdentity("node1", ("192.168.1.11",), {"podwire.dev/underlay-host": "127.0.0.11"})


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        merged[key] = merge(merged.get(key), value)
        if value is None:
            del merged[key]
    return merged


class FakeApi:
    """Objects by kind and name; the status is only written as the subresource. `failures`: codes for the next calls."""

    def __init__(self, failures: tuple[int, ...] = ()) -> None:
        self.failures, self.objects, self.calls = list(failures), {}, []

    def _fail(self, call: str) -> None:
        self.calls.append(call)
        if self.failures and (code := self.failures.pop(0)):
            raise ApiError(code, "no")

    async def get(self, kind: str, name: str, namespace: str = "") -> dict:
        self._fail(f"get {kind}")
        if (kind, name) not in self.objects:
            raise ApiError(404, "not found")
        return self.objects[kind, name]

    async def create(self, obj: dict) -> dict:
        key = obj["kind"], obj["metadata"]["name"]
        self._fail(f"create {key[0]}")
        if key in self.objects:
            raise ApiError(409, "exists", reason="AlreadyExists")
        self.objects[key] = copy.deepcopy(obj)
        return self.objects[key]

    async def patch(self, kind: str, name: str, namespace: str, patch: dict, subresource: str = "") -> dict:
        self._fail(f"patch {kind} {subresource}".strip())
        if (kind, name) not in self.objects:
            raise ApiError(404, "not found")
        old = self.objects[kind, name]
        new = merge(old, patch)
        mine = "status" if subresource else None
        self.objects[kind, name] = {k: (new if (k == "status") == (mine == "status") else old).get(k) for k in new}
        return self.objects[kind, name]


def run(call, *args, seconds: float = 60.0):
    """Of a clock that jumps."""

    async def main() -> Any:
        with trio.move_on_after(seconds):
            return await call(*args)

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_new_node():
    api = FakeApi()
    node = run(registration.register, api, ME)
    assert node == api.objects["Node", "node1"]
    assert node["metadata"]["labels"]["kubernetes.io/hostname"] == "node1"
    assert node["metadata"]["labels"]["beta.kubernetes.io/os"] == "linux", "manifests of before 1.14 select by it"
    assert node["metadata"]["annotations"] == ME.annotations
    assert node["status"]["addresses"] == [
        {"type": "InternalIP", "address": "192.168.1.11"},
        {"type": "Hostname", "address": "node1"},
    ]
    assert "podCIDR" not in node["spec"]
    assert api.calls == ["create Node"]


def test_a_node_that_is_there_keeps_what_others_wrote():
    api = FakeApi()
    notes = {"theirs": "a", "podwire.dev/underlay-host": "old"}
    there = registration.node_object(NodeIdentity("node1", ("192.168.1.99",), notes))
    there["metadata"]["labels"] |= {"zone": "a", "kubernetes.io/hostname": "renamed"}
    there["spec"] = {"podCIDR": "10.244.7.0/24", "taints": [{"key": "k", "effect": "NoSchedule"}], "unschedulable": True}
    there["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    api.objects["Node", "node1"] = copy.deepcopy(there)
    node = run(registration.register, api, ME)
    assert node["spec"] == there["spec"]
    assert node["metadata"]["labels"] == there["metadata"]["labels"]
    assert node["metadata"]["annotations"] == {"theirs": "a", **ME.annotations}
    assert node["status"]["conditions"] == there["status"]["conditions"]
    assert node["status"]["addresses"][0]["address"] == "192.168.1.11"


@pytest.mark.parametrize("failures", [(503,), (503, 500, 504), (409, 503), (409, 0, 503)])
def test_a_server_that_is_away_is_asked_again(failures):
    api = FakeApi(failures)
    if 409 in failures:
        api.objects["Node", "node1"] = registration.node_object(NodeIdentity("node1", ("192.168.1.99",), {}))
    node = run(registration.register, api, ME)
    assert node["metadata"]["annotations"] == ME.annotations
    assert node["status"]["addresses"][0]["address"] == "192.168.1.11"


def test_a_node_deleted_in_between_is_made_again():
    api = FakeApi((409,))  # it was there when asked, and is not any more
    assert run(registration.register, api, ME)["metadata"]["name"] == "node1"
    assert api.calls == ["create Node", "patch Node", "create Node"]


@pytest.mark.parametrize("code", [400, 403, 422])
def test_a_refusal_is_the_callers(code):
    with pytest.raises(ApiError):
        run(registration.register, FakeApi((code,)), ME)


def test_the_ready_condition():
    api = FakeApi()
    run(registration.register, api, ME)
    run(registration.report_ready, api, "node1", True, "KubeletReady", "fine")
    status = api.objects["Node", "node1"]["status"]
    conditions = {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}
    assert conditions == {
        "MemoryPressure": ("False", "KubeletHasSufficientMemory"),
        "DiskPressure": ("False", "KubeletHasNoDiskPressure"),
        "PIDPressure": ("False", "KubeletHasSufficientPID"),
        "Ready": ("True", "KubeletReady"),
    }
    assert status["addresses"]  # stays
    run(registration.report_ready, api, "node1", False, "KubeletNotReady", "no network")
    [ready] = [c for c in api.objects["Node", "node1"]["status"]["conditions"] if c["type"] == "Ready"]
    assert (ready["status"], ready["message"]) == ("False", "no network")


def test_the_lease_is_made_and_renewed_every_ten_seconds():
    api = FakeApi()
    run(registration.renew_lease, api, "node1", seconds=35)
    lease = api.objects["Lease", "node1"]
    assert api.calls == ["patch Lease", "create Lease", "patch Lease", "patch Lease", "patch Lease"]
    assert (lease["metadata"]["namespace"], lease["spec"]["holderIdentity"]) == ("kube-node-lease", "node1")
    assert lease["spec"]["leaseDurationSeconds"] == 40
    datetime.datetime.strptime(lease["spec"]["renewTime"], "%Y-%m-%dT%H:%M:%S.%fZ")


def test_the_lease_outlives_a_lost_server_and_a_namespace_that_comes_later():
    api = FakeApi((503, 503, 404, 404, 404, 409))
    run(registration.renew_lease, api, "node1", seconds=30)
    assert ("Lease", "node1") in api.objects
    with pytest.raises(ApiError):
        run(registration.renew_lease, FakeApi((403,)), "node1")


def test_times():
    assert datetime.datetime.strptime(registration.now(), "%Y-%m-%dT%H:%M:%SZ")
