"""The server as a process: what its clients live through when it is stopped, killed and started again."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import trio

from podwire_core import rpc
from podwire_core.errors import ApiError


def config_map(name: str, **data: str):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": data}


def test_objects_through_the_blocking_client(process):
    warnings = []
    process.start().close()
    with rpc.SyncClient(process.address, on_warning=warnings.append) as api:
        made = api.create(config_map("c", a="b"))
        assert made["metadata"]["resourceVersion"] == str(api.info().revision)
        assert api.get("ConfigMap", "c", "default") == made
        assert api.update({**made, "data": {"a": "c"}})["data"] == {"a": "c"}
        assert api.patch("cm", "c", "default", {"data": {"x": "y"}})["data"] == {"a": "c", "x": "y"}
        listing = api.list("ConfigMap", "default", fields="metadata.name=c")
        assert [item["data"] for item in listing.items] == [{"a": "c", "x": "y"}]
        assert api.apply(config_map("d"))[1] == "created"
        assert api.delete("ConfigMap", "c")["metadata"]["name"] == "c"
        ingress = {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "i"}}
        api.create(ingress)
        api.apply({**ingress, "metadata": {"name": "j"}})
        assert warnings == ["Ingress is stored, but nothing in podwire acts on it"] * 2
        kinds = {info.kind: info for info in api.resources()}
        assert kinds["Pod"].short_names == ("po",)
        assert (kinds["Node"].namespaced, kinds["Ingress"].acted_on) == (False, False)
        with pytest.raises(ApiError) as caught:
            api.apply_many([config_map("e"), config_map("X Y")])
        assert [cause.field for cause in caught.value.causes] == ["$[1].metadata.name"]
        with pytest.raises(ApiError, match='configmaps "e" not found'):
            api.get("ConfigMap", "e", "default")


def test_controllers_work(process, until):
    with process.start() as api:
        template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}
        spec = {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": template}
        api.create({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})
        until(lambda: len(api.list("Pod", "default", labels="a=b").items) == 2)
        api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ns"}})
        api.create({**config_map("c"), "metadata": {"name": "c", "namespace": "ns"}})
        api.delete("Namespace", "ns")
        until(lambda: all(ns["metadata"]["name"] != "ns" for ns in api.list("Namespace").items))
        api.delete("Deployment", "web")
        until(lambda: not api.list("ReplicaSet").items and not api.list("Pod", "default", labels="a=b").items)


def test_what_was_answered_survives_kill_9(process):
    for round_ in range(3):
        api, answered = process.start(), []

        def write(api=api, answered=answered, round_=round_):
            try:
                for number in range(100_000):
                    answered.append(api.create(config_map(f"r{round_}-{number}", n=str(number)))["metadata"]["name"])
            except ApiError as error:
                answered.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        while len(answered) < 50:
            time.sleep(0.005)
        process.stop(signal.SIGKILL)
        writer.join()
        assert isinstance(answered.pop(), ApiError)
        with process.start() as again:
            stored = {obj["metadata"]["name"] for obj in again.list("ConfigMap").items}
            assert set(answered) <= stored
            assert len(stored - set(answered) - {name for name in stored if not name.startswith(f"r{round_}")}) <= 1
        process.stop()


def test_a_mirror_follows_through_a_restart_and_a_compaction(process):
    seen: list[tuple[str, str]] = []

    async def follow(mirror: rpc.Mirror) -> None:
        async for changes in mirror.changes():
            for change in changes:
                kind = "new" if change.old is None else "gone" if change.new is None else "changed"
                seen.append((kind, change.key))

    async def until(holds) -> None:
        with trio.fail_after(10):
            while not holds():
                await trio.sleep(0.01)

    async def main() -> None:
        process.start().close()
        async with rpc.connect(process.address) as api, trio.open_nursery() as nursery:
            await api.create(config_map("a"))
            mirror = rpc.Mirror(api, [rpc.Selection("ConfigMap", "default"), rpc.Selection("Node")])
            nursery.start_soon(mirror.run)
            await mirror.synced()
            assert list(mirror.objects["ConfigMap"]) == ["default/a"]
            nursery.start_soon(follow, mirror)
            await api.create(config_map("b"))
            await until(lambda: ("new", "default/b") in seen)
            process.stop(signal.SIGKILL)
            assert sorted(mirror.objects["ConfigMap"]) == ["default/a", "default/b"]  # stays as it was
            other = await trio.to_thread.run_sync(process.start)
            began = trio.current_time()
            await trio.to_thread.run_sync(other.delete, "ConfigMap", "a", "default")
            await until(lambda: ("gone", "default/a") in seen)
            assert trio.current_time() - began < 5
            nursery.cancel_scope.cancel()
        assert seen == [("new", "default/a"), ("new", "default/b"), ("gone", "default/a")]

    trio.run(main)


def test_sigterm_ends_it_in_order_also_while_somebody_watches(process):
    api = process.start()
    ended = []

    def watch():
        try:
            for batch in api.watch([rpc.Selection("ConfigMap")]):
                ended.extend(event.type for event in batch)
        except ApiError as error:
            ended.append(error.code)

    watcher = threading.Thread(target=watch)
    watcher.start()
    while not ended:
        time.sleep(0.005)
    assert process.stop(signal.SIGTERM) == 0
    watcher.join(5)
    assert ended == ["BOOKMARK", 503]
    assert (process.directory / "log").read_text() == ""


def refusal(*options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "podwire_apiserver", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_what_the_machine_refuses_is_one_line(process, tmp_path):
    process.start().close()
    status, text = refusal("--data", str(process.directory), "--listen", f"unix:{tmp_path}/other.sock")
    assert (status, text.count("\n")) == (1, 1)
    assert "another API server uses this store; stop it or choose another --data" in text
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, text = refusal("--data", str(tmp_path / "b"), "--listen", address)
    assert (status, text.count("\n")) == (1, 1)
    assert f"cannot listen on {address}: address already in use; choose another address" in text
    status, text = refusal("--data", str(tmp_path / "b"), "--listen", process.address)
    assert (status, "another server is listening there" in text) == (1, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--service-cidr", "10.96.0.0/40"], "argument --service-cidr: '10.96.0.0/40' does not appear to be an IPv4"),
        (["--node-cidr-mask", "8"], "--node-cidr-mask 8 does not fit into --cluster-cidr 10.244.0.0/16"),
    ],
)
def test_bad_usage(tmp_path, options, message):
    status, text = refusal("--data", str(tmp_path), "--listen", "unix:/x", *options)
    assert status == 2
    assert message in text


def test_own_ranges(process):
    options = ["--service-cidr", "10.10.0.0/16", "--cluster-cidr", "10.20.0.0/16", "--node-cidr-mask", "25"]
    with process.start(*options) as api:
        assert api.get("Service", "kubernetes")["spec"]["clusterIP"] == "10.10.0.1"
