"""`python -m podwire_nodeagent.tools NAME ARGUMENTS…`: run one tool against the datapath whose socket PODWIRE_DATAPATH names."""

from __future__ import annotations

import os
import sys

from podwire_nodeagent.tools.common import Client, ToolError


def call(name: str, argv: list[str], client: Client) -> str:
    """The tool's output. Only the module that it needs is imported."""
    if name == "ip":
        from podwire_nodeagent.tools import ip

        return ip.main(argv, client)
    if name == "bridge":
        from podwire_nodeagent.tools import bridge

        return bridge.main(argv, client)
    if name == "conntrack":
        from podwire_nodeagent.tools import conntrack

        return conntrack.main(argv, client)
    if name == "nft":
        from podwire_nodeagent.tools import nft

        return nft.main(argv, client)
    if name == "ipvsadm":
        from podwire_nodeagent.tools import ipvsadm

        return ipvsadm.main(argv, client)
    if name == "ipset":
        from podwire_nodeagent.tools import ipset

        return ipset.main(argv, client)
    if name == "bpftool":
        from podwire_nodeagent.tools import bpftool

        return bpftool.main(argv, client)
    if name in ("cilium-dbg", "cilium"):
        from podwire_nodeagent.tools import cilium

        return cilium.main(argv, client)
    if name == "sysctl":
        from podwire_nodeagent.tools import system

        return system.sysctl(argv, client)
    family = 6 if name.startswith("ip6tables") else 4
    from podwire_nodeagent.tools import iptables

    tool = {"save": iptables.save, "restore": iptables.restore}.get(name.partition("-")[2], iptables.iptables)
    return tool(argv, client, family)


def run(name: str, argv: list[str], socket: str = "") -> int:
    """Exit status of the tool; its text goes to stdout, its complaint to stderr."""
    from podwire_core.netlink_client import Netlink

    path = os.environ.get("PODWIRE_DATAPATH") or socket
    if not path:
        print(f"{name}: PODWIRE_DATAPATH does not name a datapath's socket", file=sys.stderr)
        return 2
    try:
        with Netlink(path) as client:
            sys.stdout.write(call(name, argv, client))
            sys.stdout.flush()
    except ToolError as error:
        if str(error):
            print(error, file=sys.stderr)
        return error.status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head`
    except OSError as error:
        print(f"{name}: the datapath at {path} does not answer: {error}", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    from podwire_nodeagent.tools import TOOLS

    if len(sys.argv) < 2 or sys.argv[1] not in TOOLS:
        print(f"usage: python -m podwire_nodeagent.tools {{{','.join(TOOLS)}}} [ARGUMENTS]", file=sys.stderr)
        return 2
    return run(sys.argv[1], sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
