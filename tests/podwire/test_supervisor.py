"""The supervisor with small programs for services: restarts, back-off, and that nothing outlives it."""

import os
import signal
import subprocess
import sys
import time

import msgspec
import pytest

from podwire import cluster, paths, processes
from podwire.paths import Config
from podwire.supervisor import FIRST_DELAY, GOOD_RUN, LONGEST_DELAY, Service, ServiceState, services_of


def until(condition, what, seconds=10.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"timed out: {what}"
        time.sleep(0.01)
    return found


class TestBackOff:
    """Pure: a service's own clock."""

    def test_at_once_then_slower_up_to_a_limit(self, tmp_path):
        service = Service("x", ["/bin/true"], tmp_path / "x.log")
        waits = []
        for _ in range(9):
            service.started = 100.0
            service.ended(1, 100.0)
            waits.append(service.due - 100.0)
        assert waits[:3] == pytest.approx([0.0, FIRST_DELAY, FIRST_DELAY * 2])
        assert waits[-1] == LONGEST_DELAY
        assert service.state.restarts == 9

    def test_a_good_run_is_forgiven(self, tmp_path):
        service = Service("x", ["/bin/true"], tmp_path / "x.log")
        for _ in range(5):
            service.started = 100.0
            service.ended(1, 100.0)
        service.started = 200.0
        service.ended(-9, 200.0 + GOOD_RUN)
        assert service.due == 200.0 + GOOD_RUN
        assert service.state.exit == -9

    def test_a_start_that_is_refused_backs_off_too(self, tmp_path):
        service = Service("x", ["/bin/true"], tmp_path / "absent" / "x.log")
        for _ in range(4):
            with pytest.raises(FileNotFoundError):
                service.start(500.0, {})
            service.ended(-2, 500.0)
        assert service.due > 500.0


def test_command_lines_of_a_cluster(tmp_path):
    found = {service.state.name: " ".join(service.state.argv[1:]) for service in services_of(Config("c", 2, slot=3), tmp_path)}
    assert list(found) == ["apiserver", "node1", "node2", "edge"]
    assert f"--listen unix:{tmp_path}/api.sock" in found["apiserver"]
    assert "--node node2" in found["node2"]
    assert "--internal-ip 192.168.1.12 --underlay 127.3.0.12" in found["node2"]
    assert found["node1"].endswith("--edge-underlay 127.3.0.1")
    assert found["edge"].endswith(f"--dir {tmp_path}/edge --underlay 127.3.0.1")


def test_a_cluster_without_an_edge(tmp_path):
    found = {service.state.name: service.state.argv for service in services_of(Config("c", 1, edge=False), tmp_path)}
    assert list(found) == ["apiserver", "node1"]
    assert "--edge-underlay" not in found["node1"]


SCRIPT = """
import sys
from pathlib import Path
from podwire import supervisor
from podwire.supervisor import Service
logs = Path(sys.argv[1]) / "log"
supervisor.services_of = lambda config, directory: [
    Service("steady", ["/bin/sh", "-c", "setsid sleep 1001 & exec sleep 1002"], logs / "steady.log"),
    Service("broken", ["/bin/sh", "-c", "echo broken; exit 3"], logs / "broken.log"),
]
sys.exit(supervisor.main(["--dir", sys.argv[1]]))
"""


@pytest.fixture
def running(tmp_path, monkeypatch):
    """A cluster named `c` whose services are two shell scripts; the name of it."""
    monkeypatch.setenv("PODWIRE_HOME", str(tmp_path))
    directory = tmp_path / "c"
    (directory / "log").mkdir(parents=True)
    (directory / "cluster.json").write_bytes(msgspec.json.encode(Config("c")))
    subprocess.run([sys.executable, "-c", SCRIPT, str(directory)], check=True)
    yield "c"
    cluster.down("c")


def state(name):
    return {service.name: service for service in cluster.read_services(name)}


def commands(name):
    return {process.command: process.pid for process in processes.of_cluster(name)}


@pytest.mark.root
class TestInNamespaces:
    def test_services_run_and_are_restarted(self, running):
        found = until(lambda: state(running).get("broken", ServiceState("", [], "")).restarts >= 3 and state(running), "restarts")
        assert found["broken"].exit == 3
        assert found["steady"].restarts == 0
        assert "broken" in (paths.run_dir(running) / "log" / "broken.log").read_text()

    def test_a_killed_service_comes_back_and_its_orphan_stays_in_the_cluster(self, running):
        first = until(lambda: commands(running).get("sleep 1002"), "start")
        orphan = until(lambda: commands(running).get("sleep 1001"), "start")
        os.kill(first, signal.SIGKILL)
        second = until(lambda: (pid := commands(running).get("sleep 1002")) and pid != first and pid, "restart")
        assert second != first
        assert orphan in {process.pid for process in processes.of_cluster(running)}
        assert state(running)["steady"].exit == -9

    def test_when_the_supervisor_is_killed_everything_ends(self, running):
        until(lambda: len(commands(running)) >= 3, "start")
        supervisor = paths.supervisor_of(running)
        members = processes.below(supervisor.pid)
        assert len(members) >= 3
        os.kill(supervisor.pid, signal.SIGKILL)
        until(lambda: not any(member.alive() for member in members), "the end of all")
        assert processes.of_cluster(running) == []

    def test_down_leaves_nothing(self, running):
        until(lambda: len(commands(running)) >= 3, "start")
        members = processes.below(paths.supervisor_of(running).pid)
        assert cluster.down(running)
        assert not any(member.alive() for member in members)
        assert not paths.run_dir(running).exists()
        assert not cluster.down(running)

    def test_down_after_a_crash(self, running):
        os.kill(paths.supervisor_of(running).pid, signal.SIGKILL)
        until(lambda: paths.supervisor_of(running) is None, "the end")
        assert cluster.down(running)
        assert not paths.run_dir(running).exists()
