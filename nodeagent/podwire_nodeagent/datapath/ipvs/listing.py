"""What the dumps "ipsets", "ipvs" and "ipvs.connections" return, in a stable order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from podwire_core.ipset import IpSet
from podwire_core.ipvs import ConnectionInfo, ServerInfo, ServiceInfo
from podwire_nodeagent.datapath.ipvs.servers import NAMES, Server, Service
from podwire_nodeagent.datapath.netfilter.connection import split
from podwire_nodeagent.datapath.netfilter.tcp import STATES
from podwire_nodeagent.datapath.packet import TCP
from podwire_nodeagent.datapath.wire import address_text

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.stack import Stack


def ipsets(stack: Stack, _: float) -> list[IpSet]:
    return [live.value() for _, live in sorted(stack.netfilter.ipsets.items())]


def ipvs(stack: Stack, _: float) -> list[ServiceInfo]:
    """By protocol, address and port, as ipvsadm sorts them."""
    return [service_info(service) for _, service in sorted(stack.netfilter.ipvs.services.items())]


def service_info(service: Service) -> ServiceInfo:
    value = service.value
    servers = [server_info(server) for server in sorted(service.servers, key=lambda s: (s.address, s.port))]
    totals = [sum(column) for column in zip(*(server.stats for server in servers), strict=True)] or [0] * 5
    rates = [sum(column) for column in zip(*(server.rates for server in servers), strict=True)] or [0] * 5
    return ServiceInfo(
        value.protocol,
        value.address,
        value.port,
        value.scheduler,
        value.persistent,
        value.flags,
        value.origin,
        servers,
        (totals[0], totals[1], totals[2], totals[3], totals[4]),
        (rates[0], rates[1], rates[2], rates[3], rates[4]),
    )


def server_info(server: Server) -> ServerInfo:
    connections, packets_in, packets_out, bytes_in, bytes_out = (round(rate) for rate in server.rates)
    return ServerInfo(
        address_text(server.address),
        server.port,
        server.weight,
        server.active,
        server.inactive,
        server.persistent,
        server.terminating,
        server.totals(),
        (connections, packets_in, packets_out, bytes_in, bytes_out),
    )


def connections(stack: Stack, now: float) -> list[ConnectionInfo]:
    found = []
    for connection in stack.netfilter.conntrack.connections(now):
        served = connection.served
        if served is None:
            continue
        client, virtual, client_port, virtual_port = split(connection.original)
        proto = connection.original[-1]
        state = STATES[connection.state] if proto == TCP else NAMES[proto].upper()
        end = address_text(served.server.address), served.server.port
        ends = (address_text(client), client_port, address_text(virtual), virtual_port, *end)
        found.append(ConnectionInfo(NAMES[proto], max(0, int(connection.expires - now)), state, *ends))
    for service in stack.netfilter.ipvs:
        for client, template in service.templates.items():
            end = address_text(template.server.address), template.server.port
            ends = (address_text(client), 0, service.value.address, service.value.port, *end)
            found.append(ConnectionInfo(service.value.protocol, max(0, int(template.expires - now)), "NONE", *ends))
    return found
