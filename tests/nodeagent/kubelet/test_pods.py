"""Pods as real processes: life, death and restart of containers, without a cluster."""

import json
import os
import signal
from pathlib import Path

import pytest
import trio

from podwire_core import netns
from podwire_nodeagent.kubelet import userns

pytestmark = pytest.mark.root


def shell(script, name="main", **more):
    return {"name": name, "image": "debian:12", "command": ["sh", "-c", script], **more}


def test_a_pod_runs_in_namespaces_of_its_own(world):
    async def main():
        async with world.running():
            key = world.pod(
                "client", shell("hostname; cat /etc/resolv.conf; exec sleep 1000", name="c"), hostname="cl", subdomain="s"
            )
            await world.until_ready(key)
            status = world.status(key)
            assert (status["phase"], status["podIP"], status["hostIP"]) == ("Running", "10.244.1.2", "127.0.0.1")
            assert world.reasons() == ["Pulled", "Created", "Started"]
            await world.until_logged(key, "ndots:5")
            text = await world.logs(key)
            assert text.splitlines()[0] == "cl"
            assert (
                "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5" in text
            )
            code, out, _, _ = await world.exec(key, "sh", "-c", "echo $$; readlink /proc/1/exe; cat /etc/hosts; touch /etc/new")
            assert code == 0
            assert b"10.244.1.2\tcl.s.default.svc.cluster.local\tcl" in out
            assert not os.path.exists("/etc/new")
            links = (await world.exec(key, "ls", "/sys/class/net"))[1]
            assert links.split() == [b"lo"]

    trio.run(main)


def test_a_killed_program_is_restarted_and_counted(world):
    async def main():
        async with world.running():
            key = world.pod("web", shell("exec sleep 1000"))
            await world.until_ready(key)
            os.kill(world.pid(key, "main"), signal.SIGKILL)
            await world.until(lambda: world.container(key).get("restartCount") == 1)
            await world.until_ready(key)
            last = world.container(key)["lastState"]["terminated"]
            assert (last["exitCode"], last["signal"], last["reason"]) == (137, 9, "Error")
            os.kill(world.pid(key, "main"), signal.SIGKILL)
            await world.until(lambda: world.container(key)["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff")
            assert "back-off 10s restarting failed container=main" in world.container(key)["state"]["waiting"]["message"]
            assert "BackOff" in world.reasons()

    trio.run(main)


def test_exit_codes_messages_and_phases(world):
    async def main():
        async with world.running():
            good = world.pod("good", shell("echo done > /dev/termination-log"), restartPolicy="Never")
            bad = world.pod("bad", shell("echo out; exit 3"), restartPolicy="Never")
            await world.until(
                lambda: world.status(good).get("phase") == "Succeeded" and world.status(bad).get("phase") == "Failed"
            )
            done = world.container(good)["state"]["terminated"]
            assert (done["exitCode"], done["reason"], done["message"]) == (0, "Completed", "done\n")
            assert world.container(bad)["state"]["terminated"]["exitCode"] == 3
            assert await world.logs(bad) == "out\n"
            await world.until(lambda: not world.cni.attached)  # the addresses went back

    trio.run(main)


def test_a_program_that_is_not_there(world):
    async def main():
        async with world.running():
            key = world.pod("typo", {"name": "c", "image": "busybox", "command": ["no-such-program"]})
            await world.until(lambda: world.container(key).get("restartCount") == 1)
            await world.until(lambda: "BackOff" in world.reasons())
            last = world.container(key)["lastState"]["terminated"]
            assert (last["exitCode"], last["reason"]) == (127, "StartError")
            assert 'exec: "no-such-program": executable file not found in $PATH' in last["message"]

    trio.run(main)


def test_init_containers_run_in_order_and_sidecars_last_as_long_as_the_pod(world):
    async def main():
        async with world.running():
            volume = {"volumeMounts": [{"name": "v", "mountPath": "/var/run/shared"}]}
            side = shell(
                "echo side >> /var/run/shared/f; trap 'exit 0' TERM; while :; do sleep 0.1; done", "side", restartPolicy="Always"
            )
            inits = [shell("echo one >> /var/run/shared/f", "one", **volume), {**side, **volume}]
            inits.append(
                shell("while ! grep side /var/run/shared/f; do sleep 0.05; done; echo two >> /var/run/shared/f", "two", **volume)
            )
            main = shell("cat /var/run/shared/f", "main", **volume)
            key = world.pod("p", main, initContainers=inits, volumes=[{"name": "v", "emptyDir": {}}], restartPolicy="OnFailure")
            await world.until(lambda: world.status(key).get("phase") == "Succeeded")
            assert await world.logs(key) == "one\nside\ntwo\n"
            await world.until(lambda: "terminated" in world.status(key)["initContainerStatuses"][1]["state"])

    trio.run(main)


def test_an_init_container_that_fails_is_tried_again(world):
    async def main():
        async with world.running():
            volume = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
            init = shell("test -e /v/f || { touch /v/f; exit 1; }", "init", **volume)
            key = world.pod("p", shell("exec sleep 1000"), initContainers=[init], volumes=[{"name": "v", "emptyDir": {}}])
            await world.until_ready(key)
            init_status = world.status(key)["initContainerStatuses"][0]
            assert (init_status["restartCount"], init_status["ready"]) == (1, True)
            assert init_status["state"]["terminated"]["exitCode"] == 0

    trio.run(main)


def test_deletion_gives_the_program_its_grace_and_leaves_nothing(world):
    async def main():
        async with world.running():
            script = "trap 'echo bye; sleep 0.3; echo gone; exit 0' TERM; while :; do sleep 0.05; done"
            hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo pre > /proc/1/fd/1"]}}}
            key = world.pod("p", shell(script, lifecycle=hook))
            await world.until_ready(key)
            lines = []
            async with trio.open_nursery() as nursery:

                async def follow():
                    lines.extend((await world.logs(key, follow=True)).splitlines())

                nursery.start_soon(follow)
                await trio.sleep(0.2)
                await world.api.delete("Pod", "p", "default")
                await world.until(lambda: key not in world.api.pods)
            assert lines == ["pre", "bye", "gone"]
            assert "Killing" in world.reasons()
            await world.until(lambda: not list(world.directory.glob("pods/*")))
            assert [path.name for path in (world.directory / "netns").iterdir()] == ["host"]
            assert not world.cni.attached

    trio.run(main)


def test_grace_ends_with_kill_and_can_be_shortened(world):
    async def main():
        async with world.running():
            key = world.pod("stubborn", shell("exec sleep 1000"))  # PID 1 ignores SIGTERM
            await world.until_ready(key)
            await world.api.delete("Pod", "stubborn", "default", grace=1)
            started = trio.current_time()
            await world.until(lambda: key not in world.api.pods)
            assert trio.current_time() - started >= 0.9
            key = world.pod("stubborn", shell("exec sleep 1000"))
            await world.until_ready(key)
            await world.api.delete("Pod", "stubborn", "default", grace=1000)
            await world.until(lambda: world.reasons().count("Killing") == 2)
            del world.api.pods[key]
            world.sync()
            await world.until(lambda: not list(world.directory.glob("pods/*")))

    trio.run(main)


def test_active_deadline(world):
    async def main():
        async with world.running():
            key = world.pod("p", shell("exec sleep 1000"), activeDeadlineSeconds=1, terminationGracePeriodSeconds=0)
            await world.until(lambda: world.status(key).get("phase") == "Failed")
            assert world.status(key)["reason"] == "DeadlineExceeded"

    trio.run(main)


def test_a_new_agent_takes_over_what_runs(world):
    async def main():
        async with world.running():
            key = world.pod(
                "web", shell("exec sleep 1000"), {"name": "s", "image": "acme/shop", "ports": [{"containerPort": 80}]}
            )
            gone = world.pod("gone", shell("exec sleep 1000"))
            crashed = world.pod("crashed", shell("exec sleep 1000"))
            for each in (key, gone, crashed):
                await world.until_ready(each)
            before, pid, victim = world.status(key), world.pid(key, "main"), world.pid(crashed, "main")
        os.kill(victim, signal.SIGKILL)
        del world.api.pods[gone]
        async with world.running():
            await world.until(lambda: world.container(crashed).get("restartCount") == 1)
            await world.until(lambda: len(list(world.directory.glob("pods/*"))) == 2)
            assert world.status(key) == before
            assert world.pid(key, "main") == pid
            assert (await world.exec(key, "true"))[0] == 0

    trio.run(main)


def test_a_sandbox_that_cannot_be_made_is_tried_again(world):
    async def main():
        async with world.running():
            world.cni.failures = [OSError(28, "no addresses left")]
            key = world.pod("p", shell("exec sleep 1000"))
            await world.until_ready(key)
            assert world.events[0] == ("FailedCreatePodSandBox", "Failed to create pod sandbox: [Errno 28] no addresses left")

    trio.run(main)


def test_environment_and_files_of_a_config_map(world):
    async def main():
        async with world.running():
            config = {"envFrom": [{"configMapRef": {"name": "cm"}}], "volumeMounts": [{"name": "v", "mountPath": "/conf"}]}
            script = "echo $GREETING $KUBERNETES_SERVICE_HOST; while :; do sleep 0.1; done"
            key = world.pod("p", shell(script, **config), volumes=[{"name": "v", "configMap": {"name": "cm"}}])
            await world.until(lambda: "FailedMount" in world.reasons())
            assert 'configmap "cm" not found' in world.events[-1][1]
            meta = {"name": "kubernetes", "namespace": "default"}
            world.services = [{"metadata": meta, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 443}]}}]
            world.objects["ConfigMap", "default", "cm"] = {"metadata": {"resourceVersion": "1"}, "data": {"GREETING": "hello"}}
            world.sync()
            await world.until_ready(key)
            await world.until_logged(key, "hello 10.96.0.1\n")
            world.objects["ConfigMap", "default", "cm"] = {"metadata": {"resourceVersion": "2"}, "data": {"GREETING": "bye"}}
            world.sync()
            with trio.fail_after(10):
                while (await world.exec(key, "cat", "/conf/GREETING"))[1] != b"bye":
                    await trio.sleep(0.05)

    trio.run(main)


def test_a_missing_program_waits_like_a_missing_image(world, monkeypatch):
    async def main():
        monkeypatch.setattr("podwire_nodeagent.kubelet.images.installed", lambda program: None)
        async with world.running():
            key = world.pod("p", {"name": "c", "image": "networkstatic/iperf3"})
            await world.until(lambda: world.container(key).get("state", {}).get("waiting", {}).get("reason") == "ErrImagePull")
            assert "apt install iperf3" in world.container(key)["state"]["waiting"]["message"]

    trio.run(main)


def test_a_memory_limit_is_enforced_where_a_control_group_can_be_written(world):
    async def main():
        async with world.running(cgroup_root=Path("/sys/fs/cgroup")):
            eater = {"name": "c", "image": "python", "command": ["python3", "-c", "x = bytearray(200 << 20); print(len(x))"]}
            key = world.pod("p", {**eater, "resources": {"limits": {"memory": "32Mi"}}}, restartPolicy="Never")
            await world.until(lambda: world.status(key).get("phase") in ("Failed", "Succeeded"))
            ended = world.container(key)["state"]["terminated"]
            if "LimitsNotEnforced" in world.reasons():
                assert ended["exitCode"] == 0
            else:
                assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)
            await world.api.delete("Pod", "p", "default")
            await world.until(lambda: not list(world.directory.glob("pods/*")))

    trio.run(main)


def test_without_control_groups_an_event_says_so_once(world):
    async def main():
        async with world.running():
            limited = {"resources": {"limits": {"cpu": "1"}}}
            for name in ("p", "q"):
                await world.until_ready(world.pod(name, shell("exec sleep 1000", **limited)))
            assert world.reasons().count("LimitsNotEnforced") == 1

    trio.run(main)


def test_users_and_privileges(world):
    async def main():
        async with world.running():
            security = {"securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "capabilities": {"drop": ["ALL"]}}}
            key = world.pod("p", shell("id -u; id -g; grep CapBnd /proc/self/status; exec sleep 1000", **security))
            await world.until_logged(key, "CapBnd")
            uid, gid, bounding = (await world.logs(key)).splitlines()
            inside = userns.inside()
            assert (uid, gid) == (("0", "0") if inside else ("1000", "3000"))
            assert int(bounding.split()[1], 16) == 0

    trio.run(main)


def test_an_agent_that_died_while_it_started_a_container(world):
    """The program runs, but nobody wrote that down: it is found, not started a second time."""

    async def main():
        async with world.running():
            key = world.pod("p", shell("exec sleep 1000"))
            await world.until_ready(key)
            pid = world.pid(key, "main")
        [file] = world.directory.glob("pods/*/state.json")
        state = json.loads(file.read_text())
        state["containers"]["main"] |= {"state": "waiting", "ready": False, "started": False}
        file.write_text(json.dumps(state))
        async with world.running():
            await world.until(lambda: world.pid(key, "main"))
            assert world.pid(key, "main") == pid
            assert world.container(key)["restartCount"] == 0

    trio.run(main)


def test_a_sandbox_lost_to_a_reboot_is_made_again(world):
    async def main():
        async with world.running():
            key = world.pod("p", shell("exec sleep 1000"))
            await world.until_ready(key)
            uid = world.api.pods[key]["metadata"]["uid"]
        netns.delete(world.directory / "netns" / uid)
        async with world.running():
            await world.until(lambda: world.container(key)["restartCount"] == 1 and world.condition(key, "Ready") == "True")
            assert "SandboxChanged" in world.reasons()
            assert world.status(key)["podIP"] == "10.244.1.3"

    trio.run(main)


def test_hooks(world):
    async def main():
        async with world.running():
            good = {"postStart": {"exec": {"command": ["touch", "/dev/shm/x"]}}}
            key = world.pod("good", shell("exec sleep 1000", lifecycle=good))
            await world.until_ready(key)
            assert (await world.exec(key, "test", "-e", "/dev/shm/x"))[0] == 0
            bad = {"postStart": {"exec": {"command": ["sh", "-c", "echo no; exit 1"]}}}
            world.pod("bad", shell("exec sleep 1000", lifecycle=bad), terminationGracePeriodSeconds=0)
            await world.until(lambda: ("FailedPostStartHook", "no\n") in world.events)

    trio.run(main)
