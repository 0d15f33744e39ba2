"""The floors of the architecture, read from the imports of every file (none is executed).

core imports no component; components import core (the nodeagent also cni) and never each other or `podwire`; only edge files
import trio, socket or grpc; the datapath knows none of trio, grpc and Kubernetes objects.
"""

from __future__ import annotations

import ast
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "podwire_core": ROOT / "core/podwire_core",
    "podwire_apiserver": ROOT / "apiserver/podwire_apiserver",
    "podwire_nodeagent": ROOT / "nodeagent/podwire_nodeagent",
    "podwire_dns": ROOT / "dns/podwire_dns",
    "podwire_cni": ROOT / "cni/podwire_cni",
    "podwire": ROOT / "podwire",
}
ALLOWED = {
    "podwire_core": set(),
    "podwire_apiserver": {"podwire_core"},
    "podwire_nodeagent": {"podwire_core", "podwire_cni"},
    "podwire_dns": {"podwire_core"},
    "podwire_cni": {"podwire_core"},
    "podwire": set(PACKAGES),
}
EDGE_MODULES = {"trio", "socket", "grpc"}
DNS_PLUGINS = ("cancel", "errors", "forward", "httpd", "loop", "reload", "upstream")  # those with sockets or clocks of their own
# The files that touch the world. Everything else is told what it needs: packets, clocks, randomness, objects.
EDGES = {
    "core/podwire_core": ["rpc/*.py", "netlink_client.py", "rtnetlink.py"],
    "apiserver/podwire_apiserver": ["__main__.py", "server.py", "runner.py", "watchers.py"],
    "nodeagent/podwire_nodeagent": [
        *("__main__.py", "agent.py", "datapath_process.py", "events.py", "node_state.py", "pod_network.py"),
        *("registration.py", "relay.py", "service.py", "standin/*.py"),
        *("httpd.py", "health_server.py", "edge/__main__.py", "edge/outside.py", "edge/router.py"),
        *("datapath/__main__.py", "datapath/control.py", "datapath/udp.py"),
        # the kubelet: what runs, watches and probes containers; its decisions (plan, status, probes, env …) are pure
        *("kubelet/exec.py", "kubelet/hooks.py", "kubelet/kubelet.py", "kubelet/logs.py", "kubelet/node.py", "kubelet/prober.py"),
        *("kubelet/adoption.py", "kubelet/runtime.py", "kubelet/sandbox.py", "kubelet/starter.py", "kubelet/watching.py"),
        *("kubelet/worker.py", "kubelet/shim/main.py"),
    ],
    "dns/podwire_dns": ["__main__.py", "server.py", "watching.py", *(f"plugins/{name}.py" for name in DNS_PLUGINS)],
    "cni/podwire_cni": ["runtime.py"],
    "podwire": ["preflight.py"],
}


def files(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in the file; those under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:  # a relative import stays in its package
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_components_import_only_what_is_below_them(package: str):
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files(package)
        for name in imports(path)
        if top(name) in PACKAGES and top(name) != package and top(name) not in ALLOWED[package]
    }
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_files(package: str):
    assert files(package), "a floor without files would hold whatever is written"


def test_the_datapath_knows_neither_trio_nor_grpc_nor_kubernetes():
    datapath = PACKAGES["podwire_nodeagent"] / "datapath"
    forbidden = ("trio", "grpc", "podwire_core.objects", "podwire_core.rpc")
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted(datapath.rglob("*.py"))
        for name in imports(path)
        if any(name == module or name.startswith(module + ".") for module in forbidden)
    }
    assert not wrong


def test_only_edge_files_touch_the_world():
    wrong = set()
    for package, folder in PACKAGES.items():
        for path in files(package):
            edges = EDGES.get(str(folder.relative_to(ROOT)), [])
            if any(fnmatch(str(path.relative_to(folder)), pattern) for pattern in edges):
                continue
            if found := {top(name) for name in imports(path)} & EDGE_MODULES:
                wrong.add(f"{path.relative_to(ROOT)}: {', '.join(sorted(found))}")
    assert not wrong


def test_no_component_folder_is_a_package():
    """`dns/__init__.py` would shadow dnspython."""
    assert not [folder for folder in ("core", "apiserver", "nodeagent", "dns", "cni") if (ROOT / folder / "__init__.py").exists()]
