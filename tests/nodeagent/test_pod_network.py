"""Pods' attachment and the datapath process as the agent has them: started, found again, killed, and given its ports back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from support.live import netns_path

from podwire_cni.attach import link_name
from podwire_cni.backends import flannel
from podwire_cni.protocol import CniError
from podwire_core import netns
from podwire_core.netlink import LinkAdd, NetlinkError, SysctlSet
from podwire_nodeagent.datapath_process import DatapathConfig, DatapathFailed, Dataplane
from podwire_nodeagent.pod_network import CONFIGURATION, PodNetwork

NODE = {
    "metadata": {"name": "node1"},
    "spec": {"podCIDR": "10.244.1.0/24"},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.168.1.11"}]},
}


def config(folder: Path, **change) -> DatapathConfig:
    fields = {"node": "node1", "socket": str(folder / "datapath.sock"), "log": str(folder / "datapath.log")}
    return DatapathConfig(**{**fields, "underlay": "127.0.78.11", "tunnel_port": 8472, "cable_port": 8473, **change})


@pytest.fixture
def dataplane(tmp_path) -> Iterator[Dataplane]:
    plane = Dataplane(config(tmp_path))
    yield plane
    try:
        pid = trio.run(pid_of, Dataplane(config(tmp_path, underlay="256.0.0.1")))
    except DatapathFailed:
        return  # none is running, and none could be started
    os.kill(pid, signal.SIGKILL)


async def pid_of(plane: Dataplane) -> int:
    if plane._netlink is None:
        await plane.connect()
    return (await plane.dump("info"))["pid"]


# --- the process --------------------------------


def test_it_is_started_found_again_and_noticed_when_it_dies(dataplane):
    async def main() -> None:
        with pytest.raises(ConnectionError):
            await dataplane.dump("info")
        await dataplane.connect()
        first = await pid_of(dataplane)
        other = Dataplane(dataplane.config)  # an agent that was restarted
        await other.connect()
        assert await pid_of(other) == first
        await dataplane.apply([SysctlSet("net.ipv4.ip_forward", "1")])
        with pytest.raises(NetlinkError):
            await dataplane.apply([LinkAdd("x", "nonsense")])
        assert (await other.dump("sysctls"))["net.ipv4.ip_forward"] == "1"
        os.kill(first, signal.SIGKILL)
        with trio.fail_after(10):
            await dataplane.died()
            await other.died()
        with pytest.raises(OSError):
            await dataplane.dump("info")
        await dataplane.connect()
        assert await pid_of(dataplane) != first

    trio.run(main)


def test_a_connection_that_is_lost_counts_as_a_death(dataplane):
    """The process lives, but what it was told last is not known: connect again, and state everything."""

    async def main() -> None:
        await dataplane.connect()
        pid = await pid_of(dataplane)
        dataplane._netlink._sock.close()
        with pytest.raises(OSError):
            await dataplane.apply([SysctlSet("net.ipv4.ip_forward", "1")])
        with trio.fail_after(10):
            await dataplane.died()
        await dataplane.connect()
        assert await pid_of(dataplane) == pid
        with trio.move_on_after(0.05) as scope:
            await dataplane.died()
        assert scope.cancelled_caught

    trio.run(main)


def test_one_that_cannot_start_says_why(tmp_path):
    with pytest.raises(DatapathFailed, match=r"256\.0\.0\.1|address|Name"):
        trio.run(Dataplane(config(tmp_path, underlay="256.0.0.1")).connect)


# --- pods --------------------------------


def ip(space: str, *command: str):
    done = subprocess.run(["nsenter", f"--net={space}", "ip", "-json", *command], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def ping(space: str, address: str) -> bool:
    return subprocess.run(["nsenter", f"--net={space}", "ping", "-qc1", "-W5", address], capture_output=True).returncode == 0


@pytest.fixture
def spaces() -> Iterator[list[str]]:
    paths = [netns_path(f"pn-{name}") for name in "ab"]
    for path in paths:
        if Path(path).exists():
            netns.delete(path)  # of a run that was killed
        netns.create(path)
    yield paths
    for path in paths:
        netns.delete(path)


def test_before_there_is_a_network(tmp_path):
    pods = PodNetwork(tmp_path)
    with pytest.raises(OSError, match="no pod network"):
        trio.run(pods.add, "a", "/none", "eth0", {})
    trio.run(pods.reattach, [])  # nothing to do


def test_the_configuration_is_a_file_that_can_be_written_again(tmp_path):
    pods = PodNetwork(tmp_path)
    for _ in range(2):
        pods.configure(NODE)
    folder = tmp_path / "cni" / "net.d"
    assert [path.name for path in folder.iterdir()] == [CONFIGURATION]
    conf = json.loads((folder / CONFIGURATION).read_bytes())
    assert conf == flannel.net_conf(NODE, str(tmp_path / "datapath.sock"), str(tmp_path / "cni" / "networks"))
    assert os.access(tmp_path / "cni" / "bin" / "podwire", os.X_OK)


@pytest.mark.root
def test_pods_come_and_go(tmp_path, dataplane, spaces):
    async def main() -> None:
        await dataplane.connect()
        await dataplane.apply(flannel.desired(NODE, [NODE]))
        pods = PodNetwork(tmp_path)
        pods.configure(NODE)
        assert await pods.add("a", spaces[0], "eth0", {"K8S_POD_NAME": "a"}) == ["10.244.1.2"]
        assert await pods.add("b", spaces[1], "eth0", {}) == ["10.244.1.3"]
        with pytest.raises(CniError, match="already has an address"):
            await pods.add("b", spaces[1], "eth0", {})
        assert await trio.to_thread.run_sync(ping, spaces[0], "10.244.1.2")
        for _ in range(2):
            await pods.delete("a", spaces[0], "eth0", {})
        assert [link["ifname"] for link in ip(spaces[0], "link")] == ["lo"]

    trio.run(main)


@pytest.mark.root
def test_a_killed_datapath_gets_its_ports_back(tmp_path, dataplane, spaces, caplog):
    """By an agent that was restarted as well, and that has no network configured yet."""

    async def main() -> None:
        await dataplane.connect()
        await dataplane.apply(flannel.desired(NODE, [NODE]))
        pods = PodNetwork(tmp_path)
        pods.configure(NODE)
        for name, space in zip("ab", spaces, strict=True):
            await pods.add(name, space, "eth0", {})
        os.kill(await pid_of(dataplane), signal.SIGKILL)
        await dataplane.died()
        await dataplane.connect()
        await dataplane.apply(flannel.desired(NODE, [NODE]))
        for _ in range(2):  # again: there is nothing left to do
            await PodNetwork(tmp_path).reattach(await dataplane.dump("links"))
        links = {link.name: link for link in await dataplane.dump("links")}
        for name in "ab":
            assert links[link_name(name, "eth0")].attached
            assert links[link_name(name, "eth0")].master == "cni0"
        assert await trio.to_thread.run_sync(ping, spaces[0], "10.244.1.3")

    trio.run(main)
    assert not caplog.records


@pytest.mark.root
def test_a_pod_whose_namespace_is_gone_does_not_keep_the_others(tmp_path, dataplane, spaces, caplog):
    async def main() -> None:
        await dataplane.connect()
        await dataplane.apply(flannel.desired(NODE, [NODE]))
        pods = PodNetwork(tmp_path)
        pods.configure(NODE)
        for name, space in zip("ab", spaces, strict=True):
            await pods.add(name, space, "eth0", {})
        os.kill(await pid_of(dataplane), signal.SIGKILL)
        await dataplane.died()
        netns.delete(spaces[0])
        await dataplane.connect()
        await dataplane.apply(flannel.desired(NODE, [NODE]))
        await pods.reattach([])
        names = {link.name for link in await dataplane.dump("links")}
        assert link_name("b", "eth0") in names
        assert link_name("a", "eth0") not in names

    trio.run(main)
    assert "cannot be given back" in caplog.text
