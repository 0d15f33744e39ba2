"""A zone's records and the answers in them (RFC 1034 section 4.3.2, wildcards by RFC 4592, negative answers by RFC 2308). Pure.

Rules: what is below a delegation is not answered but referred; an empty non-terminal exists; a wildcard stands for names that do
not exist below its parent; a CNAME is followed within the zone, and its end outside is left to the caller. Order to read:
Zone.__init__, lookup, _at, _referral.
"""

from __future__ import annotations

from collections.abc import Sequence

from dnslib import QTYPE, RR
from msgspec import Struct, field

from podwire_dns import message as m
from podwire_dns.message import Reply
from podwire_dns.plugin import in_zone

MAX_CHAIN = 8
POINTERS = {QTYPE.NS: "label", QTYPE.MX: "label", QTYPE.SRV: "target"}
Node = dict[int, list[RR]]


class Found(Struct):
    """The reply, and the name outside the zone that a CNAME in it leads to, "" if none."""

    reply: Reply
    outside: str = ""


class _Walk(Struct):
    """A chain of CNAMEs on its way."""

    qtype: int
    answer: list[RR] = field(default_factory=list)


class Zone:
    """Raises ValueError if the records are no zone: no SOA, or records elsewhere."""

    def __init__(self, origin: str, records: Sequence[RR]) -> None:
        self.origin = origin.rstrip(".").lower()
        self._apex = f"{self.origin}."
        self._nodes: dict[str, Node] = {}
        self._exists: set[str] = {self._apex}
        for record in records:
            self._add(record)
        soas = self._nodes.get(self._apex, {}).get(QTYPE.SOA, [])
        if len(soas) != 1:
            raise ValueError(f"zone {self._apex} has {len(soas)} SOA records, not one")
        self.soa = soas[0]

    def _add(self, record: RR) -> None:
        name = str(record.rname).lower()
        if not in_zone(name, self.origin):
            raise ValueError(f"{name} is not in the zone {self._apex}")
        node = self._nodes.setdefault(name, {})
        if node and (QTYPE.CNAME in node or record.rtype == QTYPE.CNAME):
            raise ValueError(f"{name} has a CNAME and other records")
        node.setdefault(record.rtype, []).append(record)
        while name != self._apex:
            self._exists.add(name)
            name = _parent(name)

    @property
    def serial(self) -> int:
        return int(self.soa.rdata.times[0])

    def lookup(self, name: str, qtype: int) -> Found:
        """The answer for a name in the zone, in the case of the question."""
        walk = _Walk(qtype)
        for _ in range(MAX_CHAIN):
            found = self._step(name, walk)
            if found is not None:
                return found
            name = str(walk.answer[-1].rdata.label)
            if not in_zone(name.lower(), self.origin):
                return Found(Reply(answer=walk.answer), name)
        return Found(Reply(answer=walk.answer))

    def _step(self, name: str, walk: _Walk) -> Found | None:
        """None: a CNAME was added, go on with its target."""
        lower = name.lower()
        cut = self._delegation(lower, walk.qtype)
        if cut:
            return Found(self._referral(cut, walk))
        node = self._nodes.get(lower)
        if node is None and lower not in self._exists:
            redirect = self._dname(name, lower)
            if redirect:
                walk.answer += redirect
                return None
            node = self._nodes.get("*." + self._encloser(lower))
            if node is None:
                return Found(Reply(m.NXDOMAIN, walk.answer, self._negative()))
        return self._at(name, node or {}, walk)

    def _at(self, name: str, node: Node, walk: _Walk) -> Found | None:
        if QTYPE.CNAME in node and walk.qtype not in (QTYPE.CNAME, QTYPE.ANY):
            walk.answer += _owned(name, node[QTYPE.CNAME])
            return None
        records = [r for rs in node.values() for r in rs] if walk.qtype == QTYPE.ANY else node.get(walk.qtype, [])
        if not records:
            return Found(Reply(answer=walk.answer, authority=self._negative()))
        answer = walk.answer + _owned(name, records)
        apex_ns = self._nodes[self._apex].get(QTYPE.NS, [])
        is_apex_ns = walk.qtype == QTYPE.NS and name.lower() == self._apex
        return Found(Reply(answer=answer, authority=[] if is_apex_ns else list(apex_ns), additional=self._glue(answer)))

    def _delegation(self, lower: str, qtype: int) -> str:
        """The highest cut at or above the name; a DS record stands above its cut."""
        cut, name = "", lower
        while name != self._apex:
            if QTYPE.NS in self._nodes.get(name, {}) and not (name == lower and qtype == QTYPE.DS):
                cut = name
            name = _parent(name)
        return cut

    def _referral(self, cut: str, walk: _Walk) -> Reply:
        servers = self._nodes[cut][QTYPE.NS]
        return Reply(answer=walk.answer, authority=list(servers), additional=self._glue(servers), authoritative=bool(walk.answer))

    def _encloser(self, lower: str) -> str:
        """The closest ancestor that exists."""
        name = _parent(lower)
        while name not in self._exists:
            name = _parent(name)
        return name

    def _dname(self, name: str, lower: str) -> list[RR]:
        """A DNAME above the name (RFC 6672), and the CNAME that it makes of the name."""
        encloser = self._encloser(lower)
        dnames = self._nodes.get(encloser, {}).get(QTYPE.DNAME, [])
        if not dnames:
            return []
        target = name[: len(name) - len(encloser)] + str(dnames[0].rdata.label)
        return [dnames[0], m.cname(name, target, dnames[0].ttl)]

    def _glue(self, records: Sequence[RR]) -> list[RR]:
        glue: dict[tuple[str, str], RR] = {}
        for record in records:
            if record.rtype in POINTERS:
                node = self._nodes.get(str(getattr(record.rdata, POINTERS[record.rtype])).lower(), {})
                for address in (*node.get(QTYPE.A, []), *node.get(QTYPE.AAAA, [])):
                    glue[str(address.rname), str(address.rdata)] = address
        return list(glue.values())

    def _negative(self) -> list[RR]:
        """The SOA with the negative TTL (RFC 2308 section 3)."""
        ttl = min(self.soa.ttl, self.soa.rdata.times[4])
        return [RR(self.soa.rname, QTYPE.SOA, self.soa.rclass, ttl, self.soa.rdata)]


def _owned(name: str, records: Sequence[RR]) -> list[RR]:
    """The records with the question's name as owner."""
    owner = m.label(name)
    return [RR(owner, r.rtype, r.rclass, r.ttl, r.rdata) for r in records]


def _parent(name: str) -> str:
    """www.example.org. → example.org.; the root's is the root."""
    return name.partition(".")[2] or "."
