"""Sysctls: names as under /proc/sys, Linux' defaults, and the few that packets ask for, decoded once.

Rules: an unknown name is ENOENT, a bad value EINVAL; `net.ipv4.conf.<link>.<name>` exists for all, default and every link
name. As in Linux, `conf.all` and the link are combined: the larger for rp_filter, either for route_localnet and
accept_local. Stored without effect: send_redirects, conf.*.forwarding (ip_forward, and for IPv6 conf.all.forwarding
decide), net.ipv6.conf.default.*, bridge-nf-call-arptables. Netfilter reads its own (net.netfilter.*) from the same dict.
"""

from __future__ import annotations

from podwire_core.netlink import NetlinkError
from podwire_nodeagent.datapath.ipvs.table import SYSCTLS as IPVS_SYSCTLS
from podwire_nodeagent.datapath.netfilter.timeouts import SYSCTL_DEFAULTS

PER_LINK = {"rp_filter": "0", "route_localnet": "0", "accept_local": "0", "forwarding": "0", "send_redirects": "0"}
DEFAULTS = {
    "net.ipv4.ip_forward": "0",
    "net.ipv4.fib_multipath_hash_policy": "0",
    "net.ipv4.icmp_ratelimit": "1000",
    "net.ipv4.icmp_ratemask": "6168",
    "net.ipv6.conf.all.forwarding": "0",
    "net.ipv6.conf.default.forwarding": "0",
    "net.ipv6.conf.all.disable_ipv6": "0",
    "net.ipv6.conf.default.disable_ipv6": "0",
    "net.ipv6.icmp.ratelimit": "1000",
    "net.bridge.bridge-nf-call-iptables": "1",
    "net.bridge.bridge-nf-call-ip6tables": "1",
    "net.bridge.bridge-nf-call-arptables": "1",
} | {f"net.ipv4.conf.{scope}.{name}": value for scope in ("all", "default") for name, value in PER_LINK.items()}


class Settings:
    """`values` is shared with netfilter."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {**DEFAULTS, **SYSCTL_DEFAULTS, **IPVS_SYSCTLS}
        self.forwarding = self.bridge_nf = self.multipath_ports = False
        self.forwarding6 = self.bridge_nf6 = False
        self.ipv6 = True
        self.icmp6_interval = 1.0
        self.icmp_interval, self.icmp_mask = 1.0, 6168
        self._strict: dict[tuple[str, str], int] = {}
        self.reload()

    def check(self, name: str, value: str) -> None:
        if name not in self.values and not self._per_link(name):
            raise NetlinkError("ENOENT", f"no sysctl {name}")
        if not value.lstrip("-").isdigit():
            raise NetlinkError("EINVAL", f"sysctl {name}: not a number: {value!r}")

    @staticmethod
    def _per_link(name: str) -> bool:
        parts = name.split(".")
        return len(parts) >= 5 and parts[:3] == ["net", "ipv4", "conf"] and parts[-1] in PER_LINK

    def reload(self) -> None:
        """After a change of `values`."""
        self.forwarding = self.values["net.ipv4.ip_forward"] != "0"
        self.multipath_ports = self.values["net.ipv4.fib_multipath_hash_policy"] == "1"
        self.bridge_nf = self.values["net.bridge.bridge-nf-call-iptables"] != "0"
        self.forwarding6 = self.values["net.ipv6.conf.all.forwarding"] != "0"
        self.bridge_nf6 = self.values["net.bridge.bridge-nf-call-ip6tables"] != "0"
        self.ipv6 = self.values["net.ipv6.conf.all.disable_ipv6"] == "0"
        self.icmp6_interval = int(self.values["net.ipv6.icmp.ratelimit"]) / 1000
        self.icmp_interval = int(self.values["net.ipv4.icmp_ratelimit"]) / 1000
        self.icmp_mask = int(self.values["net.ipv4.icmp_ratemask"])
        self._strict.clear()

    def rp_filter(self, dev: str) -> int:
        return self._combined(dev, "rp_filter")

    def route_localnet(self, dev: str) -> bool:
        return self._combined(dev, "route_localnet") != 0

    def accept_local(self, dev: str) -> bool:
        return self._combined(dev, "accept_local") != 0

    def _combined(self, dev: str, name: str) -> int:
        key = (dev, name)
        found = self._strict.get(key)
        if found is None:
            conf = "net.ipv4.conf."
            own = self.values.get(f"{conf}{dev}.{name}", self.values[f"{conf}default.{name}"])
            found = self._strict[key] = max(int(self.values[f"{conf}all.{name}"]), int(own))
        return found
