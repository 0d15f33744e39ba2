"""What a person reads of a journey: every decision with its rule and the object behind it."""

import io

from rich.console import Console

from podwire.cli.trace_view import Story, render
from podwire.journey import connections, join
from podwire_core.trace import Digest, Hop, Step

RULE = "-A KUBE-SEP-X -p tcp -m tcp -j DNAT --to-destination 10.244.2.3:80"


def journey():
    syn = Digest("10.244.1.2", "10.96.0.7", "tcp", 4000, 80, flags="S", length=60, ttl=64)
    out = Digest("10.244.1.2", "10.244.2.3", "tcp", 4000, 80, flags="S", length=60, ttl=63)
    steps = [
        Step("bridge", "pass"),
        Step(
            "nat/PREROUTING",
            "dnat",
            "to 10.244.2.3:80",
            RULE,
            "Service default/web:http",
            7,
            ("KUBE-SERVICES", "KUBE-SVC-X"),
            4200,
        ),
        Step("tunnel", "encapsulate", "VXLAN vni 1"),
    ]
    one = Hop(
        "node1",
        1,
        1.0,
        "vetha",
        syn,
        steps,
        "forwarded",
        "flannel.1",
        out,
        tunnel_dst="192.168.1.12",
        in_alias="pod default/client",
        ns=9000,
    )
    two = Hop("node2", 1, 1.1, "flannel.1", out, [], "delivered", "vethb", out, out_alias="pod default/web-1")
    return [one, two]


def text(hops, everything=False, **more):
    story = Story(
        "pod default/client", "http://web", ["curl", "http://web"], more.pop("exit", 0), "", connections(join(hops)), **more
    )
    buffer = io.StringIO()
    render(story, Console(file=buffer, width=200), everything)
    return buffer.getvalue()


def test_the_way_of_a_packet_reads_from_top_to_bottom():
    shown = text(journey(), names={"10.96.0.7": "Service default/web", "192.168.1.12": "node node2"})
    parts = [
        "curl http://web  in pod default/client",
        "1. TCP 10.244.1.2:4000 → 10.96.0.7:80 (Service default/web)",
        "reached 10.244.2.3:80",
        "▶ TCP SYN 10.244.1.2:4000 → 10.96.0.7:80",
        "node1  in vetha (pod default/client)",
        "nat/PREROUTING    dnat         to 10.244.2.3:80",
        "7 rules    4.2 µs",
        RULE,
        "because of Service default/web:http",
        "by way of KUBE-SERVICES → KUBE-SVC-X",
        "encapsulate  VXLAN vni 1",
        "═▶ out flannel.1, in a tunnel to 192.168.1.12 (node node2)  9.0 µs",
        "node2  in flannel.1",
        "✓ delivered to vethb (pod default/web-1)",
        "1 packets, 2 hops, 7 rules evaluated, 1 times through a tunnel",
        "exit status 0",
    ]
    position = 0
    for part in parts:
        assert part in shown[position:], f"{part!r} is missing, or not where it belongs, in\n{shown}"
        position = shown.index(part, position)
    assert "bridge" not in shown, "a stage that decided nothing is not shown"


def test_a_drop_says_why():
    syn = Digest("10.244.1.2", "10.96.0.7", "tcp", 4000, 80, flags="S")
    shown = text([Hop("node1", 1, 1.0, "vetha", syn, [], "dropped", reason="drop.policy")], exit=28)
    assert "✗ dropped (drop.policy)" in shown
    assert "exit status 28" in shown


def test_lookups_take_two_lines():
    ask = Digest("10.244.1.2", "10.96.0.10", "udp", 4000, 53)
    asked = Digest("10.244.1.2", "10.244.2.9", "udp", 4000, 53)
    answered = Digest("10.244.2.9", "10.244.1.2", "udp", 53, 4000)
    answer = Digest("10.96.0.10", "10.244.1.2", "udp", 53, 4000)
    step = Step("nat/PREROUTING", "dnat", rule=RULE, origin="Service kube-system/kube-dns:dns", evaluated=3)
    hops = [
        Hop("node1", 1, 1.0, "a", ask, [step], "delivered", out=asked),
        Hop("node1", 2, 1.001, "b", answered, [], "delivered", out=answer),
    ]
    shown = text(hops)
    assert "1. DNS 10.244.1.2:4000 → 10.96.0.10:53: 1 questions, 1 answers, 1.0 ms" in shown
    assert "answered by 10.244.2.9:53, by Service kube-system/kube-dns:dns, 3 rules evaluated" in shown
    assert "1. UDP" in text(hops, everything=True)
    assert "no answer" in text(hops[:1])


def test_names_with_brackets_are_not_markup():
    shown = text(journey(), names={"10.96.0.7": "[bold]x[/]"})
    assert "([bold]x[/])" in shown


def test_nothing_seen():
    assert "no packet left it" in text([], exit=6)
    assert "3 records were lost" in text(journey(), lost=3)
