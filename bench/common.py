"""What the benchmarks of the datapath share: the kernel doing the same work, interleaved pairs, JSON lines, a plot.

Rules they keep: podwire and the kernel are measured in the same run, one after the other, in alternating order (a machine's speed
drifts); a figure is the median of the pairs and its ratio has the range over the pairs; the exit status is 0 whatever the
figures. Namespaces begin with bn-. Needs root, iproute2, /dev/net/tun.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.live import Nodes, inside, mac_of

PREFIX = "bn"
Measure = Callable[[], dict[str, float]]
Draw = Callable[[str, str, list[dict[str, object]]], None]  # file, title, rows


@dataclass
class Way:
    """From namespace `client` to `address` in namespace `server`; `pids` are the forwarding processes on the way."""

    case: str
    client: str
    server: str
    address: str
    pids: tuple[int, ...] = ()


@dataclass
class Row:
    """One line of output. `kernel` empty: it was not measured, or has nothing alike."""

    case: str
    metric: str
    unit: str
    podwire: list[float]
    kernel: list[float]

    def data(self, bench: str) -> dict[str, object]:
        ratios = sorted(p / k for p, k in zip(self.podwire, self.kernel, strict=True) if k) if self.kernel else []
        podwire, kernel = statistics.median(self.podwire), statistics.median(self.kernel) if self.kernel else None
        ratio = {"ratio": podwire / kernel, "low": ratios[0], "high": ratios[-1]} if kernel else {}
        about = {"bench": bench, "case": self.case, "metric": self.metric, "unit": self.unit}
        figures = {"podwire": podwire, "kernel": kernel, "ratio": None, "low": None, "high": None, **ratio}
        return about | {name: value and round(value, 3) for name, value in figures.items()} | {"pairs": len(ratios)}


# --- topologies --------------------------------


@contextmanager
def podwire_paths() -> Iterator[dict[str, Way]]:
    """Two nodes' datapath processes joined by VXLAN over loopback; pods a and b on the first, c on the second."""
    with Nodes(PREFIX, slot=78) as nodes:
        one, two = nodes.add(2)
        one.pod("a")
        b, c = one.pod("b"), two.pod("c")
        yield {
            "same-node": Way("same-node", "bn-a", "bn-b", b, (one.process.pid,)),
            "cross-node": Way("cross-node", "bn-a", "bn-c", c, (one.process.pid, two.process.pid)),
        }


@contextmanager
def kernel_paths() -> Iterator[dict[str, Way]]:
    """The same of Linux: a namespace a node with bridge and vxlan device, joined by veth; pods by veth, MTU 1450."""
    names = ["bn-k1", "bn-k2", "bn-ka", "bn-kb", "bn-kc"]
    for name in names:
        subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
    try:
        run(*["ip", "link", "add", "u0", "netns", "bn-k1", "type", "veth", "peer", "name", "u0", "netns", "bn-k2"])
        for number in (1, 2):
            _kernel_node(number)
        for pod, number, ip in (("a", 1, "10.244.1.2"), ("b", 1, "10.244.1.3"), ("c", 2, "10.244.2.2")):
            _kernel_pod(f"bn-k{pod}", number, ip)
        yield {
            "same-node": Way("same-node", "bn-ka", "bn-kb", "10.244.1.3"),
            "cross-node": Way("cross-node", "bn-ka", "bn-kc", "10.244.2.2"),
        }
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def _kernel_node(number: int) -> None:
    space, other = f"bn-k{number}", 3 - number
    local, remote, mac = f"10.99.0.{number}", f"10.99.0.{other}", mac_of(f"10.244.{other}.0")
    for line in (
        f"ip addr add {local}/24 dev u0",
        "ip link set u0 up",
        "sysctl -qw net.ipv4.ip_forward=1",
        "ip link add cni0 type bridge",
        "ip link set cni0 mtu 1450 up",
        f"ip addr add 10.244.{number}.1/24 dev cni0",
        f"ip link add flannel.1 type vxlan id 1 local {local} dev u0 dstport 8472 nolearning",
        f"ip link set flannel.1 address {mac_of(f'10.244.{number}.0')}",
        "ip link set flannel.1 mtu 1450 up",
        f"ip addr add 10.244.{number}.0/32 dev flannel.1",
        f"ip route add 10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink",
        f"ip neigh add 10.244.{other}.0 lladdr {mac} dev flannel.1 nud permanent",
        f"bridge fdb append {mac} dev flannel.1 dst {remote}",
    ):
        run(*inside(space, *line.split()))


def _kernel_pod(space: str, number: int, ip: str) -> None:
    veth = f"v{space[3:]}"
    run(*f"ip link add {veth} netns bn-k{number} mtu 1450 type veth peer name eth0 netns {space} mtu 1450".split())
    run(*f"ip -n bn-k{number} link set {veth} master cni0 up".split())
    run(*f"ip -n {space} link set eth0 up".split())
    run(*f"ip -n {space} addr add {ip}/24 dev eth0".split())
    run(*f"ip -n {space} route add default via 10.244.{number}.1".split())


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def serving(path: Way, command: list[str], ready: bool = False) -> Iterator[None]:
    """A server in the path's server namespace; `ready`: it prints a line when it listens."""
    server = subprocess.Popen(inside(path.server, *command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        if ready:
            server.stdout.readline()
        yield
    finally:
        server.kill()
        server.wait()


# --- measuring --------------------------------


def paired(podwire: Measure, kernel: Measure, pairs: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Both measured `pairs` times, each going first in turn."""
    found: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
    for i in range(pairs):
        for side in (0, 1) if i % 2 == 0 else (1, 0):
            for name, value in (podwire, kernel)[side]().items():
                found[side].setdefault(name, []).append(value)
    return found


def main(bench: str, about: str, measure: Callable[[argparse.Namespace], Iterator[Row]], draw: Draw | None = None) -> None:
    """Parse options, print a JSON line a row as soon as it is there, draw the plot (`plot`, or a benchmark's own)."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer, shorter pairs: at most 45 s")
    parser.add_argument("--plot", metavar="FILE", help="draw the rows with matplotlib")
    args = parser.parse_args()
    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
        sys.exit(f"bench/{bench}.py needs root and /dev/net/tun")
    rows = []
    for row in measure(args):
        rows.append(row.data(bench))
        print(json.dumps(rows[-1]), flush=True)
    if args.plot:
        plot(args.plot, bench, rows, draw)


def plot(file: str, title: str, rows: list[dict[str, object]], draw: Draw | None = None) -> None:
    """With `draw`, by default `draw_ratios`, if matplotlib is there."""
    os.environ.setdefault("MPLCONFIGDIR", tempfile.gettempdir())
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (pip install 'podwire[bench]')", file=sys.stderr)
        return
    matplotlib.use("svg" if file.endswith(".svg") else "agg")
    (draw or draw_ratios)(file, title, rows)


def draw_ratios(file: str, title: str, rows: list[dict[str, object]]) -> None:
    """Ratio to the kernel of each row, with its range."""
    from matplotlib import pyplot

    rows = [row for row in rows if row["ratio"] is not None]
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.5 * len(rows)), layout="constrained")
    for at, row in enumerate(reversed(rows)):
        ratio, low, high = (float(str(row[name])) for name in ("ratio", "low", "high"))
        axes.barh(at, ratio, color="#4477aa")
        axes.plot([low, high], [at, at], color="black", linewidth=1.5)
        axes.annotate(f" {row['podwire']:g} : {row['kernel']:g} {row['unit']}", (max(ratio, high), at), va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{row['case']} {row['metric']}" for row in reversed(rows)])
    axes.axvline(1, color="#aa3377", linewidth=1)
    axes.set_xlabel("podwire / Linux kernel (line: range over pairs)")
    axes.set_title(f"{title}, {time.strftime('%Y-%m-%d')}")
    axes.margins(x=0.25)
    figure.savefig(file)
