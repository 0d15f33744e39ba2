"""The Linux kernel judges kube-proxy's rules of IPv6: the clusters that test_iptables_kernel.py generates, with every address
replaced by one of IPv6, through the real ip6tables-restore and through our own stack."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network

import msgspec
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from support.judged import SEED, SETTINGS, Judge
from support.kernel_node6 import KernelNode6, StackNode6
from support.probes import Probe
from support.services import by_key

from podwire_cni.backends import flannel
from podwire_core import iptables_save
from podwire_core.netlink import LinkAdd, NeighAdd
from podwire_nodeagent.proxy.iptables import Proxier
from podwire_nodeagent.proxy.model import NodeFacts
from tests.oracle import test_iptables_kernel as four

pytestmark = pytest.mark.root

NETWORKS = {
    "10.244.0.0/16": "fd00:10:244::/56",
    "192.168.0.0/16": "fd00:192:168::/48",
    "10.0.0.0/8": "fd00:10::/32",
    "127.0.0.0/8": "::1/128",
    "203.0.113.0/25": "2001:db8:113::/121",
    "10.96.0.0/24": "fd00:10:96::/120",
    "10.97.0.0/16": "fd00:10:97::/112",
    "0.0.0.0/0": "::/0",
}
PREFIXES = {"192.0.2.": "2001:db8:2::", "198.51.100.": "2001:db8:100::", "203.0.113.": "2001:db8:113::", "127.0.0.": "::"}
FOUR = re.compile(r"\b\d+\.\d+\.\d+\.\d+(/\d+)?\b")


def six(text: str) -> str:
    """10.244.1.2 → fd00:10:244:1::2, and networks likewise."""

    def one(match: re.Match[str]) -> str:
        word = match[0]
        if word in NETWORKS:
            return NETWORKS[word]
        address, _, length = word.partition("/")
        for prefix, instead in PREFIXES.items():
            if address.startswith(prefix):
                return str(ip_address(instead + address.removeprefix(prefix)))
        a, b, c, d = address.split(".")
        made = f"fd00:{a}:{b}::{d}" if (a, b) == ("10", "96") else f"fd00:{a}:{b}:{c}::{'' if d == '0' else d}"
        return str(ip_network(f"{made}/{64 if length == '24' else 128}")) if length else str(ip_address(made))

    return FOUR.sub(one, text)


def translated(obj):
    """Any JSON-like object."""
    return msgspec.json.decode(six(msgspec.json.encode(obj).decode()).replace('"IPv4"', '"IPv6"'))


NODE, PEER = translated(four.NODE), translated(four.PEER)
PEER["metadata"]["annotations"] = flannel.publish(PEER, "127.0.0.12")
OPS = [
    *flannel.desired(NODE, [NODE, PEER], gateway="192.168.1.1"),
    LinkAdd("vethpods", "tap", mac="02:00:00:00:77:01", mtu=1450, master="cni0", hairpin=True),
    *(NeighAdd(f"fd00:192:168:1::{i}", f"02:00:c0:a8:01:{i:02x}", "eth0") for i in (1, 12)),
    *(NeighAdd(f"fd00:10:244:1::{i}", f"02:00:0a:f4:01:{i:02x}", "cni0") for i in range(2, 6)),
]


def probe6(probe: Probe) -> Probe:
    link = probe.link.replace("flannel.1", "flannel-v6.1")
    return Probe(link, six(probe.src), six(probe.dst), probe.port, probe.proto)


# Known: Flannel's address of the VTEP is at the same time the subnet-router anycast address of the bridge's network, so that
# Linux says it is not LOCAL and sends it no error; our stack knows no anycast.
VTEP = "fd00:10:244:1::"
SENTINEL = probe6(four.SENTINEL)


def configuration(config):
    return msgspec.structs.replace(
        config,
        cluster_cidrs=tuple(map(six, config.cluster_cidrs)),
        service_cidrs=tuple(map(six, config.service_cidrs)),
        node_port_addresses=tuple(map(six, config.node_port_addresses)),
    )


FACTS = NodeFacts.of(NODE, tuple(map(six, four.NODE_ADDRESSES[1:])))


def compiled(found, slices, config):
    proxier = Proxier(configuration(config), FACTS, 6, flannel.tables(NODE, 6))
    proxier.changes(by_key([translated(each) for each in found]), by_key([translated(each) for each in slices]))
    return proxier.tables()


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    judge = KernelNode6(tmp_path_factory.mktemp("v6-oracle") / "netns", OPS)
    yield judge
    judge.close()


def probes_of(found) -> list[Probe]:
    return [probe for each in four.probes_of(found) if VTEP not in ((probe := probe6(each)).src, probe.dst)]


@pytest.mark.parametrize("variant", four.VARIANTS)
def test_the_same_packets_fare_the_same(kernel, variant, record_property):
    judge = Judge(record_property)

    @seed(SEED)
    @settings(SETTINGS, max_examples=24)
    @given(cluster=four.services(), config=four.CONFIGS, data=st.data())
    def fare(cluster, config, data):
        tables = compiled(*cluster, config)
        kernel.load(iptables_save.print_tables(tables), variant)
        judge.compare(kernel, StackNode6(OPS, tables), probes_of(cluster[0]), SENTINEL, data, at_most=120)

    fare()
    judge.report(at_least=1500)


@pytest.mark.parametrize("variant", four.VARIANTS)
@seed(SEED)
@settings(SETTINGS, max_examples=10)
@given(cluster=four.services(), config=four.CONFIGS)
def test_the_text_comes_back_as_it_was_written(kernel, variant, cluster, config):
    text = iptables_save.print_tables(compiled(*cluster, config))
    kernel.load(text, variant)
    assert four._rules(kernel.saved(variant)) == four._rules(text), f"seed {SEED}"
