"""All controllers, in one place and one order."""

from __future__ import annotations

from podwire_core.constants import POD_CIDR

from .engine import Controller


def all_controllers(cluster_cidr: str = POD_CIDR, node_mask: int = 24) -> list[Controller]:
    return []
