"""Events are written in the background, repeated ones counted, and a lost API server loses none."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing

from podwire_core.errors import ApiError
from podwire_nodeagent.events import Recorder

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-0", "namespace": "shop", "uid": "u1"}}


class FakeApi:
    def __init__(self, failures: list[int]) -> None:
        self.failures, self.events = failures, {}

    async def create(self, obj: dict[str, Any]) -> dict[str, Any]:
        if self.failures:
            raise ApiError(self.failures.pop(0), "no")
        self.events[obj["metadata"]["name"]] = obj
        return obj

    async def patch(self, kind: str, name: str, namespace: str, patch: dict[str, Any], subresource: str = "") -> dict[str, Any]:
        if name not in self.events:
            raise ApiError(404, "gone")
        self.events[name].update(patch)
        return self.events[name]


def written(record, failures: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    api = FakeApi(list(failures))

    async def main() -> None:
        recorder = Recorder(api, "kubelet", "node1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recorder.run)
            record(recorder, api)
            await trio.sleep(100)  # of the virtual clock
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return list(api.events.values())


def test_an_event_has_kubernetes_fields():
    [event] = written(lambda record, _: record(POD, "Warning", "Unhealthy", "probe failed", "spec.containers{web}"))
    assert event["involvedObject"] == {
        "kind": "Pod",
        "apiVersion": "v1",
        "name": "web-0",
        "namespace": "shop",
        "uid": "u1",
        "fieldPath": "spec.containers{web}",
    }
    assert event["metadata"]["namespace"] == "shop"
    assert event["metadata"]["name"].startswith("web-0.")
    assert (event["type"], event["reason"], event["message"], event["count"]) == ("Warning", "Unhealthy", "probe failed", 1)
    assert event["source"] == {"component": "kubelet", "host": "node1"}


def test_the_same_event_again_counts_up():
    def record(recorder: Recorder, _: FakeApi) -> None:
        for message in ("a", "a", "b", "a"):
            recorder(POD, "Normal", "Pulled", message)

    assert sorted((e["message"], e["count"]) for e in written(record)) == [("a", 3), ("b", 1)]


def test_a_lost_server_is_asked_again_and_a_refusal_is_dropped():
    def record(recorder: Recorder, _: FakeApi) -> None:
        recorder(POD, "Normal", "Pulled", "first")
        recorder(POD, "Normal", "Pulled", "second")

    assert [e["message"] for e in written(record, (503, 503))] == ["first", "second"]
    assert [e["message"] for e in written(record, (404,))] == ["second"]
