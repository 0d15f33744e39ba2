"""The kubernetes plugin: Kubernetes DNS-Based Service Discovery 1.1.0 from the objects, with CoreDNS' extensions.

Its options: kubesettings.py. Rules: a name that exists answers NODATA (with SOA) for types it does not have, one that does not,
NXDOMAIN; a name that only has children exists. The case of the question is kept. Before the first listing every question is
SERVFAIL. Wildcards are not served (CoreDNS took them out in 1.9), zone transfers are refused.
Order to read: Kubernetes.serve, _forward (names below the zone), _service, _endpoint_records, _pod, _reverse, _apex.
Sources: https://github.com/kubernetes/dns/blob/master/docs/specification.md, https://coredns.io/plugins/kubernetes/.
"""

from __future__ import annotations

from dnslib import QTYPE, RR

from podwire_core import selectors
from podwire_dns import message as m
from podwire_dns.corefile import Directive
from podwire_dns.kubeindex import EndpointEntry, PortEntry, ServiceEntry
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin, falls_through, longest_zone
from podwire_dns.plugins.kubenames import address_of_reverse, dashed, is_reverse, undashed, version
from podwire_dns.plugins.kubesettings import settings

SCHEMA_VERSION, SCHEMA_TTL = "1.1.0", 28800
ADDRESS_TYPES = {QTYPE.A: 4, QTYPE.AAAA: 6}
TRANSFERS = (251, 252)  # IXFR, AXFR
MAX_LABEL = 63
MAX_HOPS = 8  # ExternalNames in a row
ZONE_SCOPES = ("pin", "prefer")


class Missing(Exception):
    """The name does not exist."""


class Kubernetes(Plugin):
    name = "kubernetes"
    repeatable = False

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        self._settings = settings(directive, zones)
        self._zones, self._ttl = self._settings.zones, self._settings.ttl

    def ready(self) -> bool:
        return self.context.synced()

    async def serve(self, query: Query) -> Reply:
        zone = longest_zone(query.lower, self._zones)
        if zone is None:
            return await self.next.serve(query)
        if not self.context.synced():
            return Reply(m.SERVFAIL)
        if query.qtype in TRANSFERS:
            return Reply(m.REFUSED, authoritative=False)
        serial, apex = self.context.index.serial, f"{zone}."
        try:
            found = self._reverse(query, zone) if is_reverse(zone) else await self._forward(query, zone)
        except Missing:
            if falls_through(self._settings.fallthrough, query.lower):
                return await self.next.serve(query)
            return m.nxdomain(apex, serial, self._ttl)
        if not found.answer and found.rcode == m.NOERROR:
            return m.nodata(apex, serial, self._ttl)
        return found

    def search_path(self, query: Query) -> list[str]:
        """What the autopath plugin asks: the search domains of the pod that asks, [] unless it is known (pods verified)."""
        zone = longest_zone(query.lower, self._zones)
        if zone is None or self._settings.pods != "verified":
            return []
        tail = f"{zone}." if zone else ""
        for pod in self.context.index.pods_of_ip(query.client):
            namespace = pod["metadata"].get("namespace", "default")
            return [f"{namespace}.svc.{tail}", f"svc.{tail}", tail]
        return []

    # --- names below a zone --------------------------------

    async def _forward(self, query: Query, zone: str) -> Reply:
        relative = query.lower[: -len(zone) - 2] if zone else query.lower[:-1]
        match relative.split(".") if relative else []:
            case []:
                return self._apex(query, zone)
            case ["dns-version"]:
                return Reply(answer=[m.txt(query.name, SCHEMA_VERSION, SCHEMA_TTL)] if query.qtype == QTYPE.TXT else [])
            case ["ns", "dns"]:
                return Reply(answer=self._own_addresses(query))
            case ["dns"] | ["svc"] | ["pod"]:
                return Reply()
            case [namespace, "svc"]:
                return self._exists(self._exposed(namespace))
            case [namespace, "pod"]:
                return self._exists(self._settings.pods != "disabled" and self._exposed(namespace))
            case [*head, service, namespace, "svc"]:
                return await self._service(query, namespace, service, head, zone)
            case [label, namespace, "pod"]:
                return self._pod(query, namespace, label)
        raise Missing

    @staticmethod
    def _exists(exists: bool) -> Reply:
        if not exists:
            raise Missing
        return Reply()

    def _exposed(self, namespace: str) -> bool:
        obj = self.context.index.namespaces.get(namespace)
        if obj is None or (self._settings.namespaces is not None and namespace not in self._settings.namespaces):
            return False
        wanted = self._settings.namespace_labels
        return wanted is None or selectors.satisfies(wanted, obj["metadata"].get("labels"))

    def _visible(self, service: ServiceEntry) -> bool:
        wanted = self._settings.labels
        return self._exposed(service.namespace) and (wanted is None or selectors.satisfies(wanted, dict(service.labels)))

    # --- Services --------------------------------

    async def _service(self, query: Query, namespace: str, name: str, head: list[str], zone: str) -> Reply:
        service = self.context.index.services.get((namespace, name))
        if service is None or not self._visible(service):
            raise Missing
        if self._settings.ignore_empty and service.addresses and not self._ready(service):
            raise Missing
        match head:
            case []:
                return await self._whole_service(query, service, "", "")
            case [proto] if proto.startswith("_"):
                return self._only_children(service, proto[1:])
            case [endpoint]:
                if service.external:
                    raise Missing
                return self._endpoint_records(query, service, "", "", self._named(service, endpoint))
            case [port, proto] if port != "_":  # a port without a name has no record of its own
                return await self._whole_service(query, service, port.removeprefix("_"), proto.removeprefix("_"))
            case [*topology, scope, "_zone"] if topology and scope in ZONE_SCOPES and self._settings.zonal:
                return self._zonal(query, service, ".".join(topology), scope)
        raise Missing

    async def _whole_service(self, query: Query, service: ServiceEntry, port: str, proto: str) -> Reply:
        if service.external:
            return await self._external(query, service)
        if service.addresses:
            return self._cluster_ip(query, service, port, proto)
        return self._endpoint_records(query, service, port, proto, self._ready(service))

    def _only_children(self, service: ServiceEntry, proto: str) -> Reply:
        """`_tcp.svc.ns.svc.zone` has `_http._tcp…` below it if a port of that protocol has a name."""
        ports = service.ports or tuple(p for e in self._ready(service) for p in e.ports)
        return self._exists(any(p.name and p.proto == proto for p in ports))

    async def _external(self, query: Query, service: ServiceEntry) -> Reply:
        """A CNAME, and behind it the records of its target; as in CoreDNS for A, AAAA and CNAME, and without the CNAME where a
        target of this zone has no such records."""
        target = service.external.rstrip(".") + "."
        alias = m.cname(query.name, target, self._ttl)
        if query.qtype == QTYPE.CNAME:
            return Reply(answer=[alias])
        if query.qtype not in ADDRESS_TYPES or target.lower() == query.lower or query.hops >= MAX_HOPS:
            return Reply()
        behind = query.renamed(target)
        behind.hops += 1
        if longest_zone(behind.lower, self._zones) is not None:
            found = (await self.serve(behind)).answer
            return Reply(answer=[alias, *found] if found else [])
        reply = await self.context.lookup(behind)
        return Reply(answer=[alias, *(reply.answer if reply.rcode == m.NOERROR else [])])

    def _cluster_ip(self, query: Query, service: ServiceEntry, port: str, proto: str) -> Reply:
        ports = _matching(service.ports, port, proto)
        if port and not ports:
            raise Missing
        if query.qtype in ADDRESS_TYPES:
            family = ADDRESS_TYPES[query.qtype]
            return Reply(answer=[m.address(query.name, ip, self._ttl) for ip in service.addresses if version(ip) == family])
        if query.qtype == QTYPE.SRV:
            target = self._service_name(query, service)
            weight = _weight(len(ports) * len(service.addresses))
            records = [m.srv(query.name, weight, p.port, target, self._ttl) for p in ports]
            return Reply(answer=records, additional=[m.address(target, ip, self._ttl) for ip in service.addresses])
        return Reply()

    def _service_name(self, query: Query, service: ServiceEntry) -> str:
        """`svc.ns.svc.zone.`, the zone in the case of the question."""
        zone = longest_zone(query.lower, self._zones) or ""
        return f"{service.name}.{service.namespace}.svc.{query.name[len(query.name) - len(zone) - 1 :] if zone else ''}"

    # --- endpoints --------------------------------

    def _endpoint_records(self, query: Query, service: ServiceEntry, port: str, proto: str, chosen: list[EndpointEntry]) -> Reply:
        if port:
            chosen = [e for e in chosen if _matching(e.ports, port, proto)]
        if not chosen:
            raise Missing
        if query.qtype in ADDRESS_TYPES:
            family = ADDRESS_TYPES[query.qtype]
            addresses = dict.fromkeys(e.address for e in chosen if version(e.address) == family)
            return Reply(answer=[m.address(query.name, ip, self._ttl) for ip in addresses])
        if query.qtype == QTYPE.SRV:
            return self._endpoint_srv(query, service, chosen, port, proto)
        return Reply()

    def _endpoint_srv(self, query: Query, service: ServiceEntry, chosen: list[EndpointEntry], port: str, proto: str) -> Reply:
        base = self._service_name(query, service)
        targets = [(f"{self._endpoint_name(e)}.{base}", e, _matching(e.ports, port, proto)) for e in chosen]
        weight = _weight(sum(len(ports) for _, _, ports in targets))
        records = {
            (target, p.port): m.srv(query.name, weight, p.port, target, self._ttl) for target, _, ports in targets for p in ports
        }
        glue = {(target, e.address): m.address(target, e.address, self._ttl) for target, e, _ in targets}
        return Reply(answer=list(records.values()), additional=list(glue.values()))

    def _ready(self, service: ServiceEntry) -> list[EndpointEntry]:
        if not self._settings.endpoints:
            return []
        endpoints = self.context.index.endpoints(service.namespace, service.name)
        return [e for e in endpoints if e.ready or service.publish_not_ready]

    def _named(self, service: ServiceEntry, name: str) -> list[EndpointEntry]:
        return [e for e in self._ready(service) if self._endpoint_name(e).lower() == name]

    def _endpoint_name(self, endpoint: EndpointEntry) -> str:
        """Its hostname; with endpoint_pod_names its pod's name where that is a label; else its address with dashes."""
        if endpoint.hostname:
            return endpoint.hostname
        if self._settings.pod_names and endpoint.pod and len(endpoint.pod) <= MAX_LABEL:
            return endpoint.pod
        return dashed(endpoint.address)

    def _zonal(self, query: Query, service: ServiceEntry, topology: str, scope: str) -> Reply:
        """`us-west-2a.pin._zone.svc…`: a headless Service's endpoints in that zone, NODATA if there is none; with `prefer` all
        endpoints then."""
        if service.external or service.addresses:
            raise Missing
        ready = self._ready(service)
        chosen = [e for e in ready if e.zone == topology]
        if ready and not chosen and scope == "pin":
            return Reply()
        return self._endpoint_records(query, service, "", "", chosen or ready)

    # --- pods, reverse, the zone itself --------------------------------

    def _pod(self, query: Query, namespace: str, label: str) -> Reply:
        ip = undashed(label)
        if self._settings.pods == "disabled" or ip is None or not self._exposed(namespace):
            raise Missing
        if self._settings.pods == "verified":
            pods = self.context.index.pods_of_ip(ip)
            if not any(p["metadata"].get("namespace", "default") == namespace for p in pods):
                raise Missing
        if ADDRESS_TYPES.get(query.qtype) != version(ip):
            return Reply()
        return Reply(answer=[m.address(query.name, ip, self._ttl)])

    def _reverse(self, query: Query, zone: str) -> Reply:
        """A ClusterIP is its Service; any other address all the endpoints it is, in every Service."""
        if query.lower == f"{zone}.":
            return self._apex(query, zone)
        ip = address_of_reverse(query.lower)
        if ip is None:
            raise Missing
        tail = f"svc.{self._settings.primary_zone}." if self._settings.primary_zone else "svc."
        names: dict[str, None] = {}
        for service in self.context.index.services_of_cluster_ip(ip):
            if self._visible(service):
                names[f"{service.name}.{service.namespace}.{tail}"] = None
        for service, endpoint in self.context.index.endpoints_of_ip(ip) if self._settings.endpoints and not names else []:
            if self._visible(service) and not service.external and (endpoint.ready or service.publish_not_ready):
                names[f"{self._endpoint_name(endpoint)}.{service.name}.{service.namespace}.{tail}"] = None
        if not names:
            raise Missing
        return Reply(answer=[m.ptr(query.name, name, self._ttl) for name in names] if query.qtype == QTYPE.PTR else [])

    def _apex(self, query: Query, zone: str) -> Reply:
        if query.qtype == QTYPE.SOA:
            return Reply(answer=[m.soa(query.name, self.context.index.serial, self._ttl)])
        if query.qtype == QTYPE.NS:
            servers = self._name_servers(query.name)
            records = [m.ns(query.name, name, self._ttl) for name in dict.fromkeys(name for name, _ in servers)]
            return Reply(answer=records, additional=[m.address(name, ip, self._ttl) for name, ip in servers])
        return Reply()

    def _own_addresses(self, query: Query) -> list[RR]:
        """Of ns.dns.zone."""
        family = ADDRESS_TYPES.get(query.qtype)
        ips = dict.fromkeys(ip for _, ip in self._name_servers("") if version(ip) == family)
        return [m.address(query.name, ip, self._ttl) for ip in ips]

    def _name_servers(self, zone: str) -> list[tuple[str, str]]:
        """Name and address: of the Service in front of this server (of its endpoints if it is headless), else ns.dns.zone where
        this server listens."""
        local, found = self.context.listen[0], []
        for service, _ in self.context.index.endpoints_of_ip(local):
            base = f"{service.name}.{service.namespace}.svc.{zone}"
            found += [(base, ip) for ip in service.addresses]
            if not service.addresses and not service.external:
                found += [(f"{self._endpoint_name(e)}.{base}", e.address) for e in self._ready(service)]
        return found or [(f"ns.dns.{zone}".replace("..", "."), local)]


def _weight(records: int) -> int:
    """CoreDNS shares 100 among the records of an answer, at least 1 for each."""
    return max(1, 100 // max(1, records))


def _matching(ports: tuple[PortEntry, ...], port: str, proto: str) -> list[PortEntry]:
    return [p for p in ports if (not port or p.name == port) and (not proto or p.proto == proto)]
