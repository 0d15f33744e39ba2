"""ipvsadm and ipset print what ipvsadm 1.31 and ipset 7.17 print for the same state, and write what they are told."""

from __future__ import annotations

import pytest

from podwire_core import netfilter as nf
from podwire_core import netlink as nl
from podwire_core.ipset import IpSet
from podwire_core.ipvs import ConnectionInfo, RealServer, ServerInfo, ServiceInfo, VirtualService
from podwire_nodeagent.tools.__main__ import call
from podwire_nodeagent.tools.common import ToolError
from podwire_nodeagent.tools.ipvsadm import large

STATS, RATES = (3, 21, 15, 1548, 123456789012), (1, 2, 3, 4, 5)
STATE = {
    "ipvs": [
        ServiceInfo(
            "tcp",
            "10.96.0.1",
            443,
            "rr",
            servers=[ServerInfo("192.168.1.11", 6443, 1, 2, 3, stats=STATS, rates=RATES)],
            stats=STATS,
            rates=RATES,
        ),
        ServiceInfo("udp", "10.96.0.10", 53, "mh", 10800, ("mh-port",), servers=[ServerInfo("10.244.1.2", 53, 0)]),
        ServiceInfo("sctp", "10.96.0.11", 9, "wlc"),
    ],
    "ipvs.connections": [
        ConnectionInfo("tcp", 897, "ESTABLISHED", "10.244.1.3", 45035, "10.96.0.1", 443, "192.168.1.11", 6443),
        ConnectionInfo("udp", 10799, "NONE", "10.244.1.3", 0, "10.96.0.10", 53, "10.244.1.2", 53),
    ],
    "ipsets": [
        IpSet("KUBE-CLUSTER-IP", "hash:ip,port", elements=("10.96.0.10,udp:53", "10.96.0.1,tcp:443")),
        IpSet("KUBE-NODE-PORT-TCP", "bitmap:port", elements=("30080",)),
    ],
    "rules": [
        nl.TableDump(
            nf.Table("nat", 4, (nf.Chain("C", (nf.Rule((nf.Set("KUBE-CLUSTER-IP", ("dst", "dst")),), nf.Verdict("ACCEPT")),)),)),
            {},
            {},
        )
    ],
}


class Client:
    def __init__(self, refuse="") -> None:
        self.applied: list[object] = []
        self.refuse = refuse

    def dump(self, what):
        return STATE[what]

    def apply(self, ops):
        if self.refuse:
            raise nl.NetlinkError(self.refuse, "in other words")
        self.applied += ops


def out(tool, line, client=None):
    return call(tool, line.split(), client or Client())


LIST = (
    "IP Virtual Server version 1.2.1 (size=4096)\n"
    "Prot LocalAddress:Port Scheduler Flags\n"
    "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
    "TCP  10.96.0.1:443 rr\n"
    "  -> 192.168.1.11:6443            Masq    1      2          3         \n"
    "UDP  10.96.0.10:53 mh persistent 10800 (mh-port)\n"
    "  -> 10.244.1.2:53                Masq    0      0          0         \n"
    "SCTP 10.96.0.11:9 wlc\n"
)


@pytest.mark.parametrize("line", ["-Ln", "-L -n", "-l -n", "", "--list --numeric"])
def test_services_and_servers(line):
    assert out("ipvsadm", line) == LIST


def test_one_service():
    assert out("ipvsadm", "-Ln -t 10.96.0.1:443").splitlines()[3:] == LIST.splitlines()[3:5]


def test_statistics():
    assert out("ipvsadm", "-Ln --stats -t 10.96.0.1:443").splitlines()[1:] == [
        "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes",
        "  -> RemoteAddress:Port",
        "TCP  10.96.0.1:443                       3       21       15     1548  123456M",
        "  -> 192.168.1.11:6443                   3       21       15     1548  123456M",
    ]
    assert out("ipvsadm", "-Ln --rate").splitlines()[1:4:2] == [
        "Prot LocalAddress:Port                 CPS    InPPS   OutPPS    InBPS   OutBPS",
        "TCP  10.96.0.1:443                       1        2        3        4        5",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(99999999, "99999999"), (100000000, "100000K"), (10**11, "100000M"), (10**14, "100000G"), (10**17, "100000T")],
)
def test_large_numbers(value, text):
    assert large(value) == text


def test_connections():
    assert out("ipvsadm", "-Lnc") == (
        "IPVS connection entries\n"
        "pro expire state       source             virtual            destination\n"
        "TCP 14:57  ESTABLISHED 10.244.1.3:45035   10.96.0.1:443      192.168.1.11:6443\n"
        "UDP 179:59 NONE        10.244.1.3:0       10.96.0.10:53      10.244.1.2:53\n"
    )


def test_saved():
    assert out("ipvsadm", "-Sn") == (
        "-A -t 10.96.0.1:443 -s rr\n"
        "-a -t 10.96.0.1:443 -r 192.168.1.11:6443 -m -w 1\n"
        "-A -u 10.96.0.10:53 -s mh -p 10800 -b mh-port\n"
        "-a -u 10.96.0.10:53 -r 10.244.1.2:53 -m -w 0\n"
        "-A --sctp-service 10.96.0.11:9 -s wlc\n"
    )


WRITES = [
    ("-C", nl.IpvsReplace(())),
    ("-A -t 1.1.1.1:80 -s sh -p", nl.IpvsSet(VirtualService("tcp", "1.1.1.1", 80, "sh", 300))),
    ("-D -u 10.96.0.10:53", nl.IpvsDel("udp", "10.96.0.10", 53)),
    ("-a -t 10.96.0.1:443 -r 10.0.0.1:6443 -m", nl.IpvsServerSet("tcp", "10.96.0.1", 443, RealServer("10.0.0.1", 6443))),
    (
        "-e -t 10.96.0.1:443 -r 10.0.0.1:6443 -m -w 0",
        nl.IpvsServerSet("tcp", "10.96.0.1", 443, RealServer("10.0.0.1", 6443, 0), replace=True),
    ),
    ("-d -t 10.96.0.1:443 -r 10.0.0.1:6443", nl.IpvsServerDel("tcp", "10.96.0.1", 443, RealServer("10.0.0.1", 6443))),
    (
        "-E -t 10.96.0.1:443 -s wrr",
        nl.IpvsSet(VirtualService("tcp", "10.96.0.1", 443, "wrr", servers=(RealServer("192.168.1.11", 6443),))),
    ),
]


@pytest.mark.parametrize(("line", "op"), WRITES)
def test_ipvsadm_writes(line, op):
    client = Client()
    assert out("ipvsadm", line, client) == ""
    assert client.applied == [op]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-A -t 10.96.0.1:443", "Service already exists"),
        ("-E -t 1.1.1.1:1", "No such service"),
        ("-A -t 1.1.1.1:1 -s best", "Scheduler or persistence engine not found: best"),
        ("-A -t 1.1.1.1", "illegal virtual server or real server address[:port] specified: 1.1.1.1"),
        ("-A", "You need to supply the 'service-address' option"),
    ],
)
def test_ipvsadm_complains(line, message):
    with pytest.raises(ToolError) as error:
        out("ipvsadm", line)
    assert (str(error.value), error.value.status) == (message, 255)


def test_ipset_list():
    first, second = out("ipset", "list").split("\n\n")
    lines = first.splitlines()
    assert lines[:3] == ["Name: KUBE-CLUSTER-IP", "Type: hash:ip,port", "Revision: 7"]
    assert lines[3].startswith("Header: family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x")
    assert lines[5:] == ["References: 1", "Number of entries: 2", "Members:", "10.96.0.1,tcp:443", "10.96.0.10,udp:53"]
    assert "Header: range 0-65535\n" in second
    assert out("ipset", "list -n") == "KUBE-CLUSTER-IP\nKUBE-NODE-PORT-TCP\n"


def test_ipset_save():
    lines = out("ipset", "save KUBE-NODE-PORT-TCP").splitlines()
    assert lines == ["create KUBE-NODE-PORT-TCP bitmap:port range 0-65535", "add KUBE-NODE-PORT-TCP 30080"]


def test_ipset_test():
    assert out("ipset", "test KUBE-CLUSTER-IP 10.96.0.1,tcp:443") == "Warning: 10.96.0.1,tcp:443 is in set KUBE-CLUSTER-IP.\n"
    with pytest.raises(ToolError, match=r"10.96.0.1,tcp:80 is NOT in set KUBE-CLUSTER-IP\."):
        out("ipset", "test KUBE-CLUSTER-IP 10.96.0.1,tcp:80")


@pytest.mark.parametrize(
    ("line", "op"),
    [
        ("create N hash:ip", nl.IpsetSet(IpSet("N", "hash:ip"))),
        ("create N hash:net family inet6", nl.IpsetSet(IpSet("N", "hash:net", 6))),
        ("-exist add KUBE-NODE-PORT-TCP 30081", nl.IpsetUpdate("KUBE-NODE-PORT-TCP", add=("30081",))),
        ("del KUBE-NODE-PORT-TCP 30080", nl.IpsetUpdate("KUBE-NODE-PORT-TCP", delete=("30080",))),
        ("flush KUBE-NODE-PORT-TCP", nl.IpsetSet(IpSet("KUBE-NODE-PORT-TCP", "bitmap:port"))),
        ("destroy N", nl.IpsetDestroy("N")),
        ("destroy", nl.IpsetDestroy()),
    ],
)
def test_ipset_writes(line, op):
    client = Client()
    out("ipset", line, client)
    assert client.applied == [op]


@pytest.mark.parametrize(
    ("line", "message", "refuse"),
    [
        ("list N", "ipset v7.17: The set with the given name does not exist", ""),
        ("create KUBE-CLUSTER-IP hash:ip", "ipset v7.17: Set cannot be created: set with the same name already exists", ""),
        ("create N hash:mac", "ipset v7.17: Syntax error: unknown settype hash:mac", ""),
        ("destroy N", "ipset v7.17: Set cannot be destroyed: it is in use by a kernel component", "EBUSY"),
        ("", "ipset v7.17: No command specified.", ""),
    ],
)
def test_ipset_complains(line, message, refuse):
    with pytest.raises(ToolError) as error:
        out("ipset", line, Client(refuse))
    assert str(error.value) == message
