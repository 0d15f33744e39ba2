"""What N Services cost in every mode of kube-proxy, beside the kernel with the same rules: per connection, to load, to change.

Per mode and N (two endpoints each), a JSON line for each of:

    first-packet    µs for a connection's first packet (a SYN to the ClusterIP in the middle of the list): all rules are walked
    known           µs for a packet of a known connection to a pod, in the same node: no rule is walked; what to hold it against
    evaluated       rules and map lookups that a trace of that first packet counts
    load            ms from Service objects to all of it in force: compile, message, apply
    apply           ms of that in the datapath: decode, apply
    add             ms from one more Service object, in the middle of the list, to its rules in force
    endpoint        ms from one more endpoint of it to its rules in force
    remove          ms from that Service's deletion to the rules without it in force
    memory          kB of resident memory a Service, in a fresh process that got one load (N of 1 000 and more)

Ours: the datapath's Stack and the agent's Proxier in this process, with the netlink message encoded and decoded between them;
sockets and TAPs are left out. The kernel's: the same frame written into a TAP in a namespace that has the same links, and the
very text of the rules that our mode compiled: iptables-legacy-restore for iptables, nft -f for nftables. Its packets thus pay a
system call each and ours do not (see `known`); its `load` and `apply` are the same figure, the tool's run on ready text, with
the tool's start, and `add`, `endpoint` and `remove` likewise. Modes whose state has no text (IPVS, eBPF maps) have no kernel's
side: kernel is null. So it is where a kernel's load takes longer than LOAD_BOUND: then that N and larger ones are left out, and
said so on stderr.

Frames have distinct source ports; connections are forgotten between rounds; the two sides take turns (common.paired). A packet's
time is CPU time, the median of runs of 20 frames a round: without other processes' turns and most garbage collections, which
are set as the datapath process sets them, for large requests too. The other times are by the clock; `load` and `apply` are of one
run. Namespaces begin with rl-. Needs root, iproute2, iptables, nftables, conntrack.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import msgspec
from common import Row, main, paired
from rules_kernel import KernelRules, Load, TooLongError, loads
from support import packets
from support.services import by_key, endpoint, endpoint_slice, port, service
from support.stack_node import StackNode

from podwire_core import netlink
from podwire_core.collector import settled
from podwire_core.netlink import AddrAdd, AnyOp, LinkAdd, NeighAdd, RouteAdd
from podwire_nodeagent.datapath import requests
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.stack import Emit, Stack
from podwire_nodeagent.proxy import modes
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.model import NodeFacts

SIZES = (10, 100, 1000, 5000, 10_000, 20_000)
QUICK = 1000  # the largest N of --quick
LOAD_BOUND = 45.0  # seconds for a load by the kernel's tools
FRAMES, RUN = 400, 20  # a round, and what is timed at once of it
MEMORY_FROM = 1000  # fewer Services drown in what the process needs anyway
DAY = 86400.0  # after which no connection is known

CLIENT, FAR_POD, BACKENDS = "10.244.1.5", "10.129.0.9", b"\x0a"  # every backend is in 10.0.0.0/8
GATEWAY, BRIDGE_MAC, POD_MAC = "192.168.1.1", "02:00:0a:f4:01:01", "02:00:0a:f4:01:05"
NODE = NodeFacts("node1", addresses=("192.168.1.11", "10.244.1.1"), pod_cidrs=("10.244.1.0/24",))
LINKS: list[AnyOp] = [
    LinkAdd("eth0", "uplink", mac="02:00:c0:a8:01:0b"),
    AddrAdd("eth0", "192.168.1.11/24"),
    NeighAdd(GATEWAY, "02:00:c0:a8:01:01", "eth0"),
    RouteAdd("default", dev="eth0", via=GATEWAY),
    LinkAdd("cni0", "bridge", mac=BRIDGE_MAC, mtu=1450),
    AddrAdd("cni0", "10.244.1.1/24"),
    LinkAdd("vethpod", "tap", mac="02:00:00:00:00:01", mtu=1450, master="cni0", hairpin=True),
]
_encoder = msgspec.msgpack.Encoder()

# --- the cluster and its packets --------------------------------


@dataclass
class Objects:
    services: dict[str, dict]
    slices: dict[str, dict]


def address(base: str, number: int) -> str:
    return str(IPv4Address(base) + number)


def objects(named: dict[str, int], endpoints: int = 2) -> Objects:
    """Services by name and number."""
    services, slices = [], []
    for name, number in named.items():
        services.append(service(name, address("10.96.0.1", number)))
        ends = [endpoint(address("10.128.0.1", 2 * number + i), "node2") for i in range(endpoints)]
        slices.append(endpoint_slice(name, ends, [port(8080, "p80")]))
    return Objects(by_key(services), by_key(slices))


class Changes:
    """What happens to one more Service, in turn: services and slices by key, by the metric."""

    def __init__(self, name: str, number: int) -> None:
        added, more = objects({name: number}), objects({name: number}, endpoints=3)
        gone = dict.fromkeys(added.services), dict.fromkeys(added.slices)
        self.steps: dict[str, tuple[dict, dict]] = {
            "add": (added.services, added.slices),
            "endpoint": ({}, more.slices),
            "remove": gone,
        }


def frames_to(destination: str, count: int, known: bool = False) -> list[bytearray]:
    """SYNs from distinct ports, or one datagram again and again."""
    if known:
        data = packets.udp(CLIENT, FAR_POD, 4000, 9, bytes(12))
        return [packets.frame(BRIDGE_MAC, POD_MAC, data) for _ in range(count)]
    sports = random.sample(range(1024, 65536), count)
    return [
        packets.frame(BRIDGE_MAC, POD_MAC, packets.tcp(CLIENT, destination, sport, 80, packets.SYN, 1, 0)) for sport in sports
    ]


# --- our side --------------------------------


def message(ops: list[AnyOp]) -> bytes:
    return _encoder.encode(netlink.Apply(1, tuple(ops)))


def received(data: bytes) -> tuple[AnyOp, ...]:
    request = requests.decode(data)
    assert isinstance(request, requests.Apply)
    return request.ops


def new_stack() -> Stack:
    return StackNode(LINKS, (), RandomChooser(random.Random(1))).stack


@dataclass
class Podwire:
    """A stack and the proxy of one mode."""

    mode: str
    stack: Stack = field(default_factory=new_stack)
    now: float = DAY
    emits: list[Emit] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.proxy = modes.make(ProxyConfiguration(mode=self.mode), NODE)
        self._port = self.stack.link_index("vethpod")

    def load(self, given: Objects) -> tuple[list[AnyOp], bytes, float, float]:
        """The operations, their message, ms of all, ms of decoding and applying."""
        began = time.perf_counter()
        ops = self.proxy.changes(given.services, given.slices)
        data = message(ops)
        sent = time.perf_counter()
        with settled():
            self.stack.apply(received(data), self.now)
        done = time.perf_counter()
        return ops, data, (done - began) * 1e3, (done - sent) * 1e3

    def change(self, services: dict, slices: dict) -> tuple[list[AnyOp], float]:
        began = time.perf_counter()
        ops = self.proxy.changes(services, slices)
        self.stack.apply(received(message(ops)), self.now)
        return ops, time.perf_counter() - began

    def send(self, frames: list[bytearray]) -> None:
        receive, index, now = self.stack.receive, self._port, self.now
        for frame in frames:
            self.emits += receive(index, frame, now)

    def check(self, count: int) -> None:
        """That so many frames left for backends, since it was last asked."""
        sent, self.emits = self.emits, []
        if len(sent) != count or any(bytes(frame[40:41]) != BACKENDS or frame[41] < 128 for _, frame, _ in sent):
            raise RuntimeError(f"{self.mode}: {len(sent)} of {count} frames came through the stack, or not to a backend")

    def forget(self) -> None:
        """All connections."""
        self.now += DAY
        self.stack.tick(self.now)

    def evaluated(self, frame: bytearray) -> int:
        self.stack.trace(netlink.Subscribe(1))
        self.send([frame])
        self.check(1)
        self.stack.trace(None)
        hops, self.stack.traced = list(self.stack.traced), []
        return sum(step.evaluated for hop in hops for step in hop.steps)


def memory(mode: str, size: int, data: bytes) -> float:
    """kB a Service, of a process of its own."""
    command = [sys.executable, __file__, "--memory"]
    grown = subprocess.run(command, input=data, capture_output=True, check=True, timeout=300).stdout
    return int(grown) / size


def grow() -> None:
    """The process of `memory`: applies the message at stdin, prints by how many kB it grew."""
    stack = new_stack()
    stack.apply(received(message([])), 0.0)
    as_datapath()
    before = resident()
    with settled():
        stack.apply(received(sys.stdin.buffer.read()), 0.0)
    print(resident() - before)


def resident() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])


def as_datapath() -> None:
    """Garbage collection as in the datapath process, which has nothing but its tables to look at."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


# --- measuring --------------------------------


@dataclass
class Found:
    """Of one mode and N, by metric: both sides' figures."""

    podwire: dict[str, list[float]] = field(default_factory=dict)
    kernel: dict[str, list[float]] = field(default_factory=dict)

    def rows(self, case: str) -> Iterator[Row]:
        for metric, unit in UNITS.items():
            if metric in self.podwire:
                yield Row(case, metric, unit, self.podwire[metric], self.kernel.get(metric, []))


UNITS = {
    "first-packet": "µs",
    "known": "µs",
    "evaluated": "rules",
    "load": "ms",
    "apply": "ms",
    "add": "ms",
    "endpoint": "ms",
    "remove": "ms",
    "memory": "kB/Service",
}


def measure_size(mode: str, size: int, pairs: int, kernel: bool) -> tuple[Found, str]:
    """The figures, and why the kernel is not among them though it was asked for."""
    every = objects({f"svc-{number:05d}": number for number in range(size)})
    middle = size // 2
    changes = Changes(f"svc-{middle:05d}-more", size)
    ours, found, left_out = Podwire(mode), Found(), ""
    ops, data, load, apply = ours.load(every)
    found.podwire = {"load": [load], "apply": [apply]}
    as_datapath()
    given = loads(ops)
    deltas = {name: loads(ours.change(*change)[0]) for name, change in changes.steps.items()}
    destination = address("10.96.0.1", middle)
    found.podwire["evaluated"] = [float(ours.evaluated(frames_to(destination, 1)[0]))]
    if size >= MEMORY_FROM:
        found.podwire["memory"] = [memory(mode, size, data)]
    del ops, data
    theirs = None
    try:
        if kernel and given is not None:
            theirs = KernelRules(mode, LINKS, "vethpod", "eth0")
            try:
                found.kernel["load"] = found.kernel["apply"] = [theirs.load(given, LOAD_BOUND) * 1e3]
                theirs.wait_until_up(frames_to("", 1, known=True)[0], BACKENDS)
            except TooLongError as why:
                left_out = str(why)
                theirs.close()
                theirs = None
        repeat(ours, theirs, found, pairs, destination, changes, deltas)
    finally:
        if theirs is not None:
            theirs.close()
        gc.unfreeze()
    return found, left_out


def repeat(
    ours: Podwire,
    theirs: KernelRules | None,
    found: Found,
    pairs: int,
    destination: str,
    changes: Changes,
    deltas: dict[str, list[Load] | None],
) -> None:
    """What is measured in turns."""

    def podwire() -> dict[str, float]:
        took = {name: ours.change(*change)[1] * 1e3 for name, change in changes.steps.items()}
        ours.forget()
        return took | both(ours.send, ours.check)

    def kernel() -> dict[str, float]:
        if theirs is None:
            return {}
        took = {name: theirs.load(delta or [], LOAD_BOUND) * 1e3 for name, delta in deltas.items()}
        theirs.forget()
        return took | both(theirs.send, lambda count: theirs.check(count, BACKENDS))

    def both(send: Callable[[list[bytearray]], None], check: Callable[[int], None]) -> dict[str, float]:
        known = frames_to("", FRAMES, known=True)
        return {"first-packet": timed(send, check, frames_to(destination, FRAMES)), "known": timed(send, check, known)}

    mine, its = paired(podwire, kernel, pairs)
    found.podwire |= mine
    found.kernel |= its


def timed(send: Callable[[list[bytearray]], None], check: Callable[[int], None], frames: list[bytearray]) -> float:
    """µs of CPU time a frame (of either side all work is done within the call): the median of runs of RUN frames."""
    runs = []
    for at in range(0, len(frames), RUN):
        run = frames[at : at + RUN]
        began = time.thread_time()
        send(run)
        runs.append((time.thread_time() - began) / len(run) * 1e6)
    check(len(frames))
    return statistics.median(runs)


def measure(args: argparse.Namespace) -> Iterator[Row]:
    too_slow: set[str] = set()
    for size in SIZES:
        if args.quick and size > QUICK:
            break
        for mode in modes.MODES:
            found, left_out = measure_size(mode, size, 5 if args.quick else 11, kernel=mode not in too_slow)
            if left_out:
                too_slow.add(mode)
                print(f"kernel, {mode}, {size} Services and more: left out, {left_out}", file=sys.stderr)
            yield from found.rows(f"{mode} {size}")


# --- the picture --------------------------------


def plot(file: str, title: str, rows: list[dict[str, object]]) -> None:
    """A panel a metric, a colour a mode, over N; the kernel's dashed."""
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 5, figsize=(21, 8), layout="constrained")
    panels = dict(zip(UNITS, grid.flat, strict=False))
    for metric, axes in panels.items():
        draw(axes, [row for row in rows if row["metric"] == metric])
        axes.set(xscale="log", yscale="log", title=f"{metric} ({UNITS[metric]})", xlabel="Services, 2 endpoints each")
        axes.set_xticks(SIZES, [f"{size:,}".replace(",", " ") for size in SIZES], rotation=45)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.yaxis.set_major_formatter("{x:g}")
    for metric in ("known", "memory"):
        panels[metric].set(yscale="linear", ylim=(0, None))
    panels["first-packet"].set(ylim=(1, None))
    legend = grid.flat[len(panels)]
    legend.axis("off")
    legend.legend(*panels["first-packet"].get_legend_handles_labels(), loc="center", fontsize=11)
    figure.suptitle(f"{title}, {time.strftime('%Y-%m-%d')}: kube-proxy's modes; dashed: the Linux kernel with the same rules")
    figure.savefig(file, dpi=110)


def draw(axes, rows: list[dict[str, object]]) -> None:
    colours = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee")
    for number, mode in enumerate(modes.MODES):
        for side, line in (("podwire", "o-"), ("kernel", "s--")):
            cases = [(*str(row["case"]).split(), row[side]) for row in rows]
            points = [(int(size), value) for name, size, value in cases if name == mode and value is not None]
            if points:
                colour = colours[number % len(colours)]
                axes.plot(*zip(*points, strict=True), line, color=colour, markersize=4, label=f"{side}, {mode}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--memory"]:
        grow()
    else:
        main("rules", __doc__ or "", measure, plot)
