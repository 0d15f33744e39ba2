"""Names, run directories and which cluster is meant."""

import os
import subprocess

import msgspec
import pytest

from podwire import paths
from podwire.paths import ClusterError, Config, ProcessId


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PODWIRE_HOME", str(tmp_path))
    monkeypatch.delenv("PODWIRE_CLUSTER", raising=False)
    return tmp_path


def make(home, name, pid=None, started=None):
    (home / name).mkdir()
    (home / name / "cluster.json").write_bytes(msgspec.json.encode(Config(name)))
    if pid is not None:
        found = ProcessId(pid, paths.process_start(pid) if started is None else started)
        (home / name / "supervisor.json").write_bytes(msgspec.json.encode(found))


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a/b", "..", "x" * 31])
def test_names_that_cannot_be(name):
    with pytest.raises(ClusterError) as caught:
        paths.run_dir(name)
    assert caught.value.code == 2


def test_a_home_too_deep_for_sockets(tmp_path, monkeypatch):
    monkeypatch.setenv("PODWIRE_HOME", "/tmp/" + "x" * 90)
    with pytest.raises(ClusterError, match="PODWIRE_HOME"):
        paths.run_dir("podwire")


def test_the_only_running_cluster_is_meant(home):
    make(home, "crashed", os.getpid(), started=1)
    with pytest.raises(ClusterError, match="no cluster is running"):
        paths.chosen(None)
    make(home, "mine", os.getpid())
    assert paths.chosen(None) == "mine"
    make(home, "other", os.getpid())
    with pytest.raises(ClusterError, match="mine, other"):
        paths.chosen(None)
    make(home, "podwire", os.getpid())
    assert paths.chosen(None) == "podwire"


def test_the_named_cluster_is_meant(home, monkeypatch):
    make(home, "a", os.getpid())
    make(home, "b", os.getpid())
    monkeypatch.setenv("PODWIRE_CLUSTER", "b")
    assert paths.chosen(None) == "b"
    assert paths.chosen("a") == "a"
    with pytest.raises(ClusterError, match="podwire up --name c"):
        paths.chosen("c")


def test_a_pid_that_was_given_out_again_is_another_process():
    child = subprocess.Popen(["sleep", "100"])
    try:
        started = paths.process_start(child.pid)
        assert ProcessId(child.pid, started).alive()
        assert not ProcessId(child.pid, started - 1).alive()
    finally:
        child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, but not collected: a zombie
    assert not ProcessId(child.pid, started).alive()
    child.wait()
    assert paths.process_start(child.pid) is None


def test_a_damaged_configuration_is_one_line(home):
    make(home, "a")
    (home / "a" / "cluster.json").write_text("{")
    with pytest.raises(ClusterError, match="podwire down --name a"):
        paths.read_config("a")
    assert paths.read_config("missing") is None
