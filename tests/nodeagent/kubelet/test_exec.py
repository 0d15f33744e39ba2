"""Exec and logs: exit codes, streams, terminals, signals; in real containers, beside stand-ins, and on the node."""

import os
import signal

import pytest
import trio

from podwire_core.agentapi import ExecInput, ExecResize, ExecSignal
from podwire_core.errors import ApiError

pytestmark = pytest.mark.root
REAL = {"name": "c", "image": "debian", "command": ["sleep", "1000"], "env": [{"name": "A", "value": "1"}]}
STANDIN = {"name": "c", "image": "acme/shop", "ports": [{"containerPort": 8080}], "env": [{"name": "A", "value": "1"}]}


def in_pod(world, container, check):
    async def main():
        async with world.running():
            key = world.pod("p", container)
            await world.until_ready(key)
            await check(key)

    trio.run(main)


@pytest.fixture(params=[REAL, STANDIN], ids=["program", "stand-in"])
def container(request):
    return request.param


def test_streams_exit_codes_and_environment(world, container):
    async def check(key):
        assert await world.exec(key, "sh", "-c", "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n", "")
        assert await world.exec(key, "sh", "-c", "kill -9 $$") == (137, b"", b"", "")
        assert await world.exec(key, "printenv", "A", "HOSTNAME") == (0, b"1\np\n", b"", "")
        code, _, _, message = await world.exec(key, "no-such-program")
        assert (code, message) == (127, 'exec: "no-such-program": executable file not found in $PATH')
        code, _, _, message = await world.exec(key, "/etc/passwd")
        assert (code, message) == (126, 'exec: "/etc/passwd": permission denied')
        assert (await world.exec(key, "cat", "/etc/hostname"))[1] == b"p\n"

    in_pod(world, container, check)


def test_standard_input(world, container):
    async def check(key):
        sent = [ExecInput(b"one\n"), ExecInput(b"x" * 300_000), ExecInput(eof=True)]
        code, out, _, _ = await world.exec(key, "wc", "-c", inputs=sent, stdin=True)
        assert (code, out.strip()) == (0, b"300004")
        assert (await world.exec(key, "cat"))[:2] == (0, b"")  # without stdin: empty

    in_pod(world, container, check)


def test_a_terminal(world, container):
    async def check(key):
        code, out, _, _ = await world.exec(key, "sh", "-c", "tty; stty size", tty=True, rows=30, columns=90)
        assert (code, out) == (0, b"/dev/pts/0\r\n30 90\r\n")
        script = "while [ $(stty size | cut -d' ' -f1) != 50 ]; do sleep 0.05; done; read x; echo got $x; exit 4"
        sent = [ExecResize(50, 132), ExecInput(b"hello\n")]
        code, out, err, _ = await world.exec(key, "sh", "-c", script, inputs=sent, tty=True, stdin=True)
        assert (code, out, err) == (4, b"hello\r\ngot hello\r\n", b"")  # the first is the terminal's echo
        code, _, _, _ = await world.exec(key, "sleep", "1000", inputs=[ExecInput(b"\x03")], tty=True, stdin=True)
        assert code == 130  # Ctrl-C

    in_pod(world, container, check)


def test_signals_and_callers_that_go_away(world, container):
    async def check(key):
        assert (await world.exec(key, "sleep", "1000", inputs=[ExecSignal(signal.SIGTERM)]))[0] == 143
        with trio.move_on_after(0.5):
            await world.exec(key, "sleep", "4711")
        found = await world.exec(key, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        assert b"sleep 4711" not in found[1]

    in_pod(world, container, check)


def test_output_of_a_command_that_leaves_children(world):
    async def check(key):
        assert (await world.exec(key, "sh", "-c", "sleep 5 & echo done"))[:2] == (0, b"done\n")

    in_pod(world, REAL, check)


def test_the_nodes_host_namespace(world):
    async def main():
        async with world.running():
            tools = world.directory / "tools"
            tools.mkdir()
            (tools / "ip").write_text("#!/bin/sh\necho $PODWIRE_DATAPATH $(hostname)\n")
            (tools / "ip").chmod(0o755)
            code, out, _, _ = await world.exec("", "ip", "route")
            assert (code, out.decode()) == (0, f"{world.directory}/datapath.sock node1\n")
            assert (await world.exec("", "sh", "-c", "tail -n +3 /proc/net/dev"))[1].split()[0] == b"lo:"
            assert (await world.exec("", "no-such-program"))[0] == 127

    trio.run(main)


def test_unknown_pods_and_containers(world):
    async def check(key):
        for pod, container, code in (("default/nobody", "", 404), (key, "nothing", 400)):
            with pytest.raises(ApiError) as caught:
                await world.exec(pod, "true", container=container)
            assert caught.value.code == code
        with pytest.raises(ApiError, match='previous terminated container "c" in pod "p" not found'):
            await world.logs(key, previous=True)

    in_pod(world, STANDIN, check)


def test_logs(world):
    async def main():
        async with world.running():
            script = "echo one; echo two >&2; printf three; sleep 0.4; echo; echo $(hostname); sleep 0.2; exit 1"
            key = world.pod("p", {"name": "c", "image": "busybox", "command": ["sh", "-c", script]}, restartPolicy="OnFailure")
            await world.until(lambda: world.container(key).get("restartCount") == 1)
            assert await world.logs(key, previous=True) == "one\ntwo\nthree\np\n"
            assert await world.logs(key, previous=True, tail=2) == "three\np\n"
            stamped = (await world.logs(key, previous=True, timestamps=True)).splitlines()
            assert [line.split(" ", 1)[1] for line in stamped] == ["one", "two", "three", "p"]
            assert stamped[0][10] == "T"
            assert stamped[0].split(" ")[0].endswith("Z")
            with trio.fail_after(10):
                assert await world.logs(key, follow=True) == "one\ntwo\nthree\np\n"  # ends with the container

    trio.run(main)


def test_a_stand_in_says_what_it_is(world):
    async def check(key):
        assert await world.logs(key) == "podwire: a stand-in for acme/shop listens on 8080/TCP\n"
        assert (await world.exec(key, "sh", "-c", "cat /proc/net/tcp /proc/net/tcp6"))[1].count(b":1F90 ") >= 1

    in_pod(world, STANDIN, check)


def test_nothing_is_left_open(world):
    async def check(key):
        await world.exec(key, "true")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            await world.exec(key, "true", tty=True)
            await world.exec(key, "cat", stdin=True, inputs=[ExecInput(eof=True)])
        assert len(os.listdir("/proc/self/fd")) <= before

    in_pod(world, REAL, check)
