"""The loadbalance plugin: the order of addresses in answers.

    loadbalance [round_robin | weighted FILE { reload DURATION } | prefer CIDR…]

round_robin shuffles A, AAAA and MX records. weighted puts one address first, by the weights in FILE (a name on a line of its own,
then lines of an address and a weight from 1 to 255). prefer puts addresses of these networks first, in the order of the networks.
CNAMEs stay in front of the records they lead to. Source: https://coredns.io/plugins/loadbalance/.
"""

from __future__ import annotations

import ipaddress

from dnslib import QTYPE, RR

from podwire_dns.corefile import Directive, seconds
from podwire_dns.message import Query, Reply
from podwire_dns.plugin import Context, Plugin
from podwire_dns.watching import changes

ADDRESSES = (QTYPE.A, QTYPE.AAAA)
SHUFFLED = (QTYPE.A, QTYPE.AAAA, QTYPE.MX)
RELOAD_SECONDS = 30.0
MAX_WEIGHT = 255
Weights = dict[str, dict[str, int]]


class LoadBalance(Plugin):
    name = "loadbalance"
    repeatable = False

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        self._policy, self._file, self._reload = "round_robin", "", RELOAD_SECONDS
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._weights: Weights = {}
        match directive.args:
            case () | ("round_robin",):
                pass
            case ("weighted", file):
                self._policy, self._file = "weighted", file
                self._weights = self._load(directive)
            case ("prefer", *networks) if networks:
                self._policy, self._networks = "prefer", [_network(directive, text) for text in networks]
            case _:
                raise directive.error("the policies are round_robin, weighted FILE and prefer CIDR…")
        for option in directive.options:
            if option.name != "reload" or len(option.args) != 1 or self._policy != "weighted":
                raise directive.unknown(option)
            self._reload = seconds(directive, option.args[0], option)

    async def serve(self, query: Query) -> Reply:
        reply = await self.next.serve(query)
        if len(reply.answer) < 2 or query.qtype not in SHUFFLED:
            return reply
        kinds = SHUFFLED if self._policy == "round_robin" else ADDRESSES
        moved = [r for r in reply.answer if r.rtype in kinds]
        if len(moved) < 2:
            return reply
        match self._policy:
            case "round_robin":
                self.context.rng.shuffle(moved)
            case "weighted":
                self._one_first(query.lower, moved)
            case _:
                moved.sort(key=self._preference)
        return reply.with_answer([r for r in reply.answer if r.rtype not in kinds] + moved)

    def _one_first(self, name: str, records: list[RR]) -> None:
        weights = self._weights.get(name)
        if weights is None:
            return
        chances = [weights.get(str(ipaddress.ip_address(str(r.rdata))), 1) for r in records]
        [chosen] = self.context.rng.choices(range(len(records)), chances)
        records.insert(0, records.pop(chosen))

    def _preference(self, record: RR) -> int:
        ip = ipaddress.ip_address(str(record.rdata))
        return next((n for n, network in enumerate(self._networks) if ip in network), len(self._networks))

    def _load(self, directive: Directive) -> Weights:
        try:
            with open(self._file, encoding="utf-8") as file:
                return weights_of(file.read(), self._file)
        except OSError as error:
            raise directive.error(f"{self._file}: {error.strerror}") from None
        except ValueError as error:
            raise directive.error(str(error)) from None

    async def run(self) -> None:
        if self._policy == "weighted" and self._reload:
            async for content in changes(self._file, self._reload):
                try:
                    self._weights = weights_of(content.decode(), self._file)
                except ValueError as error:
                    self.context.warn(f"loadbalance: {error}; the weights stay as they were")


def weights_of(text: str, path: str) -> Weights:
    """name. → address → weight. Raises ValueError with file and line."""
    found: Weights = {}
    current: dict[str, int] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        match words:
            case []:
                continue
            case [name]:
                current = found.setdefault(name.rstrip(".").lower() + ".", {})
            case [ip, weight] if current is not None and weight.isdigit() and 0 < int(weight) <= MAX_WEIGHT:
                try:
                    current[str(ipaddress.ip_address(ip))] = int(weight)
                except ValueError:
                    raise ValueError(f"{path}:{number}: {ip!r} is not an address") from None
            case _:
                raise ValueError(f"{path}:{number}: expected a name, or below one an address and a weight from 1 to 255")
    return found


def _network(directive: Directive, text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise directive.error(f"prefer: {error}") from None
