"""resolv.conf, hosts and host names, by tables."""

import pytest

from podwire_core import objects
from podwire_nodeagent.kubelet.resolvconf import host_names, host_network_hosts, hosts, resolv_conf

MACHINE = "domain old.example\nsearch corp.example .\nnameserver 9.9.9.9 # quad\noptions timeout:2 rotate\n"
CLUSTER = "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
OWN = "search corp.example\nnameserver 9.9.9.9\noptions timeout:2 rotate\n"
CONFIG = {"nameservers": ["1.1.1.1", "10.96.0.10"], "searches": ["a.example", "svc.cluster.local"]}
CONFIG["options"] = [{"name": "ndots", "value": "2"}, {"name": "edns0"}]


def spec(**fields):
    return objects.decode(objects.PodSpec, fields)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, CLUSTER),
        ({"hostNetwork": True}, OWN),
        ({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}, CLUSTER),
        ({"dnsPolicy": "Default"}, OWN),
        ({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"]}}, "nameserver 1.1.1.1\n"),
        (
            {"dnsConfig": CONFIG},
            "search shop.svc.cluster.local svc.cluster.local cluster.local a.example\n"
            "nameserver 10.96.0.10\nnameserver 1.1.1.1\noptions ndots:2 edns0\n",
        ),
    ],
)
def test_policies(fields, text):
    assert resolv_conf(spec(**fields), "shop", "cluster.local", "10.96.0.10", MACHINE) == (text, [])


def test_limits():
    config = {"nameservers": [f"1.1.1.{n}" for n in range(5)], "searches": [f"d{n}.example" for n in range(40)]}
    text, warnings = resolv_conf(spec(dnsConfig=config), "shop", "cluster.local", "10.96.0.10", "")
    lines = text.splitlines()
    assert len(lines[0].split()) == 1 + 32
    assert [line for line in lines if line.startswith("nameserver")] == [
        "nameserver 10.96.0.10",
        "nameserver 1.1.1.0",
        "nameserver 1.1.1.1",
    ]
    assert [w.split(" limits")[0] for w in warnings] == ["Nameserver", "Search Line"]
    long = {"searches": [f"{'x' * 200}{n}.example" for n in range(20)]}
    text, warnings = resolv_conf(spec(dnsConfig=long), "shop", "cluster.local", "10.96.0.10", "")
    assert len(text.splitlines()[0].removeprefix("search ")) <= 2048
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("fields", "pod", "names"),
    [
        ({}, "web-0", ("web-0", "")),
        ({}, "a" * 62 + ".b" + "c" * 20, ("a" * 62, "")),
        ({"hostname": "h"}, "web-0", ("h", "")),
        ({"subdomain": "s"}, "web-0", ("web-0", "web-0.s.shop.svc.cluster.local")),
        ({"subdomain": "s", "hostname": "h", "setHostnameAsFQDN": True}, "w", ("h.s.shop.svc.cluster.local",) * 2),
        ({"hostNetwork": True}, "web-0", ("node1", "")),
    ],
)
def test_host_names(fields, pod, names):
    assert host_names(spec(**fields), pod, "shop", "node1", "cluster.local") == names


def test_a_host_name_that_linux_cannot_have():
    with pytest.raises(ValueError, match="over 64 characters"):
        host_names(spec(hostname="h" * 63, subdomain="s", setHostnameAsFQDN=True), "w", "shop", "node1", "cluster.local")


def test_hosts_files():
    aliases = objects.decode(objects.PodSpec, {"hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}).host_aliases
    text = hosts(["10.244.1.2", "fd00::2"], "web", "web.s.shop.svc.cluster.local", aliases)
    assert text.startswith("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n")
    assert "10.244.1.2\tweb.s.shop.svc.cluster.local\tweb\nfd00::2\tweb.s.shop.svc.cluster.local\tweb\n" in text
    assert text.endswith("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n")
    assert hosts(["10.244.1.2"], "web", "", None).endswith("10.244.1.2\tweb\n")
    assert host_network_hosts("127.0.0.1 x\n", None) == "# Kubernetes-managed hosts file (host network).\n127.0.0.1 x\n"
