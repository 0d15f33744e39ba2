"""Which configuration a running node has, as its ConfigMap and its annotation say."""

from __future__ import annotations

import pytest

from podwire_nodeagent.proxy.config import ConfigurationError, ProxyConfiguration
from podwire_nodeagent.proxy.live import KEY, MODE_ANNOTATION, configuration

STARTED = ProxyConfiguration(mode="iptables", cluster_cidrs=("10.244.0.0/16",))
HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


def config_map(text):
    return {"metadata": {"name": "kube-proxy"}, "data": {KEY: text}}


def node(mode=""):
    return {"metadata": {"name": "node1", "annotations": {MODE_ANNOTATION: mode} if mode else {}}}


def test_without_objects_it_is_what_the_agent_was_started_with():
    assert configuration(STARTED, None, node()) == STARTED
    assert configuration(STARTED, {"metadata": {}}, node()) == STARTED


def test_the_file_is_for_all_nodes_and_leaves_what_it_does_not_say():
    found = configuration(STARTED, config_map(HEAD + 'mode: ""\nnftables:\n  masqueradeAll: true\n'), node())
    assert (found.mode, found.cluster_cidrs) == ("iptables", STARTED.cluster_cidrs)
    found = configuration(STARTED, config_map(HEAD + "mode: nftables\nnftables:\n  masqueradeAll: true\n"), node())
    assert (found.mode, found.masquerade_all, found.cluster_cidrs) == ("nftables", True, STARTED.cluster_cidrs)


def test_a_nodes_own_mode_goes_first():
    assert configuration(STARTED, config_map(HEAD + "mode: nftables\n"), node("ipvs")).mode == "ipvs"


@pytest.mark.parametrize(
    ("text", "annotation", "message"),
    [
        ("mode: [", "", f"{KEY}:2:"),
        (HEAD + "mode: warp\n", "", "$.mode: "),
        (HEAD + "clusterCIDR: 10.300.0.0/16\n", "", "$.clusterCIDR: "),
        (HEAD + "---\n" + HEAD, "", "expected one KubeProxyConfiguration"),
        ("", "warp", f"annotation {MODE_ANNOTATION}: there is no mode 'warp'; there are: iptables, "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text, annotation, message):
    with pytest.raises(ConfigurationError) as raised:
        configuration(STARTED, config_map(text), node(annotation))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
