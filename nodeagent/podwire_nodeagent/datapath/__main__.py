"""`python -m podwire_nodeagent.datapath`: one node's userspace kernel as a process.

It is started by the node's agent in a session of its own and outlives it; all configuration comes by netlink. It prints
"ready" when its socket listens, and ends with SIGTERM. What cannot work is one line on standard error and exit status 2.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: its threads cost memory and do nothing here

import argparse
import errno
import gc
import random
import resource
import signal
import socket
import sys
from typing import NoReturn

from podwire_core.constants import CABLE_PORT, VXLAN_PORT
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.control import Server
from podwire_nodeagent.datapath.kernel import Kernel
from podwire_nodeagent.datapath.loop import Loop
from podwire_nodeagent.datapath.stack import Stack


def main() -> None:
    args = _arguments()
    _raise_file_limit()
    loop = Loop()
    try:
        stack = Stack(args.node, RandomChooser(random.Random()))
        kernel = Kernel(loop, stack, args.node, args.underlay, args.tunnel_port, args.cable_port)
    except OSError as error:
        _fail(_underlay_trouble(error, args))
    try:
        _clear_stale_socket(args.socket)
        server = Server(loop, kernel, args.socket)
    except OSError as error:
        _fail(f"cannot listen on {args.socket}: {error.strerror or error}")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stop())
    gc.collect()
    gc.freeze()  # what is there now stays: collections need not look at it again
    gc.set_threshold(50_000, 20, 50)
    print("ready", flush=True)
    loop.run()
    server.close()
    kernel.close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="podwire-datapath", description="A node's userspace kernel; configured by netlink.")
    parser.add_argument("--node", required=True, metavar="NAME")
    parser.add_argument("--socket", required=True, metavar="PATH", help="unix socket to serve netlink on")
    parser.add_argument(
        "--underlay", required=True, metavar="ADDRESS", help="address of the tunnels' and the cable's UDP sockets"
    )
    parser.add_argument("--tunnel-port", type=int, default=VXLAN_PORT, metavar="PORT")
    parser.add_argument("--cable-port", type=int, default=CABLE_PORT, metavar="PORT")
    args = parser.parse_args()
    for name in ("tunnel_port", "cable_port"):
        if not 0 < getattr(args, name) < 65536:
            parser.error(f"--{name.replace('_', '-')}: {getattr(args, name)} is not a port")
    return args


def _raise_file_limit() -> None:
    """A TAP a pod, and descriptors in flight."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _underlay_trouble(error: OSError, args: argparse.Namespace) -> str:
    if error.errno == errno.EADDRINUSE:
        ports = f"{args.tunnel_port} (--tunnel-port) or {args.cable_port} (--cable-port)"
        return f"UDP port {ports} of {args.underlay} is in use: stop what holds it (ss -lunp), or choose another address or port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--underlay {args.underlay}: no such address on this machine"
    return f"--underlay {args.underlay}: {error.strerror or error}"


def _clear_stale_socket(path: str) -> None:
    """A socket file that a killed datapath left is removed; a living one's is not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(path)
            return
    _fail(f"{path} is in use by another datapath")


def _fail(message: str) -> NoReturn:
    print(f"podwire-datapath: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
