"""`python -m podwire_nodeagent --node NAME --api ADDRESS --dir DIR --internal-ip IP --underlay IP …`: a node's agent.

Exit status 1 with one line when the node cannot start. SIGTERM ends the agent alone; its pods and datapath go on.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from podwire_core import rpc
from podwire_core.constants import CABLE_PORT, VXLAN_PORT
from podwire_nodeagent.agent import Agent, AgentConfig
from podwire_nodeagent.datapath_process import DatapathFailed
from podwire_nodeagent.proxy import modes
from podwire_nodeagent.proxy.config import ProxyConfiguration

BACKENDS = ("flannel",)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="podwire_nodeagent", description="A node's agent: kubelet, kube-proxy and CNI daemon.")
    parser.add_argument("--node", required=True, metavar="NAME")
    parser.add_argument("--api", required=True, metavar="ADDRESS", help="API server: unix:/path or host:port")
    parser.add_argument("--dir", required=True, type=Path, help="the node's run directory")
    parser.add_argument("--internal-ip", required=True, metavar="IP[,IP6]", help="the node's addresses in the emulated network")
    parser.add_argument("--underlay", required=True, metavar="IP", help="the socket address of its tunnels and cable")
    parser.add_argument("--tunnel-port", type=int, default=VXLAN_PORT)
    parser.add_argument("--cable-port", type=int, default=CABLE_PORT)
    parser.add_argument("--edge-underlay", default="", metavar="IP[:PORT]", help="where the edge's cable is; without: no edge")
    parser.add_argument("--cni", choices=BACKENDS, default="flannel")
    parser.add_argument("--proxy", choices=modes.MODES, default="iptables")
    parser.add_argument("--listen", action="append", default=[], metavar="HOST:PORT", help="serve gRPC there too")
    return parser.parse_args()


async def until_signal(run: Callable[[], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:

        async def work() -> None:
            await run()
            nursery.cancel_scope.cancel()

        nursery.start_soon(work)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                nursery.cancel_scope.cancel()
                return


def main() -> int:
    args = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    proxy = ProxyConfiguration(mode=args.proxy)
    config = AgentConfig(
        args.node, args.api, args.dir.absolute(), tuple(args.internal_ip.split(",")), args.underlay,
        args.tunnel_port, args.cable_port, proxy, tuple(args.listen), args.edge_underlay,
    )  # fmt: skip
    status = 0
    try:
        trio.run(until_signal, Agent(config).run)
    except* (DatapathFailed, rpc.ListenError, OSError) as errors:
        for error in leaves(errors):
            print(f"podwire_nodeagent: {args.node}: {error}", file=sys.stderr)
        status = 1
    return status


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


if __name__ == "__main__":
    sys.exit(main())
