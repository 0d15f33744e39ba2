"""The server's metrics under CoreDNS' names: made once a process, so that they go on counting over a reload.

prometheus_client does the text format; a child is kept for every set of label values, since finding one costs more than counting.
Order to read: Metrics, Counter.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Counter as PrometheusCounter
from prometheus_client import Gauge as PrometheusGauge
from prometheus_client import Histogram as PrometheusHistogram

# CoreDNS' buckets: plugin/pkg/... TimeBuckets (seconds), and the sizes of messages.
SECONDS = tuple(0.00025 * 2**n for n in range(16))
BYTES = (0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16000, 32000, 48000, 64000)


class Counter:
    """`inc(label values…)`."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], registry: CollectorRegistry) -> None:
        self._counter = PrometheusCounter(name, text, labels, registry=registry)
        self._children: dict[tuple[str, ...], PrometheusCounter] = {}

    def child(self, *values: str) -> PrometheusCounter:
        """What counts under these label values, to be kept by who counts for every question."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._counter.labels(*values) if values else self._counter
        return child

    def inc(self, *values: str) -> None:
        self.child(*values).inc()


class Gauge:
    """`set(value, label values…)`."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], registry: CollectorRegistry) -> None:
        self._gauge = PrometheusGauge(name, text, labels, registry=registry)

    def set(self, value: float, *values: str) -> None:
        (self._gauge.labels(*values) if values else self._gauge).set(value)

    def clear(self) -> None:
        self._gauge.clear()


class Histogram:
    """`observe(value, label values…)`."""

    def __init__(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...], registry: CollectorRegistry
    ) -> None:
        self._histogram = PrometheusHistogram(name, text, labels, buckets=buckets, registry=registry)
        self._children: dict[tuple[str, ...], PrometheusHistogram] = {}

    def child(self, *values: str) -> PrometheusHistogram:
        """What observes under these label values."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._histogram.labels(*values) if values else self._histogram
        return child

    def observe(self, value: float, *values: str) -> None:
        self.child(*values).observe(value)


class Metrics:
    """Metrics by name; asking for one again gives the same. Names without `_total`, which the format adds to counters."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        if name not in self._counters:
            self._counters[name] = Counter(name, text, labels, self._registry)
        return self._counters[name]

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, text, labels, self._registry)
        return self._gauges[name]

    def histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        if name not in self._histograms:
            self._histograms[name] = Histogram(name, text, labels, buckets, self._registry)
        return self._histograms[name]

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)
