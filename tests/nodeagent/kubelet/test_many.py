"""A hundred stand-ins: how fast they come, what they cost, and that they come back when their process dies."""

import os
import resource
import signal

import pytest
import trio

pytestmark = pytest.mark.root
PODS = 100


def test_a_hundred_stand_ins_are_ready_soon(world):
    async def main():
        async with world.running():
            began, used = trio.current_time(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
            keys = [
                world.pod(f"p{n}", {"name": "c", "image": "acme/shop", "ports": [{"containerPort": 80}]}) for n in range(PODS)
            ]
            await world.until(lambda: all(world.condition(key, "Ready") == "True" for key in keys), 60)
            took = trio.current_time() - began
            assert took < 10, f"{took:.1f} s, {resource.getrusage(resource.RUSAGE_SELF).ru_utime - used:.1f} s of CPU"
            assert world.api.writes <= 3 * PODS
            print(f"{PODS} pods Ready in {took:.2f} s with {world.api.writes} status writes")

    trio.run(main)


def test_stand_ins_come_back_when_their_process_is_killed(world):
    async def main():
        async with world.running():
            keys = [world.pod(f"p{n}", {"name": "c", "image": "acme/shop", "ports": [{"containerPort": 80}]}) for n in range(3)]
            for key in keys:
                await world.until_ready(key)
            socket_path = str(world.directory / "standin.sock").encode()
            victims = [int(p) for p in os.listdir("/proc") if p.isdigit() and socket_path in _cmdline(p)]
            os.kill(victims[0], signal.SIGKILL)
            await world.until(lambda: all(world.container(key).get("restartCount") == 1 for key in keys))
            for key in keys:
                await world.until_ready(key)
                assert (await world.exec(key, "cat", "/proc/net/tcp", "/proc/net/tcp6"))[1].count(b":0050 ") >= 1

    trio.run(main)


def _cmdline(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""
