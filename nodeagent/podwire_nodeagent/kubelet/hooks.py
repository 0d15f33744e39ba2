"""Life-cycle hooks (postStart, preStop) and commands for exec probes: what runs beside a container's program.

In a stand-in nothing runs: the program that the hook or probe was written for is not there, so it counts as a success. Only the
time is real that a hook spends in `sleep`: such hooks keep a pod answering until nobody sends to it any more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from podwire_core.objects import LifecycleHandler, Probe, TCPSocketAction
from podwire_nodeagent.kubelet import exec as execution
from podwire_nodeagent.kubelet import parts, prober

if TYPE_CHECKING:
    from podwire_nodeagent.kubelet.worker import PodWorker

SHELL = re.compile(r"(?:/\S*/)?(?:sh|ash|dash|bash)")
# `sleep` where a command may stand, in seconds or the units of coreutils.
SLEEP = re.compile(
    r"(?:^|[;&|(){\n]|\b(?:do|then|else|exec)\s)\s*(?:/\S*/)?sleep\s+(\d+\.?\d*|\.\d+|inf(?:inity)?)([smhd]?)(?![\w.])"
)
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


async def run(worker: PodWorker, name: str, handler: LifecycleHandler) -> str:
    """What went wrong, or ""."""
    if handler.exec is not None:
        running, argv = worker.running.get(name), handler.exec.command or []
        if running is not None and running.held is None:
            await trio.sleep(time_asleep(argv))
        result = await command(worker, name, argv)
        return result.message
    if handler.sleep is not None:
        await trio.sleep(handler.sleep.get("seconds", 0))
        return ""
    if handler.http_get is not None or handler.tcp_socket is not None:
        probe = Probe(http_get=handler.http_get, tcp_socket=handler.tcp_socket, timeout_seconds=30)
        return (await probe_once(worker, name, probe)).message
    return ""


def time_asleep(argv: Sequence[str]) -> float:
    """Seconds that a command would spend in `sleep`: as itself, or as a part of a shell's script (each part once)."""
    scripted = len(argv) > 2 and SHELL.fullmatch(argv[0]) and re.fullmatch(r"-\w*c", argv[1])
    text = argv[2] if scripted else " ".join(argv)
    return sum(float(each[1]) * UNITS[each[2]] for each in SLEEP.finditer(text))


async def command(worker: PodWorker, name: str, argv: list[str]) -> prober.Result:
    """A command in a container; its output is the message if it fails."""
    running = worker.running.get(name)
    if running is None:
        return prober.Result(False, "container is not running")
    if running.held is None or running.spec is None:
        return prober.Result(True)
    if not argv:
        return prober.Result(False, "no command given")
    spec = parts.join_spec(running.spec, running.held.pid, argv, running.cgroups)
    outcome = await execution.capture(worker.node.config.python, spec)
    if outcome.code == 0:
        return prober.Result(True)
    text = outcome.message or outcome.output or f"command {' '.join(argv)!r} exited with {outcome.code}"
    return prober.Result(False, text)


async def probe_once(worker: PodWorker, name: str, probe: Probe) -> prober.Result:
    """Any probe, with its timeout."""
    container, running = worker.containers[name], worker.running.get(name)
    if probe.exec is not None:
        seconds = max(1, probe.timeout_seconds)
        with trio.move_on_after(seconds):
            return await command(worker, name, probe.exec.command or [])
        return prober.Result(False, f'command timed out: "{" ".join(probe.exec.command or [])}" timed out after {seconds}s')
    if running is not None and running.held is None and probe.http_get is not None and probe.http_get.scheme == "HTTPS":
        probe = Probe(tcp_socket=_as_tcp(probe), timeout_seconds=probe.timeout_seconds)  # stand-ins have no certificates
    return await prober.run(probe, container, worker.node.config.host_netns, worker.record.sandbox.ips[0])


def _as_tcp(probe: Probe) -> TCPSocketAction:
    assert probe.http_get is not None
    return TCPSocketAction(port=probe.http_get.port, host=probe.http_get.host)
