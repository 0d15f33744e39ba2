#!/usr/bin/env python3
"""How long a cluster takes to start, and what it costs to have one.

    first-curl        seconds from `podwire up` to the first good `curl http://web.default.svc.cluster.local` in a pod, 3 nodes
    pods-100          seconds from `apply` of a Deployment of 100 stand-in pods until all are Ready
    get-pods          seconds that `podwire get pods` takes
    rss               MB of each kind of process, the largest of its kind, after that
    idle-cpu          per cent of one core that a node's processes use when nothing happens

Prints JSON lines {"bench", "case", "metric", "unit", "podwire", "kernel", "ratio", "low", "high", "pairs"}: `podwire` is the
median of `pairs` runs, `low` and `high` their range. The kernel has no counterpart: `kernel` and `ratio` are null. Needs root, or
an ordinary user who can open /dev/net/tun. `--quick` ends within 45 s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PODWIRE = [str(Path(sys.executable).parent / "podwire")]
PODS = """
apiVersion: apps/v1
kind: Deployment
metadata: {{name: many}}
spec:
  replicas: {count}
  selector: {{matchLabels: {{app: many}}}}
  template:
    metadata: {{labels: {{app: many}}}}
    spec:
      containers:
        - {{name: many, image: registry.example/many:1, ports: [{{containerPort: 8080}}]}}
"""


def podwire(*argv: str, check: bool = True, stdin: str = "") -> str:
    done = subprocess.run([*PODWIRE, *argv], input=stdin, capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(f"podwire {' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def emit(case: str, metric: str, unit: str, values: list[float], digits: int = 2) -> None:
    line = {"bench": "startup", "case": case, "metric": metric, "unit": unit, "podwire": round(statistics.median(values), digits)}
    line |= {
        "kernel": None,
        "ratio": None,
        "low": round(min(values), digits),
        "high": round(max(values), digits),
        "pairs": len(values),
    }
    print(json.dumps(line), flush=True)


def first_curl(name: str) -> tuple[float, float]:
    """Seconds until `up` returns, and until the first good answer by name; the cluster stays."""
    start = time.perf_counter()
    podwire("up", "--name", name)
    up = time.perf_counter() - start
    podwire("apply", "-f", str(ROOT / "examples/web.yaml"))
    curl = ["exec", "client", "--", "curl", "-sf", "-m", "1", "http://web.default.svc.cluster.local"]
    while subprocess.run([*PODWIRE, *curl], capture_output=True).returncode:
        if time.perf_counter() - start > 120:
            raise SystemExit("no good answer within 120 s")
        time.sleep(0.02)
    return up, time.perf_counter() - start


def pods_ready(count: int) -> float:
    start = time.perf_counter()
    podwire("apply", "-f", "-", stdin=PODS.format(count=count))
    podwire("rollout", "status", "deploy/many", "--timeout", "120s")
    return time.perf_counter() - start


def timed_get() -> float:
    start = time.perf_counter()
    podwire("get", "pods")
    return time.perf_counter() - start


def processes(name: str) -> list[dict]:
    return json.loads(podwire("status", "--cluster", name, "-o", "json"))[0]["processes"]


def measure_rss(name: str) -> None:
    largest: dict[str, list[float]] = {}
    for each in processes(name):
        largest.setdefault(each["kind"], []).append(each["rss"] / 2**20)
    for kind in ("apiserver", "agent", "datapath", "standin", "dns"):
        if kind in largest:
            emit(f"rss-{kind}", "rss", "MB", [max(largest[kind])], 1)


def measure_idle(name: str, seconds: float) -> None:
    """CPU time that agents, datapaths and stand-ins use in that time, by node."""
    before = {each["pid"]: each["cpu"] for each in processes(name)}
    time.sleep(seconds)
    used: dict[str, float] = {}
    for each in processes(name):
        if each["node"] and each["pid"] in before and each["kind"] in ("agent", "datapath", "standin"):
            used[each["node"]] = used.get(each["node"], 0.0) + each["cpu"] - before[each["pid"]]
    emit("idle-cpu", "cpu per node", "%", [100 * value / seconds for value in used.values()])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one start, 100 pods once; at most 45 s")
    parser.add_argument("--runs", type=int, default=5, help="how many clusters are started (default 5)")
    parser.add_argument("--plot", metavar="FILE", help="draw the figures there")
    options = parser.parse_args()
    name = f"bench-{os.getpid()}"
    os.environ["PODWIRE_CLUSTER"] = name
    ups, curls = [], []
    try:
        runs = 1 if options.quick else options.runs
        for run in range(runs):
            up, curl = first_curl(name)
            ups.append(up)
            curls.append(curl)
            if run < runs - 1:
                podwire("down", "--name", name)
        emit("up", "time until `up` returns", "s", ups)
        emit("first-curl", "time", "s", curls)
        emit("get-pods", "time", "s", [timed_get() for _ in range(5)], 3)
        measure_idle(name, 5 if options.quick else 30)
        emit("pods-100", "time until Ready", "s", [pods_ready(100)])
        measure_rss(name)
    finally:
        podwire("down", "--name", name, check=False)
    if options.plot:
        plot(options.plot, ups, curls)
    return 0


def plot(path: str, ups: list[float], curls: list[float]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3))
    axes.boxplot([ups, curls], vert=False, tick_labels=["podwire up", "first curl by name"])
    axes.axvline(5, color="grey", linestyle="--", linewidth=1)
    axes.set_xlabel("seconds, 3 nodes (dashed: 5 s)")
    axes.set_xlim(left=0)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
