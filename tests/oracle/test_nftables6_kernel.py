"""The Linux kernel judges kube-proxy's nftables table of IPv6: the clusters that test_iptables_kernel.py generates, with every
address replaced by one of IPv6, through the real nft and through our own stack."""

from __future__ import annotations

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from support.judged import SEED, SETTINGS, Judge
from support.kernel_node6 import KernelNode6
from support.nft_node import NftNode6
from support.services import by_key

from podwire_core import nft_text
from podwire_nodeagent.proxy.nftables import Proxier
from tests.oracle import test_iptables_kernel as four
from tests.oracle.test_ip6tables_kernel import FACTS, OPS, SENTINEL, configuration, probes_of, translated
from tests.oracle.test_nftables_kernel import CONFIGS

pytestmark = pytest.mark.root


def compiled(found, slices, config):
    proxier = Proxier(configuration(config), FACTS, 6)
    proxier.changes(by_key([translated(each) for each in found]), by_key([translated(each) for each in slices]))
    return proxier.table()


def load(kernel, table) -> None:
    kernel.run("conntrack", "-F", "-f", "ipv6")
    kernel.run("nft", "-f", "-", stdin="flush ruleset\n" + nft_text.table(table))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    judge = KernelNode6(tmp_path_factory.mktemp("nft6-oracle") / "netns", OPS)
    yield judge
    judge.close()


def test_the_same_packets_fare_the_same(kernel, record_property):
    judge = Judge(record_property)

    @seed(SEED)
    @settings(SETTINGS, max_examples=50)
    @given(cluster=four.services(), config=CONFIGS, data=st.data())
    def fare(cluster, config, data):
        table = compiled(*cluster, config)
        load(kernel, table)
        judge.compare(kernel, NftNode6(OPS, table), probes_of(cluster[0]), SENTINEL, data, at_most=60)

    fare()
    judge.report(at_least=2000)


@seed(SEED)
@settings(SETTINGS, max_examples=20)
@given(cluster=four.services(), config=CONFIGS)
def test_the_text_comes_back_as_it_was_written(kernel, cluster, config):
    table = compiled(*cluster, config)
    load(kernel, table)
    assert kernel.run("nft", "list", "ruleset") == nft_text.table(table), f"seed {SEED}"
