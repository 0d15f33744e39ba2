"""The Linux kernel as judge of the tunnels: a namespace with a Linux vxlan device is another node.

Underlay: a veth pair between the namespace of the datapath process and the kernel's, MTU 1500. `tx off` on the kernel's vxlan
device, because over veth it would hand out inner frames whose checksums nobody completes.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.live import Node, Nodes, inside, mac_of, transfer

from podwire_core.netlink import UnderlayDel

pytestmark = pytest.mark.root

OURS, KERNELS = "10.99.0.1", "10.99.0.2"
KERNEL_VTEP, KERNEL_MAC = "10.244.9.0", mac_of("10.244.9.0")


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


@pytest.fixture
def node() -> Iterator[Node]:
    """A node whose pod "a" has a peer: namespace lp-kernel with flannel.1 (10.244.9.0)."""
    with Nodes("lp") as nodes:
        for space in ("lp-under", "lp-kernel"):
            nodes.namespace(space)
        run(*["ip", "link", "add", "u0", "netns", "lp-under", "type", "veth", "peer", "name", "u0", "netns", "lp-kernel"])
        for space, address in (("lp-under", OURS), ("lp-kernel", KERNELS)):
            run(*f"ip -n {space} addr add {address}/24 dev u0".split())
            run(*f"ip -n {space} link set u0 up".split())
        (node,) = nodes.add(underlay=OURS, space="lp-under")
        node.pod("a")
        node.peer(9, "192.168.1.19", KERNELS, KERNEL_MAC)
        for line in (
            f"ip link add flannel.1 type vxlan id 1 local {KERNELS} dev u0 dstport 8472 nolearning",
            f"ip link set flannel.1 address {KERNEL_MAC} mtu 1450 up",
            f"ip addr add {KERNEL_VTEP}/32 dev flannel.1",
            f"ip route add 10.244.1.0/24 via 10.244.1.0 dev flannel.1 src {KERNEL_VTEP} onlink",
            f"ip neigh add 10.244.1.0 lladdr {mac_of('10.244.1.0')} dev flannel.1 nud permanent",
            f"bridge fdb append {mac_of('10.244.1.0')} dev flannel.1 dst {OURS}",
            "ethtool -K flannel.1 tx off",
        ):
            run(*inside("lp-kernel", *line.split()))
        yield node


def received(space: str, address: str) -> str:
    return run(*inside(space, "ping", "-n", "-c5", "-i0.01", "-W5", address))


def test_ping_both_ways(node: Node) -> None:
    assert "5 received" in received("lp-a", KERNEL_VTEP)
    assert "5 received" in received("lp-kernel", node.pods["a"])


def test_tcp_both_ways_with_the_kernels_checksums(node: Node) -> None:
    transfer("lp-a", "lp-kernel", KERNEL_VTEP, 20 << 20)
    transfer("lp-kernel", "lp-a", node.pods["a"], 20 << 20)
    for space in ("lp-a", "lp-kernel"):
        errors = run(*inside(space, "nstat", "-az", "TcpInCsumErrors"))
        assert re.search(r"TcpInCsumErrors\s+0\b", errors), errors


def test_large_pings_are_fragmented_inside(node: Node) -> None:
    out = run(*inside("lp-a", "ping", "-n", "-c3", "-i0.01", "-W5", "-s4000", KERNEL_VTEP))
    assert "3 received" in out


def test_what_tcpdump_sees_is_vxlan(node: Node, tmp_path: Path) -> None:
    """Segments are cut before the veth (gso off), so that the capture has them at wire size."""
    run(*inside("lp-under", "ethtool", "-K", "u0", "gso", "off", "tso", "off", "tx", "off"))
    file = tmp_path / "u0.pcap"
    command = inside(
        "lp-kernel", "tcpdump", "-i", "u0", "-U", "--immediate-mode", "-s200", "-w", str(file), f"udp and src host {OURS}"
    )
    tcpdump = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tcpdump.stderr is not None
    assert "listening" in tcpdump.stderr.readline()
    received("lp-a", KERNEL_VTEP)
    transfer("lp-a", "lp-kernel", KERNEL_VTEP, 200_000)
    tcpdump.terminate()
    tcpdump.wait()
    packets = [p for p in read_pcap(file.read_bytes()) if p[1][12:14] == b"\x08\x00"]
    assert len(packets) > 140
    ports = set()
    for length, packet in packets:
        assert length <= 1514
        udp = packet[34:42]
        ports.add(int.from_bytes(udp[:2], "big"))
        assert int.from_bytes(udp[2:4], "big") == 8472
        assert packet[42:50] == bytes.fromhex("0800000000000100")
        assert packet[20:22] == b"\x40\x00"  # DF: a tunnel end must not be fragmented
    assert min(ports) >= 49152
    text = run("tcpdump", "-nn", "-r", str(file), "-T", "vxlan", "udp")
    assert text.count("VXLAN, flags [I] (0x08), vni 1") == len(packets)
    assert "bad" not in text


def read_pcap(data: bytes) -> list[tuple[int, bytes]]:
    """(length on the wire, captured bytes) of each packet of a little-endian pcap file."""
    at, packets = 24, []
    while at < len(data):
        captured, length = (int.from_bytes(data[at + i : at + i + 4], "little") for i in (8, 12))
        packets.append((length, data[at + 16 : at + 16 + captured]))
        at += 16 + captured
    return packets


def test_a_host_that_is_no_node_is_not_let_in(node: Node) -> None:
    node.netlink.apply([UnderlayDel("192.168.1.19")])
    command = inside("lp-kernel", "ping", "-n", "-c2", "-i0.01", "-W1", node.pods["a"])
    assert "0 received" in subprocess.run(command, capture_output=True, text=True).stdout
    assert node.counters()["drop.tunnel_unknown_peer"] >= 2
