"""What a hook says of a packet. `ACCEPT` is one object, so the stack compares by identity: `if outcome is not ACCEPT: …`."""

from __future__ import annotations

from typing import Final, NamedTuple


class Outcome(NamedTuple):
    """`action`: accept, drop, reject. `reason` is the name of the drop's counter ("netfilter.filter.FORWARD",
    "conntrack.full" …); `reject_with` as in `-j REJECT --reject-with` ("icmp-port-unreachable", "tcp-reset" …)."""

    action: str
    reason: str = ""
    reject_with: str = ""


ACCEPT: Final = Outcome("accept")
FULL: Final = Outcome("drop", "conntrack.table_full")
CLASH: Final = Outcome("drop", "conntrack.insert_failed")  # no free tuple: port exhaustion, or a lost race
SERVED: Final = Outcome("accept", "ipvs")  # ip_vs gave the packet a real server elsewhere: send it there
NO_SOURCE: Final = Outcome("drop", "nat.no_source_address")  # MASQUERADE on a link without an address
REDIRECT: Final = Outcome("drop", "nat.redirect")  # an ICMP redirect about a translated connection
