"""TCP throughput and small-packet rate between two pods, on one node and across two, beside the kernel's.

Same node: TAP, datapath process, TAP against veth, bridge, veth. Across: VXLAN at MTU 1450 over a 1500-byte underlay both. tcp
is one iperf3 stream; udp64 is 64-byte datagrams sent as fast as a Python loop can, counted at the receiver, another Python loop.
Sender, receiver and one or two datapath processes share the machine's CPUs, so on a small machine the figures are of CPU time.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from common import Row, Way, inside, kernel_paths, main, paired, podwire_paths, serving

PORT = "5201"
FLOOD_PORT = 5300


def iperf(path: Way, *args: str) -> dict[str, float]:
    command = inside(path.client, "iperf3", "-c", path.address, "-p", PORT, "-J", "--connect-timeout", "5000", *args)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    result = json.loads(done.stdout)
    if "error" in result:
        raise RuntimeError(f"{path.case}: {result['error']}")
    return dict(result["end"]["sum_received"] if "sum_received" in result["end"] else result["end"]["sum"])


def tcp(path: Way, seconds: float) -> dict[str, float]:
    return {"tcp": iperf(path, "-t", f"{seconds:g}", "-O", "0.3")["bits_per_second"] / 1e9}


def udp(path: Way, seconds: float) -> dict[str, float]:
    receiver = inside(path.server, sys.executable, __file__, "--count", path.address)
    with subprocess.Popen(receiver, stdout=subprocess.PIPE, text=True) as counting:
        assert counting.stdout is not None
        counting.stdout.readline()
        flood = [sys.executable, __file__, "--flood", path.address, f"{seconds:g}"]
        subprocess.run(inside(path.client, *flood), check=True, timeout=60)
        return {"udp64": int(counting.stdout.readline()) / seconds / 1e3}


def count(address: str) -> None:
    """Prints how many datagrams came before an empty one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind((address, FLOOD_PORT))
        print("ready", flush=True)
        buffer, number = bytearray(2048), 0
        while sock.recv_into(buffer):
            number += 1
        print(number, flush=True)


def flood(address: str, seconds: float) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, FLOOD_PORT))
        data, end = bytes(64), time.perf_counter() + seconds
        while time.perf_counter() < end:
            for _ in range(64):
                sock.send(data)
        for _ in range(20):  # after the queues have drained; some may be lost to them
            time.sleep(0.02)
            try:
                sock.send(b"")
            except ConnectionRefusedError:
                return  # the receiver has its end already


def measure(args: argparse.Namespace) -> Iterator[Row]:
    pairs, seconds = (3, 1.0) if args.quick else (7, 4.0)
    with podwire_paths() as ours, kernel_paths() as theirs:
        for case in ("same-node", "cross-node"):
            mine, its = ours[case], theirs[case]
            with serving(mine, ["iperf3", "-s", "-p", PORT]), serving(its, ["iperf3", "-s", "-p", PORT]):
                wait_for(mine)
                wait_for(its)
                for name, unit, work in (("tcp", "Gb/s", tcp), ("udp64", "kpps", udp)):
                    podwire, kernel = paired(lambda w=work, p=mine: w(p, seconds), lambda w=work, p=its: w(p, seconds), pairs)
                    yield Row(case, name, unit, podwire[name], kernel[name])


def wait_for(path: Way) -> None:
    """Until iperf3's server answers."""
    for _ in range(50):
        probe = ["python3", "-c", f"import socket; socket.create_connection(('{path.address}', {PORT}), .2)"]
        if subprocess.run(inside(path.client, *probe), stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return
    raise RuntimeError(f"no iperf3 server at {path.address}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--count"]:
        count(sys.argv[2])
    elif sys.argv[1:2] == ["--flood"]:
        flood(sys.argv[2], float(sys.argv[3]))
    else:
        main("throughput", __doc__ or "", measure)
