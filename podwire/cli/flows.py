"""flows: connections as the nodes' conntrack tables see them, joined across nodes.

A connection through a Service to another node is two entries: client → ClusterIP (reply from the backend) at the client's node,
and client → backend at the backend's. They are joined where one's reply is what the other sees. Order to read: the command, join,
print.
"""

from __future__ import annotations

from collections import defaultdict

import click
import msgspec
from msgspec import Struct

from podwire.cli.options import namespace_option, output_option, print_json, session_command
from podwire.cli.session import Session, warn
from podwire_core.agentapi import SERVICE, DumpReply, DumpRequest
from podwire_core.errors import ApiError
from podwire_core.netlink import ConntrackInfo, TupleInfo

Sockets = tuple[str, str, int, str, int, int]


class Flow(Struct):
    """`destination` is what the client asked for; `backend` who answers, `seen_as` whom that one sees ("" if the same)."""

    proto: str
    state: str
    source: str
    source_port: int
    destination: str
    destination_port: int
    backend: str
    backend_port: int
    seen_as: str
    nodes: list[str]
    packets: tuple[int, int]
    bytes: tuple[int, int]
    timeout: int
    entries: list[ConntrackInfo]


@click.command()
@click.option("--pod", help="Only of or to this pod.")
@click.option("--service", help="Only to this Service.")
@click.option("--node", "node_name", help="Only what this node sees.")
@click.option("--proto", type=click.Choice(["tcp", "udp", "icmp", "icmpv6", "sctp"]), help="Only of this protocol.")
@click.option("--port", type=int, help="Only to this port, before or after translation.")
@click.option("--state", help="Only in this state: ESTABLISHED, TIME_WAIT …")
@click.option("--all", "everything", is_flag=True, help="Also the kubelets' probes of their nodes' pods.")
@namespace_option
@output_option()
@session_command
def flows(
    session: Session,
    pod: str | None,
    service: str | None,
    node_name: str | None,
    proto: str | None,
    port: int | None,
    state: str | None,
    everything: bool,
    namespace: str | None,
    output: str | None,
) -> None:
    """List connections as the nodes' conntrack tables see them, joined."""
    from podwire.cli.trace import names_of

    names = names_of(session)
    homes = {address: owner.rpartition(" ")[2] for address, owner in names.items()}  # "pod ns/name on node1", "node node1"
    wanted = set()
    if pod:
        wanted.add(session.pod(pod, namespace).get("status", {}).get("podIP"))
    if service:
        wanted.add(session.get(session.ref(service, namespace, "Service"))["spec"].get("clusterIP"))
    found = [
        flow
        for flow in join(read_tables(session), homes)
        if (not wanted or wanted & {flow.source, flow.destination, flow.backend})
        and (node_name is None or node_name in flow.nodes)
        and (proto is None or proto == flow.proto)
        and (port is None or port in (flow.destination_port, flow.backend_port))
        and (state is None or state.upper() == flow.state)
        and (everything or not is_probe(flow, names))
    ]
    if output == "json":
        print_json(found)
    else:
        click.echo(text_of(found, names))


def is_probe(flow: Flow, names: dict[str, str]) -> bool:
    """A node and a pod on it."""
    source, backend = names.get(flow.source, ""), names.get(flow.backend, "")
    return source.startswith("node ") and backend.startswith("pod ") and backend.endswith(f" on {source[5:]}")


def read_tables(session: Session) -> dict[str, list[ConntrackInfo]]:
    """Every node's entries; a node that cannot be reached is said, and left out."""
    tables = {}
    for node in session.nodes():
        name = node["metadata"]["name"]
        try:
            with session.agent_at(node) as agent:
                reply: DumpReply = agent.call(SERVICE, "Dump", DumpRequest("conntrack"), DumpReply)
        except ApiError as error:
            warn(f"no table of {name}: {error.message}")
            continue
        tables[name] = msgspec.convert(reply.data, list[ConntrackInfo])
    return tables


# --- joining --------------------------------


def join(tables: dict[str, list[ConntrackInfo]], node_of: dict[str, str] | None = None) -> list[Flow]:
    """Flows in the order of their clients. `node_of`: on which node an address is, which says where a flow that nobody
    translated began."""
    homes = node_of or {}
    senders: dict[Sockets, list[tuple[str, ConntrackInfo]]] = defaultdict(list)
    for node, table in tables.items():
        for entry in table:
            senders[_as_sent(entry.proto, entry.reply)].append((node, entry))
    following: dict[int, tuple[str, ConntrackInfo]] = {}
    continued: set[int] = set()
    for node, table in tables.items():
        for entry in table:
            before = _before(node, entry, senders, homes)
            if before is not None and id(before) not in following:
                following[id(before)] = (node, entry)
                continued.add(id(entry))
    result = []
    for node, table in tables.items():
        for entry in table:
            if id(entry) not in continued:
                chain = [(node, entry)]
                while (after := following.get(id(chain[-1][1]))) is not None:
                    chain.append(after)
                result.append(_flow(chain))
    return sorted(result, key=lambda flow: (flow.source, flow.destination, flow.destination_port, flow.source_port))


def _before(
    node: str, entry: ConntrackInfo, senders: dict[Sockets, list[tuple[str, ConntrackInfo]]], homes: dict[str, str]
) -> ConntrackInfo | None:
    """The entry of another node that sends what this entry received."""
    received = _sockets(entry.proto, entry.original)
    for other, sender in senders.get(received, []):
        if other == node:
            continue
        translated = _sockets(sender.proto, sender.original) != received
        home = homes.get(entry.original.src, "")
        if translated or (other != home, other) < (node != home, node):  # no cycles: untranslated, the client's node is first
            return sender
    return None


def _flow(chain: list[tuple[str, ConntrackInfo]]) -> Flow:
    first, last = chain[0][1], chain[-1][1]
    return Flow(
        proto=first.proto,
        state=first.state or ("UNREPLIED" if "UNREPLIED" in first.status else "REPLIED"),
        source=first.original.src,
        source_port=first.original.sport,
        destination=first.original.dst,
        destination_port=first.original.dport,
        backend=last.reply.src,
        backend_port=last.reply.sport,
        seen_as=last.reply.dst if last.reply.dst != first.original.src else "",
        nodes=[node for node, _ in chain],
        packets=first.packets,
        bytes=first.bytes,
        timeout=first.timeout,
        entries=[entry for _, entry in chain],
    )


def _sockets(proto: str, tuple_: TupleInfo) -> Sockets:
    return (proto, tuple_.src, tuple_.sport, tuple_.dst, tuple_.dport, tuple_.id)


def _as_sent(proto: str, reply: TupleInfo) -> Sockets:
    """The packet whose answer `reply` is: what leaves the node, after translation."""
    if proto.startswith("icmp"):  # types: 0 answers 8, in ICMPv6 129 answers 128
        asked = {0: 8, 129: 128}.get(reply.sport, reply.sport)
        return (proto, reply.dst, asked, reply.src, reply.dport, reply.id)
    return (proto, reply.dst, reply.dport, reply.src, reply.sport, reply.id)


# --- printing --------------------------------


def text_of(found: list[Flow], names: dict[str, str]) -> str:
    from podwire.cli.formats import table

    def named(address: str, port: int) -> str:
        owner = names.get(address, "").partition(" on ")[0]
        return f"{address}:{port} ({owner})" if owner else f"{address}:{port}"

    rows = [
        [
            flow.proto,
            flow.state,
            named(flow.source, flow.source_port),
            named(flow.destination, flow.destination_port),
            named(flow.backend, flow.backend_port) if flow.backend != flow.destination else "",
            "→".join(flow.nodes),
            f"{flow.packets[0]}/{flow.packets[1]}",
            f"{flow.bytes[0]}/{flow.bytes[1]}",
        ]
        for flow in found
    ]
    return table(["PROTO", "STATE", "SOURCE", "DESTINATION", "BACKEND", "NODES", "PACKETS", "BYTES"], rows)
