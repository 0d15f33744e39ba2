"""The Linux kernel with the very rules that a mode of ours compiles: netlink operations as text, loaded into a namespace.

Rules it keeps: the text is podwire's own print of the same values (iptables_save, nft_text), so both sides run the same rules.
What has no text here (IPVS, eBPF maps) has no kernel to be compared with. A load that takes longer than its bound is given up.

Order to read: texts (what is loaded), then `KernelRules` (where, and the packets through it).
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common import inside
from support.kernel_node import KernelNode
from support.live import netns_path

from podwire_core import netfilter as nf
from podwire_core import nft_text
from podwire_core import nftables as nft
from podwire_core.iptables_save import print_tables, rule_line
from podwire_core.netlink import AnyOp, ChainsUpdate, ConntrackDel, NftReplace, NftUpdate, SysctlSet, TablesReplace
from podwire_nodeagent.proxy import modes

RESTORE = ("iptables-legacy-restore", "-w", "30", "--noflush")
NFT = ("nft", "-f", "-")
PREFIX = "rl"


class TooLongError(Exception):
    """A load was given up."""


@dataclass(frozen=True)
class Load:
    command: tuple[str, ...]
    text: str


# --- operations as text --------------------------------


def loads(ops: Iterable[AnyOp]) -> list[Load] | None:
    """What does the same to a fresh Linux; None if one of the operations has no text. Settings of the node and connections to be
    forgotten are left out, and what only clears away after other modes."""
    clearing = [op for clear in modes.CLEAR.values() for op in clear()]
    found = []
    for op in ops:
        if op in clearing or isinstance(op, SysctlSet | ConntrackDel):
            continue
        match op:
            case TablesReplace():
                tables = [table for table in op.tables if any(chain.rules for chain in table.chains)]
                if tables:
                    found.append(Load(RESTORE, print_tables(tables)))
            case ChainsUpdate():
                found.append(Load(RESTORE, _chains_text(op)))
            case NftReplace():
                found.append(Load(NFT, "flush ruleset\n" + nft_text.ruleset(op.tables)))
            case NftUpdate():
                found.append(Load(NFT, _nft_text(op)))
            case _:
                return None
    return found


def _chains_text(op: ChainsUpdate) -> str:
    """With --noflush a chain that is declared is emptied, others stay. What is deleted must be empty. Splices are done from the
    last place on, so that the places before it stay what they were."""
    gone = tuple(nf.Chain(name, ()) for name in op.delete)
    text = print_tables([nf.Table(op.table, op.family, (*op.chains, *gone))])
    lines = []
    for chain, splice in ((each.chain, splice) for each in op.splices for splice in reversed(each.splices)):
        lines += [f"-D {chain} {splice.at + 1}"] * len(splice.old)
        lines += [
            rule_line(chain, rule).replace(f"-A {chain}", f"-I {chain} {at}", 1)
            for at, rule in enumerate(splice.new, splice.at + 1)
        ]
    lines += [f"-X {name}" for name in op.delete]
    return text.removesuffix("COMMIT\n") + "".join(f"{line}\n" for line in lines) + "COMMIT\n"


def _nft_text(op: NftUpdate) -> str:
    """The steps of `NftUpdate`, in its order."""
    where = f"{nft_text.IP[op.family]} {op.table}"
    lines = []
    for name, keys in op.delete_elements.items():
        lines.append(f"delete element {where} {name} {{ {', '.join(' . '.join(key) for key in keys)} }}")
    for chain in op.chains:
        lines += [f"add chain {where} {chain.name}", f"flush chain {where} {chain.name}"]
    lines.append(nft_text.table(nft.Table(op.family, op.table, sets=op.sets, chains=op.chains)))
    for name, elements in op.elements.items():
        lines.append(f"add element {where} {name} {{ {', '.join(map(nft_text.element, elements))} }}")
    lines += [f"delete chain {where} {name}" for name in op.delete_chains]
    lines += [f"delete set {where} {name}" for name in op.delete_sets]
    return "\n".join(lines) + "\n"


# --- the namespace --------------------------------


def remove_left_over() -> None:
    """Namespaces of runs that were killed."""
    for path in Path(netns_path("")).glob(f"{PREFIX}-*-*"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            subprocess.run(["ip", "netns", "del", path.name], check=True)


class KernelRules:
    """A namespace that is the node. Frames are written into the TAP `into`, and leave by the TAP `out`: the kernel walks a frame
    within the write, so that the time of the write is the time of the walk, with a system call and a socket buffer's making."""

    def __init__(self, name: str, ops: Iterable[AnyOp], into: str, out: str) -> None:
        remove_left_over()
        self._name = f"{PREFIX}-{os.getpid()}-{name}"
        self._node = KernelNode(Path(netns_path(self._name)), ops)
        self._into, self._out = self._node.fd(into), self._node.fd(out)
        self._directory = tempfile.TemporaryDirectory(prefix="rl-")
        self._environment = os.environ | {
            "XTABLES_LOCKFILE": f"{self._directory.name}/lock"
        }  # not every namespace's on the machine

    def close(self) -> None:
        self._node.close()
        self._directory.cleanup()

    def load(self, given: list[Load], bound: float) -> float:
        """Seconds, with the tools' starts. Raises TooLongError."""
        took = 0.0
        for each in given:
            with tempfile.TemporaryFile("w+") as file:
                file.write(each.text)
                file.seek(0)
                began = time.perf_counter()
                try:
                    done = subprocess.run(
                        inside(self._name, *each.command),
                        stdin=file,
                        capture_output=True,
                        text=True,
                        timeout=bound,
                        env=self._environment,
                    )
                except subprocess.TimeoutExpired:
                    raise TooLongError(f"{each.command[0]} takes more than {bound:g} s") from None
                took += time.perf_counter() - began
                if done.returncode:
                    raise RuntimeError(f"{' '.join(each.command)}: {done.stderr.strip()[:500]}")
        return took

    def wait_until_up(self, frame: bytes, towards: bytes) -> None:
        """A TAP's bridge port forwards a moment after it was made."""
        deadline = time.monotonic() + 5
        while not self._drain(towards):
            if time.monotonic() > deadline:
                raise RuntimeError("no frame came through the kernel's node")
            os.write(self._into, frame)
        self.forget()

    def forget(self) -> None:
        """All connections."""
        subprocess.run(inside(self._name, "conntrack", "-F"), check=True, capture_output=True)

    def send(self, frames: list[bytearray]) -> None:
        """At most 400: a TAP's queue holds 500."""
        into, write = self._into, os.write
        for frame in frames:
            write(into, frame)

    def check(self, count: int, towards: bytes) -> None:
        """That so many frames left for addresses that begin so, since it was last asked."""
        left = self._drain(towards)
        if left != count:
            raise RuntimeError(f"{left} of {count} frames came through the kernel's node")

    def _drain(self, towards: bytes) -> int:
        count = 0
        while True:
            try:
                data = os.read(self._out, 2048)
            except BlockingIOError:
                return count
            count += data[40 : 40 + len(towards)] == towards  # virtio and Ethernet headers, then the IPv4 destination
