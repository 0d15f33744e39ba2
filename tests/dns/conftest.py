"""A server in memory: a Corefile and objects in, answers out; no sockets."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import dnslib
import pytest
import trio

from podwire_core.objects import key_of
from podwire_dns.corefile import parse
from podwire_dns.kubeindex import KubeIndex
from podwire_dns.plugin import Context
from podwire_dns.server import Server

Json = dict[str, Any]


class Asked:
    """A reply in short: rcode, records as (name, type, rdata) texts, zones of the authority section's SOAs."""

    def __init__(self, reply: dnslib.DNSRecord) -> None:
        self.raw = reply
        self.rcode = dnslib.RCODE[reply.header.rcode]
        self.answer = [(str(r.rname), dnslib.QTYPE[r.rtype], str(r.rdata)) for r in reply.rr]
        self.data = sorted(data for _, _, data in self.answer)
        self.extra = sorted(f"{r.rname} {dnslib.QTYPE[r.rtype]} {r.rdata}" for r in reply.ar if r.rtype != dnslib.QTYPE.OPT)
        self.ttls = {r.ttl for r in reply.rr}
        self.soa = [str(r.rname) for r in reply.auth if r.rtype == dnslib.QTYPE.SOA]


class InMemory:
    def __init__(self, corefile: str, objects: list[Json], synced: bool = True) -> None:
        self.now = 0.0
        self.index = KubeIndex()
        for obj in objects:
            self.index.put(obj["kind"], key_of(obj), obj)
        self.context = Context(self.index, lambda: synced, lambda: self.now, random.Random(1), ("10.244.1.2", 53))
        self.server = Server(parse(corefile), self.context)

    def ask(self, name: str, qtype: str = "A", client: str = "10.244.1.9", tcp: bool = False, size: int = 1232) -> Asked:
        reply = self.send(name, qtype, client, tcp, size)
        assert reply is not None
        assert tcp or len(reply) <= max(512, size)
        return Asked(dnslib.DNSRecord.parse(reply))

    def send(
        self,
        name: str,
        qtype: str = "A",
        client: str = "10.244.1.9",
        tcp: bool = False,
        size: int = 1232,
        qclass: int = 1,
        port: int = 53,
    ) -> bytes | None:
        """The reply as it is; None if there is none."""
        query = dnslib.DNSRecord(q=dnslib.DNSQuestion(name, getattr(dnslib.QTYPE, qtype), qclass))
        query.add_ar(dnslib.EDNS0(udp_len=size))
        return trio.run(self.server.answer, query.pack(), client, tcp, port, 40000)

    def metrics(self, name: str) -> dict[str, float]:
        """The samples of a metric by their labels' text."""
        lines = [line for line in self.context.metrics.text().decode().splitlines() if line.startswith(name + "{")]
        return {labels: float(value) for labels, _, value in (line[len(name) :].rpartition(" ") for line in lines)}


@pytest.fixture
def server() -> Callable[..., InMemory]:
    return InMemory


def namespace(name: str) -> Json:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def service(
    name: str, ip: str | list[str] = "10.96.0.50", ports: tuple[tuple[str, str, int], ...] = (("http", "TCP", 80),), **spec: Any
) -> Json:
    ips = [ip] if isinstance(ip, str) else ip
    port_list = [{"name": n, "protocol": proto, "port": p} for n, proto, p in ports]
    fields = {"clusterIP": ips[0], "clusterIPs": ips, "ports": port_list, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": fields}


def slice_of(
    name: str, *endpoints: Json, family: str = "IPv4", ports: tuple[tuple[str, str, int], ...] = (("http", "TCP", 8080),)
) -> Json:
    meta = {"name": f"{name}-{family}", "namespace": "default", "labels": {"kubernetes.io/service-name": name}}
    port_list = [{"name": n, "protocol": proto, "port": p} for n, proto, p in ports]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": meta,
        "addressType": family,
        "endpoints": list(endpoints),
        "ports": port_list,
    }


def endpoint(ip: str, ready: bool = True, **more: Any) -> Json:
    return {"addresses": [ip], "conditions": {"ready": ready}, **more}


def pod(name: str, ip: str, ns: str = "default") -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": ns},
        "spec": {"containers": [{"name": "c"}]},
        "status": {"podIP": ip, "phase": "Running"},
    }
