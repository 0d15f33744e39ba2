"""What the kubernetes plugin's block says, read from the Corefile. Pure.

    kubernetes [ZONES…] {
        namespaces NS… | namespace_labels EXPRESSION
        labels EXPRESSION
        pods disabled|insecure|verified
        endpoint_pod_names
        ttl SECONDS
        noendpoints
        fallthrough [ZONES…]
        ignore empty_service
        zonal
        apiserver_qps N | apiserver_burst N | apiserver_max_inflight N | startup_timeout DURATION
    }

The last four are CoreDNS' ways to spare an API server: accepted, without effect here, where one watch follows all. `endpoint`,
`tls` and `kubeconfig` are refused (--api says where the API server is), and so is `multicluster`. Order to read: Settings,
settings.
"""

from __future__ import annotations

from msgspec import Struct

from podwire_core import selectors
from podwire_dns.corefile import Directive, Option, seconds, zones_of
from podwire_dns.plugins.kubenames import is_reverse

TTL, MAX_TTL = 5, 3600
NUMBERS = ("apiserver_qps", "apiserver_burst", "apiserver_max_inflight")
REFUSED = {
    "endpoint": "the API server is given on the command line (--api)",
    "tls": "the API server is given on the command line (--api)",
    "kubeconfig": "the API server is given on the command line (--api)",
    "multicluster": "ServiceImports are not served",
}


class Settings(Struct):
    """`namespaces` None: all; `fallthrough` None: no, (): all of the plugin's zones."""

    zones: tuple[str, ...]
    pods: str = "disabled"
    ttl: int = TTL
    namespaces: frozenset[str] | None = None
    namespace_labels: list[selectors.Requirement] | None = None
    labels: list[selectors.Requirement] | None = None
    fallthrough: tuple[str, ...] | None = None
    pod_names: bool = False
    ignore_empty: bool = False
    endpoints: bool = True
    zonal: bool = False

    @property
    def primary_zone(self) -> str:
        """What PTR records lead to: the first that isn't a reverse zone."""
        return next(zone for zone in self.zones if not is_reverse(zone))


def settings(directive: Directive, zones: tuple[str, ...]) -> Settings:
    """Raises CorefileError."""
    found = Settings(zones_of(directive, directive.args, zones))
    if all(is_reverse(zone) for zone in found.zones):
        raise directive.error("non-reverse zone name must be used")
    for option in directive.options:
        _take(found, directive, option)
    if found.namespaces is not None and found.namespace_labels is not None:
        raise directive.error("namespaces and namespace_labels cannot both be set")
    return found


def _take(found: Settings, directive: Directive, option: Option) -> None:
    match (option.name, option.args):
        case ("pods", ("disabled" | "insecure" | "verified" as mode,)):
            found.pods = mode
        case ("namespaces", (_, *_) as names):
            found.namespaces = (found.namespaces or frozenset()) | frozenset(names)
        case ("namespace_labels", (_, *_) as words):
            found.namespace_labels = _selector(directive, option, words)
        case ("labels", (_, *_) as words):
            found.labels = _selector(directive, option, words)
        case ("ttl", (number,)) if number.isdigit():
            if int(number) > MAX_TTL:
                raise directive.error(f"ttl must be in range [0, {MAX_TTL}]: {number}", option)
            found.ttl = int(number)
        case ("fallthrough", zones):
            found.fallthrough = zones_of(directive, zones, found.zones)
        case ("endpoint_pod_names", ()):
            found.pod_names = True
        case ("ignore", ("empty_service",)):
            found.ignore_empty = True
        case ("noendpoints", ()):
            found.endpoints = False
        case ("zonal", ()):
            found.zonal = True
        case (name, (number,)) if name in NUMBERS and number.isdigit():
            pass
        case ("startup_timeout", (duration,)):
            seconds(directive, duration, option)
        case (name, _) if name in REFUSED:
            raise directive.error(f"{name}: {REFUSED[name]}", option)
        case _:
            raise directive.unknown(option)


def _selector(directive: Directive, option: Option, words: tuple[str, ...]) -> list[selectors.Requirement]:
    try:
        return selectors.parse(" ".join(words))
    except ValueError as error:
        raise directive.error(f"{option.name}: {error}", option) from None
