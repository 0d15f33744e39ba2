"""Command shims: the networking commands of a node, printed as the real ones print them, but over the datapath.

`podwire node node1 -- ip route` runs in the node's host namespace with `tools/` first in PATH; there each command is
a small script (`install`) that asks the node's datapath (socket in PODWIRE_DATAPATH) and prints what the real tool
(iproute2 6.1, iptables 1.8.9, conntrack-tools 1.4.7) would print for the same state, JSON too. Some commands write,
so that faults can be taught: a route removed, a rule inserted, a connection deleted.

Rules: a tool is a function `(arguments, client) -> text`; a complaint is a `ToolError` with the real tool's words
and exit status. Only `__main__.py` talks to the socket, and a tool's module is imported only when it is called: start-up counts.

Order to read: __main__.py, common.py, then a tool: ip.py (ip_link.py, ip_route.py, ip_neigh.py), bridge.py,
iptables.py (iptables_list.py), nft.py, conntrack.py, ipvsadm.py, ipset.py, bpftool.py, cilium.py, system.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

TOOLS = (
    "ip",
    "bridge",
    "iptables",
    "ip6tables",
    "iptables-save",
    "ip6tables-save",
    "iptables-restore",
    "ip6tables-restore",
    "conntrack",
    "sysctl",
    "nft",
    "ipvsadm",
    "ipset",
    "bpftool",
    "cilium-dbg",
    "cilium",
)


def install(directory: str | Path, socket: str = "") -> list[Path]:
    """Write the shims into `directory` (made if missing). `socket` is the datapath's, if PODWIRE_DATAPATH should not
    be asked for it.

    The scripts start Python without site-packages' start-up files (-S) and without its environment (-E), and name
    the folders themselves.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    import msgspec

    import podwire_core
    import podwire_nodeagent

    modules = (podwire_nodeagent, podwire_core, msgspec)
    paths = list(dict.fromkeys(str(Path(str(module.__file__)).resolve().parent.parent) for module in modules))
    written = []
    for name in TOOLS:
        script = folder / name
        lines = [
            f"#!{sys.executable} -SE",
            "import sys",
            f"sys.path[:0] = {paths!r}",
            "from podwire_nodeagent.tools.__main__ import run",
            f"sys.exit(run({name!r}, sys.argv[1:], {socket!r}))",
        ]
        fresh = folder / f".{name}.{os.getpid()}"
        fresh.write_text("\n".join(lines) + "\n")
        fresh.chmod(0o755)
        fresh.replace(script)
        written.append(script)
    return written
