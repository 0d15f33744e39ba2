"""The shim of `nft`: a real table listed whole and in parts. That the text is nft's own is the kernel's to say (tests/oracle)."""

from __future__ import annotations

import pytest
from support.services import by_key, endpoint, endpoint_slice, service

from podwire_core import nft_text
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.model import NodeFacts
from podwire_nodeagent.proxy.nftables import Proxier
from podwire_nodeagent.tools.__main__ import call
from podwire_nodeagent.tools.common import ToolError

MAP = """table ip kube-proxy {
	map service-ips {
		type ipv4_addr . inet_proto . inet_service : verdict
		comment "ClusterIP, ExternalIP and LoadBalancer IP traffic"
		elements = { 10.96.0.1 . tcp . 80 : goto service-WHF35ZYN-ns/web/tcp/p80 }
	}
}
"""
CHAIN = """table ip kube-proxy {
	chain nat-output {
		type nat hook output priority -100; policy accept;
		jump services
	}
}
"""


def table():
    proxier = Proxier(ProxyConfiguration(mode="nftables"), NodeFacts("node1", "", ("192.168.1.11",)))
    proxier.changes(by_key([service("web", "10.96.0.1")]), by_key([endpoint_slice("web", [endpoint("10.244.1.2")])]))
    return proxier.table()


class Client:
    def __init__(self, *tables) -> None:
        self.tables = list(tables)

    def dump(self, what):
        assert what == "nftables"
        return self.tables

    def apply(self, ops):
        raise AssertionError(ops)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("list tables", "table ip kube-proxy\n"),
        ("list tables ip6", ""),
        ("list ruleset", nft_text.table(table())),
        ("-n list table kube-proxy", nft_text.table(table())),
        ("list map ip kube-proxy service-ips", MAP),
        ("list chain ip kube-proxy nat-output", CHAIN),
    ],
)
def test_text(command, text):
    assert call("nft", command.split(), Client(table())) == text


def test_outlines_have_neither_rules_nor_elements():
    chains, maps = (call("nft", ["list", what], Client(table())) for what in ("chains", "maps"))
    assert "chain services {\n\t}" in chains
    assert "jump" not in chains
    assert "map service-ips" in maps
    assert "elements" not in maps
    assert "set cluster-ips" not in maps


def test_nothing_there():
    assert call("nft", ["list", "ruleset"], Client()) == ""


@pytest.mark.parametrize(
    "command", ["list table ip6 kube-proxy", "list table x", "list chain ip kube-proxy x", "list set ip kube-proxy service-ips"]
)
def test_what_is_missing(command):
    with pytest.raises(ToolError) as error:
        call("nft", command.split(), Client(table()))
    assert (str(error.value), error.value.status) == ("Error: No such file or directory", 1)


@pytest.mark.parametrize("command", ["", "list", "flush ruleset", "-j list ruleset", "list counters"])
def test_what_is_not_supported(command):
    with pytest.raises(ToolError, match="not supported"):
        call("nft", command.split(), Client(table()))
