"""The netlink operations of the load balancer, within a transaction (change.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from podwire_core import ebpf
from podwire_core.netlink import BpfMapUpdate, BpfReplace, NetlinkError

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.change import Change


def replace(change: Change, op: BpfReplace) -> None:
    """All maps of the agent at once, and what is attached."""
    maps: dict[str, dict[bytes, bytes]] = {name: {} for name, spec in ebpf.MAPS.items() if spec.of_agent}
    for name, content in op.maps.items():
        check(name, content, ())
        maps[name] = dict(content)
    change.set(change.stack.lb, "maps", maps)
    change.set(change.stack.lb, "config", op.config)
    change.stack.lb.forget_tables()


def update(change: Change, op: BpfMapUpdate) -> None:
    check(op.map, op.elements, op.delete)
    content = change.stack.lb.maps[op.map]
    for key, value in op.elements.items():
        change.put(content, key, value)
    for key in op.delete:
        change.put(content, key, None)
    if op.map == ebpf.SERVICES:
        change.stack.lb.forget_tables(op.delete)


def check(name: str, elements: dict[bytes, bytes], keys: tuple[bytes, ...]) -> None:
    """Sizes as the kernel checks them."""
    spec = ebpf.MAPS.get(name)
    if spec is None or not spec.of_agent:
        raise NetlinkError("ENOENT", f"there is no map {name!r} that could be written")
    if len(elements) > spec.max_entries:
        raise NetlinkError("E2BIG", f"{name} holds at most {spec.max_entries} elements")
    sizes = {len(key) for key in elements} | {len(key) for key in keys}
    if sizes - {spec.key_size}:
        raise NetlinkError("EINVAL", f"{name}: keys are {spec.key_size} bytes long")
    if spec.value_size and {len(value) for value in elements.values()} - {spec.value_size}:
        raise NetlinkError("EINVAL", f"{name}: values are {spec.value_size} bytes long")
