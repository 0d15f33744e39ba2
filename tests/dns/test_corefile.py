"""The Corefile: tokens, snippets, imports, zones; what is wrong, where."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_dns.corefile import CorefileError, Directive, parse, seconds, zone_names
from tests.dns.conftest import InMemory


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Corefile:1: no server block"),
        (". {\n errors\n", "Corefile:2: the file ends within a server block"),
        (". {\n nonsense\n}\n", "Corefile:2: plugin nonsense: unknown; there are: "),
        (". {\n kubernetes {\n  pods maybe\n }\n}\n", "Corefile:3: plugin kubernetes: unknown or wrong option: pods maybe"),
        (". {\n forward .\n}\n", "Corefile:2: plugin forward: needs FROM and at least one TO"),
        (". {\n forward . upstream\n}\n", "Corefile:2: plugin forward: 'upstream' is not an address, address:port or file"),
        (". {\n forward . tls://192.0.2.1\n}\n", "Corefile:2: plugin forward: tls:// is not spoken, only dns://"),
        (".:99999 {\n}\n", "Corefile:1: '.:99999': a port is a number from 1 to 65535"),
        (". {\n}\n. {\n}\n", "Corefile:3: .:53 is served by a block above already"),
        ('. {\n log "x\n}\n', "Corefile:2: a quote is not closed"),
        (". {\n import other\n}\n", "Corefile:2: import: no snippet (other) above, and no such file"),
        (". {\n import\n}\n", "Corefile:2: import: needs the name of a snippet above, or a file"),
        ("(loop) {\n import loop\n}\n. {\n import loop\n}\n", "Corefile:2: import: too many imports"),
        ("(open) {\n errors\n", "Corefile:2: the file ends within snippet (open)"),
        (". {\n reload 1s\n}\n", "Corefile:2: plugin reload: takes an interval of at least 2s"),
        (". {\n cache\n cache\n}\n", "Corefile:3: plugin cache: this plugin can only be used once per Server Block"),
        (
            ". {\n autopath @kubernetes\n}\n",
            "Corefile:2: plugin autopath: @kubernetes: there is no kubernetes in",
        ),
        ("tls://. {\n}\n", "Corefile:1: tls:// is not served, only dns://"),
        ("https://example.org {\n}\n", "Corefile:1: https:// is not served, only dns://"),
        ("grpc://example.org {\n}\n", "Corefile:1: grpc:// is not served, only dns://"),
        ("a {\n}\nb\n", "Corefile:3: server block 'b': { expected at the end of the line"),
        ("10.0.0.0/33 {\n}\n", "Corefile:1: '10.0.0.0/33' does not appear to be an IPv4 or IPv6 network"),
        (". {\n errors {\n  x {\n", "Corefile:3: plugin errors: unexpected {"),
    ],
)
def test_a_wrong_corefile_is_one_line_that_says_where(text, message):
    with pytest.raises(CorefileError) as raised:
        InMemory(text, [])
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_snippets_comments_quotes_and_variables():
    text = '(common) {\n log "a b" # why\n}\na.org:5300 b.org {\n import common\n ttl {$T}{%T%}{$ABSENT}\n}\n'
    [block] = parse(text, environment={"T": "7"})
    assert block.zones == (("a.org", 5300), ("b.org", 53))
    assert [(d.name, d.args) for d in block.directives] == [("log", ("a b",)), ("ttl", ("77",))]


def test_a_snippet_takes_arguments_and_may_stand_in_a_plugins_block():
    text = "(hide) {\n pods {args.0}\n ttl {args.1}\n}\n. {\n kubernetes cluster.local {\n  import hide verified 9\n }\n}\n"
    [block] = parse(text)
    assert [(o.name, o.args, o.line) for o in block.directives[0].options] == [("pods", ("verified",), 2), ("ttl", ("9",), 3)]


def test_files_are_imported_and_their_errors_name_them():
    files = {"custom/*.server": [("custom/a.server", "a.org {\n whoami\n}\n")], "x": [("x", "errors\nnonsense\n")]}
    text = "import custom/*.server\nimport none/*\n. {\n import x\n}\n"
    blocks = parse(text, importer=lambda pattern, file: files.get(pattern, []))
    assert [(b.zones[0][0], b.file) for b in blocks] == [("a.org", "custom/a.server"), ("", "Corefile")]
    nonsense = blocks[1].directives[1]
    assert str(nonsense.error("unknown")) == "x:2: plugin nonsense: unknown"


def test_one_server_block_may_leave_its_braces_out():
    [block] = parse("example.org,\nexample.net\nerrors\nkubernetes {\n pods verified\n}\n")
    assert block.zones == (("example.org", 53), ("example.net", 53))
    assert [d.name for d in block.directives] == ["errors", "kubernetes"]


@pytest.mark.parametrize(
    ("head", "zones"),
    [
        (".", [("", 53)]),
        (".:5300", [("", 5300)]),
        ("dns://Example.ORG.:1053", [("example.org", 1053)]),
        ("10.96.0.0/16", [("96.10.in-addr.arpa", 53)]),
        ("10.96.0.0/15:5300", [("96.10.in-addr.arpa", 5300), ("97.10.in-addr.arpa", 5300)]),
        ("fd00:10::/32", [("0.1.0.0.0.0.d.f.ip6.arpa", 53)]),
        ("fd00::/8:5353", [("d.f.ip6.arpa", 5353)]),
    ],
)
def test_a_server_blocks_zones(head, zones):
    assert parse(f"{head} {{\n}}\n")[0].zones == tuple(zones)


@given(st.ip_addresses(v=4), st.integers(1, 32))
def test_the_reverse_zones_of_a_network_hold_its_addresses(ip, length):
    name = f"{ip.reverse_pointer}"
    assert any(name == zone or name.endswith(f".{zone}") for zone in zone_names(f"{ip}/{length}"))


@pytest.mark.parametrize(("text", "value"), [("500ms", 0.5), ("1m30s", 90.0), ("1.5h", 5400.0), ("0", 0.0)])
def test_durations(text, value):
    assert seconds(Directive("x", (), (), "F", 1), text) == value


@pytest.mark.parametrize("text", ["", "s", "30", "1x", "-1s", "1s x"])
def test_what_is_no_duration(text):
    with pytest.raises(CorefileError, match=r"F:1: plugin x: .* is not a duration"):
        seconds(Directive("x", (), (), "F", 1), text)


WORDS = ["{", "}", "\n", ".", "import", "(a)", "a", "{$A}", "{args.0}", "kubernetes", "10.0.0.0/9", "dns://", ",", '"', "#"]


@given(st.text(alphabet='.{} \n"\\#abc$%:/19()', max_size=60) | st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join))
def test_no_text_breaks_the_parser(text):
    with contextlib.suppress(CorefileError):  # anything else is a bug
        parse(text)
