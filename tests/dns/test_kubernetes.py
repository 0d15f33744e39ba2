"""The kubernetes plugin against the rules of the Kubernetes DNS specification 1.1.0 and CoreDNS' own."""

from __future__ import annotations

import pytest

from tests.dns.conftest import InMemory, endpoint, namespace, pod, service, slice_of

COREFILE = ". {\n kubernetes cluster.local in-addr.arpa ip6.arpa {\n  pods insecure\n }\n}\n"
OBJECTS = [
    namespace("default"),
    namespace("empty"),
    service("web"),
    service("dual", ["10.96.0.60", "fd00:10:96::60"]),
    service("db", "None", ports=(("sql", "TCP", 5432),)),
    slice_of(
        "db",
        endpoint("10.244.1.5", hostname="db-0"),
        endpoint("10.244.2.5", hostname="db-1"),
        endpoint("10.244.3.5", ready=False, hostname="db-2"),
        ports=(("sql", "TCP", 5432),),
    ),
    service("lonely", "None"),
    slice_of("lonely", endpoint("10.244.1.6", ready=False)),
    service("eager", "None", publishNotReadyAddresses=True),
    slice_of("eager", endpoint("10.244.1.7", ready=False)),
    service("out", "", ports=(), type="ExternalName", externalName="example.org"),
    service("alias", "", ports=(), type="ExternalName", externalName="web.default.svc.cluster.local"),
    slice_of("web", endpoint("10.244.1.8", hostname="w0"), endpoint("10.244.2.8")),
    pod("client", "10.244.1.9"),
]
ZONE = "svc.cluster.local."


@pytest.fixture(scope="module")
def dns() -> InMemory:
    return InMemory(COREFILE, OBJECTS)


@pytest.mark.parametrize(
    ("name", "qtype", "data"),
    [
        (f"web.default.{ZONE}", "A", ["10.96.0.50"]),
        (f"dual.default.{ZONE}", "A", ["10.96.0.60"]),
        (f"dual.default.{ZONE}", "AAAA", ["fd00:10:96::60"]),
        (f"_http._tcp.web.default.{ZONE}", "SRV", [f"0 100 80 web.default.{ZONE}"]),
        (f"db.default.{ZONE}", "A", ["10.244.1.5", "10.244.2.5"]),
        (f"db-1.db.default.{ZONE}", "A", ["10.244.2.5"]),
        (f"_sql._tcp.db.default.{ZONE}", "SRV", [f"0 50 5432 db-0.db.default.{ZONE}", f"0 50 5432 db-1.db.default.{ZONE}"]),
        (f"eager.default.{ZONE}", "A", ["10.244.1.7"]),
        (f"10-244-1-7.eager.default.{ZONE}", "A", ["10.244.1.7"]),
        (f"out.default.{ZONE}", "CNAME", ["example.org."]),
        (f"alias.default.{ZONE}", "A", ["10.96.0.50", f"web.default.{ZONE}"]),
        ("1-2-3-4.default.pod.cluster.local.", "A", ["1.2.3.4"]),
        ("dns-version.cluster.local.", "TXT", ['"1.1.0"']),
        ("50.0.96.10.in-addr.arpa.", "PTR", [f"web.default.{ZONE}"]),
        ("5.1.244.10.in-addr.arpa.", "PTR", [f"db-0.db.default.{ZONE}"]),
        ("cluster.local.", "NS", ["ns.dns.cluster.local."]),
    ],
)
def test_records(dns, name, qtype, data):
    asked = dns.ask(name, qtype)
    assert (asked.rcode, asked.data) == ("NOERROR", data)


@pytest.mark.parametrize(
    ("name", "qtype"),
    [
        (f"web.default.{ZONE}", "AAAA"),
        (f"web.default.{ZONE}", "MX"),
        (ZONE, "A"),
        (f"default.{ZONE}", "A"),
        ("pod.cluster.local.", "A"),
        ("1-2-3-4.default.pod.cluster.local.", "AAAA"),
        (f"_tcp.web.default.{ZONE}", "A"),
    ],
)
def test_a_name_that_exists_without_that_type_is_nodata_with_soa(dns, name, qtype):
    asked = dns.ask(name, qtype)
    assert (asked.rcode, asked.answer, asked.soa) == ("NOERROR", [], ["cluster.local."])


@pytest.mark.parametrize(
    "name",
    [
        f"absent.default.{ZONE}",
        f"web.absent.{ZONE}",
        f"absent.{ZONE}",
        f"_https._tcp.web.default.{ZONE}",
        f"_http._udp.web.default.{ZONE}",
        f"_._tcp.web.default.{ZONE}",
        f"lonely.default.{ZONE}",
        f"db-2.db.default.{ZONE}",
        f"db-9.db.default.{ZONE}",
        f"a.b.c.web.default.{ZONE}",
        "1-2-3.default.pod.cluster.local.",
        "1-2-3-4.absent.pod.cluster.local.",
        "absent.cluster.local.",
    ],
)
def test_a_name_that_does_not_exist_is_nxdomain_with_soa(dns, name):
    asked = dns.ask(name)
    assert (asked.rcode, asked.answer, asked.soa) == ("NXDOMAIN", [], ["cluster.local."])


def test_the_case_of_the_question_is_kept(dns):
    assert dns.ask(f"WeB.Default.{ZONE}").answer == [(f"WeB.Default.{ZONE}", "A", "10.96.0.50")]


@pytest.mark.parametrize(
    ("mode", "name", "rcode"),
    [
        ("disabled", "10-244-1-9.default.pod.cluster.local.", "NXDOMAIN"),
        ("verified", "10-244-1-9.default.pod.cluster.local.", "NOERROR"),
        ("verified", "10-244-1-10.default.pod.cluster.local.", "NXDOMAIN"),
        ("verified", "10-244-1-9.empty.pod.cluster.local.", "NXDOMAIN"),
    ],
)
def test_pod_modes(mode, name, rcode):
    assert InMemory(COREFILE.replace("insecure", mode), OBJECTS).ask(name).rcode == rcode


def test_hidden_namespaces_do_not_exist():
    corefile = ". {\n kubernetes cluster.local {\n  namespaces empty\n }\n}\n"
    assert InMemory(corefile, OBJECTS).ask(f"web.default.{ZONE}").rcode == "NXDOMAIN"


def test_servfail_until_the_objects_are_listed():
    assert InMemory(COREFILE, OBJECTS, synced=False).ask(f"web.default.{ZONE}").rcode == "SERVFAIL"


def test_changes_take_effect_at_once_and_leave_nothing_behind(dns):
    mutable = InMemory(COREFILE, OBJECTS)
    mutable.index.put("Service", "default/web", service("web", "10.96.0.51"))
    assert mutable.ask(f"web.default.{ZONE}").data == ["10.96.0.51"]
    assert mutable.ask("50.0.96.10.in-addr.arpa.", "PTR").rcode == "NXDOMAIN"
    mutable.index.put("EndpointSlice", "default/db-IPv4", None)
    assert mutable.ask(f"db.default.{ZONE}").rcode == "NXDOMAIN"
    assert mutable.ask("5.1.244.10.in-addr.arpa.", "PTR").rcode == "NXDOMAIN"
