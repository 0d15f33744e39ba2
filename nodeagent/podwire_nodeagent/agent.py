"""A node's agent: wires the node's daemons together. What each does is in its own file.

    registration.py      the Node object and its Lease
    datapath_process.py  the node's userspace kernel, as a process
    network.py           what the node's network must look like, from the Nodes (the CNI daemon)
    proxy/               kube-proxy: from Services and EndpointSlices to rules
    health_server.py     kube-proxy's health checks, for load balancers
    kubelet/             pods
    service.py           what the command may ask

Rules it keeps: everything is level-triggered from one live copy of the API's objects (`rpc.Mirror`), so a lost API server means
that nothing changes until it is back. When the agent starts or its datapath was restarted, all state is stated again; a
datapath that lives keeps moving packets meanwhile. Order to read: AgentConfig, Agent.run, then each task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import trio
from msgspec import Struct

from podwire_cni.backends import flannel
from podwire_core import netns, rpc
from podwire_core.agentapi import SERVICE
from podwire_core.constants import DNS_IP, DNS_IP6
from podwire_core.errors import ApiError
from podwire_core.objects import Json
from podwire_nodeagent import network, registration, relay, tools
from podwire_nodeagent.datapath_process import DatapathConfig, DatapathFailed, Dataplane
from podwire_nodeagent.events import Recorder
from podwire_nodeagent.health_server import HealthServer
from podwire_nodeagent.kubelet.config import KubeletConfig
from podwire_nodeagent.kubelet.kubelet import Kubelet
from podwire_nodeagent.node_state import NodeState
from podwire_nodeagent.pod_network import PodNetwork
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.service import AgentService
from podwire_nodeagent.standin.client import StandinClient

log = logging.getLogger(__name__)
RETRY_SECONDS = 0.5


class AgentConfig(Struct, frozen=True):
    """One node's place: `directory` is its run directory, `underlay` the socket address of its tunnels and cable, `listen` the
    gRPC addresses beside DIR/agent.sock, of which the first is published, `edge` the socket address of the edge's cable."""

    node: str
    api: str
    directory: Path
    internal_ips: tuple[str, ...]
    underlay: str
    tunnel_port: int
    cable_port: int
    proxy: ProxyConfiguration
    listen: tuple[str, ...] = ()
    edge: str = ""

    @property
    def agent_address(self) -> str:
        return self.listen[0] if self.listen else f"unix:{self.directory / 'agent.sock'}"

    @property
    def datapath(self) -> DatapathConfig:
        folder = self.directory
        paths = str(folder / "datapath.sock"), str(folder / "log" / "datapath.log")
        return DatapathConfig(self.node, *paths, self.underlay, self.tunnel_port, self.cable_port)

    def identity(self) -> registration.NodeIdentity:
        """What this node registers with."""
        addresses = registration.internal_addresses(self.internal_ips)
        bare = {"metadata": {"name": self.node}, "status": {"addresses": addresses}}
        notes = flannel.publish(bare, self.underlay, self.cable_port, self.agent_address)
        return registration.NodeIdentity(self.node, self.internal_ips, notes)


class Agent:
    """`run` until cancelled. Cancelling stops the agent, not the pods and not the datapath."""

    def __init__(self, config: AgentConfig) -> None:
        self._config, self._dir = config, config.directory
        self._host_netns = self._dir / "netns" / "host"
        for folder in ("netns", "log", "pods", "cni", "tools"):
            (self._dir / folder).mkdir(parents=True, exist_ok=True)
        self._dataplane = Dataplane(config.datapath)
        self._pods = PodNetwork(self._dir)

    async def run(self) -> None:
        """Raises DatapathFailed or rpc.ListenError when the node cannot start."""
        self._prepare_host_namespace()
        async with rpc.connect(self._config.api) as api, trio.open_nursery() as nursery:
            mirror = rpc.Mirror(api, self._selections())
            recorder = Recorder(api, "kubelet", self._config.node)
            proxy_recorder = Recorder(api, "kube-proxy", self._config.node)
            state = NodeState(
                self._config.node,
                self._dataplane,
                self._host_netns,
                self._config.proxy,
                mirror.objects,
                self._pods.reattach,
                lambda message: proxy_recorder(state.node_object or {}, "Warning", "FailedToLoadConfiguration", message),
            )
            state.gateway = network.gateway_peer(self._config.edge)
            health = HealthServer(self._host_netns, state.health, lambda: state.node_object)
            kubelet = self._kubelet(api, recorder)
            await nursery.start(relay.serve, str(self._dir / "api.sock"), self._config.api)
            nursery.start_soon(registration.register, api, self._config.identity())
            await self._dataplane.connect()
            listen = [f"unix:{self._dir / 'agent.sock'}", *self._config.listen]
            await nursery.start(rpc.serve, SERVICE, AgentService(kubelet, self._dataplane).handlers(), listen)
            nursery.start_soon(registration.renew_lease, api, self._config.node)
            nursery.start_soon(mirror.run)
            nursery.start_soon(recorder.run)
            nursery.start_soon(proxy_recorder.run)
            nursery.start_soon(self._follow, mirror, state, health)
            nursery.start_soon(health.run)
            nursery.start_soon(self._keep_datapath, state)
            nursery.start_soon(self._report, api, mirror, state)
            nursery.start_soon(self._serve_pods, mirror, state, kubelet)

    def _prepare_host_namespace(self) -> None:
        if not netns.is_mounted(self._host_netns):
            self._host_netns.unlink(missing_ok=True)
            netns.create(self._host_netns)
        tools.install(self._dir / "tools")

    def _selections(self) -> list[rpc.Selection]:
        mine = rpc.Selection("Pod", fields=f"spec.nodeName={self._config.node}")
        return [mine, *(rpc.Selection(kind) for kind in ("Node", "Service", "EndpointSlice", "ConfigMap", "Secret"))]

    def _kubelet(self, api: rpc.Client, recorder: Recorder) -> Kubelet:
        config = KubeletConfig(
            node_name=self._config.node,
            run_dir=self._dir,
            internal_ip=self._config.internal_ips[0],
            other_ips=self._config.internal_ips[1:],
            dns_ip=DNS_IP6 if ":" in self._config.internal_ips[0] else DNS_IP,
            host_netns=str(self._host_netns),
        )
        log_file = open(self._dir / "log" / "standin.log", "ab")  # noqa: SIM115  for every stand-in process to come
        standins = StandinClient(str(self._dir / "standin.sock"), log_file, on_restart=lambda: kubelet.standins_lost())
        kubelet = Kubelet(config, api, self._pods, standins, recorder)
        return kubelet

    # --- tasks --------------------------------

    async def _follow(self, mirror: rpc.Mirror, state: NodeState, health: HealthServer) -> None:
        """Every change of the objects, to the datapath."""
        await mirror.synced()
        async for changes in mirror.changes():
            try:
                await state.take(changes)
                health.changed()
            except OSError as error:
                log.warning("the datapath is away, its state will be stated when it is back: %s", error)

    async def _serve_pods(self, mirror: rpc.Mirror, state: NodeState, kubelet: Kubelet) -> None:
        """Every change of pods and of what they are made of, to the kubelet; not before the node has a network for them."""
        await mirror.synced()
        await state.networked.wait()
        node = state.node_object
        assert node is not None  # networked says so
        self._pods.configure(node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kubelet.run)
            async for _ in mirror.changes():
                objects = mirror.objects
                services = list(objects["Service"].values())
                kubelet.sync(objects["Pod"], services, _getter(objects["ConfigMap"]), _getter(objects["Secret"]))

    async def _keep_datapath(self, state: NodeState) -> None:
        """A datapath that dies is started again and told everything."""
        while True:
            await self._dataplane.died()
            log.warning("the datapath died and is started again")
            while True:
                try:
                    await self._dataplane.connect()
                    await state.restate()
                    break
                except (OSError, DatapathFailed) as error:
                    log.error("the datapath could not be restored, trying again: %s", error)
                    await trio.sleep(RETRY_SECONDS)

    async def _report(self, api: rpc.Client, mirror: rpc.Mirror, state: NodeState) -> None:
        """The node's Ready condition."""
        name = self._config.node
        await mirror.synced()
        await state.networked.wait()
        while True:
            try:
                await registration.report_ready(api, name, True, "KubeletReady", "podwire's agent is posting ready status")
                return
            except ApiError as error:
                log.info("node status not written, trying again: %s", error)
                await trio.sleep(RETRY_SECONDS)


def _getter(objects: dict[str, Json]) -> Callable[[str, str], Json | None]:
    return lambda namespace, name: objects.get(f"{namespace}/{name}")
