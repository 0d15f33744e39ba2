"""The prometheus plugin: GET localhost:9153/metrics, the questions and answers of its server block under CoreDNS' names.

    prometheus [ADDRESS]

Other plugins' metrics stand there too. Not there: Go's runtime, `plugin` of coredns_dns_responses_total (which plugin wrote the
answer). Source: https://coredns.io/plugins/metrics/.
"""

from __future__ import annotations

from dnslib import QTYPE
from prometheus_client import Counter as PrometheusCounter
from prometheus_client import Histogram as PrometheusHistogram

from podwire_dns import message as m
from podwire_dns.corefile import Directive
from podwire_dns.message import Query, Reply
from podwire_dns.metrics import BYTES
from podwire_dns.plugin import Context, longest_zone
from podwire_dns.plugins.httpd import HttpEndpoint

_NAMES = (
    *("A", "AAAA", "ANY", "AXFR", "CNAME", "DNSKEY", "DS", "HINFO", "HTTPS", "IXFR", "MX", "NAPTR"),
    *("NS", "NSEC", "NSEC3", "PTR", "RRSIG", "SOA", "SRV", "TLSA", "TXT"),
)
KNOWN_TYPES: dict[int, str] = {QTYPE.reverse[name]: name for name in _NAMES}  # the rest counts as "other"
Asked = tuple[str, int, bool, bool, bool]  # zone, type, TCP, from IPv6, DO
Children = tuple[list[PrometheusCounter], PrometheusHistogram, PrometheusHistogram]


class Prometheus(HttpEndpoint):
    name, path, host, port = "prometheus", "/metrics", "localhost", 9153

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        self._zones = zones
        self._children: dict[tuple[Asked, int], Children] = {}
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
        zone = longest_zone(query.lower, self._zones) or ""
        qtype = query.qtype if query.qtype in KNOWN_TYPES else 0
        asked = (zone, qtype, query.tcp, ":" in query.client, query.do)  # plugins behind may change the query
        reply = await self.next.serve(query)
        self._counted(asked, reply.rcode, self.context.clock() - started, query.length)
        return reply

    def _counted(self, asked: Asked, rcode: int, seconds: float, length: int) -> None:
        found = self._children.get((asked, rcode))
        if found is None:
            found = self._children[asked, rcode] = self._find(asked, rcode)
        counters, duration, size = found
        for counter in counters:
            counter.inc()
        duration.observe(seconds)
        size.observe(length)

    def _find(self, asked: Asked, rcode: int) -> Children:
        """Finding the children by their labels takes longer than counting."""
        zone, qtype, tcp, ipv6, do = asked
        labels, proto = (self.context.server, f"{zone}.", ""), "tcp" if tcp else "udp"
        kind = KNOWN_TYPES.get(qtype, "other")
        counters = [
            self._requests.child(*labels, proto, "2" if ipv6 else "1", kind),
            self._responses.child(*labels, m.rcode_name(rcode)),
            *([self._do.child(*labels)] if do else []),
        ]
        return counters, self._duration.child(*labels), self._size.child(*labels, proto)

    def answer(self) -> tuple[int, bytes]:
        return 200, self.context.metrics.text()
