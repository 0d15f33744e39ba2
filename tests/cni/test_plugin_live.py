"""The real executable, started by the runtime, against a real datapath process: what ADD makes, CHECK sees and DEL removes."""

from __future__ import annotations

import concurrent.futures
import ipaddress
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.live import Node, Nodes, netns_path

from podwire_cni import attach, runtime
from podwire_cni.backends import flannel
from podwire_cni.ipam import HostLocal
from podwire_cni.protocol import CniError
from podwire_cni.runtime import Attachment, Network, Runtime, run_sync
from podwire_core import netns
from podwire_core.netlink import LinkDel, LinkInfo
from podwire_core.netlink_client import Netlink

pytestmark = pytest.mark.root
NODE = {"metadata": {"name": "node1"}, "spec": {"podCIDR": "10.244.1.0/24"}}


class World:
    """One node's datapath, its network as Flannel configures it, and pods."""

    def __init__(self, nodes: Nodes, folder: Path) -> None:
        self.nodes, self.folder = nodes, folder
        self.node: Node = nodes.add()[0]
        self.conf = flannel.net_conf(NODE, self.node.socket, str(folder / "ipam"))
        runtime.install(folder / "bin")

    @property
    def runtime(self) -> Runtime:
        return Runtime(Network.parse(self.conf), [self.folder / "bin"], self.folder / "cache")

    @property
    def store(self) -> HostLocal:
        return HostLocal("cbr0", self.conf["plugins"][0]["ipam"])

    def pod(self, name: str) -> Attachment:
        self.nodes.namespace(f"cn-{name}")
        return Attachment.of_pod(name, netns_path(f"cn-{name}"), "shop", name, f"uid-{name}")

    def add(self, pod: Attachment) -> dict:
        return run_sync(self.runtime.add_steps(pod))

    def check(self, pod: Attachment) -> None:
        run_sync(self.runtime.check_steps(pod))

    def delete(self, pod: Attachment) -> None:
        run_sync(self.runtime.delete_steps(pod))

    def link(self, pod: Attachment) -> LinkInfo | None:
        name = attach.link_name(pod.container_id, pod.ifname)
        with Netlink(self.node.socket) as datapath:
            return next((link for link in datapath.dump("links") if link.name == name), None)

    def restart(self) -> None:
        """kill -9, a new process, and what an agent states again before the pods' ports."""
        self.node.netlink.close()
        os.kill(self.node.process.pid, signal.SIGKILL)
        self.node.process.wait()
        os.unlink(self.node.socket)
        self.node.start()
        self.node.configure()


@pytest.fixture
def world(tmp_path) -> Iterator[World]:
    with Nodes("cn", slot=76) as nodes:
        yield World(nodes, tmp_path)


def ip(pod: Attachment, *command: str):
    done = subprocess.run(["nsenter", f"--net={pod.netns}", "ip", "-json", *command], capture_output=True, text=True, check=True)
    return json.loads(done.stdout or "[]")


def links(pod: Attachment) -> list[str]:
    return [link["ifname"] for link in ip(pod, "link")]


def ping(pod: Attachment, address: str) -> bool:
    command = ["nsenter", f"--net={pod.netns}", "ping", "-n", "-q", "-c1", "-W5", address]
    return subprocess.run(command, capture_output=True).returncode == 0


def refused(call, *args) -> CniError:
    with pytest.raises(CniError) as caught:
        call(*args)
    return caught.value


def test_add_makes_the_interface_with_address_mac_and_routes(world):
    pod = world.pod("a")
    result = world.add(pod)
    assert result == {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "cni0"},
            {"name": attach.link_name("a", "eth0"), "mtu": 1450},
            {"name": "eth0", "mac": "02:00:0a:f4:01:02", "mtu": 1450, "sandbox": pod.netns},
        ],
        "ips": [{"interface": 2, "address": "10.244.1.2/24", "gateway": "10.244.1.1"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}],
        "dns": {},
    }
    [eth0] = ip(pod, "addr", "show", "dev", "eth0")
    assert (eth0["address"], eth0["mtu"], "UP" in eth0["flags"]) == ("02:00:0a:f4:01:02", 1450, True)
    assert [(a["local"], a["prefixlen"]) for a in eth0["addr_info"] if a["family"] == "inet"] == [("10.244.1.2", 24)]
    routes = {(r["dst"], r.get("gateway")) for r in ip(pod, "route")}
    assert routes == {("default", "10.244.1.1"), ("10.244.1.0/24", None)}
    link = world.link(pod)
    assert link is not None
    assert (link.kind, link.master, link.mtu, link.hairpin, link.up, link.attached) == ("tap", "cni0", 1450, True, True, True)
    assert link.alias == "pod shop/a"


def test_two_pods_reach_each_other(world):
    a, b = world.pod("a"), world.pod("b")
    world.add(a)
    world.add(b)
    assert ping(a, "10.244.1.3")


def test_del_removes_both_ends_and_frees_the_address_and_again(world):
    pod = world.pod("a")
    world.add(pod)
    for _ in range(2):
        world.delete(pod)
        assert links(pod) == ["lo"]
        assert world.link(pod) is None
        assert world.store.owners() == []
    netns.delete(pod.netns)
    world.delete(pod)


def test_del_when_the_namespace_went_first(world):
    pod = world.pod("a")
    world.add(pod)
    netns.delete(pod.netns)
    world.delete(pod)
    assert world.link(pod) is None
    assert world.store.owners() == []


def test_check_of_what_is_as_it_was_made(world):
    pod = world.pod("a")
    world.add(pod)
    world.check(pod)


def in_pod(*command: str):
    return lambda world, pod: ip(pod, *command)


def without_link(world: World, pod: Attachment) -> None:
    world.node.netlink.apply([LinkDel(attach.link_name(pod.container_id, pod.ifname))])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (in_pod("addr", "del", "10.244.1.2/24", "dev", "eth0"), "eth0 has not 10.244.1.2/24"),
        (in_pod("route", "del", "default"), "no route to default"),
        (in_pod("link", "del", "eth0"), "eth0"),
        (without_link, "the datapath has no link veth"),
        (lambda world, pod: world.store.release(world.store.owners()[0]), "no allocation of 10.244.1.2"),
        (lambda world, pod: netns.delete(pod.netns), "cannot see eth0"),
    ],
)
def test_check_says_what_is_gone(world, damage, says):
    pod = world.pod("a")
    world.add(pod)
    damage(world, pod)
    error = refused(world.check, pod)
    assert (error.code, says in str(error)) == (103, True), str(error)


# --- failures --------------------------------


@pytest.mark.parametrize(
    "change", [{"dataplane": "/nonexistent.sock"}, {"bridge": "absent"}, {"mtu": 68}], ids=["datapath", "bridge", "ipv6-less"]
)
def test_add_that_fails_leaves_nothing(world, change):
    """mtu 68 is too small for IPv6, and the pod gets such an address."""
    if "mtu" in change:
        world.conf["plugins"][0]["ipam"]["ranges"].append([{"subnet": "fd00::/64"}])
    world.conf["plugins"][0] |= change
    pod = world.pod("a")
    assert refused(world.add, pod).code == 102
    assert links(pod) == ["lo"]
    assert world.link(pod) is None
    assert world.store.owners() == []
    assert world.runtime.attachments() == []


def test_add_into_no_namespace_leaves_nothing(world):
    pod = Attachment("gone", "/run/netns/cn-absent")
    assert refused(world.add, pod).code == 102
    assert world.link(pod) is None
    assert world.store.owners() == []


def test_a_name_that_is_taken_is_not_touched(world):
    pod = world.pod("a")
    os.close(netns.create_tap(pod.netns, "eth0"))
    steps = world.runtime._call("ADD", world.conf["plugins"][0], pod, None)
    assert "exists" in str(refused(run_sync, steps))
    assert links(pod) == ["lo", "eth0"]
    assert world.store.owners() == []


CRASH = """
import os, sys
from podwire_cni import attach, plugin
{crash}
sys.exit(plugin.main())
"""
CRASHES = {
    "address taken": "attach.connect = lambda *_: os._exit(9)",
    "device made": "attach.netns.configure = lambda *_: os._exit(9)",
    "datapath linked": "plugin._result = lambda *_: os._exit(9)",
}


@pytest.mark.parametrize("crash", CRASHES.values(), ids=CRASHES)
def test_a_crash_in_the_middle_of_add_is_undone_by_del(world, crash):
    pod = world.pod("a")
    invocation = next(world.runtime._call("ADD", world.conf["plugins"][0], pod, None))
    command = [sys.executable, "-c", CRASH.format(crash=crash)]
    assert subprocess.run(command, input=invocation.stdin, env=invocation.env, capture_output=True).returncode == 9
    assert world.store.owners() != []
    world.delete(pod)
    assert links(pod) == ["lo"]
    assert world.link(pod) is None
    assert world.store.owners() == []
    world.add(pod)
    world.check(pod)


def test_concurrent_adds(world):
    pods = [world.pod(f"p{n}") for n in range(6)]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        results = list(pool.map(world.add, pods))
    addresses = {ipaddress.ip_interface(result["ips"][0]["address"]) for result in results}
    assert len(addresses) == 6
    for pod in pods:
        world.check(pod)


# --- GC, STATUS, VERSION --------------------------------


def test_gc_removes_what_the_runtime_does_not_know(world):
    kept, cached, leaked = (world.pod(name) for name in ("kept", "cached", "leaked"))
    for pod in (kept, cached, leaked):
        world.add(pod)
    (world.folder / "cache" / "results" / "cbr0-leaked-eth0").unlink()
    run_sync(world.runtime.collect_steps([kept]))
    assert world.runtime.attachments() == [kept]
    assert [owner.container_id for owner in world.store.owners()] == ["kept"]
    assert links(cached) == ["lo"]
    assert world.link(cached) is world.link(leaked) is None
    world.check(kept)


def test_status(world):
    run_sync(world.runtime.status_steps())
    world.conf["plugins"][0]["ipam"]["ranges"] = [[{"subnet": "10.244.1.0/30"}]]
    world.add(world.pod("a"))
    assert refused(run_sync, world.runtime.status_steps()).code == 50
    world.node.process.kill()
    world.node.process.wait()
    assert refused(run_sync, world.runtime.status_steps()).code == 51


def test_the_executable_says_its_versions_and_its_errors_without_a_traceback(world):
    path = str(world.folder / "bin" / "podwire")
    done = subprocess.run([path], env={"CNI_COMMAND": "VERSION"}, stdin=subprocess.DEVNULL, capture_output=True)
    assert (done.returncode, "1.1.0" in json.loads(done.stdout)["supportedVersions"]) == (0, True)
    done = subprocess.run([path], env={"CNI_COMMAND": b"\xff"}, stdin=subprocess.DEVNULL, capture_output=True)
    assert (done.returncode, json.loads(done.stdout)["code"], done.stderr) == (1, 4, b"")


# --- a datapath that was killed --------------------------------


def test_ports_are_given_to_a_new_datapath(world):
    pods = [world.pod("a"), world.pod("b")]
    for pod in pods:
        world.add(pod)
    assert ping(pods[0], "10.244.1.3")
    world.restart()
    assert world.link(pods[0]) is None
    assert refused(world.check, pods[0]).code == 103
    with Netlink(world.node.socket) as datapath:
        for pod in world.runtime.attachments():
            port = attach.Port.of(world.conf["plugins"][0], pod.container_id, pod.netns, pod.ifname, dict(pod.args))
            attach.reattach(port, datapath)
            with pytest.raises(OSError, match="busy"):
                attach.reattach(port, datapath)
    for pod in pods:
        world.check(pod)
    assert ping(pods[0], "10.244.1.3")


def test_del_without_a_datapath_removes_the_rest(world):
    pod = world.pod("a")
    world.add(pod)
    world.node.process.kill()
    world.node.process.wait()
    world.delete(pod)
    assert links(pod) == ["lo"]
    assert world.store.owners() == []
