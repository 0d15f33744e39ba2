"""Hooks of stand-ins: nothing runs, but what would sleep takes its time."""

import time

import pytest
import trio

from podwire_nodeagent.kubelet.hooks import time_asleep


@pytest.mark.parametrize(
    ("argv", "seconds"),
    [
        (["sleep", "5"], 5),
        (["/bin/sleep", "0.5s"], 0.5),
        (["sleep", "2m"], 120),
        (["sleep", "infinity"], float("inf")),
        (["sh", "-c", "sleep 15"], 15),
        (["/bin/bash", "-ec", "sleep 5; nginx -s quit; sleep 10s"], 15),
        (["sh", "-c", "nginx -s quit && /bin/sleep 3"], 3),
        (["sh", "-c", "while pidof nginx; do sleep 1; done"], 1),
        (["sh", "-c", "echo sleep 5"], 0),
        (["sh", "-c", "nosleep 5; sleep $DELAY"], 0),
        (["sh", "-c", "sleep 1x"], 0),
        (["nginx", "-s", "quit"], 0),
        (["sh", "-c"], 0),
        ([], 0),
    ],
)
def test_the_time_a_command_sleeps(argv, seconds):
    assert time_asleep(argv) == seconds


def stand_in(pre_stop):
    return {"name": "c", "image": "acme/shop", "ports": [{"containerPort": 18081}], "lifecycle": {"preStop": pre_stop}}


@pytest.mark.root
@pytest.mark.parametrize("pre_stop", [{"exec": {"command": ["sh", "-c", "sleep 1"]}}, {"sleep": {"seconds": 1}}])
def test_a_stand_in_answers_until_its_pre_stop_hook_is_over(world, pre_stop):
    async def main():
        async with world.running():
            key = world.pod("p", stand_in(pre_stop), hostNetwork=True)
            await world.until_ready(key)
            began = time.monotonic()
            await world.api.delete("Pod", "p", "default")
            await world.until(lambda: "Killing" in world.reasons())
            assert await world.kubelet._node.standins.running()
            await world.until(lambda: key not in world.api.pods)
            assert 1 <= time.monotonic() - began < 10

    trio.run(main)


@pytest.mark.root
def test_a_hook_has_no_more_than_the_grace_period(world):
    async def main():
        async with world.running():
            key = world.pod(
                "p", stand_in({"exec": {"command": ["sleep", "inf"]}}), hostNetwork=True, terminationGracePeriodSeconds=1
            )
            await world.until_ready(key)
            await world.api.delete("Pod", "p", "default")
            await world.until(lambda: key not in world.api.pods)

    trio.run(main)
