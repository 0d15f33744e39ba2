"""Tables that are replaced, and transactions that end, leave nothing for the garbage collector: the datapath freezes what large
requests bring (podwire_core/collector.py), so what only a collection could find would stay for ever."""

from __future__ import annotations

import gc

import msgspec
import pytest
from support.services import by_key, endpoint, endpoint_slice, port, service
from support.stack_node import StackNode

from podwire_core.collector import settled
from podwire_core.netlink import Apply, NetlinkError, RouteDel
from podwire_nodeagent.datapath import requests
from podwire_nodeagent.proxy import modes
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.model import NodeFacts

NODE = NodeFacts("node1", "", ("192.168.1.11",), ("10.244.1.0/24",))
SERVICES = by_key(
    service(f"s{n}", f"10.96.0.{n}", sessionAffinity="ClientIP", type="NodePort", ports=[port(80, nodePort=30000 + n)])
    for n in range(1, 9)
)
SLICES = by_key(endpoint_slice(f"s{n}", [endpoint("10.244.2.2"), endpoint(f"10.244.2.{n + 2}")]) for n in range(1, 9))


def requested(mode: str):
    """The messages of a life in that mode, of which one is refused, and then of changes to all others."""
    proxy = modes.make(ProxyConfiguration(mode=mode, cluster_cidrs=("10.0.0.0/8",)), NODE)
    yield proxy.changes(SERVICES, SLICES)
    yield proxy.restate()
    yield proxy.changes({"ns/s3": None}, {"ns/s3-1": None, "ns/s4-1": None})
    yield proxy.changes({"ns/s3": SERVICES["ns/s3"]}, {"ns/s3-1": SLICES["ns/s3-1"]})
    yield [*proxy.restate(), RouteDel("192.0.2.0/24")]
    for other in modes.MODES:
        yield modes.make(ProxyConfiguration(mode=other), NODE).changes({}, {})


@pytest.mark.parametrize("mode", modes.MODES)
def test_nothing_is_left_in_a_circle(mode: str) -> None:
    messages = [msgspec.msgpack.encode(Apply(1, tuple(ops))) for ops in requested(mode)]
    stack, refused = StackNode([], ()).stack, []
    gc.collect()
    gc.disable()
    try:
        for message in messages:
            try:
                stack.apply(requests.decode(message).ops, 0.0)
            except NetlinkError as error:
                refused.append(error.errno_name)
        assert gc.collect() == 0
    finally:
        gc.enable()
    assert refused == ["ESRCH"]


def test_what_settled_is_not_looked_at_again() -> None:
    gc.collect()
    try:
        with settled():
            assert not gc.isenabled()
            made = [[number] for number in range(1000)]
        assert gc.isenabled()
        seen = {id(each) for each in gc.get_objects()}
        assert not any(id(each) in seen for each in made)
    finally:
        gc.unfreeze()
