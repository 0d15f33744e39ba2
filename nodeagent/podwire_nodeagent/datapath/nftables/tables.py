"""The tables in force, the transactions that change them, and what a dump tells of them.

Rules it keeps: a change goes through the journal of the netlink transaction (`put` and `set`, which know their inverse), so a
refused one leaves nothing. What is refused, as by Linux: a chain or set that is not there (ENOENT), or there already (EEXIST), a
loop of jumps (ELOOP), more than 16 chains deep (EMLINK), deleting what is in use (EBUSY).

Where a base chain is met (`place`): behind one of the iptables tables, by its priority. In prerouting and output behind raw
(before conntrack, -200), behind mangle (before destinations are translated, -100) or behind filter; elsewhere behind mangle if it
is below 0, else behind filter. Chains of type nat are asked before iptables' table nat.

Order to read: Table, Nftables.replace, .update, then the graph.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final, Protocol

from podwire_core import nftables as nft
from podwire_core.collector import paused
from podwire_core.netlink import NetlinkError, NftUpdate
from podwire_nodeagent.datapath.netfilter.chains import ACCEPT_OP, DROP_OP, GOTO, JUMP
from podwire_nodeagent.datapath.netfilter.matches import Context
from podwire_nodeagent.datapath.nftables.compiled import Chain, Element, Rule, Set, policy_rule
from podwire_nodeagent.datapath.nftables.statements import PROTOCOLS, Scope, invalid
from podwire_nodeagent.datapath.wire import address_bytes, address_text

HOOKS: Final = ("prerouting", "input", "forward", "output", "postrouting")
MAX_DEPTH: Final = 16
MAX_NAME: Final = 255
_NAME: Final = re.compile(r"[A-Za-z_.][A-Za-z0-9/\\_.-]*")
TYPES: Final = ("ipv4_addr", "ipv6_addr", "inet_proto", "inet_service")


class Journal(Protocol):
    """Of `configure.Change`: each knows its inverse."""

    def put(self, mapping: dict[Any, Any], key: Any, value: Any) -> None: ...

    def set(self, target: Any, name: str, value: Any) -> None: ...


class _Unborn:
    """The journal of a table that nobody sees yet."""

    @staticmethod
    def put(mapping: dict[Any, Any], key: Any, value: Any) -> None:
        mapping[key] = value

    @staticmethod
    def set(target: Any, name: str, value: Any) -> None:
        setattr(target, name, value)


class Table:
    def __init__(self, family: int, name: str, comment: str = "") -> None:
        self.family, self.name, self.comment = family, name, comment
        self.chains: dict[str, Chain] = {}
        self.sets: dict[str, Set] = {}


class Nftables:
    """`hooks`: by family and place ("nat/PREROUTING", "filter/FORWARD" …) the base chains, in the order of their priority."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.tables: dict[nft.Id, Table] = {}
        self.hooks: dict[int, dict[str, tuple[Chain, ...]]] = {4: {}, 6: {}}

    # --- transactions --------------------------------

    def replace(self, tables: Iterable[nft.Table], journal: Journal) -> None:
        """NftReplace."""
        with paused():
            made = self._made(tables)
        journal.set(self, "tables", made)
        journal.set(self, "hooks", _hooks(made.values()))

    def _made(self, tables: Iterable[nft.Table]) -> dict[nft.Id, Table]:
        made: dict[nft.Id, Table] = {}
        for given in tables:
            if given.family not in (4, 6) or given.id in made:
                raise invalid(f"table {given.name} of family {given.family}: twice, or of no family that is there")
            table = made[given.id] = Table(given.family, given.name, given.comment)
            building = _Building(table, self._context, _Unborn)
            building.make_sets(given.sets)
            building.put_chains(given.chains)
            building.add_elements(_filled(given.sets))
            _check_graph(table, table.chains.values())
            self._keep_remembered(table)
        return made

    def update(self, op: NftUpdate, journal: Journal) -> None:
        """NftUpdate."""
        table = self.tables.get((op.family, op.table))
        if table is None:
            raise NetlinkError("ENOENT", f"no table {op.table}")
        building = _Building(table, self._context, journal)
        building.delete_elements(op.delete_elements)
        building.make_sets(op.sets)
        building.put_chains(op.chains)
        building.add_elements(_filled(op.sets))
        building.add_elements(op.elements)
        _check_graph(table, building.touched)
        building.delete_chains(op.delete_chains)
        building.delete_sets(op.delete_sets)
        if building.hooked:
            journal.set(self, "hooks", _hooks(self.tables.values()))

    def _keep_remembered(self, table: Table) -> None:
        old = self.tables.get((table.family, table.name))
        for name, found in table.sets.items() if old else ():
            before = old.sets.get(name) if old else None
            if found.source.dynamic and before is not None and before.source == found.source:
                found.elements.update(before.elements)

    def forget(self) -> None:
        """Nothing is left of what packets wrote into sets."""
        for found in self._dynamic():
            found.elements.clear()

    def expire(self, now: float) -> None:
        """Take out what timed out; it counts no more anyway."""
        for found in self._dynamic():
            for key in [key for key, until in found.elements.items() if until <= now]:
                del found.elements[key]

    def _dynamic(self) -> Iterator[Set]:
        return (found for table in self.tables.values() for found in table.sets.values() if found.source.timeout)

    # --- dumps --------------------------------

    def dump(self, now: float) -> list[nft.Table]:
        return [_dump(table, now) for table in self.tables.values()]


class _Building:
    """Changes of one table. `touched`: chains from which a new loop could begin; `hooked`: a base chain came or went."""

    def __init__(self, table: Table, context: Context, journal: Journal) -> None:
        self.table, self.journal = table, journal
        self.scope = Scope(table.family, table.chains, table.sets, context)
        self.now = context.now
        self.touched: list[Chain] = []
        self.hooked = False

    def make_sets(self, given: Iterable[nft.Set]) -> None:
        for each in given:
            unknown = [kind for kind in each.types if kind not in TYPES]
            if unknown or not each.types or not _good_name(each.name) or each.timeout < 0 or (each.verdicts and each.timeout):
                raise invalid(f"set {each.name!r}: bad name, type or timeout")
            bare = nft.Set(each.name, each.types, each.verdicts, each.comment, each.dynamic, each.timeout, each.size)
            old = self.table.sets.get(each.name)
            if old is None:
                self.journal.put(self.table.sets, each.name, Set(bare))
            elif old.source.types == bare.types and old.source.timeout and bare.timeout and old.source.dynamic == bare.dynamic:
                self.journal.set(old, "source", bare)
            else:
                raise NetlinkError("EEXIST", f"set {each.name} exists")

    def put_chains(self, given: Iterable[nft.Chain]) -> None:
        given = list(given)
        for each in given:
            self._declare(each)
        for each in given:
            chain = self.table.chains[each.name]
            rules = self._rules(each, chain)
            self._use(chain.rules, -1)
            self._use(rules, +1)
            self.journal.set(chain, "rules", rules)
            self.touched.append(chain)

    def _declare(self, given: nft.Chain) -> None:
        old = self.table.chains.get(given.name)
        if old is not None:
            if given.hook not in (None, old.hook):
                raise NetlinkError("EEXIST", f"chain {given.name} exists with another hook")
            return
        if not _good_name(given.name):
            raise invalid(f"invalid chain name {given.name!r}")
        chain = Chain(given.name, given.comment, given.hook)
        if given.hook is not None:
            _check_hook(given)
            operation = DROP_OP if given.hook.policy == "drop" else ACCEPT_OP
            chain.policy = policy_rule(chain, self.table.family, operation)
            self.hooked = True
        self.journal.put(self.table.chains, given.name, chain)

    def _rules(self, given: nft.Chain, chain: Chain) -> tuple[Rule, ...]:
        """Rules that stay keep their counters."""
        kept = {rule.source: rule for rule in chain.rules}
        rules = []
        for source in given.rules:
            rule, old = self.scope.rule(source, chain), kept.pop(source, None)
            if old is not None:
                rule.packets, rule.bytes = old.packets, old.bytes
            rules.append(rule)
        return tuple(rules)

    def _use(self, rules: Iterable[Rule], step: int) -> None:
        for rule in rules:
            for used in rule.refs:
                self.journal.set(used, "uses", used.uses + step)

    # --- elements

    def _found(self, name: str) -> Set:
        found = self.table.sets.get(name)
        if found is None:
            raise NetlinkError("ENOENT", f"no set or map {name}")
        return found

    def add_elements(self, given: Mapping[str, Collection[nft.Element]]) -> None:
        for name, elements in given.items():
            found = self._found(name)
            for each in elements:
                self._add(found, each)

    def _add(self, found: Set, each: nft.Element) -> None:
        key = _key(each.key, found)
        if (each.verdict is not None) != found.source.verdicts:
            raise invalid(f"{found.source.name}: an element {'without a' if found.source.verdicts else 'with a'} verdict")
        if found.source.timeout:
            self.journal.put(found.elements, key, self.now + (each.expires or found.source.timeout))
            return
        there = found.elements.get(key)
        if there is not None:
            if there.source.verdict != each.verdict:
                raise NetlinkError("EEXIST", f"{found.source.name}: {' . '.join(each.key)} exists with another verdict")
            return
        element = self.scope.element(each, found)
        self.journal.put(found.elements, key, element)
        self._count(element, +1)
        if element.argument is not None:
            self.touched.append(element.argument)

    def delete_elements(self, given: dict[str, tuple[tuple[str, ...], ...]]) -> None:
        for name, keys in given.items():
            found = self._found(name)
            for text in keys:
                key = _key(text, found)
                there = found.elements.get(key)
                if there is None:
                    raise NetlinkError("ENOENT", f"{name}: no element {' . '.join(text)}")
                self.journal.put(found.elements, key, None)
                if isinstance(there, Element):
                    self._count(there, -1)

    def _count(self, element: Element, step: int) -> None:
        if element.argument is not None:
            self.journal.set(element.argument, "uses", element.argument.uses + step)

    # --- deleting

    def delete_chains(self, names: Iterable[str]) -> None:
        names = list(names)
        for name in names:
            if name not in self.table.chains:
                raise NetlinkError("ENOENT", f"no chain {name}")
            chain = self.table.chains[name]
            self._use(chain.rules, -1)
            self.hooked |= chain.hook is not None
        for name in names:
            if self.table.chains[name].uses:
                raise NetlinkError("EBUSY", f"chain {name} is in use")
            self.journal.put(self.table.chains, name, None)

    def delete_sets(self, names: Iterable[str]) -> None:
        for name in names:
            found = self._found(name)
            if found.uses:
                raise NetlinkError("EBUSY", f"set {name} is in use")
            for element in found.elements.values():
                if isinstance(element, Element):
                    self._count(element, -1)
            self.journal.put(self.table.sets, name, None)


# --- names, keys, hooks --------------------------------


def _good_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and len(name) <= MAX_NAME


def _key(parts: tuple[str, ...], found: Set) -> Any:
    types = found.source.types
    if len(parts) != len(types):
        raise invalid(f"{found.source.name}: {' . '.join(parts)} is not of type {' . '.join(types)}")
    values = [_part(text, kind) for text, kind in zip(parts, types, strict=True)]
    return values[0] if len(values) == 1 else tuple(values)


def _part(text: str, kind: str) -> Any:
    if kind == "inet_proto":
        if text not in PROTOCOLS:
            raise invalid(f"unknown protocol {text!r}")
        return PROTOCOLS[text]
    if kind == "inet_service":
        if not text.isdecimal() or int(text) > 65535:
            raise invalid(f"invalid port {text!r}")
        return int(text)
    address = address_bytes(text)
    if len(address) != (4 if kind == "ipv4_addr" else 16):
        raise invalid(f"{text} is not an {kind}")
    return address


def _check_hook(given: nft.Chain) -> None:
    hook = given.hook
    assert hook is not None
    bad = hook.hook not in HOOKS or hook.type not in ("filter", "nat") or hook.policy not in ("accept", "drop")
    if bad or (hook.type == "nat" and (hook.hook == "forward" or hook.priority <= -200)):
        raise NetlinkError("EOPNOTSUPP", f"chain {given.name}: type {hook.type} hook {hook.hook} priority {hook.priority}")


def place(hook: nft.Hook) -> str:
    """Where the chain is met: see the head of the file."""
    name = hook.hook.upper()
    if hook.type == "nat":
        return f"nat/{name}"
    if name in ("PREROUTING", "OUTPUT") and hook.priority < -100:
        return f"raw/{name}" if hook.priority < -200 else f"mangle/{name}"
    if name == "POSTROUTING" or (name in ("INPUT", "FORWARD") and hook.priority < 0):
        return f"mangle/{name}"
    return f"filter/{name}"


class _Filled(Protocol):
    """A set with its elements, as a message has them: decoded, or in pieces (requests.py)."""

    @property
    def name(self) -> str: ...
    @property
    def elements(self) -> Collection[nft.Element]: ...


def _filled(sets: Iterable[_Filled]) -> dict[str, Collection[nft.Element]]:
    return {each.name: each.elements for each in sets if each.elements}


def _hooks(tables: Iterable[Table]) -> dict[int, dict[str, tuple[Chain, ...]]]:
    found: dict[int, dict[str, tuple[Chain, ...]]] = {4: {}, 6: {}}
    based = [(chain.hook.priority, table.family, chain) for table in tables for chain in table.chains.values() if chain.hook]
    for _, family, chain in sorted(based, key=lambda each: each[0]):
        assert chain.hook is not None
        where = place(chain.hook)
        found[family][where] = (*found[family].get(where, ()), chain)
    return found


# --- the graph of chains --------------------------------


def _check_graph(table: Table, roots: Iterable[Chain]) -> None:
    """No loop, and not too deep, from these chains on."""
    done: set[str] = set()
    for root in roots:
        _visit(root, {}, done)


def _visit(chain: Chain, path: dict[str, None], done: set[str]) -> None:
    if chain.name in path:
        raise NetlinkError("ELOOP", f"chains jump in a loop: {' -> '.join([*path, chain.name])}")
    if chain.name in done:
        return
    if len(path) >= MAX_DEPTH:
        raise NetlinkError("EMLINK", f"chains jump too deep: {' -> '.join([*path, chain.name])}")
    path[chain.name] = None
    for following in _targets(chain):
        _visit(following, path, done)
    del path[chain.name]
    done.add(chain.name)


def _targets(chain: Chain) -> Iterator[Chain]:
    for rule in chain.rules:
        for used in rule.refs:
            if isinstance(used, Chain):
                yield used
            elif used.source.verdicts:
                for element in used.elements.values():
                    if element.operation in (JUMP, GOTO):
                        yield element.argument


# --- dumps --------------------------------


def _dump(table: Table, now: float) -> nft.Table:
    chains = tuple(nft.Chain(c.name, tuple(rule.source for rule in c.rules), c.comment, c.hook) for c in table.chains.values())
    sets = tuple(_dump_set(each, now) for each in table.sets.values())
    return nft.Table(table.family, table.name, table.comment, sets, chains)


def _dump_set(found: Set, now: float) -> nft.Set:
    source = found.source
    if source.timeout:
        left = ((key, until - now) for key, until in found.elements.items() if until > now)
        elements = tuple(nft.Element((address_text(key),), expires=seconds) for key, seconds in left)
    else:
        elements = tuple(element.source for element in found.elements.values())
    given = (source.name, source.types, source.verdicts, source.comment, source.dynamic, source.timeout, source.size)
    return nft.Set(*given, elements)
