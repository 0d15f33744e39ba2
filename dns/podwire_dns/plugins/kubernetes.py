"""The kubernetes plugin: Kubernetes DNS-Based Service Discovery 1.1.0 from the objects, with CoreDNS' extensions.

    kubernetes [ZONES…] { pods disabled|insecure|verified; namespaces NS…; ttl N; fallthrough [ZONES…]; endpoint_pod_names;
                          ignore empty_service; noendpoints }

Rules: a name that exists answers NODATA (with SOA) for types it does not have, one that does not, NXDOMAIN; a name that only
has children exists. The case of the question is kept. Before the first listing every question is SERVFAIL.
Order to read: Kubernetes.serve, _forward (names below the zone), _service, _pod, _reverse, options.
Sources: https://github.com/kubernetes/dns/blob/master/docs/specification.md, https://coredns.io/plugins/kubernetes/.
"""

from __future__ import annotations

import ipaddress

from dnslib import QTYPE, RR

from podwire_dns import message as m
from podwire_dns.corefile import Directive
from podwire_dns.kubeindex import EndpointEntry, PortEntry, ServiceEntry
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin, in_zone, longest_zone

SCHEMA_VERSION = "1.1.0"
ADDRESS_TYPES = {QTYPE.A: 4, QTYPE.AAAA: 6}
MAX_LABEL = 63


class Missing(Exception):
    """The name does not exist."""


class Kubernetes(Plugin):
    name = "kubernetes"

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        self._zones = tuple(_zone(z) for z in directive.args) or zones
        self._pods = "disabled"
        self._ttl = 5
        self._namespaces: frozenset[str] | None = None
        self._fallthrough: tuple[str, ...] | None = None
        self._pod_names = self._ignore_empty = False
        self._endpoints_known = True
        self._take_options(directive)

    async def serve(self, query: Query) -> Reply:
        zone = longest_zone(query.lower, self._zones)
        if zone is None:
            return await self.next.serve(query)
        if not self.context.synced():
            return Reply(m.SERVFAIL)
        serial = self.context.index.serial
        try:
            reverse = _address_of_reverse(query.lower)
            found = self._reverse(query, reverse) if reverse else await self._forward(query, zone)
        except Missing:
            if self._fallthrough is not None and any(in_zone(query.lower, z) for z in self._fallthrough or self._zones):
                return await self.next.serve(query)
            return m.nxdomain(f"{zone}." if zone else ".", serial, self._ttl)
        if not found.answer and found.rcode == m.NOERROR:
            return m.nodata(f"{zone}." if zone else ".", serial, self._ttl)
        return found

    # --- names below a zone --------------------------------

    async def _forward(self, query: Query, zone: str) -> Reply:
        relative = query.lower[: -len(zone) - 2] if zone else query.lower[:-1]
        labels = [label for label in relative.split(".") if label]
        match labels:
            case []:
                return self._apex(query, zone)
            case ["dns-version"]:
                return Reply(answer=[m.txt(query.name, SCHEMA_VERSION, self._ttl)] if query.qtype == QTYPE.TXT else [])
            case ["dns", "ns"] | ["ns", "dns"]:
                return Reply(answer=self._own_addresses(query) if labels == ["ns", "dns"] else [])
            case ["dns"] | ["svc"]:
                return Reply()
            case ["pod"]:
                return self._exists(self._pods != "disabled")
            case [namespace, "svc"]:
                return self._exists(self._exposed(namespace))
            case [namespace, "pod"]:
                return self._exists(self._pods != "disabled" and self._exposed(namespace))
            case [*head, service, namespace, "svc"]:
                return await self._service(query, namespace, service, head, zone)
            case [dashed, namespace, "pod"]:
                return self._pod(query, namespace, dashed)
        raise Missing

    @staticmethod
    def _exists(exists: bool) -> Reply:
        if not exists:
            raise Missing
        return Reply()

    def _exposed(self, namespace: str) -> bool:
        index = self.context.index
        return namespace in index.namespaces and (self._namespaces is None or namespace in self._namespaces)

    def _apex(self, query: Query, zone: str) -> Reply:
        apex = f"{zone}." if zone else "."
        if query.qtype == QTYPE.SOA:
            return Reply(answer=[m.soa(query.name, self.context.index.serial, self._ttl)])
        if query.qtype == QTYPE.NS:
            server = f"ns.dns.{apex}"
            glue = [m.address(server, ip, self._ttl) for ip in self._server_addresses()]
            return Reply(answer=[m.ns(query.name, server, self._ttl)], additional=glue)
        return Reply()

    def _own_addresses(self, query: Query) -> list[RR]:
        version = ADDRESS_TYPES.get(query.qtype)
        return [m.address(query.name, ip, self._ttl) for ip in self._server_addresses() if _version(ip) == version]

    def _server_addresses(self) -> tuple[str, ...]:
        """The Service in front of this server if there is one, else where it listens."""
        local = self.context.listen[0]
        for service, _ in self.context.index.endpoints_of_ip(local):
            if service.addresses:
                return service.addresses
        return (local,)

    # --- Services and their endpoints --------------------------------

    async def _service(self, query: Query, namespace: str, name: str, head: list[str], zone: str) -> Reply:
        service = self.context.index.services.get((namespace, name)) if self._exposed(namespace) else None
        if service is None:
            raise Missing
        port = proto = endpoint = ""
        match head:
            case []:
                pass
            case [port, proto] if len(port) > 1 and port.startswith("_") and proto.startswith("_"):
                port, proto = port[1:], proto[1:]  # a port without a name has no record of its own
            case [endpoint]:
                pass
            case _:
                raise Missing
        if service.external:
            return await self._external(query, service) if not head else self._exists(False)
        if endpoint.startswith("_"):
            return self._only_children(service, endpoint[1:])
        if service.addresses and not endpoint:
            return self._cluster_ip(query, service, port, proto)
        return self._endpoint_records(query, service, port, proto, endpoint, zone)

    def _only_children(self, service: ServiceEntry, proto: str) -> Reply:
        """`_tcp.svc.ns.svc.zone` has `_http._tcp…` below it if a port of that protocol has a name."""
        ports = service.ports or tuple(p for e in self._ready(service) for p in e.ports)
        return self._exists(any(p.name and p.proto == proto for p in ports))

    async def _external(self, query: Query, service: ServiceEntry) -> Reply:
        """A CNAME, and behind it the records of its target, from here or from behind this plugin."""
        target = service.external.rstrip(".") + "."
        answer = [m.cname(query.name, target, self._ttl)]
        if query.qtype in ADDRESS_TYPES:
            behind = query.renamed(target)
            here = longest_zone(behind.lower, self._zones) is not None and target.lower() != query.lower
            reply = await (self.serve(behind) if here else self.next.serve(behind))
            answer += reply.answer if reply.rcode == m.NOERROR else []
        return Reply(answer=answer)

    def _cluster_ip(self, query: Query, service: ServiceEntry, port: str, proto: str) -> Reply:
        if self._ignore_empty and not self._ready(service):
            raise Missing
        ports = _matching(service.ports, port, proto)
        if port and not ports:
            raise Missing
        if query.qtype in ADDRESS_TYPES:
            family = ADDRESS_TYPES[query.qtype]
            return Reply(answer=[m.address(query.name, ip, self._ttl) for ip in service.addresses if _version(ip) == family])
        if query.qtype == QTYPE.SRV:
            target = self._service_name(query, service, bool(port))
            weight = 100 // max(1, len(ports))
            records = [m.srv(query.name, weight, p.port, target, self._ttl) for p in ports]
            return Reply(answer=records, additional=[m.address(target, ip, self._ttl) for ip in service.addresses])
        return Reply()

    @staticmethod
    def _service_name(query: Query, service: ServiceEntry, with_port: bool) -> str:
        """`svc.ns.svc.zone.`, in the case of the question."""
        return query.name.split(".", 2)[2] if with_port else query.name

    def _endpoint_records(self, query: Query, service: ServiceEntry, port: str, proto: str, endpoint: str, zone: str) -> Reply:
        if not self._endpoints_known:
            raise Missing
        chosen = [e for e in self._ready(service) if not endpoint or endpoint in (self._endpoint_name(e), _dashed(e.address))]
        if port:
            chosen = [e for e in chosen if _matching(e.ports, port, proto)]
        if not chosen:
            raise Missing
        if query.qtype in ADDRESS_TYPES:
            family = ADDRESS_TYPES[query.qtype]
            addresses = dict.fromkeys(e.address for e in chosen if _version(e.address) == family)
            return Reply(answer=[m.address(query.name, ip, self._ttl) for ip in addresses])
        if query.qtype == QTYPE.SRV:
            return self._endpoint_srv(query, service, chosen, port, proto, zone)
        return Reply()

    def _endpoint_srv(
        self, query: Query, service: ServiceEntry, chosen: list[EndpointEntry], port: str, proto: str, zone: str
    ) -> Reply:
        base = f"{service.name}.{service.namespace}.svc.{zone}."
        targets = [(f"{self._endpoint_name(e)}.{base}", e, _matching(e.ports, port, proto)) for e in chosen]
        weight = 100 // max(1, sum(len(ports) for _, _, ports in targets))
        records = {
            (target, p.port): m.srv(query.name, weight, p.port, target, self._ttl) for target, _, ports in targets for p in ports
        }
        glue = {(target, e.address): m.address(target, e.address, self._ttl) for target, e, _ in targets}
        return Reply(answer=list(records.values()), additional=list(glue.values()))

    def _ready(self, service: ServiceEntry) -> list[EndpointEntry]:
        endpoints = self.context.index.endpoints(service.namespace, service.name)
        return [e for e in endpoints if e.ready or service.publish_not_ready]

    def _endpoint_name(self, endpoint: EndpointEntry) -> str:
        """Its hostname; with endpoint_pod_names its pod's name where that is a label; else its address with dashes."""
        if endpoint.hostname:
            return endpoint.hostname
        if self._pod_names and endpoint.pod and len(endpoint.pod) <= MAX_LABEL:
            return endpoint.pod
        return _dashed(endpoint.address)

    # --- pods, reverse --------------------------------

    def _pod(self, query: Query, namespace: str, dashed: str) -> Reply:
        if self._pods == "disabled" or not self._exposed(namespace):
            raise Missing
        ip = _undashed(dashed)
        if ip is None:
            raise Missing
        if self._pods == "verified":
            pods = self.context.index.pods_of_ip(ip)
            if not any(p["metadata"].get("namespace", "default") == namespace for p in pods):
                raise Missing
        if ADDRESS_TYPES.get(query.qtype) != _version(ip):
            return Reply()
        return Reply(answer=[m.address(query.name, ip, self._ttl)])

    def _reverse(self, query: Query, ip: str) -> Reply:
        zone = next((z for z in self._zones if not z.endswith(".arpa")), "cluster.local")
        names: dict[str, None] = {}
        for service in self.context.index.services_of_cluster_ip(ip):
            if self._exposed(service.namespace):
                names[f"{service.name}.{service.namespace}.svc.{zone}."] = None
        for service, endpoint in [] if names else self.context.index.endpoints_of_ip(ip):
            if self._exposed(service.namespace) and not service.external:
                names[f"{self._endpoint_name(endpoint)}.{service.name}.{service.namespace}.svc.{zone}."] = None
        if not names:
            raise Missing
        return Reply(answer=[m.ptr(query.name, name, self._ttl) for name in names] if query.qtype == QTYPE.PTR else [])

    # --- options --------------------------------

    def _take_options(self, directive: Directive) -> None:
        for option in directive.options:
            match (option.name, option.args):
                case ("pods", ("disabled" | "insecure" | "verified" as mode,)):
                    self._pods = mode
                case ("namespaces", (_, *_) as names):
                    self._namespaces = frozenset(names)
                case ("ttl", (number,)) if number.isdigit() and int(number) <= 3600:
                    self._ttl = int(number)
                case ("fallthrough", zones):
                    self._fallthrough = tuple(_zone(z) for z in zones)
                case ("endpoint_pod_names", ()):
                    self._pod_names = True
                case ("ignore", ("empty_service",)):
                    self._ignore_empty = True
                case ("noendpoints", ()):
                    self._endpoints_known = False
                case _:
                    raise directive.error(f"unknown or wrong option: {' '.join((option.name, *option.args))}", option)


def _zone(text: str) -> str:
    """A zone as CoreDNS takes it: a name, or a network, which means its reverse zone."""
    if "/" in text:
        network = ipaddress.ip_network(text, strict=False)
        labels = network.network_address.reverse_pointer.split(".")
        bits = 8 if network.version == 4 else 4
        return ".".join(labels[(network.max_prefixlen - network.prefixlen) // bits :])
    return text.rstrip(".").lower()


def _matching(ports: tuple[PortEntry, ...], port: str, proto: str) -> list[PortEntry]:
    return [p for p in ports if (not port or p.name == port) and (not proto or p.proto == proto)]


def _version(ip: str) -> int:
    return 6 if ":" in ip else 4


def _dashed(ip: str) -> str:
    """10.1.2.3 → 10-1-2-3; fd00::1 → fd00--1."""
    return ip.replace(".", "-").replace(":", "-")


def _undashed(label: str) -> str | None:
    for separator in (".", ":"):
        try:
            return str(ipaddress.ip_address(label.replace("-", separator)))
        except ValueError:
            continue
    return None


def _address_of_reverse(name: str) -> str | None:
    """10.0.96.10.in-addr.arpa. → 10.96.0.10"""
    labels = name.rstrip(".").split(".")
    try:
        if labels[-2:] == ["in-addr", "arpa"] and len(labels) == 6:
            return str(ipaddress.IPv4Address(".".join(reversed(labels[:4]))))
        if labels[-2:] == ["ip6", "arpa"] and len(labels) == 34:
            return str(ipaddress.IPv6Address(int("".join(reversed(labels[:32])), 16)))
    except ValueError:
        return None
    return None
