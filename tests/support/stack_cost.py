"""What the stack costs per packet, without I/O: `python tests/support/stack_cost.py`. Best of 3 runs, in microseconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from support import packets
from support.packets import ACK, SYN, tcp, udp
from support.stacks import Cluster, Pod, service_rules

SERVICE = "10.96.0.50"


def best(packet: bytes, pod: Pod, number: int, to: str = "") -> float:
    """Of `receive` alone: the cost of making the frame anew each time is taken off."""
    original = bytes(packets.frame(to or pod.node.bridge_mac, pod.mac, packet))
    buffer = memoryview(bytearray(original))
    stack, index, now = pod.node.stack, pod.node.stack.link_index(pod.name), pod.node.cluster.now

    def run(receive: Callable[..., object]) -> float:
        begin = time.perf_counter()
        for _ in range(number):
            buffer[:] = original
            receive(index, buffer, now)
        return (time.perf_counter() - begin) / number * 1e6

    base = min(run(lambda index, frame, now: None) for _ in range(3))
    return min(run(stack.receive) for _ in range(3)) - base


def handshake(client: Pod, service: str, server: Pod, sport: int, dport: int) -> None:
    cluster = client.node.cluster
    client.send(tcp(client.address, service, sport, dport, SYN, 1, 0))
    cluster.run()
    syn = server.take()[-1]
    server.send(tcp(server.address, syn.src, syn.dport, syn.sport, SYN | ACK, 5, 2))
    cluster.run()
    client.send(tcp(client.address, service, sport, dport, ACK, 2, 6))
    cluster.run()


def main() -> None:
    cluster = Cluster(2)
    node = cluster.nodes[0]
    a, near, far = node.add_pod("10.244.1.5"), node.add_pod("10.244.1.7"), cluster.nodes[1].add_pod("10.244.2.6")
    node.apply(service_rules(SERVICE, 80, [(far.address, 8080)]))
    handshake(a, SERVICE, far, 40000, 80)
    handshake(a, far.address, far, 40001, 8080)
    cluster.ping(a, near.address)
    data = b"x" * 64
    service = tcp(a.address, SERVICE, 40000, 80, ACK, 2, 6, data)
    pod = tcp(a.address, far.address, 40001, 8080, ACK, 2, 6, data)
    print(f"hit, Service, other node   {best(service, a, 50_000):6.2f}")
    print(f"hit, pod, other node       {best(pod, a, 50_000):6.2f}")
    print(f"hit, pod, same node routed {best(udp(a.address, near.address, 5, 6, data), a, 50_000):6.2f}")
    print(f"hit, pod, bridged          {best(udp(a.address, near.address, 5, 6, data), a, 50_000, near.mac):6.2f}")
    node.stack.cache.enabled = False
    node.stack.changed()
    print(f"walk, Service, other node  {best(service, a, 5_000):6.2f}")
    print(f"walk, pod, other node      {best(pod, a, 5_000):6.2f}")
    index = node.stack.link_index(a.name)
    syns = [packets.frame(node.bridge_mac, a.mac, tcp(a.address, SERVICE, 1024 + i, 80, SYN, 2, 6)) for i in range(5000)]
    begin = time.perf_counter()
    for syn in syns:
        node.stack.receive(index, syn, cluster.now)
    print(f"first packet, Service      {(time.perf_counter() - begin) / len(syns) * 1e6:6.2f}")


if __name__ == "__main__":
    main()
