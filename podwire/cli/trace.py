"""trace: run a real request in a pod and follow its packets.

Order to read: the command; Target (what TO means, and the program that reaches it); Recorder (the agents' trace streams); names.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from typing import TYPE_CHECKING

import click
from msgspec import Struct

from podwire.cli.options import namespace_option, output_option, print_json, session_command
from podwire.cli.session import EDGE, Session, key
from podwire.paths import ClusterError
from podwire_core.agentapi import SERVICE, ExecStart, TraceBatch, TraceRequest
from podwire_core.constants import NODE_GATEWAY, OUTSIDE_CLIENT, OUTSIDE_GATEWAY
from podwire_core.errors import ApiError
from podwire_core.objects import Json
from podwire_core.trace import Hop

if TYPE_CHECKING:
    from podwire_core.rpc.sync import SyncStream

QUIET = 0.15  # seconds without a new hop after which a trace is complete
LONGEST = 2.0


class Source(Struct):
    """Where the request starts: a pod, or a node itself. `addresses` are its own."""

    label: str
    addresses: list[str]
    node: str
    pod: str = ""  # "namespace/name"
    outside: bool = False  # a client behind the edge


@click.command()
@click.argument("words", nargs=-1, metavar="FROM TO [-- COMMAND...]")
@click.option("--edge", is_flag=True, help="From outside the cluster; without FROM.")
@namespace_option
@click.option("--udp", is_flag=True, help="TO is host:port of UDP.")
@click.option("--all", "everything", is_flag=True, help="Every packet, not only the first and its reply.")
@click.option("--timeout", type=int, default=5, show_default=True, help="Seconds that the request may take.")
@output_option()
@session_command
def trace(
    session: Session,
    words: tuple[str, ...],
    edge: bool,
    namespace: str | None,
    udp: bool,
    everything: bool,
    timeout: int,
    output: str | None,
) -> int:
    """Follow a request's packets through the cluster, hop by hop.

    FROM is a pod (client, ns/client, deploy/web) or node/NAME. TO is a URL, host, host:port, svc/NAME or pod/NAME. The request
    is a real one, made by curl, bash or ping in FROM (or by COMMAND). Exit status 1 if it fails.
    """
    from podwire.cli import terminal
    from podwire.cli.trace_view import Story, render
    from podwire.journey import connections, join

    if len(words) < 2 - edge:
        raise click.UsageError(f"Missing argument '{'FROM' if not (words or edge) else 'TO'}'.", click.get_current_context())
    target, *command = words if edge else words[1:]
    start = outside() if edge else find_source(session, words[0], namespace)
    argv = command or request_of(session, target, namespace, udp, timeout)
    with Recorder(session, start) as recorder:
        exec_start = ExecStart(argv, pod=start.pod, outside=start.outside)
        code, out, err = terminal.capture(session.agent(start.node), exec_start)
        recorder.settle()
    said = (err or out).decode(errors="replace").strip().splitlines()
    found = [each for each in connections(join(recorder.hops)) if each.client in start.addresses]
    story = Story(start.label, target, argv, code, said[-1] if said else "", found, names_of(session), recorder.lost)
    if output == "json":
        print_json(story)
    else:
        from rich.console import Console

        render(story, Console(highlight=False), everything)
    return 0 if code == 0 else 1


def find_source(session: Session, text: str, namespace: str | None) -> Source:
    """Raises ClusterError."""
    if text.startswith(("node/", "no/", "nodes/")):
        node = session.get(session.ref(text, None))
        name = node["metadata"]["name"]
        return Source(f"node {name}", node_addresses(node), name)
    pod = session.pod(text, namespace)
    addresses = pod_addresses(pod)
    if not addresses:
        raise ClusterError(f"pod {key(pod)} has no address yet (`podwire describe pod {pod['metadata']['name']}`)")
    node_name = pod["spec"]["nodeName"]
    return Source(f"pod {key(pod)} ({addresses[0]} on {node_name})", addresses, node_name, key(pod))


def pod_addresses(pod: Json) -> list[str]:
    """Of both families, the primary one first."""
    status = pod.get("status", {})
    return [each["ip"] for each in status.get("podIPs") or ([{"ip": status["podIP"]}] if status.get("podIP") else [])]


def outside() -> Source:
    return Source(f"outside ({OUTSIDE_CLIENT})", [OUTSIDE_CLIENT], EDGE, outside=True)


def node_addresses(node: Json) -> list[str]:
    """All addresses that are the node's own: its InternalIPs, its end of the pod network, its tunnel's."""
    found = [each["address"] for each in node.get("status", {}).get("addresses") or [] if each["type"] != "Hostname"]
    spec = node.get("spec", {})
    for cidr in spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else []):
        import ipaddress

        network = ipaddress.ip_network(cidr)
        found += [str(network[0]), str(network[1])]
    return found


# --- the request --------------------------------


def request_of(session: Session, target: str, namespace: str | None, udp: bool, timeout: int) -> list[str]:
    """The command line that reaches TO."""
    kind, slash, _ = target.partition("/")
    info = session.find_resource(kind) if slash and "://" not in target else None
    if info is not None:
        return _request_of_object(session, target, namespace, timeout)
    if "://" in target:
        return curl(target, timeout)
    host, colon, port = target.rpartition(":")
    if not colon:
        return ["ping", "-c", "1", "-W", str(timeout), target]
    if not port.isdigit():
        raise ClusterError(f"{target!r}: {port!r} is not a port number", 2)
    return connect(host, int(port), "UDP" if udp else "TCP", timeout)


def _request_of_object(session: Session, target: str, namespace: str | None, timeout: int) -> list[str]:
    text, colon, port = target.partition(":")
    ref = session.ref(text, namespace)
    obj = session.get(ref)
    if ref.kind == "Service":
        ports = [(each["port"], each.get("protocol", "TCP"), each.get("name", "")) for each in obj["spec"].get("ports") or []]
        host = f"{ref.name}.{ref.namespace}.svc.cluster.local"
    elif ref.kind == "Pod":
        containers = obj["spec"]["containers"]
        found = [p for container in containers for p in container.get("ports") or []]
        ports = [(each["containerPort"], each.get("protocol", "TCP"), each.get("name", "")) for each in found]
        host = obj.get("status", {}).get("podIP", "")
    else:
        raise ClusterError(f"{target!r}: TO can be a Service or a Pod", 2)
    wanted = [each for each in ports if port in ("", str(each[0]), each[2])]
    if not wanted:
        if colon and not port.isdigit():
            raise ClusterError(f"{text} has no port {port!r}", 2)
        return connect(host, int(port), "TCP", timeout) if colon else ["ping", "-c", "1", "-W", str(timeout), host]
    number, protocol, name = wanted[0]
    if protocol == "TCP" and (number in (80, 8080) or name.startswith("http")):
        return curl(f"http://{host}:{number}/", timeout)
    return connect(host, number, protocol, timeout)


def curl(url: str, timeout: int) -> list[str]:
    return ["curl", "-sS", "-o", "/dev/null", "-m", str(timeout), "-w", "HTTP %{http_code} from %{remote_ip}", url]


def connect(host: str, port: int, protocol: str, timeout: int) -> list[str]:
    """bash's own sockets: there is a bash wherever there is a node."""
    place = shlex.quote(f"/dev/{protocol.lower()}/{host}/{port}")
    script = f"exec 3<>{place} && echo connected"
    if protocol == "UDP":
        script = f"exec 3<>{place} && echo podwire >&3 && read -t {timeout} -r -n 1 <&3"
    return ["timeout", str(timeout), "bash", "-c", script]


# --- recording --------------------------------


def addresses_to_watch(source: Source, nodes: dict[str, Json]) -> dict[str, list[str]]:
    """Whose packets each node is to report: the source's, and those of any other node, as which it may have been masqueraded
    on its way here. The edge sees the source as its own node."""
    own = {name: node_addresses(node) for name, node in nodes.items()}
    watched = {
        name: [*source.addresses, *(address for other, found in own.items() if other != name for address in found)]
        for name in own
    }
    return watched | {EDGE: [*source.addresses, *own.get(source.node, ())]}


class Recorder:
    """The trace streams of all agents, while a `with` block runs. A node that cannot be reached is said, and left out."""

    def __init__(self, session: Session, source: Source) -> None:
        self.session, self.source = session, source
        self.hops: list[Hop] = []
        self.lost = 0
        self.last = time.monotonic()
        self._stack = contextlib.ExitStack()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Recorder:
        started = []
        nodes = {node["metadata"]["name"]: node for node in self.session.nodes()}
        watched = addresses_to_watch(self.source, nodes)
        agents = [(name, self.session.agent_at(node)) for name, node in nodes.items()]
        for name, agent in [*agents, *((EDGE, each) for each in self.session.edges())]:
            ready = threading.Event()
            channel = self._stack.enter_context(agent)
            stream = channel.replies(SERVICE, "Trace", TraceRequest(watched.get(name, self.source.addresses)), TraceBatch)
            self._stack.enter_context(stream)
            thread = threading.Thread(target=self._listen, args=(name, stream, ready), daemon=True)
            thread.start()
            self._threads.append(thread)
            started.append(ready)
        for ready in started:
            ready.wait(5)
        return self

    def _listen(self, node: str, stream: SyncStream[TraceBatch], ready: threading.Event) -> None:
        try:
            for batch in stream:
                ready.set()
                if batch.hops:
                    self.hops += batch.hops
                    self.last = time.monotonic()
                self.lost += batch.lost
        except ApiError as error:
            click.echo(f"Warning: no trace of {node}: {error.message}", err=True)
        finally:
            ready.set()

    def settle(self) -> None:
        """The request is over; its last packets may still be on their way."""
        end = time.monotonic() + LONGEST
        while time.monotonic() < min(end, self.last + QUIET):
            time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        for thread in self._threads:
            thread.join(1)


# --- names --------------------------------


def names_of(session: Session) -> dict[str, str]:
    """What every address of the cluster belongs to."""
    names = {OUTSIDE_CLIENT: "outside", OUTSIDE_GATEWAY: "edge", NODE_GATEWAY: "edge"} if session.edges() else {}
    for node in session.nodes():
        for address in node_addresses(node):
            names[address] = f"node {node['metadata']['name']}"
    for service in session.api.list("Service").items:
        for address in service["spec"].get("clusterIPs") or [service["spec"].get("clusterIP")]:
            if address and address != "None":
                names[address] = f"Service {key(service)}"
        for each in service.get("status", {}).get("loadBalancer", {}).get("ingress") or []:
            names[each.get("ip", "")] = f"Service {key(service)}"
    for pod in session.api.list("Pod").items:
        for address in pod_addresses(pod) if not pod["spec"].get("hostNetwork") else ():
            names[address] = f"pod {key(pod)} on {pod['spec'].get('nodeName')}"
    return names
