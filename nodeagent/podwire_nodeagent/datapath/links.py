"""Links: the table of network interfaces, as `ip link` knows them.

Rules: indexes are never reused; a bridge's ports and a link's master are kept in step by this file alone; statistics are plain
attributes because they are touched for every packet. A link's kind decides what receiving and sending on it
means (ingress.py, egress.py), not a class hierarchy.
"""

from __future__ import annotations

from collections.abc import Iterator

from podwire_nodeagent.datapath.bridge import Fdb

KINDS = ("tap", "host", "uplink", "bridge", "vxlan", "dummy", "loopback")
FD_KINDS = ("tap", "host")


class Link:
    """One interface. `fdb` is a bridge's or a vxlan link's; `addresses` are managed by addresses.py."""

    __slots__ = (
        "addresses",
        "alias",
        "attached",
        "dstport",
        "fdb",
        "hairpin",
        "index",
        "kind",
        "learning",
        "local",
        "mac",
        "master",
        "mtu",
        "name",
        "peer_mac",
        "ports",
        "rx_bytes",
        "rx_dropped",
        "rx_packets",
        "tx_bytes",
        "tx_dropped",
        "tx_packets",
        "up",
        "vni",
    )

    def __init__(self, index: int, name: str, kind: str, mac: bytes, mtu: int = 1500) -> None:
        self.index, self.name, self.kind, self.mac, self.mtu = index, name, kind, mac, mtu
        self.up = True
        self.master: Link | None = None
        self.ports: list[Link] = []
        self.hairpin = self.learning = False
        self.peer_mac = b""
        self.vni = self.dstport = 0
        self.local = b""
        self.alias = ""
        self.attached = True
        self.fdb = Fdb() if kind in ("bridge", "vxlan") else None
        self.addresses: list[tuple[bytes, int]] = []  # address and prefix length; the first of a subnet is primary
        self.rx_packets = self.rx_bytes = self.rx_dropped = 0
        self.tx_packets = self.tx_bytes = self.tx_dropped = 0

    def __repr__(self) -> str:
        return f"<Link {self.index}: {self.name} {self.kind}>"


class Links:
    """All links of a node, by index and by name."""

    def __init__(self) -> None:
        self.by_index: dict[int, Link] = {}
        self.by_name: dict[str, Link] = {}
        self.host: Link | None = None
        self._next = 1

    def __iter__(self) -> Iterator[Link]:
        return iter(self.by_index.values())

    def get(self, name: str) -> Link | None:
        return self.by_name.get(name)

    def new_index(self) -> int:
        self._next += 1
        return self._next - 1

    def insert(self, link: Link) -> None:
        self.by_index = dict(sorted({**self.by_index, link.index: link}.items()))  # in order, also when a deletion is undone
        self.by_name[link.name] = link
        if link.kind == "host":
            self.host = link

    def remove(self, link: Link) -> None:
        del self.by_index[link.index], self.by_name[link.name]
        if self.host is link:
            self.host = None

    @staticmethod
    def enslave(link: Link, master: Link | None) -> None:
        if link.master is not None:
            link.master.ports.remove(link)
        link.master = master
        if master is not None:
            master.ports.append(link)
