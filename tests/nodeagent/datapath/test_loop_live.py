"""Real datapath processes with real TAPs in network namespaces: traffic within a node, over VXLAN, and around faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.live import Node, Nodes, inside, netns_path, transfer

from podwire_core import netns
from podwire_core.netlink import LinkAdd, LinkDel, Subscribe
from podwire_core.netlink_client import Netlink

pytestmark = pytest.mark.root


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with Nodes("lp") as nodes:
        yield nodes


def ping(space: str, address: str, *args: str) -> str:
    return subprocess.run(inside(space, "ping", "-n", "-W", "5", *args, address), capture_output=True, text=True).stdout


def test_two_pods_of_one_node(nodes: Nodes) -> None:
    (node,) = nodes.add()
    a, b = node.pod("a"), node.pod("b")
    assert "3 received" in ping("lp-a", b, "-c3", "-i0.01")
    before = {link.name: link.stats for link in node.netlink.dump("links")}["vetha"]
    transfer("lp-a", "lp-b", b, 50 << 20)
    after = {link.name: link.stats for link in node.netlink.dump("links")}["vetha"]
    packets, size = after["rx_packets"] - before["rx_packets"], after["rx_bytes"] - before["rx_bytes"]
    assert size > 50 << 20
    assert size / packets > 10_000  # superframes passed as such
    transfer("lp-b", "lp-a", a, 1 << 20)


def test_two_nodes_over_vxlan(nodes: Nodes) -> None:
    one, two = nodes.add(2)
    a, b = one.pod("a"), two.pod("b")
    assert "3 received" in ping("lp-a", b, "-c3", "-i0.01")
    transfer("lp-a", "lp-b", b, 50 << 20)
    transfer("lp-b", "lp-a", a, 5 << 20)
    stats = {link.name: link.stats for link in two.netlink.dump("links")}["flannel.1"]
    assert two.counters()["tunnel_rx"] > 50 << 20 // 1400
    assert stats["rx_packets"] < two.counters()["tunnel_rx"] / 4  # coalesced before they entered the stack
    assert not [name for node in (one, two) for name in node.counters() if name.startswith("bug.")]


UDP_SEGMENT = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((sys.argv[1], 7001))
for i in range(20):
    s.sendmsg([b"".join(bytes([i, n]) * 500 for n in range(40))], [(17, 103, (1000).to_bytes(2, "little"))])
"""
UDP_COUNT = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(socket.SOL_SOCKET, 33, 8 << 20); s.bind((sys.argv[1], 7001))
print("ready", flush=True); s.settimeout(10)
got = {s.recv(2000) for _ in range(800)}; assert got == {bytes([i, n]) * 500 for i in range(20) for n in range(40)}; print("all")
"""


def test_udp_superframes_arrive_as_datagrams(nodes: Nodes) -> None:
    one, two = nodes.add(2)
    one.pod("a")
    for name, address in (("b", one.pod("b")), ("c", two.pod("c"))):
        counting = subprocess.Popen(
            inside(f"lp-{name}", sys.executable, "-c", UDP_COUNT, address), stdout=subprocess.PIPE, text=True
        )
        assert counting.stdout is not None
        assert counting.stdout.readline() == "ready\n"
        ping("lp-a", address, "-c1")  # a burst to an unresolved neighbour is mostly lost, as with Linux
        subprocess.run(inside("lp-a", sys.executable, "-c", UDP_SEGMENT, address), check=True)
        assert counting.communicate(timeout=20)[0] == "all\n"


def test_the_nodes_reach_each_other_over_the_cable(nodes: Nodes) -> None:
    one, two = nodes.add(2)
    attach_host(one)
    attach_host(two)
    assert "3 received" in ping("lp-host1", two.ip, "-c3", "-i0.01")
    assert two.counters()["cable_rx"] >= 3


def attach_host(node: Node) -> None:
    """The node's host namespace, as small as it can be."""
    space = f"lp-host{node.number}"
    node.nodes.namespace(space)
    fd = netns.create_tap(netns_path(space), "eth0", "02:00:00:00:00:99")
    with netns.configure(netns_path(space)) as net:
        net.set_link("eth0", up=True)
        net.add_address("eth0", f"{node.ip}/32")
        net.add_neighbour("eth0", "169.254.1.1", "02:00:a9:fe:01:01")
    netns.add_route(netns_path(space), "default", via="169.254.1.1", dev="eth0", onlink=True)
    host = LinkAdd("host0", "host", mac="02:00:a9:fe:01:01", peer_mac="02:00:00:00:00:99", fd=True)
    node.netlink.apply([host], fds=[fd])
    os.close(fd)


def test_a_killed_datapath_is_replaced_and_pods_go_on(nodes: Nodes) -> None:
    (node,) = nodes.add()
    node.pod("a")
    b = node.pod("b")
    node.netlink.close()
    node.process.kill()
    node.process.wait()
    node.start()  # the same socket path: the dead one's file is in the way
    node.configure()
    for name in "ab":
        node.attach(name, netns.reattach_tap(netns_path(f"lp-{name}"), "eth0"))
    assert "3 received" in ping("lp-a", b, "-c3", "-i0.01")


def test_a_deleted_device_leaves_its_link_unattached(nodes: Nodes) -> None:
    (node,) = nodes.add()
    node.pod("a")
    with netns.configure(netns_path("lp-a")) as net:
        net.delete_link("eth0")
    deadline = time.monotonic() + 5
    attached = True
    while attached and time.monotonic() < deadline:
        attached = {link.name: link.attached for link in node.netlink.dump("links")}["vetha"]
    assert not attached
    node.netlink.apply([LinkDel("vetha")])


def test_traces_travel_through_a_subscription(nodes: Nodes) -> None:
    (node,) = nodes.add()
    a, b = node.pod("a"), node.pod("b")
    watcher = Netlink(node.socket)
    traces = watcher.subscribe(Subscribe(0, addresses=(b,), protocol="icmp"))
    ping("lp-a", b, "-c1")
    hop = next(traces).hop
    assert (hop["entered"]["src"], hop["entered"]["dst"], hop["verdict"]) == (a, b, "delivered")
    assert abs(hop["time"] - time.time()) < 60
    watcher.close()


# --- the process --------------------------------


def start(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "podwire_nodeagent.datapath", "--node", "n", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=20)


def test_what_cannot_work_is_one_line(nodes: Nodes, tmp_path: Path) -> None:
    (node,) = nodes.add()
    in_use = start("--socket", str(tmp_path / "s"), "--underlay", node.underlay)
    assert (in_use.returncode, in_use.stdout) == (2, "")
    assert in_use.stderr.count("\n") == 1
    assert "8472" in in_use.stderr
    assert "is in use" in in_use.stderr
    taken = start("--socket", node.socket, "--underlay", "127.0.77.99")
    assert (taken.returncode, taken.stderr) == (2, f"podwire-datapath: {node.socket} is in use by another datapath\n")
    nowhere = start("--socket", str(tmp_path / "s"), "--underlay", "203.0.113.1")
    assert "no such address" in nowhere.stderr
    missing = start("--socket", str(tmp_path / "no" / "s"), "--underlay", "127.0.77.98")
    assert missing.stderr.count("\n") == 1
    bad = start("--socket", str(tmp_path / "s"), "--underlay", "127.0.77.98", "--tunnel-port", "0")
    assert bad.returncode == 2


def test_it_is_small_idle_and_ends_when_told(nodes: Nodes) -> None:
    (node,) = nodes.add()
    node.pod("a")
    rss = next(line for line in Path(f"/proc/{node.process.pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    assert int(rss.split()[1]) < 45_000
    before = cpu_ticks(node.process.pid)
    time.sleep(2)  # what is measured is that nothing happens
    assert cpu_ticks(node.process.pid) - before <= 2  # hundredths of a second
    node.netlink.close()
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(5) == 0
    assert not Path(node.socket).exists()


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])
