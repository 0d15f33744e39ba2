"""KubeProxyConfiguration: defaults, every error with its path, and no input that breaks the reader."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_nodeagent.proxy.config import API_VERSION, KIND, ConfigurationError, ProxyConfiguration, load

HEAD = {"apiVersion": API_VERSION, "kind": KIND}


def test_defaults():
    assert load(HEAD) == ProxyConfiguration()
    assert load(HEAD).masquerade_mark == 0x4000


def test_fields():
    config = load(
        {
            **HEAD,
            "mode": "iptables",
            "clusterCIDR": "10.1.0.0/16, fd00:1::/64",
            "detectLocalMode": "InterfaceNamePrefix",
            "detectLocal": {"interfaceNamePrefix": "veth"},
            "nodePortAddresses": ["192.168.1.7/24", "127.0.0.0/8"],
            "iptables": {"masqueradeAll": True, "masqueradeBit": 10, "localhostNodePorts": False, "syncPeriod": "30s"},
            "nftables": {"masqueradeAll": False},
            "conntrack": {"tcpBeLiberal": True, "maxPerCore": 0},
            "bindAddress": "0.0.0.0",
        }
    )
    assert (config.cluster_cidr(4), config.cluster_cidr(6)) == ("10.1.0.0/16", "fd00:1::/64")
    assert config.node_port_addresses == ("192.168.1.0/24", "127.0.0.0/8")
    assert (config.masquerade_all, config.masquerade_mark, config.localhost_node_ports) == (True, 0x400, False)
    assert config.conntrack_tcp_be_liberal


def test_the_mode_chooses_its_section():
    given_both = {**HEAD, "iptables": {"masqueradeAll": True}, "nftables": {"masqueradeAll": False}}
    assert load({**given_both, "mode": "iptables"}).masquerade_all
    assert not load({**given_both, "mode": "nftables"}).masquerade_all


def test_no_cluster_cidr():
    assert load({**HEAD, "clusterCIDR": ""}).cluster_cidrs == ()


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"kind": "Pod"}, "$.kind"),
        ({"apiVersion": "v1"}, "$.apiVersion"),
        ({"mode": "userspace"}, "$.mode"),
        ({"mode": 7}, "$.mode"),
        ({"clusterCIDR": "10.0.0.0"}, "$.clusterCIDR"),
        ({"clusterCIDR": "10.0.0.0/8,11.0.0.0/8"}, "$.clusterCIDR"),
        ({"detectLocalMode": "Guess"}, "$.detectLocalMode"),
        ({"detectLocalMode": "BridgeInterface"}, "$.detectLocal.bridgeInterface"),
        ({"detectLocalMode": "InterfaceNamePrefix"}, "$.detectLocal.interfaceNamePrefix"),
        ({"detectLocal": {"bridgeInterface": "a-name-that-is-too-long"}}, "$.detectLocal.bridgeInterface"),
        ({"detectLocal": {"interfaceNamePrefix": 'x" -j ACCEPT'}}, "$.detectLocal.interfaceNamePrefix"),
        ({"nodePortAddresses": ["10.0.0.0/8", "eth0"]}, "$.nodePortAddresses[1]"),
        ({"nodePortAddresses": ["primary", "10.0.0.0/8"]}, "$.nodePortAddresses"),
        ({"nodePortAddresses": [1]}, "$.nodePortAddresses[0]"),
        ({"iptables": {"masqueradeBit": 32}}, "$.iptables.masqueradeBit"),
        ({"iptables": []}, "$.iptables"),
    ],
)
def test_errors_name_the_path(fields, path):
    with pytest.raises(ConfigurationError) as caught:
        load({**HEAD, **fields})
    assert path in [cause.field for cause in caught.value.causes]
    assert "\n" not in str(caught.value)


def test_all_errors_at_once():
    with pytest.raises(ConfigurationError) as caught:
        load({**HEAD, "mode": "x", "clusterCIDR": "y", "nodePortAddresses": ["z"]})
    assert len(caught.value.causes) == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("mode", "clusterCIDR", "detectLocalMode", "detectLocal", "nodePortAddresses", "iptables", "nftables", "conntrack")


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), JSON)
def test_anything_is_accepted_or_refused_with_a_reason(fields, other):
    for obj in ({**HEAD, **fields}, other):
        assert _loads(obj) or _causes(obj)


def _loads(obj):
    try:
        return isinstance(load(obj), ProxyConfiguration)
    except ConfigurationError:
        return False


def _causes(obj):
    with pytest.raises(ConfigurationError) as caught:
        load(obj)
    return caught.value.causes
