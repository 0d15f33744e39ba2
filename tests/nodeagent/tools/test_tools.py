"""The shims print what the real tools printed for the same state (the texts are of iproute2 6.1 and conntrack-tools 1.4.7)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from podwire_core import netlink as nl
from podwire_core.iptables_save import parse
from podwire_nodeagent.tools import TOOLS, install
from podwire_nodeagent.tools.__main__ import call, run
from podwire_nodeagent.tools.common import ToolError

STATE = {
    "links": [
        nl.LinkInfo(1, "lo", "loopback", "00:00:00:00:00:00", 65536, True),
        nl.LinkInfo(2, "eth0", "uplink", "02:00:c0:a8:01:0b", 1500, True),
        nl.LinkInfo(3, "cni0", "bridge", "02:00:0a:f4:01:01", 1450, True, stats={"tx_bytes": 164, "tx_packets": 2}),
        nl.LinkInfo(4, "flannel.1", "vxlan", "02:4b:a0:af:b6:82", 1450, True, vni=1, local="192.168.1.11", dstport=8472),
        nl.LinkInfo(
            5, "veth0000", "tap", "2a:24:98:b9:77:60", 1450, True, master="cni0", hairpin=True, alias="pod default/web-0"
        ),
        nl.LinkInfo(6, "veth0001", "tap", "2a:24:98:b9:77:61", 1450, False, master="cni0"),
    ],
    "addrs": [
        nl.AddrInfo("lo", "127.0.0.1/8"),
        nl.AddrInfo("eth0", "192.168.1.11/24"),
        nl.AddrInfo("cni0", "10.244.1.1/24"),
        nl.AddrInfo("cni0", "fd00:10:244:1::1/64"),
        nl.AddrInfo("flannel.1", "10.244.1.0/32"),
    ],
    "routes": [
        nl.RouteInfo("192.168.1.0/24", "eth0", src="192.168.1.11", proto="kernel", scope="link"),
        nl.RouteInfo("10.244.2.0/24", "flannel.1", "10.244.2.0", onlink=True, proto="boot"),
        nl.RouteInfo("10.244.1.0/24", "cni0", src="10.244.1.1", proto="kernel", scope="link"),
        nl.RouteInfo("10.8.0.0/16", type="unreachable", metric=5, proto="boot"),
        nl.RouteInfo("default", "eth0", "192.168.1.1", proto="static"),
        nl.RouteInfo("10.244.1.1/32", "cni0", src="10.244.1.1", proto="kernel", scope="host", type="local", table="local"),
        nl.RouteInfo("fd00:10:244:1::/64", "cni0", proto="kernel", metric=256),
    ],
    "neighs": [
        nl.NeighInfo("192.168.1.77", "", "eth0", "INCOMPLETE"),
        nl.NeighInfo("10.244.2.0", "02:00:00:00:00:02", "flannel.1", "PERMANENT"),
    ],
    "fdb": [
        nl.FdbInfo("02:00:00:00:00:02", "flannel.1", "192.168.1.12"),
        nl.FdbInfo("02:d9:6d:5f:3b:ec", "veth0000", master="cni0", state="dynamic"),
    ],
    "conntrack": [
        nl.ConntrackInfo(
            "tcp",
            431999,
            nl.TupleInfo("10.244.1.5", "10.96.0.1", 48474, 80),
            nl.TupleInfo("10.244.2.3", "10.244.1.5", 8080, 48474),
            "ESTABLISHED",
            ("ASSURED", "DNAT"),
            0,
            (5, 4),
            (300, 240),
        ),
        nl.ConntrackInfo(
            "udp",
            29,
            nl.TupleInfo("127.0.0.1", "127.0.0.1", 36863, 9),
            nl.TupleInfo("127.0.0.1", "127.0.0.1", 9, 36863),
            status=("UNREPLIED",),
        ),
        nl.ConntrackInfo(
            "icmp", 29, nl.TupleInfo("127.0.0.1", "127.0.0.1", 8, 0, 18471), nl.TupleInfo("127.0.0.1", "127.0.0.1", 0, 0, 18471)
        ),
    ],
    "sysctls": {"net.ipv4.ip_forward": "1", "net.netfilter.nf_conntrack_acct": "0", "net.netfilter.nf_conntrack_max": "262144"},
    "counters": {"conntrack.insert_failed": 2},
    "rules": [],
    "nftables": [],
}


class Client:
    """A datapath that knows STATE and remembers what it was told; `refuses` is its answer to any change."""

    def __init__(self, refuses: nl.NetlinkError | None = None, **changes) -> None:
        self.state = STATE | changes
        self.told: list = []
        self.refuses = refuses

    def dump(self, what):
        return self.state[what]

    def apply(self, ops):
        if self.refuses:
            raise self.refuses
        self.told += ops


def shim(command: str, client: Client | None = None) -> str:
    name, *arguments = command.split()
    return call(name, arguments, client or Client())


LO = """1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 qdisc noqueue state UNKNOWN group default qlen 1000
    link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00
    inet 127.0.0.1/8 scope host lo
       valid_lft forever preferred_lft forever
"""
VXLAN = """4: flannel.1: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue state UNKNOWN mode DEFAULT \
group default qlen 1000
    link/ether 02:4b:a0:af:b6:82 brd ff:ff:ff:ff:ff:ff promiscuity 0  allmulti 0 minmtu 68 maxmtu 65535 
    vxlan id 1 local 192.168.1.11 dev eth0 srcport 0 0 dstport 8472 nolearning ttl auto ageing 300 udpcsum noudp6zerocsumtx \
noudp6zerocsumrx addrgenmode eui64 numtxqueues 1 numrxqueues 1 gso_max_size 65536 gso_max_segs 65535 tso_max_size 65536 \
tso_max_segs 65535 gro_max_size 65536 
"""  # noqa: W291
ADDR = """4: flannel.1: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue state UNKNOWN group default qlen 1000
    link/ether 02:4b:a0:af:b6:82 brd ff:ff:ff:ff:ff:ff
    inet 10.244.1.0/32 scope global flannel.1
       valid_lft forever preferred_lft forever
"""
VETH = """5: veth0000@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue master cni0 state UP mode \
DEFAULT group default qlen 1000
    link/ether 2a:24:98:b9:77:60 brd ff:ff:ff:ff:ff:ff link-netnsid 0
    alias pod default/web-0
"""
STATS = """3: cni0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue state UP mode DEFAULT group default qlen 1000
    link/ether 02:00:0a:f4:01:01 brd ff:ff:ff:ff:ff:ff
    RX:  bytes packets errors dropped  missed   mcast           
             0       0      0       0       0       0 
    TX:  bytes packets errors dropped carrier collsns           
           164       2      0       0       0       0 
"""  # noqa: W291
ROUTES = """default via 192.168.1.1 dev eth0 proto static 
unreachable 10.8.0.0/16 metric 5 
10.244.1.0/24 dev cni0 proto kernel scope link src 10.244.1.1 
10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink 
192.168.1.0/24 dev eth0 proto kernel scope link src 192.168.1.11 
"""  # noqa: W291
CONNTRACK = """tcp      6 431999 ESTABLISHED src=10.244.1.5 dst=10.96.0.1 sport=48474 dport=80 src=10.244.2.3 dst=10.244.1.5 \
sport=8080 dport=48474 [ASSURED] mark=0 use=1
udp      17 29 src=127.0.0.1 dst=127.0.0.1 sport=36863 dport=9 [UNREPLIED] src=127.0.0.1 dst=127.0.0.1 \
sport=9 dport=36863 mark=0 use=1
icmp     1 29 src=127.0.0.1 dst=127.0.0.1 type=8 code=0 id=18471 src=127.0.0.1 dst=127.0.0.1 type=0 code=0 id=18471 mark=0 use=1
"""


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("ip -d link show flannel.1", VXLAN),
        ("ip link show dev veth0000", VETH),
        ("ip addr show flannel.1", ADDR),
        ("ip addr show lo", LO),
        ("ip -s link show cni0", STATS),
        ("ip route", ROUTES),
        ("ip r s", ROUTES),
        ("ip route show dev flannel.1", "10.244.2.0/24 via 10.244.2.0 onlink \n"),
        ("ip route show 10.244.2.0/24", "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink \n"),
        ("ip route show table local", "local 10.244.1.1 dev cni0 proto kernel scope host src 10.244.1.1 \n"),
        ("ip -d route show 10.8.0.0/16", "unreachable 10.8.0.0/16 proto boot scope global metric 5 \n"),
        ("ip -6 route", "fd00:10:244:1::/64 dev cni0 proto kernel metric 256 pref medium\n"),
        ("ip route get 10.244.2.5", "10.244.2.5 via 10.244.2.0 dev flannel.1 src 10.244.1.0 uid 0 \n    cache \n"),
        ("ip route get 8.8.8.8", "8.8.8.8 via 192.168.1.1 dev eth0 src 192.168.1.11 uid 0 \n    cache \n"),
        ("ip route get 10.244.1.7", "10.244.1.7 dev cni0 src 10.244.1.1 uid 0 \n    cache \n"),
        ("ip route get 10.244.1.1", "local 10.244.1.1 dev lo src 10.244.1.1 uid 0 \n    cache <local> \n"),
        ("ip neigh", "192.168.1.77 dev eth0 INCOMPLETE \n10.244.2.0 dev flannel.1 lladdr 02:00:00:00:00:02 PERMANENT \n"),
        ("ip neigh show dev flannel.1", "10.244.2.0 lladdr 02:00:00:00:00:02 PERMANENT \n"),
        ("ip rule", "0:\tfrom all lookup local\n32766:\tfrom all lookup main\n32767:\tfrom all lookup default\n"),
        ("ip -br link show type vxlan", "flannel.1        UNKNOWN        02:4b:a0:af:b6:82 <BROADCAST,MULTICAST,UP,LOWER_UP> \n"),
        ("ip -br -4 addr show cni0", "cni0             UP             10.244.1.1/24 \n"),
        (
            "ip -4 -o addr show cni0",
            "3: cni0    inet 10.244.1.1/24 scope global cni0\\       valid_lft forever preferred_lft forever\n",
        ),
        (
            "bridge fdb",
            "02:00:00:00:00:02 dev flannel.1 dst 192.168.1.12 self permanent\n02:d9:6d:5f:3b:ec dev veth0000 master cni0 \n",
        ),
        ("bridge fdb show dev flannel.1", "02:00:00:00:00:02 dst 192.168.1.12 self permanent\n"),
        (
            "bridge link show dev veth0000",
            "5: veth0000@cni0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 master cni0 state forwarding priority 32 cost 2 \n",
        ),
        ("conntrack -L", CONNTRACK),
        ("conntrack -L conntrack -p udp", CONNTRACK.splitlines(True)[1]),
        ("conntrack -L -d 10.96.0.0/12 --dport 80", CONNTRACK.splitlines(True)[0]),
        ("conntrack -L -g -o extended", "ipv4     2 " + CONNTRACK.splitlines(True)[0]),
        ("conntrack -C", "3\n"),
        ("sysctl net.ipv4.ip_forward", "net.ipv4.ip_forward = 1\n"),
        ("sysctl -n net/ipv4/ip_forward", "1\n"),
        ("nft list ruleset", ""),
        ("iptables -S", "-P INPUT ACCEPT\n-P FORWARD ACCEPT\n-P OUTPUT ACCEPT\n"),
        ("iptables-save", ""),
    ],
)
def test_text(command, text):
    assert shim(command) == text


@pytest.mark.parametrize(
    ("command", "data"),
    [
        (
            "ip -j neigh show dev flannel.1",
            [{"dst": "10.244.2.0", "dev": "flannel.1", "lladdr": "02:00:00:00:00:02", "state": ["PERMANENT"]}],
        ),
        (
            "ip -j route show 10.244.2.0/24",
            [{"dst": "10.244.2.0/24", "gateway": "10.244.2.0", "dev": "flannel.1", "flags": ["onlink"]}],
        ),
        (
            "ip -j route get 10.244.1.1",
            [
                {
                    "type": "local",
                    "dst": "10.244.1.1",
                    "dev": "lo",
                    "prefsrc": "10.244.1.1",
                    "flags": [],
                    "uid": 0,
                    "cache": ["local"],
                }
            ],
        ),
        (
            "bridge -j fdb show dev flannel.1",
            [{"mac": "02:00:00:00:00:02", "dst": "192.168.1.12", "flags": ["self"], "state": "permanent"}],
        ),
        (
            "ip -j -4 addr show cni0",
            [
                {
                    "ifindex": 3,
                    "ifname": "cni0",
                    "flags": ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"],
                    "mtu": 1450,
                    "qdisc": "noqueue",
                    "operstate": "UP",
                    "group": "default",
                    "txqlen": 1000,
                    "link_type": "ether",
                    "address": "02:00:0a:f4:01:01",
                    "broadcast": "ff:ff:ff:ff:ff:ff",
                    "addr_info": [
                        {
                            "family": "inet",
                            "local": "10.244.1.1",
                            "prefixlen": 24,
                            "scope": "global",
                            "label": "cni0",
                            "valid_life_time": 4294967295,
                            "preferred_life_time": 4294967295,
                        }
                    ],
                }
            ],
        ),
    ],
)
def test_json(command, data):
    text = shim(command)
    assert json.loads(text) == data
    assert text == json.dumps(data, separators=(",", ":")) + "\n"


def test_json_of_a_vxlan():
    (link,) = json.loads(shim("ip -d -j link show flannel.1"))
    assert link["linkinfo"]["info_kind"] == "vxlan"
    assert (link["linkinfo"]["info_data"]["id"], link["linkinfo"]["info_data"]["port"]) == (1, 8472)


def test_counters_only_when_accounted():
    text = shim("conntrack -L -p tcp", Client(sysctls={"net.netfilter.nf_conntrack_acct": "1"}))
    assert "dport=80 packets=5 bytes=300 src=" in text
    assert "dport=48474 packets=4 bytes=240 [ASSURED]" in text


def test_conntrack_statistics():
    assert "insert_failed=2 drop=0" in shim("conntrack -S")


@pytest.mark.parametrize(
    ("command", "message", "status"),
    [
        ("ip foo", 'Object "foo" is unknown, try "ip help".', 1),
        ("ip -x link", 'Option "-x" is unknown', 255),
        ("ip link show nonexist", 'Device "nonexist" does not exist.', 1),
        ("ip route get 2001:db8::1", "Network is unreachable", 2),
        ("ip route get 10.8.1.1", "RTNETLINK answers: No route to host", 2),
        ("ip route get nonsense", "any valid prefix is expected", 1),
        ("ip route add 10.0.0.1/8 dev eth0", "any valid prefix is expected", 1),
        ("ip neigh show dev nope", 'Cannot find device "nope"', 1),
        ("ip tuntap", "is unknown", 1),
        ("bridge fdb show dev nope", 'Cannot find device "nope"', 255),
        ("conntrack -X", "unknown command", 2),
        ("conntrack -L --dport 70000", "is not a port", 2),
        ("conntrack -L -s nonsense", "is not an address", 2),
        ("sysctl net.nope", "cannot stat /proc/sys/net/nope: No such file or directory", 1),
        ("iptables -L NOPE", "iptables: No chain/target/match by that name.", 1),
        ("iptables -t nope -L", "can't initialize iptables table `nope'", 3),
        ("iptables -A INPUT -p nope", 'unknown protocol "nope"', 2),
        ("iptables --nope", 'unknown option "--nope"', 2),
        ("nft add table x", "not supported", 1),
    ],
)
def test_complaints(command, message, status):
    with pytest.raises(ToolError) as error:
        shim(command)
    assert message in str(error.value)
    assert error.value.status == status


@pytest.mark.parametrize(
    ("command", "op"),
    [
        ("ip link set veth0000 down", nl.LinkSet("veth0000", up=False)),
        ("ip link set dev cni0 mtu 1400 up", nl.LinkSet("cni0", up=True, mtu=1400)),
        ("ip route del 10.244.2.0/24", nl.RouteDel("10.244.2.0/24")),
        (
            "ip route add 10.9.0.0/16 via 192.168.1.12 dev eth0 metric 3",
            nl.RouteAdd("10.9.0.0/16", "eth0", "192.168.1.12", metric=3, proto="boot"),
        ),
        (
            "ip route replace default via 192.168.1.1 dev eth0",
            nl.RouteAdd("default", "eth0", "192.168.1.1", proto="boot", replace=True),
        ),
        ("ip route add blackhole 10.9.0.0/16", nl.RouteAdd("10.9.0.0/16", proto="boot", type="blackhole")),
        (
            "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:09 dev flannel.1 nud permanent",
            nl.NeighAdd("10.244.2.0", "02:00:00:00:00:09", "flannel.1", replace=True),
        ),
        ("ip neigh del 10.244.2.0 dev flannel.1", nl.NeighDel("10.244.2.0", "flannel.1")),
        ("ip addr add 10.244.1.9/24 dev cni0", nl.AddrAdd("cni0", "10.244.1.9/24")),
        (
            "bridge fdb del 02:00:00:00:00:02 dev flannel.1 dst 192.168.1.12",
            nl.FdbDel("02:00:00:00:00:02", "flannel.1", "192.168.1.12"),
        ),
        ("bridge link set dev veth0000 hairpin off", nl.LinkSet("veth0000", hairpin=False)),
        ("sysctl -w net.ipv4.ip_forward=0", nl.SysctlSet("net.ipv4.ip_forward", "0")),
        ("conntrack -F", nl.ConntrackDel()),
        ("conntrack -D -p udp", nl.ConntrackDel("udp", "127.0.0.1", "127.0.0.1", 9, "127.0.0.1")),
    ],
)
def test_changes(command, op):
    client = Client()
    shim(command, client)
    assert client.told == [op]


def test_refused_changes():
    refuses = nl.NetlinkError("ESRCH", "no such route")
    with pytest.raises(ToolError, match="RTNETLINK answers: No such process"):
        shim("ip route del 1.2.3.0/24", Client(refuses))


# --- iptables --------------------------------

RULES = """*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:X - [0:0]
-A FORWARD -s 10.244.0.0/16 -j X
-A X -p tcp -m tcp --dport 80 -j DROP
COMMIT
"""


def filtering() -> Client:
    (table,) = parse(RULES, 4)
    counters = {"FORWARD": [nl.RuleCounters(7, 420)], "X": [nl.RuleCounters(123456, 98765432)]}
    return Client(rules=[nl.TableDump(table, counters, {"FORWARD": nl.RuleCounters(1, 60)})])


def test_save_is_the_text_between_dates():
    lines = shim("iptables-save", filtering()).splitlines()
    assert lines[0].startswith("# Generated by iptables-save v1.8.9 on ")
    assert "\n".join(lines[1:-1]) + "\n" == RULES.replace("FORWARD ACCEPT [0:0]", "FORWARD ACCEPT [1:60]")
    assert "[7:420] -A FORWARD -s 10.244.0.0/16 -j X" in shim("iptables-save -c", filtering())
    assert shim("iptables-save -t nat", filtering()) == ""


def test_listing_with_counters():
    text = shim("iptables -nvL X --line-numbers", filtering())
    assert text.splitlines() == [
        "Chain X (1 references)",
        "num   pkts bytes target     prot opt in     out     source               destination         ",
        "1     123K   99M DROP       6    --  *      *       0.0.0.0/0            0.0.0.0/0            tcp dpt:80",
    ]


@pytest.mark.parametrize(
    ("command", "chain", "rules"),
    [
        ("iptables -A X -p udp -j ACCEPT", "X", ["-p tcp -m tcp --dport 80 -j DROP", "-p udp -j ACCEPT"]),
        ("iptables -I X -p udp -j ACCEPT", "X", ["-p udp -j ACCEPT", "-p tcp -m tcp --dport 80 -j DROP"]),
        ("iptables -w -t filter -D X 1", "X", []),
        ("iptables -D FORWARD -s 10.244.0.0/16 -j X", "FORWARD", []),
        ("iptables -F X", "X", []),
    ],
)
def test_edits_send_the_chain_that_differs(command, chain, rules):
    client = filtering()
    shim(command, client)
    (update,) = client.told
    (table,) = parse("*filter\n:X - [0:0]\n" + "".join(f"-A {chain} {rule}\n" for rule in rules) + "COMMIT\n", 4)
    assert [entry.name for entry in update.chains] == [chain]
    assert update.chains[0].rules == next(entry for entry in table.chains if entry.name == chain).rules


def test_policy_new_chain_and_check():
    client = filtering()
    for command in ("iptables -P FORWARD DROP", "iptables -N Y", "iptables -C FORWARD -s 10.244.0.0/16 -j X"):
        shim(command, client)
    assert [(entry.name, entry.policy) for update in client.told for entry in update.chains] == [("FORWARD", "DROP"), ("Y", "")]
    with pytest.raises(ToolError, match="does a matching rule exist"):
        shim("iptables -C FORWARD -j X", client)


def test_restore_replaces_or_adds(tmp_path):
    file = tmp_path / "rules"
    file.write_text("*filter\n:Y - [0:0]\n-A FORWARD -j Y\nCOMMIT\n")
    client = filtering()
    shim(f"iptables-restore {file}", client)
    assert isinstance(client.told[0], nl.TablesReplace)
    client = filtering()
    shim(f"iptables-restore --noflush {file}", client)
    (update,) = client.told
    assert [entry.name for entry in update.chains] == ["FORWARD", "Y"]
    assert len(update.chains[0].rules) == 2
    file.write_text("*filter\n-A FORWARD --nope\n")
    with pytest.raises(ToolError, match="line 2: unknown option"):
        shim(f"iptables-restore {file}", client)


# --- as programs --------------------------------


def test_installed_shims_are_programs(tmp_path):
    written = install(tmp_path / "tools")
    assert sorted(path.name for path in written) == sorted(TOOLS)
    env = {"PODWIRE_DATAPATH": str(tmp_path / "none.sock"), "PATH": os.environ["PATH"]}
    done = subprocess.run([tmp_path / "tools" / "ip", "route"], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"ip: the datapath at {tmp_path}/none.sock does not answer")
    done = subprocess.run([tmp_path / "tools" / "conntrack", "-L"], env={}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "conntrack: PODWIRE_DATAPATH does not name a datapath's socket\n")


def test_module_usage():
    done = subprocess.run([sys.executable, "-m", "podwire_nodeagent.tools", "nope"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage:")


def test_run_reports_a_missing_datapath(capsys, monkeypatch):
    monkeypatch.delenv("PODWIRE_DATAPATH", raising=False)
    assert run("ip", ["link"]) == 2
    assert "PODWIRE_DATAPATH" in capsys.readouterr().err
