"""Preflight and start-up failures: one line that says what, and how to mend it; and nothing left behind."""

import errno
import os
import socket

import pytest

from podwire import cluster, paths, preflight
from podwire.paths import ClusterError, Config


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PODWIRE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def refusal(call, *args):
    with pytest.raises(ClusterError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_tun_device(tmp_path):
    assert "modprobe tun" in refusal(preflight.check_tun, tmp_path / "tun")


@pytest.mark.parametrize(("code", "mend"), [(errno.EACCES, "sudo chmod 666"), (errno.EPERM, "--device /dev/net/tun")])
def test_a_closed_tun_device(tmp_path, monkeypatch, code, mend):
    def refuse(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    assert mend in refusal(preflight.check_tun, tmp_path / "tun")


def test_namespaces_refused(monkeypatch):
    monkeypatch.setattr("podwire.userns.why_not", lambda: "Operation not permitted")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "NET_ADMIN and SYS_ADMIN" in refusal(preflight.check_namespaces)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "sysctl" in refusal(preflight.check_namespaces)


def test_a_full_disk(tmp_path, monkeypatch):
    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(os, "statvfs", lambda path: Full)
    assert "0 MB free, 32 are needed" in refusal(preflight.check_disk, tmp_path)


def test_a_home_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    assert "PODWIRE_HOME" in refusal(preflight.check_disk, tmp_path / "file" / "home")


def test_a_slot_is_free_when_nobody_has_its_ports():
    slot = preflight.free_slot(2, set())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind((f"127.{slot}.0.12", preflight.VXLAN_PORT))
        assert preflight.free_slot(1, set()) == slot, "one node doesn't need the second's address"
        assert preflight.free_slot(2, set()) > slot
    assert preflight.free_slot(2, {slot}) > slot


def test_no_slot_at_all(monkeypatch):
    monkeypatch.setattr(preflight, "_busy", lambda host, port: True)
    assert "8472" in refusal(preflight.free_slot, 1, set())


@pytest.mark.root
def test_what_does_not_come_up_is_torn_down_with_the_log_of_what_failed(monkeypatch, home):

    def spawn(directory):
        (directory / "log" / "supervisor.log").write_text("one\ntwo\n")

    monkeypatch.setattr(cluster, "spawn", spawn)
    with pytest.raises(ClusterError) as caught:
        cluster.up(Config("c"), lambda stage, how_far: None)
    assert str(caught.value) == "the supervisor has ended"
    assert caught.value.details == "one\ntwo"
    assert paths.clusters() == []
    assert not (home / "c").exists()


def test_tail_of_a_log(tmp_path):
    log = tmp_path / "x.log"
    assert cluster.tail(log) == "(no log)"
    log.write_text("")
    assert cluster.tail(log) == "(empty)"
    log.write_bytes(b"\n".join(b"%d" % n for n in range(100)) + b"\xff")
    assert cluster.tail(log, 2) == "98\n99\ufffd"
