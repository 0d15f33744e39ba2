"""The Linux kernel judges kube-proxy's rules in nftables mode: generated clusters, compiled, printed, loaded by the real nft into
a namespace that is a node; the same packets through it and through our own stack, and the text that comes back.

A difference found here is to be kept as a case of its own. Seeds: support/judged.py.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from oracle.test_iptables_kernel import (  # the same clusters
    LOCAL_PODS,
    NODE,
    NODE_ADDRESSES,
    OPS,
    SENTINEL,
    probes_of,
    services,
    unanswered,
)
from support.judged import SEED, SETTINGS, Judge
from support.kernel_node import KernelNode
from support.nft_node import NftNode
from support.probes import Probe
from support.services import by_key, endpoint, endpoint_slice, service

from podwire_core import nft_text
from podwire_core.netlink import NftReplace
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.model import NodeFacts
from podwire_nodeagent.proxy.nftables import Proxier

pytestmark = pytest.mark.root

CONFIGS = st.builds(
    ProxyConfiguration,
    mode=st.just("nftables"),
    masquerade_all=st.booleans(),
    cluster_cidrs=st.sampled_from([("10.244.0.0/16",), ()]),
    service_cidrs=st.sampled_from([("10.96.0.0/24",), ("10.96.0.0/24", "10.97.0.0/16"), ()]),
    detect_local_mode=st.sampled_from(["ClusterCIDR", "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"]),
    bridge_interface=st.just("cni0"),
    interface_name_prefix=st.just("cn"),
    node_port_addresses=st.sampled_from([(), ("0.0.0.0/0",), ("192.168.1.0/24",), ("10.244.0.0/16", "127.0.0.0/8")]),
)


def compiled(found, slices, config):
    proxier = Proxier(config, NodeFacts.of(NODE, tuple(NODE_ADDRESSES[1:])))
    proxier.changes(by_key(found), by_key(slices))
    return proxier.table()


def load(kernel, table) -> None:
    """And no connection of earlier examples is left."""
    kernel.run("conntrack", "-F")
    kernel.run("nft", "-f", "-", stdin="flush ruleset\n" + nft_text.table(table))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    judge = KernelNode(tmp_path_factory.mktemp("nft-oracle") / "netns", OPS)
    yield judge
    judge.close()


def test_the_same_packets_fare_the_same(kernel, record_property):
    judge = Judge(record_property, unanswered)

    @seed(SEED)
    @settings(SETTINGS, max_examples=50)
    @given(cluster=services(), config=CONFIGS, data=st.data())
    def fare(cluster, config, data):
        table = compiled(*cluster, config)
        load(kernel, table)
        judge.compare(kernel, NftNode(OPS, table), probes_of(cluster[0]), SENTINEL, data, at_most=60)

    fare()
    judge.report(at_least=2000)


@seed(SEED)
@settings(SETTINGS, max_examples=25)
@given(cluster=services(), config=CONFIGS)
def test_the_text_comes_back_as_it_was_written(kernel, cluster, config):
    table = compiled(*cluster, config)
    load(kernel, table)
    listed = kernel.run("nft", "list", "ruleset")
    assert listed == nft_text.table(table), f"seed {SEED}"


def test_affinity_holds_in_both(kernel):
    svc = service("web", "10.96.0.1", sessionAffinity="ClientIP")
    table = compiled([svc], [endpoint_slice("web", [endpoint(a, "node1") for a in LOCAL_PODS])], ProxyConfiguration())
    load(kernel, table)
    ours, probe = NftNode(OPS, table), Probe("flannel.1", "10.244.2.77", "10.96.0.1", 80)
    assert len({outcome.destination for outcome in kernel.send([probe] * 20, SENTINEL, 3000)}) == 1
    assert {outcome.destination[0] for outcome in ours.outcomes(probe)} == set(LOCAL_PODS)
    first = ours.send(probe, 1e9).destination
    for refused in range(4):  # whatever the dice say
        ours.play([False] * refused)
        assert ours.send(probe, 1e9 + 1 + refused).destination == first
    assert len({ours.played(probe, [yes, yes], 1.1e9 + 1e5 * yes).destination for yes in (False, True)}) == 2  # hours later


def test_endpoints_are_chosen_evenly(kernel):
    """Chi-square of 1 200 connections over three endpoints, below the 0.001 quantile of two degrees of freedom; both."""
    table = compiled(
        [service("web", "10.96.0.1")], [endpoint_slice("web", [endpoint(a, "node1") for a in LOCAL_PODS])], ProxyConfiguration()
    )
    load(kernel, table)
    probe = Probe("flannel.1", "10.244.2.78", "10.96.0.1", 80)
    ours = NftNode(OPS, table, random.Random(SEED))
    sent = [outcome.dst for outcome in kernel.send([probe] * 1200, SENTINEL, 40000)], [ours.send(probe).dst for _ in range(1200)]
    for hits in sent:
        assert set(hits) == set(LOCAL_PODS)
        assert sum((hits.count(a) - 400) ** 2 / 400 for a in LOCAL_PODS) < 13.8, f"seed {SEED}"


def test_the_kernel_is_left_clean(kernel):
    kernel.run("nft", "flush", "ruleset")
    ours = NftNode(OPS, compiled([service("web", "10.96.0.1")], [], ProxyConfiguration()))
    ours.stack.apply([NftReplace()], 0.0)
    probe = Probe("vethpods", "10.244.1.5", "10.96.0.1", 80)
    assert kernel.send([probe], SENTINEL)[0] in ours.outcomes(probe)
