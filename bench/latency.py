"""Round-trip and connection times between two pods, on one node and across two, beside the kernel's.

Client, server and datapath processes are pinned to one CPU: unpinned, a virtual machine's figures are mostly of how long an idle
CPU takes to wake. Client and server are this file, in Python, on both sides alike: about 4 µs a side of every round trip are
theirs, so the ratio flatters podwire a little; the difference of the two columns does not.

rr: 64 bytes there and back on one TCP connection; udp_rr: a datagram; connect: a new TCP connection (first packets, not the flow
cache's).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from common import Row, Way, inside, kernel_paths, main, paired, podwire_paths, serving

PORT = 7100
CPU = {0}
METRICS = ("rr", "udp_rr", "connect")


def serve(address: str) -> None:
    """Echo TCP and UDP on PORT, one connection after the other."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((address, PORT))
    if os.fork() == 0:
        while True:
            data, peer = udp.recvfrom(2048)
            udp.sendto(data, peer)
    listener = socket.create_server((address, PORT), backlog=64)
    print("ready", flush=True)
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := sock.recv(2048):
            sock.send(data)
        sock.close()


def client(address: str, rounds: int) -> None:
    """Prints {metric: [p50, p99] in µs}."""
    with socket.create_connection((address, PORT), 5) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found = {"rr": round_trips(sock, rounds)}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((address, PORT))
        found["udp_rr"] = round_trips(sock, rounds)
    times = []
    for _ in range(rounds // 10):
        start = time.perf_counter_ns()
        sock = socket.create_connection((address, PORT), 5)
        times.append(time.perf_counter_ns() - start)
        sock.close()
    found["connect"] = percentiles(times)
    print(json.dumps(found))


def round_trips(sock: socket.socket, rounds: int) -> list[float]:
    data, times = bytes(64), []
    sock.setblocking(True)
    for _ in range(rounds + 100):
        start = time.perf_counter_ns()
        sock.send(data)
        sock.recv(2048)
        times.append(time.perf_counter_ns() - start)
    return percentiles(times[100:])


def percentiles(times: list[int]) -> list[float]:
    times.sort()
    return [times[len(times) // 2] / 1000, times[len(times) * 99 // 100] / 1000]


def ask(path: Way, rounds: int) -> dict[str, float]:
    for pid in path.pids:
        os.sched_setaffinity(pid, CPU)
    command = inside(path.client, sys.executable, __file__, "--client", path.address, "--rounds", str(rounds))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return {
        f"{name}_{p}": value
        for name, values in json.loads(done.stdout).items()
        for p, value in zip(("p50", "p99"), values, strict=True)
    }


def measure(args: argparse.Namespace) -> Iterator[Row]:
    pairs, rounds = (3, 3000) if args.quick else (7, 20_000)
    os.sched_setaffinity(0, CPU)  # inherited by servers and clients
    with podwire_paths() as ours, kernel_paths() as theirs:
        for case in ("same-node", "cross-node"):
            mine, its = ours[case], theirs[case]
            server = [sys.executable, __file__, "--serve"]
            with serving(mine, [*server, mine.address], ready=True), serving(its, [*server, its.address], ready=True):
                podwire, kernel = paired(lambda p=mine: ask(p, rounds), lambda p=its: ask(p, rounds), pairs)
            for metric in METRICS:
                for p in ("p50", "p99"):
                    yield Row(case, f"{metric}_{p}", "µs", podwire[f"{metric}_{p}"], kernel[f"{metric}_{p}"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    elif sys.argv[1:2] == ["--client"]:
        client(sys.argv[2], int(sys.argv[4]))
    else:
        main("latency", __doc__ or "", measure)
