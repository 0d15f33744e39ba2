"""The runtime's side: which plugins run, in which order, with what on stdin and in the environment; its cache; its failures.

Most tests drive the steps themselves, no process is started.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest
import trio

from podwire_cni import runtime
from podwire_cni.protocol import CniError
from podwire_cni.runtime import Attachment, Network, Outcome, Runtime

POD = Attachment.of_pod("c1", "/run/netns/x", "shop", "web-0", "u1")
PLUGINS = [{"type": "main", "bridge": "cni0"}, {"type": "portmap", "capabilities": {"portMappings": True, "dns": False}}]


class Plugins:
    """Answers for them: records the calls, and gives results by type and command."""

    def __init__(self, **failing: int) -> None:
        self.failing, self.calls = failing, []

    def __call__(self, invocation) -> Outcome:
        kind, command, conf = Path(invocation.path).name, invocation.env["CNI_COMMAND"], json.loads(invocation.stdin)
        self.calls.append((command, kind, conf, invocation.env))
        if f"{command}_{kind}" in self.failing:
            return Outcome(1, json.dumps({"code": self.failing[f"{command}_{kind}"], "msg": f"{kind} failed"}).encode(), b"")
        return Outcome(0, json.dumps({"cniVersion": conf["cniVersion"], "from": kind}).encode() if command == "ADD" else b"", b"")

    @property
    def order(self) -> list[str]:
        return [f"{command} {kind}" for command, kind, _, _ in self.calls]

    def run(self, steps):
        try:
            invocation = next(steps)
            while True:
                invocation = steps.send(self(invocation))
        except StopIteration as end:
            return end.value


@pytest.fixture
def make(tmp_path):
    def make(version: str = "1.1.0", plugins=PLUGINS, **more) -> Runtime:
        for plugin in plugins:
            path = tmp_path / "bin" / plugin["type"]
            path.parent.mkdir(exist_ok=True)
            path.touch(0o755)
        conf = {"cniVersion": version, "name": "cbr0", "plugins": plugins, **more}
        return Runtime(Network.parse(conf), [tmp_path / "none", tmp_path / "bin"], tmp_path / "cache")

    return make


def refused(call, *args) -> CniError:
    with pytest.raises(CniError) as caught:
        call(*args)
    return caught.value


# --- configurations --------------------------------


def test_a_single_plugin_is_a_list_of_one():
    conf = {"cniVersion": "0.4.0", "name": "n", "type": "main"}
    assert Network.parse(conf) == Network("n", "0.4.0", [conf])


@pytest.mark.parametrize(
    ("conf", "version"),
    [
        ({}, "0.1.0"),
        ({"cniVersion": "1.0.0"}, "1.0.0"),
        ({"cniVersion": "0.4.0", "cniVersions": ["0.4.0", "1.1.0", "9.0.0", "1.0.0"]}, "1.1.0"),
        ({"cniVersion": "0.4.0", "cniVersions": ["9.0.0"]}, "0.4.0"),
    ],
)
def test_the_version(conf, version):
    assert Network.parse({"name": "n", "type": "x", **conf}).version == version


@pytest.mark.parametrize(("value", "flag"), [(True, True), ("true", True), ("False", False), (False, False)])
def test_flags(value, flag):
    network = Network.parse({"name": "n", "plugins": PLUGINS, "disableCheck": value, "disableGC": value})
    assert (network.disable_check, network.disable_gc) == (flag, flag)


@pytest.mark.parametrize(
    ("conf", "code"),
    [
        ([], 6),
        ({}, 7),
        ({"name": "n"}, 7),
        ({"name": "n", "plugins": []}, 7),
        ({"name": "n", "plugins": {}}, 7),
        ({"name": "n", "plugins": [5]}, 7),
        ({"name": "n", "plugins": [{"type": ""}]}, 7),
        ({"name": "n", "plugins": [{"type": "x", "capabilities": []}]}, 7),
        ({"name": "n", "plugins": PLUGINS, "disableCheck": "no"}, 7),
        ({"name": "n", "plugins": PLUGINS, "cniVersion": "9.9.9"}, 1),
    ],
)
def test_configurations_that_are_none(conf, code):
    assert refused(Network.parse, conf).code == code


def test_the_first_file_by_name_is_the_network(tmp_path):
    (tmp_path / "20-b.conf").write_text('{"name": "b", "type": "x"}')
    (tmp_path / "10-a.conflist").write_text('{"name": "a", "plugins": [{"type": "x"}]}')
    (tmp_path / "00-draft").write_text("{")
    assert Network.load(tmp_path).name == "a"
    (tmp_path / "10-a.conflist").write_text('{"name": ')
    error = refused(Network.load, tmp_path)
    assert (error.code, "10-a.conflist" in error.msg) == (6, True)
    (tmp_path / "10-a.conflist").write_text("{}")
    assert "10-a.conflist" in str(refused(Network.load, tmp_path))
    assert refused(Network.load, tmp_path / "none").code == 7


# --- which plugins, in which order, with what --------------------------------


def test_add_runs_forward_and_chains_results(make):
    plugins, network = Plugins(), make()
    assert plugins.run(network.add_steps(POD))["from"] == "portmap"
    assert plugins.order == ["ADD main", "ADD portmap"]
    [(_, _, first, env), (_, _, second, _)] = plugins.calls
    assert first == {"name": "cbr0", "cniVersion": "1.1.0", "type": "main", "bridge": "cni0"}
    assert second == {
        "name": "cbr0",
        "cniVersion": "1.1.0",
        "type": "portmap",
        "prevResult": {"cniVersion": "1.1.0", "from": "main"},
    }
    assert {k: v for k, v in env.items() if k.startswith("CNI_")} == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/x",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u1;K8S_POD_INFRA_CONTAINER_ID=c1",
        "CNI_PATH": env["CNI_PATH"],
    }
    assert len(env["CNI_PATH"].split(":")) == 2


def test_capabilities_become_runtime_config_of_who_asked(make):
    plugins, network = Plugins(), make()
    ports = [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]
    plugins.run(network.add_steps(POD._replace(capabilities={"portMappings": ports, "dns": {"servers": []}, "mac": "x"})))
    first, second = (conf for _, _, conf, _ in plugins.calls)
    assert "runtimeConfig" not in first
    assert second["runtimeConfig"] == {"portMappings": ports}
    assert "capabilities" not in second


def test_check_runs_forward_and_del_backward_with_the_cached_result(make):
    plugins, network = Plugins(), make()
    result = plugins.run(network.add_steps(POD))
    plugins.run(make().check_steps(POD))  # another process knows as well
    plugins.run(make().delete_steps(POD))
    assert plugins.order[2:] == ["CHECK main", "CHECK portmap", "DEL portmap", "DEL main"]
    assert [conf["prevResult"] for _, _, conf, _ in plugins.calls[2:]] == [result] * 4
    plugins.run(network.delete_steps(POD))  # again: without a result, since it is gone
    assert plugins.order[6:] == ["DEL portmap", "DEL main"]
    assert all("prevResult" not in conf for _, _, conf, _ in plugins.calls[6:])


def test_del_of_old_versions_gets_no_result(make):
    plugins, network = Plugins(), make("0.3.1")
    plugins.run(network.add_steps(POD))
    plugins.run(network.delete_steps(POD))
    assert all("prevResult" not in conf for command, _, conf, _ in plugins.calls if command == "DEL")


def test_commands_that_a_version_has_not(make):
    plugins = Plugins()
    assert refused(plugins.run, make("0.3.1").check_steps(POD)).code == 1
    plugins.run(make("1.0.0").status_steps())
    plugins.run(make("1.0.0").collect_steps([]))
    assert plugins.order == []


def test_disabled_commands(make):
    plugins, network = Plugins(), make(disableCheck=True, disableGC=True)
    plugins.run(network.add_steps(POD))
    plugins.run(network.check_steps(POD))
    plugins.run(network.collect_steps([]))
    assert plugins.order == ["ADD main", "ADD portmap"]


def test_check_without_add(make):
    assert refused(Plugins().run, make().check_steps(POD)).code == 999


def test_status_asks_every_plugin(make):
    plugins = Plugins(STATUS_portmap=50)
    assert refused(plugins.run, make().status_steps()).code == 50
    assert plugins.order == ["STATUS main", "STATUS portmap"]


def test_add_that_fails_is_deleted_and_says_why(make):
    plugins, network = Plugins(ADD_portmap=11, DEL_main=5), make()
    error = refused(plugins.run, network.add_steps(POD))
    assert (error.code, error.msg) == (11, "portmap failed")
    assert plugins.order == ["ADD main", "ADD portmap", "DEL portmap", "DEL main"]
    assert network.attachments() == []


def test_add_whose_result_cannot_be_kept_is_deleted(make, tmp_path):
    (tmp_path / "cache" / "results" / ".cbr0-c1-eth0").mkdir(parents=True)  # where a file is to be written
    plugins = Plugins()
    assert refused(plugins.run, make().add_steps(POD)).code == 5
    assert plugins.order == ["ADD main", "ADD portmap", "DEL portmap", "DEL main"]


def test_del_that_fails_keeps_the_result_for_the_next_try(make):
    plugins, network = Plugins(DEL_main=5), make()
    result = plugins.run(network.add_steps(POD))
    refused(plugins.run, network.delete_steps(POD))
    assert network.result(POD) == result


def test_gc_deletes_what_is_stale_and_names_what_is_valid(make):
    plugins, network = Plugins(), make()
    other = POD._replace(container_id="c2")
    for attachment in (POD, other):
        plugins.run(network.add_steps(attachment))
    plugins.calls.clear()
    plugins.run(network.collect_steps([other]))
    assert plugins.order == ["DEL portmap", "DEL main", "GC main", "GC portmap"]
    assert plugins.calls[0][3]["CNI_CONTAINERID"] == "c1"
    assert all(c[2]["cni.dev/valid-attachments"] == [{"containerID": "c2", "ifname": "eth0"}] for c in plugins.calls[2:])
    assert "CNI_CONTAINERID" not in plugins.calls[2][3]
    assert network.attachments() == [other]


def test_gc_tries_everything_and_names_all_failures(make):
    plugins, network = Plugins(), make()
    plugins.run(network.add_steps(POD))
    plugins.failing = {"DEL_portmap": 5, "GC_main": 7}
    plugins.calls.clear()
    error = refused(plugins.run, network.collect_steps([]))
    assert plugins.order == ["DEL portmap", "GC main", "GC portmap"]
    assert (error.code, str(error)) == (5, "portmap failed; main failed")


# --- the cache --------------------------------


def test_the_cache_knows_the_attachments_of_its_network(make, tmp_path):
    plugins, network = Plugins(), make()
    pod = POD._replace(capabilities={"portMappings": []})
    plugins.run(network.add_steps(pod))
    assert make().attachments() == [pod]
    [path] = (tmp_path / "cache" / "results").iterdir()
    entry = json.loads(path.read_bytes())
    assert (path.name, entry["kind"], entry["networkName"]) == ("cbr0-c1-eth0", "cniCacheV1", "cbr0")
    assert json.loads(base64.b64decode(entry["config"]))["plugins"] == PLUGINS
    (path.parent / "other-c1-eth0").write_text(json.dumps(entry | {"networkName": "other"}))
    (path.parent / "cbr0-c3-eth0").write_text(path.read_text()[:50])
    assert make().attachments() == [pod]


def test_names_with_dots_have_an_entry_each(make, monkeypatch):
    """Also while one of them is only half written."""
    plugins, network, drafts = Plugins(), make(), []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: drafts.append(path) or replace(path, target))
    pods = [POD._replace(ifname="eth0.1"), POD._replace(ifname="eth0.2")]
    for pod in pods:
        plugins.run(network.add_steps(pod))
    assert network.attachments() == pods
    assert len(set(drafts)) == 2


def test_a_draft_that_a_crash_left_is_no_attachment(make, monkeypatch):
    plugins, network = Plugins(), make()

    def crash(path, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        plugins.run(network.add_steps(POD))
    assert network.attachments() == []


# --- real processes --------------------------------


def script(folder: Path, text: str) -> Runtime:
    (folder / "main").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "main").chmod(0o755)
    return Runtime(Network.parse({"cniVersion": "1.1.0", "name": "n", "type": "main"}), [folder], folder / "cache")


def sync(steps):
    return runtime.run_sync(steps, timeout=2)


def trio_(steps):
    return trio.run(runtime.run, steps, 2)


@pytest.mark.parametrize("drive", [sync, trio_])
@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ('echo \'{"code": 11, "msg": "later", "details": "busy"}\'; exit 1', 11, "later: busy"),
        ("echo oops >&2; exit 3", 999, "status 3 and no error message: oops"),
        ("exit 0", 6, "no result"),
        ("echo traceback", 6, "traceback"),
        ("echo []", 6, "[]"),
        ('echo \'{"code": "x"}\'; exit 1', 999, "status 1"),
        ('echo \'{"code": true, "msg": "m"}\'; exit 1', 999, "m"),
        ("exec sleep 60", 999, "did not end within 2 s"),
        ("kill -9 $$", 999, "status -9"),
    ],
)
def test_failures_of_a_plugin(tmp_path, drive, text, code, says):
    error = refused(drive, script(tmp_path, text)._call("ADD", {"type": "main"}, POD, None))
    assert (error.code, says in str(error)) == (code, True), str(error)


@pytest.mark.parametrize("drive", [sync, trio_])
def test_a_plugin_gets_its_configuration_and_gives_its_result(tmp_path, drive):
    text = 'cat > "$0.conf"; echo "{\\"ips\\": [], \\"pod\\": \\"$CNI_CONTAINERID\\"}"'
    assert drive(script(tmp_path, text).add_steps(POD)) == {"ips": [], "pod": "c1"}
    assert json.loads((tmp_path / "main.conf").read_bytes())["name"] == "n"


@pytest.mark.parametrize("drive", [sync, trio_])
def test_a_plugin_that_cannot_be_executed(tmp_path, drive):
    network = script(tmp_path, "")
    (tmp_path / "main").write_text("#!/nonexistent/interpreter\n")
    assert "cannot execute" in str(refused(drive, network.add_steps(POD)))


def test_plugins_that_are_not_there(tmp_path):
    (tmp_path / "plain").touch(0o644)
    for kind in ("absent", "plain", "../main", "/bin/sh"):
        assert refused(runtime.find_plugin, kind, [str(tmp_path)]).code == 7


def test_variables_of_an_outer_cni_call_do_not_leak(make, monkeypatch):
    monkeypatch.setenv("CNI_IFNAME", "outer")
    plugins = Plugins()
    plugins.run(make().status_steps())
    assert "CNI_IFNAME" not in plugins.calls[0][3]
    assert plugins.calls[0][3]["PATH"] == os.environ["PATH"]


def test_cancelling_lets_the_plugin_end_first(tmp_path):
    network = script(tmp_path, 'sleep 0.2; echo "{\\"ips\\": []}"')

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await network.add(POD)

    trio.run(main)
    assert network.attachments() == [POD]
