"""The plugin's protocol: one JSON document whatever it is given, the specification's codes, and the order of its checks.

What it does to namespaces and to a datapath is in test_plugin_live.py.
"""

from __future__ import annotations

import io
import json
import tempfile
from types import SimpleNamespace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_cni import plugin, protocol
from podwire_cni.ipam import HostLocal, Owner

ENV = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/nonexistent/netns", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin"}


def call(env: dict[str, str], stdin: bytes) -> tuple[int, bytes]:
    out = io.BytesIO()
    streams = {"stdin": SimpleNamespace(buffer=io.BytesIO(stdin)), "stdout": SimpleNamespace(buffer=out)}
    with mock.patch.multiple(plugin.sys, **streams):
        return plugin.main(env), out.getvalue()


def run(command: str, conf: object, **env: str) -> dict | None:
    """The answer, None for silence; status and answer must agree."""
    status, out = call({"CNI_COMMAND": command, **ENV, **env}, json.dumps(conf).encode())
    answer = json.loads(out) if out else None
    assert status == (1 if answer and "code" in answer else 0)
    return answer


@pytest.fixture
def conf(tmp_path) -> dict:
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.244.1.0/24"}]], "dataDir": str(tmp_path / "ipam")}
    return {"cniVersion": "1.1.0", "name": "cbr0", "type": "podwire", "dataplane": str(tmp_path / "no.sock"), "ipam": ipam}


def store(conf: dict) -> HostLocal:
    return HostLocal(conf["name"], conf["ipam"])


def test_version_reads_no_configuration():
    class Unreadable:
        def read(self, size: int) -> bytes:
            raise AssertionError("VERSION has read stdin")

    out = io.BytesIO()
    streams = {"stdin": SimpleNamespace(buffer=Unreadable()), "stdout": SimpleNamespace(buffer=out)}
    with mock.patch.multiple(plugin.sys, **streams):
        assert plugin.main({"CNI_COMMAND": "VERSION"}) == 0
    answer = json.loads(out.getvalue())
    assert answer == {"cniVersion": "1.1.0", "supportedVersions": list(protocol.SUPPORTED)}


@pytest.mark.parametrize("stdin", [b"", b"{", b"[]", b"5", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"name": "a"} x'])
def test_a_configuration_that_is_none(stdin):
    status, out = call({"CNI_COMMAND": "ADD", **ENV}, stdin)
    assert (status, json.loads(out)["code"]) == (1, 6)


def test_a_configuration_without_end():
    status, out = call({"CNI_COMMAND": "ADD", **ENV}, b" " * (plugin.MAX_CONFIG + 1))
    assert (status, json.loads(out)["code"]) == (1, 5)


@pytest.mark.parametrize(
    ("command", "change", "code"),
    [
        ("ADD", {"cniVersion": "9.9.9"}, 1),
        ("CHECK", {"cniVersion": "0.3.1"}, 1),
        ("GC", {"cniVersion": "1.0.0"}, 1),
        ("STATUS", {"cniVersion": "1.0.0"}, 1),
        ("ADD", {"name": ""}, 7),
        ("ADD", {"name": "a b"}, 7),
        ("ADD", {"ipam": None}, 7),
        ("DEL", {"ipam": None}, 7),
        ("CHECK", {"ipam": None, "prevResult": {"ips": []}}, 7),
        ("GC", {"ipam": None, "cni.dev/valid-attachments": []}, 7),
        ("STATUS", {"ipam": None}, 7),
        ("ADD", {"dataplane": ""}, 7),
        ("ADD", {"bridge": 5}, 7),
        ("ADD", {"hairpinMode": 1}, 7),
        ("ADD", {"mtu": True}, 7),
        ("ADD", {"mtu": -1}, 7),
        ("ADD", {"mtu": 0}, 7),
        ("ADD", {"mtu": 65522}, 7),
        ("ADD", {"mtu": 1 << 70}, 7),
        ("CHECK", {}, 6),
        ("CHECK", {"prevResult": []}, 6),
        ("CHECK", {"prevResult": {}}, 6),
        ("CHECK", {"prevResult": {"ips": [5]}}, 6),
        ("CHECK", {"prevResult": {"ips": [], "interfaces": [5]}}, 6),
        ("CHECK", {"prevResult": {"ips": [{"address": "10.244.1.5/24"}]}}, 103),
        ("GC", {}, 7),
        ("GC", {"cni.dev/valid-attachments": [5]}, 7),
        ("STATUS", {}, 51),
    ],
)
def test_the_code_says_what_is_wrong(conf, command, change, code):
    answer = run(command, conf | change)
    assert answer is not None
    assert (answer["code"], answer["cniVersion"]) == (code, "1.1.0")
    assert answer["msg"]


@pytest.mark.parametrize("routes", [5, [5], [{}], [{"dst": 5}], [{"dst": "x"}], [{"dst": "10.0.0.1/8"}]])
def test_routes_that_are_none(conf, routes):
    conf["ipam"]["routes"] = routes
    answer = run("ADD", conf)
    assert answer is not None
    assert answer["code"] == 7
    assert store(conf).owners() == []


def test_the_environment_is_checked_before_the_configuration():
    status, out = call({"CNI_COMMAND": "ADD"}, b"{")
    assert (status, json.loads(out)["code"]) == (1, 4)


def test_add_into_no_namespace_keeps_no_address(conf):
    answer = run("ADD", conf)
    assert answer is not None
    assert answer["code"] == 102
    assert store(conf).owners() == []


def test_add_when_there_is_no_address(conf):
    conf["ipam"]["ranges"] = [[{"subnet": "10.244.1.0/30"}]]
    store(conf).add(Owner("other", "eth0"))
    answer = run("ADD", conf)
    assert answer is not None
    assert answer["code"] == 100


def test_add_for_an_owner_that_has_an_address_leaves_it(conf):
    store(conf).add(Owner("c1", "eth0"))
    answer = run("ADD", conf)
    assert answer is not None
    assert answer["code"] == 101
    assert store(conf).owners() == [Owner("c1", "eth0")]


def test_a_full_disk_is_an_io_failure(conf, tmp_path):
    (tmp_path / "ipam").write_text("a file where the directory should be")
    for command in ("ADD", "DEL"):
        answer = run(command, conf)
        assert answer is not None
        assert answer["code"] == 5


def test_del_without_datapath_namespace_or_allocation_is_fine_and_silent(conf):
    assert run("DEL", conf) is None
    store(conf).add(Owner("c1", "eth0"))
    assert run("DEL", conf, CNI_NETNS="") is None
    assert store(conf).owners() == []
    assert run("DEL", conf) is None


def test_gc_keeps_the_valid_ones(conf):
    for name in ("a", "b", "c"):
        store(conf).add(Owner(name, "eth0"))
    valid = [{"containerID": "b", "ifname": "eth0"}, {"containerID": "c", "ifname": "net1"}]
    assert run("GC", conf | {"cni.dev/valid-attachments": valid}) is None
    assert store(conf).owners() == [Owner("b", "eth0")]


def test_a_bug_is_an_error_of_no_type(conf):
    with mock.patch.object(plugin.Call, "add", side_effect=RuntimeError("oops")):
        answer = run("ADD", conf)
    assert answer is not None
    assert (answer["code"], "oops" in answer["details"]) == (999, True)


# --- anything at all --------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda e: st.lists(e, max_size=3) | st.dictionaries(st.text(max_size=8), e, max_size=3),
    max_leaves=8,
)
SUBNETS = st.sampled_from(["10.0.0.0/24", "10.0.0.0/30", "fd00::/64"])
RANGE = st.fixed_dictionaries({"subnet": SUBNETS}, optional={"rangeStart": JSON, "gateway": JSON | st.just("10.0.0.2")})
IPAM = st.fixed_dictionaries({}, optional={"ranges": JSON | st.lists(st.lists(RANGE)), "subnet": SUBNETS, "routes": JSON})
CONF = st.fixed_dictionaries(
    {"name": st.just("n") | JSON, "cniVersion": st.sampled_from(protocol.SUPPORTED) | JSON, "ipam": IPAM | JSON},
    optional={
        "mtu": JSON,
        "bridge": JSON,
        "hairpinMode": JSON,
        "isDefaultGateway": JSON,
        "prevResult": JSON | st.fixed_dictionaries({"ips": JSON, "interfaces": JSON}),
        "cni.dev/valid-attachments": JSON,
        "runtimeConfig": JSON,
    },
)
BYTES_TEXT = st.binary(max_size=12).map(lambda b: b.replace(b"\0", b"").decode(errors="surrogateescape"))
FUZZED = st.fixed_dictionaries(
    {},
    optional={
        "CNI_COMMAND": st.sampled_from(list(protocol.REQUIRED)) | BYTES_TEXT,
        "CNI_CONTAINERID": BYTES_TEXT,
        "CNI_IFNAME": BYTES_TEXT,
        "CNI_NETNS": BYTES_TEXT.map("/nonexistent/{}".format),
        "CNI_ARGS": BYTES_TEXT,
        "CNI_PATH": BYTES_TEXT,
    },
)


def expect_protocol(env: dict[str, str], stdin: bytes) -> None:
    status, out = call(env, stdin)
    if not out:
        assert (status, env["CNI_COMMAND"] in ("DEL", "GC")) == (0, True)
        return
    answer = json.loads(out.decode())
    if "supportedVersions" in answer:
        assert (status, env["CNI_COMMAND"]) == (0, "VERSION")
        return
    assert status == 1
    assert isinstance(answer["code"], int)
    assert answer["msg"]
    assert answer["code"] != protocol.UNTYPED, answer


@settings(deadline=None, max_examples=150)
@given(FUZZED, st.binary(max_size=40) | JSON.map(lambda j: json.dumps(j).encode()))
def test_any_environment_and_input(env, stdin):
    expect_protocol({"CNI_COMMAND": "ADD", **env}, stdin)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(list(protocol.REQUIRED)), CONF)
def test_any_configuration(command, conf):
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(conf["ipam"], dict):
            conf["ipam"]["dataDir"] = folder
        conf["dataplane"] = f"{folder}/no.sock"
        expect_protocol({"CNI_COMMAND": command, **ENV}, json.dumps(conf).encode())
