"""Volumes, logs, privileges and control groups: files and numbers only."""

import base64
import os
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from podwire_core import objects
from podwire_nodeagent.kubelet import security, volumes
from podwire_nodeagent.kubelet.cgroups import Cgroups, purge
from podwire_nodeagent.kubelet.env import ConfigError, Context
from podwire_nodeagent.kubelet.logs import Reader, stream
from podwire_nodeagent.kubelet.shim.cri import LINE, CriLog, stamp

META = {"name": "p", "namespace": "shop", "uid": "u", "labels": {"app": "web"}}
CONFIG = {
    "metadata": {"resourceVersion": "7"},
    "data": {"a": "1", "b": "2"},
    "binaryData": {"c": base64.b64encode(b"\xff").decode()},
}


def context(volumes_, **fields):
    pod = {"metadata": META, "spec": {"containers": [{"name": "c"}], "volumes": volumes_}}
    config = {"cm": CONFIG} | fields
    spec = objects.decode(objects.Pod, pod).spec
    return Context(
        pod, spec, "h", ["10.0.0.1"], "n", {}, [], lambda _, name: config.get(name), lambda _, name: config.get(name), []
    )


def shown(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file() and ".." not in str(p)}


def test_config_map_volumes(tmp_path):
    items = [{"key": "a", "path": "sub/x"}, {"key": "c", "path": "y", "mode": 0o400}]
    given_ = [{"name": "all", "configMap": {"name": "cm"}}, {"name": "some", "configMap": {"name": "cm", "items": items}}]
    made = volumes.prepare(tmp_path, context(given_))
    assert made.warnings == []
    assert {name: (tmp_path / "all" / name).read_bytes() for name in "abc"} == {"a": b"1", "b": b"2", "c": b"\xff"}
    assert (tmp_path / "some" / "sub" / "x").read_bytes() == b"1"
    assert os.stat(tmp_path / "some" / "y").st_mode & 0o777 == 0o400


def test_projected_and_downward(tmp_path):
    parts = [{"configMap": {"name": "cm", "items": [{"key": "a", "path": "a"}]}}]
    parts += [{"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]
    parts += [{"serviceAccountToken": {"path": "token"}}, {"secret": {"name": "none", "optional": True}}]
    volumes.prepare(tmp_path, context([{"name": "v", "projected": {"sources": parts}}]))
    assert (tmp_path / "v" / "labels").read_text() == 'app="web"'
    assert {p.name for p in (tmp_path / "v").iterdir() if not p.name.startswith("..")} == {"a", "labels", "token"}


def test_what_cannot_be_mounted(tmp_path):
    made = volumes.prepare(tmp_path, context([{"name": "v", "persistentVolumeClaim": {"claimName": "x"}}]))
    assert made.warnings == ['volume "v" (persistentVolumeClaim) is an empty directory: podwire has no storage']
    for source, message in (
        ({"configMap": {"name": "no"}}, 'configmap "no" not found'),
        ({"configMap": {"name": "cm", "items": [{"key": "z", "path": "z"}]}}, "references non-existent config key: z"),
        ({"configMap": {"name": "cm", "items": [{"key": "a", "path": "../z"}]}}, "must stay inside the volume"),
        ({"hostPath": {"path": "/no/such", "type": "Directory"}}, "hostPath type check failed: /no/such is not a directory"),
    ):
        with pytest.raises(ConfigError) as caught:
            volumes.prepare(tmp_path, context([{"name": "v", **source}]))
        assert message in str(caught.value)
        assert 'MountVolume.SetUp failed for volume "v"' in str(caught.value)


def test_mounts(tmp_path):
    made = volumes.prepare(tmp_path, context([{"name": "v", "emptyDir": {}}]))
    given_ = [{"name": "v", "mountPath": "/a/b/c", "readOnly": True}, {"name": "v", "mountPath": "a", "subPath": "in/side"}]
    container = objects.decode(objects.Container, {"name": "c", "volumeMounts": given_})
    found = volumes.mounts(container, made, {})
    assert [(m.source, m.target, m.ro) for m in found] == [
        (f"{tmp_path}/v/in/side", "/a", False),
        (f"{tmp_path}/v", "/a/b/c", True),
    ]
    wrong = objects.decode(objects.Container, {"name": "c", "volumeMounts": [{"name": "w", "mountPath": "/w"}]})
    with pytest.raises(ConfigError, match="names no volume of the pod"):
        volumes.mounts(wrong, made, {})


CONTENTS = st.dictionaries(st.sampled_from(["a", "b", "d/e", "d/f"]), st.binary(max_size=5), max_size=4)


@given(st.lists(CONTENTS, min_size=1, max_size=5))
def test_the_atomic_writer_shows_exactly_the_latest(tmp_path_factory, histories):
    directory = tmp_path_factory.mktemp("v")
    for files in histories:
        volumes.write_atomically(directory, {path: (data, 0o644) for path, data in files.items()})
        data = directory / "..data"
        assert {str(p.relative_to(data)): p.read_bytes() for p in data.rglob("*") if p.is_file()} == files
        assert all((directory / path).read_bytes() == content for path, content in files.items())
        assert {p.name for p in directory.iterdir() if not p.name.startswith("..")} == {p.partition("/")[0] for p in files}
        assert len([p for p in directory.iterdir() if p.name.startswith("..") and p.name != "..data"]) == 1
        assert not volumes.write_atomically(directory, {path: (data, 0o644) for path, data in files.items()})


@given(st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=40)), max_size=20), st.integers(1, 50))
def test_logs_say_what_was_written(tmp_path_factory, writes, size):
    """Whatever the pieces in which it is written and read, each stream's text comes back."""
    path = tmp_path_factory.mktemp("log") / "log"
    log = CriLog(str(path))
    for stream_name, data in writes:
        log.feed(stream_name, data, 1.5)
    log.close(2.0)
    written = path.read_bytes()
    for wanted in ("stdout", "stderr"):
        mine = b"".join(line + b"\n" for line in written.split(b"\n") if line.split(b" ")[1:2] == [wanted.encode()])
        reader = Reader(False)
        text = b"".join(part for at in range(0, len(mine), size) for part in reader.feed(mine[at : at + size]))
        assert text == b"".join(data for stream_name, data in writes if stream_name == wanted)


def test_long_lines_and_rotation(tmp_path):
    path = tmp_path / "log"
    log = CriLog(str(path), limit=100_000)
    log.feed("stdout", b"x" * (LINE * 2 + 5) + b"\n", 0)
    assert [line.split(b" ")[2] for line in path.read_bytes().splitlines()] == [b"P", b"P", b"F"]
    for _ in range(10):
        log.feed("stdout", b"y" * 15_000 + b"\n", 0)
    log.close(0)
    assert path.stat().st_size <= 100_000
    assert (tmp_path / "log.old").exists()
    assert stamp(1.5) == "1970-01-01T00:00:01.500000000Z"


def test_following_survives_a_rotation(tmp_path):
    path, found, lives = tmp_path / "log", bytearray(), [True]
    path.write_bytes(b"t stdout F one\n")

    async def send(data):
        found.extend(data)
        if data == b"one\n":
            path.rename(tmp_path / "log.old")
            path.write_bytes(b"t stdout F two\n")
        else:
            lives[0] = False

    async def main():
        with trio.fail_after(5):
            await stream(path, -1, False, True, lambda: lives[0], send)

    trio.run(main)
    assert found == b"one\ntwo\n"


@pytest.mark.parametrize(
    ("own", "pod", "uid", "gid", "groups"),
    [
        ({}, {}, None, None, None),
        ({}, {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000}, 1000, 3000, [2000]),
        ({"runAsUser": 0}, {"runAsUser": 1000}, 0, 0, []),
    ],
)
def test_users(own, pod, uid, gid, groups):
    container = objects.decode(objects.Container, {"name": "c", "securityContext": own})
    found = security.privileges(container, objects.decode(objects.PodSpec, {"containers": [], "securityContext": pod}))
    assert (found.uid, found.gid, found.groups) == (uid, gid, groups)


@pytest.mark.parametrize(
    ("own", "has", "lacks"),
    [
        ({}, {"NET_RAW", "CHOWN"}, {"NET_ADMIN", "SYS_ADMIN"}),
        ({"capabilities": {"add": ["NET_ADMIN"], "drop": ["CAP_NET_RAW"]}}, {"NET_ADMIN"}, {"NET_RAW"}),
        ({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}, {"NET_BIND_SERVICE"}, {"CHOWN"}),
    ],
)
def test_capabilities(own, has, lacks):
    container = objects.decode(objects.Container, {"name": "c", "securityContext": own})
    found = set(security.privileges(container, objects.PodSpec()).capabilities)
    assert {security.CAPABILITIES[name] for name in has} <= found
    assert not {security.CAPABILITIES[name] for name in lacks} & found


def test_privileged_keeps_all():
    container = objects.decode(objects.Container, {"name": "c", "securityContext": {"privileged": True}})
    assert security.privileges(container, objects.PodSpec()).capabilities is None


def test_limits_in_either_version_of_control_groups(tmp_path):
    resources = objects.decode(objects.ResourceRequirements, {"limits": {"cpu": "250m", "memory": "64Mi"}})
    for name in ("memory", "cpu"):
        (tmp_path / "v1" / name).mkdir(parents=True)
        (tmp_path / "v1" / name / "tasks").touch()
    (tmp_path / "v2").mkdir()
    (tmp_path / "v2" / "cgroup.controllers").touch()
    one, two = Cgroups(tmp_path / "v1", "c-n"), Cgroups(tmp_path / "v2", "c-n")
    assert (one.kind, two.kind, Cgroups(None, "n").kind) == ("v1", "v2", "")
    memory, cpu = one.create("u", "c", resources)
    assert Path(f"{memory}/memory.limit_in_bytes").read_text() == str(64 << 20)
    assert (Path(f"{cpu}/cpu.cfs_quota_us").read_text(), Path(f"{cpu}/cpu.cfs_period_us").read_text()) == ("25000", "100000")
    [group] = two.create("u", "c", resources)
    assert (Path(f"{group}/cpu.max").read_text(), Path(f"{group}/memory.max").read_text()) == ("25000 100000", str(64 << 20))
    assert one.create("u", "c", None) == []
    for path in (tmp_path / "v1").rglob("*_*"):
        path.unlink()  # the kernel's own files do not keep a group from being removed
    purge(tmp_path / "v1", "c")
    assert not list((tmp_path / "v1").glob("*/podwire/c-n"))
    assert Cgroups(tmp_path / "none", "n").create("u", "c", resources) == []
