"""python -m podwire_apiserver --data DIR --listen unix:/path/api.sock [--listen HOST:PORT …]

Prints one line "ready …" when it serves. SIGTERM and SIGINT end it in order; after kill -9 it starts with everything it had
answered. Exit status 0 after a signal, 1 for what the machine refuses (a port in use, a locked store, a full disk), 2 for bad
usage; each with one line on stderr.
"""

from __future__ import annotations

import argparse
import gc
import ipaddress
import logging
import random
import signal
import sys
import time
from pathlib import Path

import trio

from podwire_apiserver.allocators import ServiceAllocator
from podwire_apiserver.bootstrap import bootstrap
from podwire_apiserver.controllers.registry import all_controllers
from podwire_apiserver.resources import Resources
from podwire_apiserver.runner import Runner
from podwire_apiserver.server import Server
from podwire_apiserver.state import State
from podwire_apiserver.store import StoreError
from podwire_apiserver.store.sqlite import open_store
from podwire_core.constants import LOAD_BALANCER_POOL, POD_CIDR, SERVICE_CIDR
from podwire_core.errors import ApiError
from podwire_core.rpc.messages import API_SERVICE
from podwire_core.rpc.server import ListenError, serve


def main() -> int:
    args = _arguments()
    sys.setswitchinterval(0.0005)  # gRPC's threads carry each request: they should not wait 5 ms for controllers at work
    logging.basicConfig(level=args.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    status = 0
    try:
        trio.run(_run, args)
    except* (StoreError, ListenError, ApiError) as group:
        print(f"podwire-apiserver: {_first(group)}", file=sys.stderr)
        status = 1
    return status


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _arguments() -> argparse.Namespace:
    both = ", or one of each family with a comma between, the preferred one first (%(default)s)"
    parser = argparse.ArgumentParser(prog="podwire-apiserver", description="podwire's API server: objects, watches, controllers.")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="where the objects are stored")
    parser.add_argument("--listen", required=True, action="append", metavar="ADDRESS", help="unix:/path or HOST:PORT; repeatable")
    parser.add_argument("--service-cidr", default=SERVICE_CIDR, type=_networks, help=f"range of ClusterIPs{both}")
    parser.add_argument("--cluster-cidr", default=POD_CIDR, type=_networks, help=f"range of pod addresses{both}")
    parser.add_argument("--node-cidr-mask", default=24, type=int, metavar="BITS", help="size of a node's part (%(default)s)")
    parser.add_argument("--node-cidr-mask6", default=64, type=int, metavar="BITS", help="the same for IPv6 (%(default)s)")
    parser.add_argument(
        "--load-balancer-pool", default=LOAD_BALANCER_POOL, type=_networks, help="for LoadBalancers (%(default)s)"
    )
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    args = parser.parse_args()
    for network in map(ipaddress.ip_network, args.cluster_cidr.split(",")):
        option, mask = ("", args.node_cidr_mask) if network.version == 4 else ("6", args.node_cidr_mask6)
        if not network.prefixlen <= mask <= network.max_prefixlen - 2:
            parser.error(f"--node-cidr-mask{option} {mask} does not fit into --cluster-cidr {network}")
    return args


def _networks(text: str) -> str:
    try:
        networks = [ipaddress.ip_network(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if len({network.version for network in networks}) != len(networks):
        raise argparse.ArgumentTypeError(f"{text}: two networks of one family")
    return ",".join(map(str, networks))


async def _run(args: argparse.Namespace) -> None:
    store = open_store(args.data)
    try:
        gc.disable()
        resources = Resources(State(store, ServiceAllocator(args.service_cidr.split(","))), time.time, random.Random())
        bootstrap(resources, args.service_cidr.split(",")[0])
        _spare_the_collector()
        controllers = all_controllers(args.cluster_cidr, args.node_cidr_mask, args.load_balancer_pool, args.node_cidr_mask6)
        runner = Runner(resources, controllers, time.time)
        server = Server(resources, runner, time.time)
        async with trio.open_nursery() as nursery:
            addresses = await nursery.start(serve, API_SERVICE, server.handlers(), args.listen)
            nursery.start_soon(runner.run)
            nursery.start_soon(server.upkeep)
            print(f"ready {' '.join(addresses)}", flush=True)
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    nursery.cancel_scope.cancel()
                    break
    finally:
        store.close()


def _spare_the_collector() -> None:
    """Objects of the cluster are trees that live long: looking through them for cycles again and again finds nothing."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    gc.enable()


if __name__ == "__main__":
    sys.exit(main())
