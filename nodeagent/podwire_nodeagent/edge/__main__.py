"""`python -m podwire_nodeagent.edge --api ADDRESS --dir DIR --underlay IP`: the router between the nodes and the outside.

Exit status 1 with one line when it cannot start. SIGTERM ends it alone; its datapath goes on.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import trio

from podwire_core import rpc
from podwire_core.constants import CABLE_PORT, VXLAN_PORT
from podwire_nodeagent.__main__ import leaves, until_signal
from podwire_nodeagent.datapath_process import DatapathFailed
from podwire_nodeagent.edge.router import Edge, EdgeConfig


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="podwire_nodeagent.edge", description="The way into a cluster and out of it.")
    parser.add_argument("--api", required=True, metavar="ADDRESS", help="API server: unix:/path or host:port")
    parser.add_argument("--dir", required=True, type=Path, help="the edge's run directory")
    parser.add_argument("--underlay", required=True, metavar="IP", help="the socket address of its cable")
    parser.add_argument("--tunnel-port", type=int, default=VXLAN_PORT)
    parser.add_argument("--cable-port", type=int, default=CABLE_PORT)
    parser.add_argument("--listen", action="append", default=[], metavar="HOST:PORT", help="serve gRPC there too")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    config = EdgeConfig(args.api, args.dir.absolute(), args.underlay, args.tunnel_port, args.cable_port, tuple(args.listen))
    status = 0
    try:
        trio.run(until_signal, Edge(config).run)
    except* (DatapathFailed, rpc.ListenError, OSError) as errors:
        for error in leaves(errors):
            print(f"podwire_nodeagent.edge: {error}", file=sys.stderr)
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
