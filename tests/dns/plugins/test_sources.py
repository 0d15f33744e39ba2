"""hosts, file, autopath, dns64, loadbalance: where answers come from, and what becomes of them."""

from __future__ import annotations

import ipaddress
import os

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from podwire_dns.corefile import CorefileError
from podwire_dns.plugins.dns64 import LENGTHS, embed
from podwire_dns.plugins.hosts import Table
from podwire_dns.watching import changes
from tests.dns.conftest import InMemory, namespace, pod, service

ZONE = """\
@ 300 SOA ns hostmaster 7 7200 1800 86400 60
  300 NS ns
ns 300 A 192.0.2.53
www 300 A 192.0.2.80
six 300 A 192.0.2.6
six 300 AAAA 2001:db8::6
mapped 300 A 192.0.2.7
mapped 300 AAAA ::ffff:192.0.2.7
alias 300 CNAME www
out 300 CNAME web.default.svc.cluster.local.
"""
OBJECTS = [namespace("default"), service("web"), pod("client", "10.244.1.9")]


@pytest.fixture
def zone(tmp_path):
    path = tmp_path / "db.example.org"
    path.write_text(ZONE)
    return path


# --- hosts --------------------------------


@pytest.fixture
def hosts(tmp_path):
    path = tmp_path / "hosts"
    path.write_text(
        "192.0.2.1 a.org A-alias.org # why\n192.0.2.2 a.org\nfe80::1%eth0 a.org\nbroken b.org\n192.0.2.9\n192.0.2.3 c.net\n"
    )
    return path


@pytest.mark.parametrize(
    ("name", "qtype", "rcode", "data"),
    [
        ("a.org.", "A", "NOERROR", ["192.0.2.1", "192.0.2.2", "192.0.2.7"]),
        ("a.org.", "AAAA", "NOERROR", ["fe80::1"]),
        ("a-alias.org.", "AAAA", "NOERROR", []),
        ("a-alias.org.", "MX", "NOERROR", []),
        ("2.2.0.192.in-addr.arpa.", "PTR", "NOERROR", ["a.org."]),
        ("1.2.0.192.in-addr.arpa.", "PTR", "NOERROR", ["a-alias.org.", "a.org."]),
        ("7.2.0.192.in-addr.arpa.", "PTR", "NOERROR", ["a.org."]),
        ("3.2.0.192.in-addr.arpa.", "PTR", "REFUSED", []),
        ("absent.org.", "A", "SERVFAIL", []),
        ("c.net.", "A", "REFUSED", []),
    ],
)
def test_hosts(hosts, name, qtype, rcode, data):
    dns = InMemory(f". {{\n hosts {hosts} org {{\n  192.0.2.7 a.org\n ttl 7\n }}\n}}\n", [])
    asked = dns.ask(name, qtype)
    assert (asked.rcode, asked.data, asked.ttls) == (rcode, data, {7} if data else set())


def test_hosts_falls_through_for_names_that_it_does_not_have(hosts):
    dns = InMemory(
        f". {{\n hosts {hosts} {{\n  fallthrough svc.cluster.local\n no_reverse\n }}\n kubernetes cluster.local\n}}\n", OBJECTS
    )
    assert dns.ask("web.default.svc.cluster.local.").data == ["10.96.0.50"]
    assert dns.ask("x.org.").rcode == "SERVFAIL"
    assert dns.ask("1.2.0.192.in-addr.arpa.", "PTR").rcode == "REFUSED"


@given(st.text(max_size=60))
def test_no_line_breaks_the_hosts_table(text):
    Table.parse(text, ("",))


def test_a_file_that_changes_is_seen(tmp_path):
    path = tmp_path / "f"
    path.write_text("one")

    async def seen() -> bytes:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(replace)
                async for content in changes(str(path), 0.01):
                    return content
        return b""

    async def replace() -> None:
        await trio.sleep(0.03)
        (tmp_path / "new").write_text("two")
        os.replace(tmp_path / "new", path)

    assert trio.run(seen) == b"two"


# --- file --------------------------------


@pytest.mark.parametrize(
    ("name", "qtype", "rcode", "data", "soa"),
    [
        ("www.example.org.", "A", "NOERROR", ["192.0.2.80"], False),
        ("alias.example.org.", "A", "NOERROR", ["192.0.2.80", "www.example.org."], False),
        ("out.example.org.", "A", "NOERROR", ["10.96.0.50", "web.default.svc.cluster.local."], False),
        ("www.example.org.", "TXT", "NOERROR", [], True),
        ("absent.example.org.", "A", "NXDOMAIN", [], True),
        ("example.org.", "AXFR", "REFUSED", [], False),
        ("web.default.svc.cluster.local.", "A", "NOERROR", ["10.96.0.50"], False),
    ],
)
def test_file(zone, name, qtype, rcode, data, soa):
    dns = InMemory(f". {{\n file {zone} example.org\n kubernetes cluster.local\n}}\n", OBJECTS)
    asked = dns.ask(name, qtype)
    assert (asked.rcode, asked.data, bool(asked.soa)) == (rcode, data, soa)


def test_a_cname_leads_into_another_server_block(zone):
    dns = InMemory(f"example.org {{\n file {zone}\n}}\ncluster.local {{\n kubernetes\n}}\n", OBJECTS)
    assert dns.ask("out.example.org.").data == ["10.96.0.50", "web.default.svc.cluster.local."]


def test_file_falls_through(zone):
    dns = InMemory(f"example.org {{\n file {zone} {{\n  fallthrough\n }}\n whoami\n}}\n", [])
    assert (dns.ask("absent.example.org.").rcode, dns.ask("absent.example.org.").soa) == ("NOERROR", [])


def test_a_wrong_zone_file_says_where(tmp_path):
    path = tmp_path / "db"
    for text, message in [
        ("@ SOA x\n", f"{path}:1: SOA takes 7 fields, not 1"),
        ("a 1 A 1.2.3.4\n", f"{path}: zone example.org. has 0"),
    ]:
        path.write_text(text)
        with pytest.raises(CorefileError) as raised:
            InMemory(f"example.org {{\n file {path}\n}}\n", [])
        assert str(raised.value).startswith(f"Corefile:2: plugin file: {message}")
    with pytest.raises(CorefileError, match=r"^Corefile:2: plugin file: /nonexistent: No such file"):
        InMemory("example.org {\n file /nonexistent\n}\n", [])


def test_a_zone_is_read_again_and_a_wrong_one_is_not_taken(zone, caplog):
    dns = InMemory(f"example.org {{\n file {zone} {{\n  reload 20ms\n }}\n}}\n", [])
    file = dns.context.plugins[0]

    def www() -> str:
        return str(file._zones["example.org"].lookup("www.example.org.", 1).reply.answer[0].rdata)

    async def until(condition) -> None:
        with trio.fail_after(5):
            while not condition():
                await trio.sleep(0.01)

    async def change() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.run)
            await trio.sleep(0.03)
            zone.write_text(ZONE.replace("192.0.2.80", "192.0.2.81"))
            await until(lambda: www() == "192.0.2.81")
            zone.write_text("broken")
            await until(lambda: any("stays as it was" in r.getMessage() for r in caplog.records))
            nursery.cancel_scope.cancel()

    trio.run(change)
    assert dns.ask("www.example.org.").data == ["192.0.2.81"]


# --- autopath --------------------------------

HOSTS = "hosts {\n  192.0.2.5 example.net\n  fallthrough\n }"
AUTOPATH = f". {{\n autopath @kubernetes\n {HOSTS}\n kubernetes cluster.local {{\n  pods verified\n }}\n}}\n"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("example.net.default.svc.cluster.local.", [("CNAME", "example.net."), ("A", "192.0.2.5")]),
        ("Web.default.default.svc.cluster.local.", [("CNAME", "Web.default.svc.cluster.local."), ("A", "10.96.0.50")]),
        ("web.default.svc.cluster.local.", [("A", "10.96.0.50")]),
        ("example.net.", [("A", "192.0.2.5")]),
    ],
)
def test_autopath(name, answer):
    asked = InMemory(AUTOPATH, OBJECTS).ask(name)
    assert [(kind, data) for _, kind, data in asked.answer] == answer
    assert asked.answer[0][0] == name


def test_autopath_returns_the_first_answer_if_there_is_none():
    asked = InMemory(AUTOPATH.replace(HOSTS, ""), OBJECTS).ask("absent.default.svc.cluster.local.")
    assert (asked.rcode, asked.answer, asked.soa) == ("NXDOMAIN", [], ["cluster.local."])


def test_autopath_is_for_known_pods():
    name = "example.net.default.svc.cluster.local."
    assert InMemory(AUTOPATH.replace("verified", "insecure"), OBJECTS).ask(name).rcode != "NOERROR"
    assert InMemory(AUTOPATH, OBJECTS).ask(name, client="10.244.7.7").rcode != "NOERROR"


def test_autopath_with_a_file_of_domains(tmp_path):
    (tmp_path / "resolv.conf").write_text("search old\nsearch a.example b.example\n")
    text = f". {{\n autopath {tmp_path}/resolv.conf\n hosts {{\n  192.0.2.5 www.b.example\n  fallthrough\n }}\n}}\n"
    assert InMemory(text, []).ask("www.a.example.").data == ["192.0.2.5", "www.b.example."]


# --- dns64 --------------------------------


@pytest.mark.parametrize(
    ("options", "client", "name", "data"),
    [
        ("", "fd00::9", "www", ["64:ff9b::c000:250"]),
        ("", "fd00::9", "alias", ["64:ff9b::c000:250", "www.example.org."]),
        ("", "fd00::9", "six", ["2001:db8::6"]),
        ("", "fd00::9", "mapped", ["64:ff9b::c000:207"]),
        ("", "10.0.0.9", "www", []),
        ("allow_ipv4", "10.0.0.9", "www", ["64:ff9b::c000:250"]),
        ("translate_all", "fd00::9", "six", ["64:ff9b::c000:206"]),
        ("prefix 2001:db8:64::/64", "fd00::9", "www", ["2001:db8:64:0:c0:2:5000:0"]),
    ],
)
def test_dns64(zone, options, client, name, data):
    dns = InMemory(f"example.org {{\n dns64 {{\n {options}\n }}\n file {zone}\n}}\n", [])
    assert dns.ask(f"{name}.example.org.", "AAAA", client).data == data


def test_dns64_leaves_what_does_not_exist(zone):
    asked = InMemory(f"example.org {{\n dns64\n file {zone}\n}}\n", []).ask("absent.example.org.", "AAAA", "fd00::1")
    assert (asked.rcode, asked.soa) == ("NXDOMAIN", ["example.org."])


@pytest.mark.parametrize(
    ("prefix", "address"),
    [
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100:0"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::c000:221"),
    ],
)
def test_the_examples_of_rfc_6052(prefix, address):
    assert embed(ipaddress.IPv6Network(prefix), "192.0.2.33") == str(ipaddress.IPv6Address(address))


@given(st.sampled_from(LENGTHS), st.ip_addresses(v=4))
def test_bits_64_to_71_stay_zero(length, ip):
    assert ipaddress.IPv6Address(embed(ipaddress.IPv6Network(f"2001:db8::/{length}"), str(ip))).packed[8] == 0


# --- loadbalance --------------------------------


@pytest.fixture
def many(tmp_path):
    path = tmp_path / "db"
    path.write_text("@ 9 SOA ns h 1 2 3 4 5\nalias 9 CNAME www\n" + "".join(f"www 9 A 192.0.2.{i}\n" for i in range(1, 9)))
    return path


def test_addresses_are_shuffled_behind_their_cname(many):
    dns = InMemory(f"example.org {{\n loadbalance\n file {many}\n}}\n", [])
    orders = {tuple(data for _, _, data in dns.ask("alias.example.org.").answer) for _ in range(10)}
    assert len(orders) > 1
    assert {order[0] for order in orders} == {"www.example.org."}
    assert {len(order) for order in orders} == {9}


def test_preferred_networks_come_first(many):
    dns = InMemory(f"example.org {{\n loadbalance prefer 192.0.2.7/32 192.0.2.4/31\n file {many}\n}}\n", [])
    assert [data for _, _, data in dns.ask("www.example.org.").answer][:4] == ["192.0.2.7", "192.0.2.4", "192.0.2.5", "192.0.2.1"]


def test_weights_choose_the_first(many, tmp_path):
    weights = tmp_path / "weights"
    weights.write_text(
        "www.example.org\n192.0.2.3 255 # nearly always\n" + "".join(f"192.0.2.{i} 1\n" for i in (1, 2, 4, 5, 6, 7, 8))
    )
    dns = InMemory(f"example.org {{\n loadbalance weighted {weights}\n file {many}\n}}\n", [])
    first = [dns.ask("www.example.org.").answer[0][2] for _ in range(200)]
    assert first.count("192.0.2.3") > 180


def test_wrong_weights_say_where(many, tmp_path):
    (tmp_path / "weights").write_text("www.example.org\n192.0.2.3 256\n")
    with pytest.raises(CorefileError, match=rf"^Corefile:2: plugin loadbalance: {tmp_path}/weights:2: expected"):
        InMemory(f"example.org {{\n loadbalance weighted {tmp_path}/weights\n file {many}\n}}\n", [])
