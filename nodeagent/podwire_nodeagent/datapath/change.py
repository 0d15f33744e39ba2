"""A transaction of netlink operations in the making: primitives that change the tables and know their own inverse.

When an operation is refused, the inverses run backwards. Netfilter's tables are planned in a transaction of their own,
whose commit cannot fail, and connections are deleted last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from podwire_core import netlink
from podwire_core.netlink import NetlinkError
from podwire_nodeagent.datapath.bridge import FdbEntry
from podwire_nodeagent.datapath.fib import Route
from podwire_nodeagent.datapath.links import Link, Links

if TYPE_CHECKING:
    from podwire_nodeagent.datapath.neigh import Neighbour
    from podwire_nodeagent.datapath.netfilter.ruleset import Transaction
    from podwire_nodeagent.datapath.stack import Stack


class Change:
    """See the head of the file."""

    def __init__(self, stack: Stack, now: float) -> None:
        self.stack, self.now = stack, now
        self._undo: list[Callable[[], Any]] = []
        self._netfilter: Transaction | None = None
        self.connections: list[netlink.ConntrackDel] = []
        self.afterwards: list[Callable[[], None]] = []  # what cannot fail, when the rest is in force
        self.sysctls = False

    # --- primitives, each with its inverse

    def set(self, target: Any, name: str, value: Any) -> None:
        old = getattr(target, name)
        setattr(target, name, value)
        self._undo.append(lambda: setattr(target, name, old))

    def put(self, mapping: dict[Any, Any], key: Any, value: Any) -> None:
        """Set a key of a dict; None removes it."""
        old = mapping.pop(key, None)
        if value is not None:
            mapping[key] = value

        def inverse() -> None:
            mapping.pop(key, None)
            if old is not None:
                mapping[key] = old

        self._undo.append(inverse)

    def undo(self, inverse: Callable[[], Any]) -> None:
        """Run when the transaction is refused, after the inverses of what is done from now on."""
        self._undo.append(inverse)

    def add_link(self, link: Link) -> None:
        self.stack.links.insert(link)
        self._undo.append(lambda: self.stack.links.remove(link))

    def remove_link(self, link: Link) -> None:
        self.stack.links.remove(link)
        self._undo.append(lambda: self.stack.links.insert(link))

    def enslave(self, link: Link, master: Link | None) -> None:
        old = link.master
        Links.enslave(link, master)
        self._undo.append(lambda: Links.enslave(link, old))

    def add_route(self, route: Route) -> None:
        self.stack.fib.insert(route)
        self._undo.append(lambda: self.stack.fib.remove(route))

    def remove_route(self, route: Route) -> None:
        at = self.stack.fib.remove(route)
        self._undo.append(lambda: self.stack.fib.insert(route, at))

    def set_addresses(self, link: Link, addresses: list[tuple[bytes, int]]) -> None:
        self.set(link, "addresses", addresses)

    def remove_neighbour(self, entry: Neighbour) -> None:
        self.stack.neighbours.remove(entry.link, entry.ip)
        self._undo.append(lambda: self.stack.neighbours.put(entry))

    def add_neighbour(self, link: Link, ip: bytes, mac: bytes) -> None:
        old = self.stack.neighbours.remove(link, ip)
        self.stack.neighbours.insert_permanent(link, ip, mac, self.now)

        def inverse() -> None:
            self.stack.neighbours.remove(link, ip)
            if old is not None:
                self.stack.neighbours.put(old)

        self._undo.append(inverse)

    def put_fdb(self, link: Link, entry: FdbEntry) -> None:
        fdb = link.fdb
        assert fdb is not None
        old = fdb.remove(entry.mac)
        fdb.insert(entry)
        self._undo.append(lambda: fdb.insert(old) if old else fdb.remove(entry.mac))

    def remove_fdb(self, link: Link, mac: bytes) -> None:
        fdb = link.fdb
        assert fdb is not None
        old = fdb.remove(mac)
        if old is not None:
            self._undo.append(lambda: fdb.insert(old))

    def netfilter(self) -> Transaction:
        if self._netfilter is None:
            self._netfilter = self.stack.netfilter.begin()
        return self._netfilter

    # --- the end of it

    def rollback(self) -> None:
        for inverse in reversed(self._undo):
            inverse()
        self.stack.settings.reload()
        self._let_go()

    def commit(self) -> None:
        if self._netfilter is not None:
            self._netfilter.commit()
        for action in self.afterwards:
            action()
        if self.sysctls:
            self.stack.settings.reload()
            self.stack.netfilter.reconfigure()
        for which in self.connections:
            self.stack.netfilter.delete_conntrack(which, self.now)
            self.stack.lb.delete(which, self.now)
        self._let_go()

    def _let_go(self) -> None:
        """Of what was before: functions kept here refer to the transaction in turn, a circle that only a garbage collection would
        find, and with it the tables that were replaced."""
        self._undo, self.afterwards, self._netfilter = [], [], None

    def link(self, name: str) -> Link:
        found = self.stack.links.get(name)
        if found is None:
            raise NetlinkError("ENODEV", f"cannot find device {name!r}")
        return found
