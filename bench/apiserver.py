"""The API server alone: start-up, creates, lists, events to watchers, memory. No kernel does this work, so there is no ratio.

    python bench/apiserver.py [--quick] [--plot FILE]

Prints JSON lines as the other benchmarks do. Needs no privileges.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from podwire_core import rpc

FOLLOW = """
import sys, time
from podwire_core import rpc
address, since, wanted, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), 0
for batch in rpc.SyncClient(address).watch([rpc.Selection("ConfigMap", since=since)]):
    count += sum(event.type != "BOOKMARK" for event in batch)
    print(time.time() if count >= wanted else "", flush=True)
    if count >= wanted:
        break
"""


def report(case: str, metric: str, unit: str, values: list[float]) -> None:
    figures = {
        "podwire": round(statistics.median(values), 3),
        "kernel": None,
        "ratio": None,
        "low": None,
        "high": None,
        "pairs": 0,
    }
    print(json.dumps({"bench": "apiserver", "case": case, "metric": metric, "unit": unit} | figures), flush=True)


@contextmanager
def server(directory: str) -> Iterator[tuple[str, int, float]]:
    """Address, process ID, seconds until it was ready."""
    address, began = f"unix:{directory}/api.sock", time.perf_counter()
    command = [sys.executable, "-m", "podwire_apiserver", "--data", directory, "--listen", address, "--log-level", "WARNING"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield address, process.pid, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


def config_map(name: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b" * 50}}


def resident(pid: int) -> float:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def start_up(runs: int) -> None:
    took, memory = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as directory, server(directory) as (_, pid, seconds):
            took.append(seconds)
            memory.append(resident(pid))
    report("empty cluster", "start until ready", "s", took)
    report("empty cluster", "resident memory", "MB", memory)


def creates(address: str, clients: int, each: int) -> float:
    def create(number: int) -> None:
        with rpc.SyncClient(address) as api:
            for index in range(each):
                api.create(config_map(f"c{clients}-{number}-{index}"))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return clients * each / (time.perf_counter() - began)


def events(address: str, watchers: int, count: int) -> float:
    """Events per second, over all watchers, from the request that makes them to the last watcher's last event."""
    with rpc.SyncClient(address) as api:
        arguments = [address, str(api.info().revision), str(count)]
        command = [sys.executable, "-c", FOLLOW, *arguments]
        followers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(watchers)]
        while api.info().watchers < watchers:
            time.sleep(0.01)
        began = time.time()
        api.apply_many([config_map(f"event-{watchers}-{index}") for index in range(count)])
    ends = [float(follower.communicate()[0].split()[-1]) for follower in followers]
    return watchers * count / (max(ends) - began)


def lists(address: str, size: int, runs: int) -> None:
    with rpc.SyncClient(address) as api:
        api.apply_many([{**config_map(f"l{index}"), "kind": "Secret", "data": {"a": "YWJj"}} for index in range(size)])
        for case, options in (("all", {}), ("one by name", {"namespace": "default", "fields": "metadata.name=l7"})):
            took = []
            for _ in range(runs):
                began = time.perf_counter()
                api.list("Secret", **options)
                took.append((time.perf_counter() - began) * 1000)
            report(f"list, {case} of {size}", "time", "ms", took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="ends within 45 s")
    parser.add_argument("--plot", metavar="FILE", help="draw events delivered over the number of watchers")
    args = parser.parse_args()
    runs, size = (3, 1000) if args.quick else (7, 5000)
    delivered: dict[int, float] = {}
    start_up(runs)
    with tempfile.TemporaryDirectory() as directory, server(directory) as (address, pid, _):
        report("one client", "creates", "1/s", [creates(address, 1, size // 5)])
        report("eight clients", "creates", "1/s", [creates(address, 8, size // 20)])
        lists(address, size, runs)
        for watchers in (1, 5, 10):
            delivered[watchers] = events(address, watchers, size)
            report(f"{watchers} watchers", "events delivered", "1/s", [delivered[watchers]])
        report("after all that", "resident memory", "MB", [resident(pid)])
    if args.plot:
        plot(args.plot, delivered)


def plot(path: str, delivered: dict[int, float]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    axes.plot(list(delivered), list(delivered.values()), marker="o")
    axes.set(xlabel="watchers", ylabel="events delivered a second", ylim=(0, None), title="API server")
    figure.savefig(path)


if __name__ == "__main__":
    main()
