"""What a node's datapath holds follows the objects: differences only, everything again after a refusal or a loss."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest
import trio
from support import services
from support.services import endpoint, endpoint_slice, service

from podwire_cni.backends import flannel
from podwire_core import netfilter as nf
from podwire_core.netlink import AnyOp, ChainsUpdate, LinkAdd, NetlinkError
from podwire_core.rpc import Change
from podwire_nodeagent import network, node_state
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.datapath.stack import Stack
from podwire_nodeagent.node_state import NodeState
from podwire_nodeagent.proxy.config import ProxyConfiguration

HELD = ("addrs", "routes", "neighs", "fdb", "underlay", "rules", "sysctls")


class Dataplane:
    """A stack in memory behind the calls of the agent's connection."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.lose()

    def lose(self) -> None:
        """As after kill -9."""
        self.stack, self.transactions = Stack("node1", RandomChooser(Random(1))), []

    async def apply(self, ops: list[AnyOp], fds=()) -> None:
        await trio.lowlevel.checkpoint()
        if ops and self.failures:
            raise self.failures.pop(0)
        assert len(fds) == sum(isinstance(op, LinkAdd) and op.fd for op in ops)
        self.stack.apply(ops, 1.0)
        if ops:
            self.transactions.append(list(ops))

    async def dump(self, what: str):
        await trio.lowlevel.checkpoint()
        return self.stack.dump(what, 1.0)

    def content(self) -> dict[str, set[str]]:
        """Without counters and the chains' order, which tell the histories of equal states apart."""
        dumps = {what: self.stack.dump(what, 1.0) for what in HELD}
        tables = [dump.table for dump in dumps["rules"]]
        dumps["rules"] = [(t.name, t.family, sorted(t.chains, key=lambda chain: chain.name)) for t in tables]
        return {what: {repr(each) for each in (d.items() if isinstance(d, dict) else d)} for what, d in dumps.items()}


class World:
    """node1's state; `host` is what was run in its host namespace."""

    def __init__(self, monkeypatch) -> None:
        self.objects: dict[str, dict] = {kind: {} for kind in node_state.KINDS}
        self.host: list[str] = []
        self.reattached: list[list[str]] = []
        self.dataplane = Dataplane()
        monkeypatch.setattr(node_state, "_host_tap", lambda _: os.open(os.devnull, os.O_RDWR))
        monkeypatch.setattr(node_state, "_host_routes", lambda _: [])
        monkeypatch.setattr(node_state, "_run_ip", lambda _, batch: self.host.append(batch))
        self.state = self.make(self.dataplane)
        self.put("Node", node(1))

    def make(self, dataplane) -> NodeState:
        return NodeState("node1", dataplane, Path("/none"), ProxyConfiguration(), self.objects, self.reattach)

    async def reattach(self, links) -> None:
        self.reattached.append([link.name for link in links])

    def put(self, kind: str, obj: dict) -> Change:
        meta = obj["metadata"]
        key = f"{meta['namespace']}/{meta['name']}" if "namespace" in meta else meta["name"]
        old, self.objects[kind][key] = self.objects[kind].get(key), obj
        return Change(kind, key, old, obj)

    def remove(self, kind: str, key: str) -> Change:
        return Change(kind, key, self.objects[kind].pop(key), None)

    async def take(self, *changes: Change) -> list[str]:
        """The kinds of operations that it took."""
        self.dataplane.transactions.clear()
        await self.state.take(changes)
        return sorted({type(op).__name__ for ops in self.dataplane.transactions for op in ops})

    async def expect_as_stated_afresh(self) -> None:
        other = Dataplane()
        await self.make(other).restate()
        assert self.dataplane.content() == other.content()


def node(number: int, cidr: bool = True) -> dict:
    obj = services.node(f"node{number}", f"192.168.1.{10 + number}", f"10.244.{number}.0/24" if cidr else "")
    obj["metadata"]["annotations"] = flannel.publish(obj, f"127.0.0.{10 + number}")
    return obj


WEB = service("web", "10.96.0.1")
WEB_SLICE = endpoint_slice("web", [endpoint("10.244.1.5"), endpoint("10.244.2.5")])


@pytest.fixture
def world(monkeypatch) -> World:
    return World(monkeypatch)


def run(test):
    """The test as a function of trio's."""

    def main(world):
        trio.run(test, world)

    main.__name__, main.__doc__ = test.__name__, test.__doc__
    return main


@run
async def test_everything_is_stated_at_first(world):
    world.put("Service", WEB), world.put("EndpointSlice", WEB_SLICE), world.put("Node", node(2))
    await world.state.restate()
    content = world.dataplane.content()
    assert any("10.244.2.0/24" in route for route in content["routes"])
    assert any("ns/web:p80" in table and "FLANNEL-POSTRTG" in table for table in content["rules"])
    assert "('net.ipv4.ip_forward', '1')" in content["sysctls"]
    assert "addr replace 192.168.1.11/32 dev eth0" in world.host[0]
    assert len(world.reattached) == 1
    assert network.HOST_LINK in [link.name for link in world.dataplane.stack.dump("links", 1.0)]
    assert world.state.networked.is_set()


@run
async def test_stating_again_changes_nothing(world):
    world.put("Service", WEB), world.put("EndpointSlice", WEB_SLICE), world.put("Node", node(2))
    await world.state.restate()
    before = world.dataplane.content()
    await world.state.restate()
    assert world.dataplane.content() == before
    assert len(world.host) == 1  # the host namespace had it


@run
async def test_only_the_difference_is_applied(world):
    await world.state.restate()
    assert await world.take(world.put("Service", WEB), world.put("EndpointSlice", WEB_SLICE)) == ["ChainsUpdate"]
    assert await world.take(world.put("Node", node(2))) == ["FdbAdd", "NeighAdd", "RouteAdd", "UnderlaySet"]
    assert "10.244.2.0/24" in world.host[-1]
    hosts = len(world.host)
    more = endpoint_slice("web", [endpoint("10.244.1.5")])
    assert set(await world.take(world.put("EndpointSlice", more))) <= {"ChainsUpdate", "ConntrackDel"}
    assert await world.take(world.remove("Node", "node2")) == ["FdbDel", "NeighDel", "RouteDel", "UnderlayDel"]
    assert len(world.host) == hosts + 1
    assert set(await world.take(world.remove("Service", "ns/web"))) <= {"ChainsUpdate", "ConntrackDel"}
    await world.expect_as_stated_afresh()


@run
async def test_what_matters_to_nobody_takes_no_operation(world):
    await world.state.restate()
    pod = {"metadata": {"name": "p", "namespace": "ns"}}
    heartbeat = node(1)
    heartbeat["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    assert await world.take(Change("Pod", "ns/p", None, pod), world.put("Node", heartbeat)) == []


@run
async def test_an_address_of_the_own_node_reaches_the_rules(world):
    await world.state.restate()
    ports = [services.port(80, nodePort=30080)]
    await world.take(
        world.put("Service", service("web", "10.96.0.9", ports, type="NodePort")), world.put("EndpointSlice", WEB_SLICE)
    )
    more = node(1)
    more["status"]["addresses"].append({"type": "InternalIP", "address": "172.16.0.1"})
    assert "AddrAdd" in await world.take(world.put("Node", more))
    await world.expect_as_stated_afresh()


@run
async def test_nothing_happens_without_the_own_node(world):
    gone = world.remove("Node", "node1")
    assert await world.take(gone) == []
    await world.state.restate()
    assert world.dataplane.transactions == []
    assert not world.state.networked.is_set()


@run
async def test_a_pod_cidr_that_comes_later_states_everything(world):
    world.put("Node", node(1, cidr=False))
    await world.state.restate()
    assert not world.state.networked.is_set()
    await world.take(world.put("Node", node(1)))
    assert world.state.networked.is_set()
    await world.expect_as_stated_afresh()


@run
async def test_a_refusal_states_everything_again(world):
    await world.state.restate()
    world.dataplane.failures = [NetlinkError("EINVAL", "no")]
    changes = world.put("Service", WEB), world.put("EndpointSlice", WEB_SLICE)
    assert "TablesReplace" in await world.take(*changes)
    await world.expect_as_stated_afresh()
    assert await world.take(world.put("EndpointSlice", WEB_SLICE)) == []  # and all is known


@run
async def test_a_long_chain_that_somebody_changed_is_stated_again(world):
    """A Service is spliced into KUBE-SERVICES; not into one that is another by now."""
    for n in range(10):
        world.put("Service", service(f"s{n}", f"10.96.1.{n}"))
        world.put("EndpointSlice", endpoint_slice(f"s{n}", [endpoint("10.244.1.5")]))
    await world.state.restate()
    rules = world.dataplane.stack.netfilter.ruleset.tables["nat", 4]["KUBE-SERVICES"].body.rules
    by_hand = nf.Chain("KUBE-SERVICES", tuple(rule.source for rule in rules[1:]))
    world.dataplane.stack.apply([ChainsUpdate("nat", 4, (by_hand,))], 1.0)
    assert "TablesReplace" in await world.take(world.put("Service", WEB), world.put("EndpointSlice", WEB_SLICE))
    await world.expect_as_stated_afresh()
    assert await world.take(world.remove("Service", "ns/web")) == ["ChainsUpdate"]
    await world.expect_as_stated_afresh()


@run
async def test_a_lost_datapath_is_told_everything(world):
    await world.state.restate()
    await world.take(world.put("Service", WEB), world.put("EndpointSlice", WEB_SLICE), world.put("Node", node(2)))
    world.dataplane.lose()
    world.dataplane.failures = [ConnectionResetError("gone")]
    missed = world.put("Service", service("late", "10.96.0.2"))
    with pytest.raises(ConnectionResetError):
        await world.state.take([missed])
    await world.state.restate()
    assert any("10.96.0.2" in table for table in world.dataplane.content()["rules"])
    await world.expect_as_stated_afresh()


@run
async def test_a_datapath_lost_while_everything_is_stated(world):
    """Whatever the step: the next time does all of it."""
    world.put("Service", WEB), world.put("EndpointSlice", WEB_SLICE)
    await world.state.restate()
    steps = len(world.dataplane.transactions)
    assert steps >= 3
    for _ in range(2):
        world.dataplane.lose()
        world.dataplane.failures = [ConnectionResetError("gone")]
        with pytest.raises(ConnectionResetError):
            await world.state.restate()
    world.dataplane.lose()
    await world.state.restate()
    await world.expect_as_stated_afresh()


@run
async def test_changes_during_a_restatement_wait_for_it(world):
    changes = [world.put("Service", WEB), world.put("EndpointSlice", WEB_SLICE), world.put("Node", node(2))]
    await world.state.restate()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.state.restate)
        for n in range(3):
            changes.append(world.put("Node", node(3 + n)))
            nursery.start_soon(world.state.take, changes[-1:])
    await world.expect_as_stated_afresh()
