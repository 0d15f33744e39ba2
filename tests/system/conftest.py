"""Real clusters for tests: one with three nodes for the whole session, with examples/web.yaml in it, and more for tests that
break things (`new_cluster`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.support.cluster import ROOT, Cluster


@pytest.fixture(scope="session")
def new_cluster() -> Iterator[Callable[..., Cluster]]:
    """Makes clusters; all are gone at the end of the session."""
    made: list[Cluster] = []

    def make(*options: str) -> Cluster:
        made.append(Cluster(f"test-{os.getpid()}-{len(made)}"))
        made[-1].up(*options)
        return made[-1]

    yield make
    for each in made:
        each.run("down", "--name", each.name)


@pytest.fixture(scope="session")
def cluster(new_cluster: Callable[..., Cluster]) -> Cluster:
    """Three nodes, with examples/web.yaml applied and Ready."""
    made = new_cluster()
    made("apply", "-f", str(ROOT / "examples/web.yaml"))
    made("rollout", "status", "deploy/web", "--timeout", "60s", timeout=70)
    made("wait", "pod/client", "--for=condition=Ready", "--timeout", "60s", timeout=70)
    return made
