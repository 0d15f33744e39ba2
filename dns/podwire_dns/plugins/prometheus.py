"""The prometheus plugin: GET localhost:9153/metrics, the questions and answers of its server block under CoreDNS' names.

    prometheus [ADDRESS]

Other plugins' metrics stand there too. Not there: Go's runtime, `plugin` of coredns_dns_responses_total (which plugin wrote the
answer). Source: https://coredns.io/plugins/metrics/.
"""

from __future__ import annotations

from dnslib import QTYPE

from podwire_dns import message as m
from podwire_dns.corefile import Directive
from podwire_dns.message import Query, Reply
from podwire_dns.metrics import BYTES
from podwire_dns.plugin import Context, longest_zone
from podwire_dns.plugins.httpd import HttpEndpoint

KNOWN_TYPES = frozenset(
    [
        "A",
        "AAAA",
        "ANY",
        "AXFR",
        "CNAME",
        "DNSKEY",
        "DS",
        "HINFO",
        "HTTPS",
        "IXFR",
        "MX",
        "NAPTR",
        "NS",
        "NSEC",
        "NSEC3",
        "PTR",
        "RRSIG",
        "SOA",
        "SRV",
        "SVCB",
        "TLSA",
        "TXT",
    ]
)


class Prometheus(HttpEndpoint):
    name, path, host, port = "prometheus", "/metrics", "localhost", 9153

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        self._zones = zones
        metrics, labels = context.metrics, ("server", "zone", "view")
        self._requests = metrics.counter(
            "coredns_dns_requests",
            "Counter of DNS requests made per zone, protocol and family.",
            *labels,
            "proto",
            "family",
            "type",
        )
        self._do = metrics.counter("coredns_dns_do_requests", "Counter of DNS requests with DO bit set per zone.", *labels)
        self._responses = metrics.counter("coredns_dns_responses", "Counter of response status codes.", *labels, "rcode")
        self._duration = metrics.histogram(
            "coredns_dns_request_duration_seconds", "Histogram of the time (in seconds) each request took per zone.", *labels
        )
        self._size = metrics.histogram(
            "coredns_dns_request_size_bytes",
            "Size of the EDNS0 UDP buffer in bytes (64K for TCP) per zone and protocol.",
            *labels,
            "proto",
            buckets=BYTES,
        )
        enabled = metrics.gauge(
            "coredns_plugin_enabled",
            "A metric that indicates whether a plugin is enabled on per server and zone basis.",
            *labels,
            "name",
        )
        self._enabled = enabled

    def linked(self) -> None:
        plugin = self.next
        while plugin.name:
            for zone in self._zones:
                self._enabled.set(1, self.context.server, f"{zone}.", "", plugin.name)
            plugin = plugin.next

    async def serve(self, query: Query) -> Reply:
        started = self.context.clock()
        qtype, lower, do, proto = query.qtype, query.lower, query.do, "tcp" if query.tcp else "udp"
        reply = await self.next.serve(query)
        labels = (self.context.server, f"{longest_zone(lower, self._zones) or ''}.", "")
        kind = str(QTYPE.get(qtype))
        family = "2" if ":" in query.client else "1"
        self._requests.inc(*labels, proto, family, kind if kind in KNOWN_TYPES else "other")
        if do:
            self._do.inc(*labels)
        self._responses.inc(*labels, m.rcode_name(reply.rcode))
        self._duration.observe(self.context.clock() - started, *labels)
        self._size.observe(query.length, *labels, proto)
        return reply

    def answer(self) -> tuple[int, bytes]:
        return 200, self.context.metrics.text()
