"""The kubernetes plugin against the rules of the Kubernetes DNS specification 1.1.0 and CoreDNS' own."""

from __future__ import annotations

import pytest

from podwire_dns.corefile import CorefileError
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
        (f"out.default.{ZONE}", "SRV"),
        (f"out.default.{ZONE}", "TXT"),
        (f"alias.default.{ZONE}", "AAAA"),
        ("dns.cluster.local.", "A"),
        ("ns.dns.cluster.local.", "AAAA"),
        ("cluster.local.", "A"),
        (f"db-0.db.default.{ZONE}", "AAAA"),
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
        "absent.ns.dns.cluster.local.",
        f"*.default.{ZONE}",
        f"any.default.{ZONE}",
        f"web.*.{ZONE}",
        f"*.db.default.{ZONE}",
        f"*._tcp.web.default.{ZONE}",
        f"10-244-1-5.db.default.{ZONE}",  # it has a hostname
        f"w0.out.default.{ZONE}",
        f"a.pin._zone.db.default.{ZONE}",  # without the option
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


def options(*lines: str, objects: list | None = None) -> InMemory:
    block = "\n  ".join(lines)
    return InMemory(
        f". {{\n kubernetes cluster.local in-addr.arpa {{\n  {block}\n }}\n}}\n", OBJECTS if objects is None else objects
    )


def labelled(obj: dict, **labels: str) -> dict:
    return {**obj, "metadata": {**obj["metadata"], "labels": {**obj["metadata"].get("labels", {}), **labels}}}


def test_the_ttl_is_that_of_every_record_and_of_negative_answers():
    dns = options("ttl 77")
    assert dns.ask(f"web.default.{ZONE}").ttls == {77}
    [soa] = dns.ask(f"absent.default.{ZONE}").raw.auth
    assert (soa.ttl, soa.rdata.times[4]) == (77, 77)
    assert dns.ask("dns-version.cluster.local.", "TXT").ttls == {28800}


def test_namespaces_by_label():
    objects = [labelled(namespace("default"), env="prod"), service("web")]
    assert options("namespace_labels env in (prod,test)", objects=objects).ask(f"web.default.{ZONE}").rcode == "NOERROR"
    assert options("namespace_labels env=test", objects=objects).ask(f"web.default.{ZONE}").rcode == "NXDOMAIN"
    assert options("namespace_labels env=test", objects=objects).ask("50.0.96.10.in-addr.arpa.", "PTR").rcode == "NXDOMAIN"


def test_services_by_label():
    objects = [namespace("default"), labelled(service("web"), app="web"), service("other", "10.96.0.51")]
    dns = options("labels app", objects=objects)
    assert (dns.ask(f"web.default.{ZONE}").rcode, dns.ask(f"other.default.{ZONE}").rcode) == ("NOERROR", "NXDOMAIN")
    assert dns.ask("51.0.96.10.in-addr.arpa.", "PTR").rcode == "NXDOMAIN"


def test_empty_services_can_be_ignored():
    objects = [*OBJECTS, service("empty", "10.96.0.70"), slice_of("empty", endpoint("10.244.9.9", ready=False))]
    assert options("ignore empty_service", objects=objects).ask(f"empty.default.{ZONE}").rcode == "NXDOMAIN"
    assert options("ignore empty_service", objects=objects).ask(f"web.default.{ZONE}").rcode == "NOERROR"
    assert options(objects=objects).ask(f"empty.default.{ZONE}").rcode == "NOERROR"


def test_without_endpoints():
    dns = options("noendpoints")
    assert dns.ask(f"web.default.{ZONE}").data == ["10.96.0.50"]
    for name, qtype in [(f"db.default.{ZONE}", "A"), (f"w0.web.default.{ZONE}", "A"), ("5.1.244.10.in-addr.arpa.", "PTR")]:
        assert dns.ask(name, qtype).rcode == "NXDOMAIN"


def test_endpoints_by_their_pods_names():
    named = endpoint("10.244.5.1", targetRef={"kind": "Pod", "name": "pod-x"})
    long = endpoint("10.244.5.2", targetRef={"kind": "Pod", "name": "x" * 64})
    objects = [namespace("default"), service("web", "None"), slice_of("web", named, long)]
    dns = options("endpoint_pod_names", objects=objects)
    assert dns.ask(f"pod-x.web.default.{ZONE}").data == ["10.244.5.1"]
    targets = {data.split()[3].partition(".")[0] for data in dns.ask(f"_http._tcp.web.default.{ZONE}", "SRV").data}
    assert targets == {"pod-x", "10-244-5-2"}


def test_an_endpoint_that_is_not_ready_has_no_ptr(dns):
    assert dns.ask("5.3.244.10.in-addr.arpa.", "PTR").rcode == "NXDOMAIN"
    assert dns.ask("7.1.244.10.in-addr.arpa.", "PTR").data == [f"10-244-1-7.eager.default.{ZONE}"]


@pytest.mark.parametrize(
    ("name", "rcode", "data"),
    [
        ("a.pin", "NOERROR", ["10.244.1.1"]),
        ("b.pin", "NOERROR", ["10.244.1.2", "10.244.1.3"]),
        ("c.pin", "NOERROR", []),
        ("c.prefer", "NOERROR", ["10.244.1.1", "10.244.1.2", "10.244.1.3"]),
        ("B.prefer", "NOERROR", ["10.244.1.2", "10.244.1.3"]),
        ("corp.example.pin", "NOERROR", []),
        ("a.near", "NXDOMAIN", []),
        ("pin", "NXDOMAIN", []),
    ],
)
def test_endpoints_of_a_zone(name, rcode, data):
    ends = [endpoint(f"10.244.1.{n}", zone=zone) for n, zone in ((1, "a"), (2, "b"), (3, "b"))]
    objects = [namespace("default"), service("web", "None"), slice_of("web", *ends), service("one")]
    dns = options("zonal", objects=objects)
    asked = dns.ask(f"{name}._zone.web.default.{ZONE}")
    assert (asked.rcode, asked.data, bool(asked.soa)) == (rcode, data, not data)
    assert dns.ask(f"a.pin._zone.one.default.{ZONE}").rcode == "NXDOMAIN"


def test_names_of_services_do_not_exist_below_a_reverse_zone(dns):
    for name in ("web.default.svc.in-addr.arpa.", "1.244.10.in-addr.arpa.", "1.2.3.4.5.in-addr.arpa."):
        asked = dns.ask(name, "PTR")
        assert (asked.rcode, asked.soa) == ("NXDOMAIN", ["in-addr.arpa."])
    assert dns.ask("50.0.96.10.in-addr.arpa.", "A").soa == ["in-addr.arpa."]


def test_the_name_server_is_the_service_in_front():
    objects = [*OBJECTS, service("kube-dns", "10.96.0.10"), slice_of("kube-dns", endpoint("10.244.1.2"))]
    asked = options(objects=objects).ask("cluster.local.", "NS")
    assert (asked.data, asked.extra) == ([f"kube-dns.default.{ZONE}"], [f"kube-dns.default.{ZONE} A 10.96.0.10"])
    assert options(objects=objects).ask("ns.dns.cluster.local.").data == ["10.96.0.10"]
    assert options().ask("cluster.local.", "NS").extra == ["ns.dns.cluster.local. A 10.244.1.2"]


def test_an_external_name_is_looked_up_by_the_whole_server():
    corefile = "cluster.local {\n kubernetes\n}\nexample.org {\n hosts {\n  192.0.2.7 example.org\n }\n}\n"
    asked = InMemory(corefile, OBJECTS).ask(f"out.default.{ZONE}")
    assert asked.answer == [(f"out.default.{ZONE}", "CNAME", "example.org."), ("example.org.", "A", "192.0.2.7")]


def test_external_names_in_a_circle_end():
    circle = [
        namespace("default"),
        service("a", "", ports=(), type="ExternalName", externalName=f"b.default.{ZONE}"),
        service("b", "", ports=(), type="ExternalName", externalName=f"a.default.{ZONE}"),
    ]
    assert InMemory(COREFILE, circle).ask(f"a.default.{ZONE}").rcode == "NOERROR"


def test_what_falls_through():
    corefile = ". {\n kubernetes cluster.local in-addr.arpa {\n  fallthrough in-addr.arpa\n }\n whoami\n}\n"
    dns = InMemory(corefile, OBJECTS)
    assert dns.ask("1.1.1.1.in-addr.arpa.", "PTR").extra
    assert dns.ask(f"absent.default.{ZONE}").rcode == "NXDOMAIN"
    assert dns.ask(f"web.default.{ZONE}", "MX").soa, "what exists does not"


def test_zone_transfers_are_refused(dns):
    for qtype in ("AXFR", "IXFR"):
        assert dns.ask("cluster.local.", qtype).rcode == "REFUSED"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("pods sometimes", "3: plugin kubernetes: unknown or wrong option: pods sometimes"),
        ("ttl 3601", "3: plugin kubernetes: ttl must be in range [0, 3600]: 3601"),
        ("labels a in (", "3: plugin kubernetes: labels: "),
        ("endpoint https://10.0.0.1", "3: plugin kubernetes: endpoint: the API server is given on the command line"),
        ("multicluster clusterset.local", "3: plugin kubernetes: multicluster: ServiceImports are not served"),
        ("namespaces a\n namespace_labels b", "2: plugin kubernetes: namespaces and namespace_labels cannot both be set"),
        ("ignore everything", "3: plugin kubernetes: unknown or wrong option: ignore everything"),
    ],
)
def test_a_wrong_option_says_where(option, message):
    with pytest.raises(CorefileError) as raised:
        options(option)
    assert str(raised.value).startswith(f"Corefile:{message}")


def test_reverse_zones_alone_are_refused():
    with pytest.raises(CorefileError, match=r"Corefile:2: plugin kubernetes: non-reverse zone name must be used"):
        InMemory("10.0.0.0/8 {\n kubernetes\n}\n", [])


def test_the_options_for_an_api_server_are_taken():
    assert options("apiserver_qps 5", "startup_timeout 5s").ask(f"web.default.{ZONE}").rcode == "NOERROR"
