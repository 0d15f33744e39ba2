"""What a node's datapath must hold, kept true: network, host namespace, pods' links and kube-proxy's rules.

Rules it keeps: `take` applies the difference that a change of objects makes; `restate` states everything again to a datapath
that may hold nothing, something old, or all of it, and can be repeated. One of them runs at a time. A refusal (NetlinkError) is
a bug on either side: logged, and everything is stated again. Order to read: NodeState.restate, then .take.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import trio

from podwire_cni.backends import flannel
from podwire_core import netns
from podwire_core.constants import NODE_GATEWAY
from podwire_core.netlink import AnyOp, LinkInfo, NetlinkError
from podwire_core.objects import Json, Node, decode
from podwire_core.rpc import Change
from podwire_nodeagent import network
from podwire_nodeagent.datapath_process import Dataplane
from podwire_nodeagent.node_rules import facts_of, sysctls_of
from podwire_nodeagent.proxy import live, modes
from podwire_nodeagent.proxy.config import ConfigurationError, ProxyConfiguration
from podwire_nodeagent.proxy.health import HealthChecks
from podwire_nodeagent.proxy.model import NodeFacts

log = logging.getLogger(__name__)
HOST_DEV = "eth0"
# The host namespace holds the node's addresses, but packets to them must cross the datapath like all others (a Service may
# have turned their answers round): its own local table is asked for arriving packets and for 127/8 only.
HOST_RULES = f"rule add pref 10 iif {HOST_DEV} lookup local\nrule add pref 11 to 127.0.0.0/8 lookup local\nrule del pref 0\n"
HOST_RULES6 = HOST_RULES.replace("127.0.0.0/8", "::1/128")
# Its neighbours are the datapath alone, told and not discovered.
HOST_SYSCTLS6 = {"accept_ra": "0", "addr_gen_mode": "1", "dad_transmits": "0", "router_solicitations": "0"}
Reattach = Callable[[Sequence[LinkInfo]], Awaitable[None]]
KINDS = ("Node", "Service", "EndpointSlice")


class NodeState:
    """`objects` is the live copy (rpc.Mirror.objects); `reattach_pods` gives the datapath the TAPs of those pods whose links it
    lacks; `proxy` is what kube-proxy is started with, which objects may change (proxy/live.py); `complain` is told of a wrong
    configuration, once."""

    def __init__(
        self,
        node: str,
        dataplane: Dataplane,
        host_netns: Path,
        proxy: ProxyConfiguration,
        objects: Mapping[str, Mapping[str, Json]],
        reattach_pods: Reattach,
        complain: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._node, self._dataplane, self._host_netns = node, dataplane, host_netns
        self._started_with, self._objects, self._reattach_pods = proxy, objects, reattach_pods
        self._proxy_config, self._complain, self._complaint = proxy, complain, ""
        self._proxiers: dict[int, modes.Proxy] = {}  # by family
        self._facts: NodeFacts | None = None  # that the proxiers know
        self.health = HealthChecks(node)
        self.gateway: list[AnyOp] = []  # how the cable reaches the edge
        self._pod_cidrs: tuple[str, ...] = ()
        self._host_batch = ""
        self._lock = trio.Lock()
        self.networked = trio.Event()  # the node has its podCIDR and its links: pods can be attached

    @property
    def node_object(self) -> Json | None:
        return self._objects["Node"].get(self._node)

    async def restate(self) -> None:
        """Bring the datapath to the present state, whatever it holds. Raises OSError when it is gone."""
        node = self.node_object
        if node is None:
            return
        async with self._lock:
            links: list[LinkInfo] = await self._dataplane.dump("links")
            await self._attach_host(links)
            await self._network(node)
            await self._reattach_pods(links)
            self._pod_cidrs = _pod_cidrs(node)
            facts = facts_of(node)
            self._proxy_config = self._wanted_configuration(node)
            families = flannel.families(decode(Node, node)) or (4,)
            proxiers = modes.make_all(self._proxy_config, facts, {each: flannel.tables(node, each) for each in families})
            services, slices = self._objects["Service"], self._objects["EndpointSlice"]
            ops: list[AnyOp] = [*sysctls_of(node)]
            for proxier in proxiers.values():
                ops += proxier.changes(services, slices)
            await self._dataplane.apply(ops)
            self._proxiers, self._facts = proxiers, facts
            self.health.change(services, slices, services, slices)
        if self._pod_cidrs:
            self.networked.set()

    async def take(self, changes: Sequence[Change]) -> None:
        """Apply what these changes make different. Raises OSError when the datapath is gone."""
        node = self.node_object
        if node is None:
            return
        same = self._pod_cidrs == _pod_cidrs(node) and self._proxy_config == self._wanted_configuration(node)
        if not self._proxiers or not same:
            await self.restate()
            return
        by_kind: dict[str, dict[str, Json | None]] = {kind: {} for kind in KINDS}
        for change in changes:
            if change.kind in by_kind:
                by_kind[change.kind][change.key] = change.new
        try:
            async with self._lock:
                if by_kind["Node"]:
                    await self._network(node)
                facts = facts_of(node) if self._node in by_kind["Node"] else self._facts
                news = facts if facts != self._facts else None
                ops: list[AnyOp] = []
                for proxier in self._proxiers.values():
                    ops += proxier.changes(by_kind["Service"], by_kind["EndpointSlice"], news)
                await self._dataplane.apply(ops)
                self._facts = facts
                self.health.change(
                    by_kind["Service"], by_kind["EndpointSlice"], self._objects["Service"], self._objects["EndpointSlice"]
                )
        except NetlinkError as error:
            log.error("the datapath refused an update, everything is stated again: %s", error)
            await self.restate()

    # --- parts --------------------------------

    def _wanted_configuration(self, node: Json) -> ProxyConfiguration:
        """What the objects say now; what is in force where they say it wrongly."""
        try:
            config_map = self._objects.get("ConfigMap", {}).get(live.CONFIG_MAP)
            wanted, complaint = live.configuration(self._started_with, config_map, node), ""
        except ConfigurationError as error:
            wanted, complaint = self._proxy_config, f"kube-proxy goes on as it was: {error}"
        if complaint and complaint != self._complaint:
            self._complain(complaint)
        self._complaint = complaint
        return wanted

    async def _attach_host(self, links: Sequence[LinkInfo]) -> None:
        if any(link.name == network.HOST_LINK and link.attached for link in links):
            return
        fd = _host_tap(self._host_netns)
        try:
            await self._dataplane.apply([network.host_link()], [fd])
        finally:
            os.close(fd)

    async def _network(self, node: Json) -> None:
        desired = [*flannel.desired(node, self._objects["Node"].values(), gateway=NODE_GATEWAY), *self.gateway]
        dumps = {what: await self._dataplane.dump(what) for what in network.DUMPED}
        await self._dataplane.apply(network.reconcile(desired, dumps))
        await self._configure_host(desired)

    async def _configure_host(self, desired: Sequence[AnyOp]) -> None:
        """Mirror the node's addresses and routes into its host namespace."""
        batch = network.host_batch(desired)
        if batch != self._host_batch:
            present = await trio.to_thread.run_sync(_host_routes, self._host_netns)
            await trio.to_thread.run_sync(_run_ip, self._host_netns, network.host_batch(desired, present))
            self._host_batch = batch


def _pod_cidrs(node: Json) -> tuple[str, ...]:
    decoded = decode(Node, node)
    return tuple(flannel.pod_cidr(decoded, family) for family in flannel.families(decoded))


# --- the host namespace: blocking, called in threads --------------------------------


def _host_tap(namespace: Path) -> int:
    """The TAP of the host namespace: a new one, or a new fd of the one that is there."""
    with netns.in_netns(namespace):
        there = HOST_DEV in (name for _, name in socket.if_nameindex())
    if there:
        return netns.reattach_tap(namespace, HOST_DEV)
    fd = netns.create_tap(namespace, HOST_DEV, network.HOST_TAP_MAC)
    for name in ("all.rp_filter", f"{HOST_DEV}.rp_filter"):
        netns.set_sysctl(namespace, f"net.ipv4.conf.{name}", "0")
    netns.set_sysctl(namespace, f"net.ipv4.conf.{HOST_DEV}.accept_local", "1")
    for name, value in HOST_SYSCTLS6.items():
        netns.set_sysctl(namespace, f"net.ipv6.conf.{HOST_DEV}.{name}", value)
    _run_ip(namespace, HOST_RULES)
    _ip(namespace, ["-6", "-batch", "-"], HOST_RULES6)
    return fd


def _host_routes(namespace: Path) -> list[Json]:
    routes: list[Json] = []
    for family in ("-4", "-6"):
        routes += json.loads(_ip(namespace, [family, "-json", "route", "show", "dev", HOST_DEV]) or "[]")
    return routes


def _run_ip(namespace: Path, batch: str) -> None:
    _ip(namespace, ["-batch", "-"], batch)


def _ip(namespace: Path, args: list[str], text: str = "") -> str:
    """iproute2 in that namespace: the thread is in it while the child is forked."""
    with netns.in_netns(namespace):
        process = subprocess.Popen(
            ["ip", *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    out, error = process.communicate(text)
    if process.returncode:
        raise OSError(
            f"ip {' '.join(args)} in the host namespace: {error.strip().splitlines()[0] if error.strip() else 'failed'}"
        )
    return out
