"""The vocabulary of CNI: which environment is refused and how, versions, names, and results in the shape of older versions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_cni import protocol
from podwire_cni.macs import mac_of
from podwire_cni.protocol import CniError

FULL = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin"}


def refused(call, *args) -> CniError:
    with pytest.raises(CniError) as caught:
        call(*args)
    return caught.value


# --- the environment --------------------------------


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("ADD", ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH", "CNI_NETNS"]),
        ("CHECK", ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH", "CNI_NETNS"]),
        ("DEL", ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"]),
        ("GC", ["CNI_PATH"]),
        ("STATUS", ["CNI_PATH"]),
    ],
)
def test_every_missing_variable_is_named(command: str, missing: list[str]):
    error = refused(protocol.check_environment, {"CNI_COMMAND": command})
    assert error.code == 4
    assert error.msg == f"required env variables [{','.join(missing)}] missing"
    for name in missing:
        only = {"CNI_COMMAND": command, **FULL} | {name: ""}  # an empty one is missing too
        assert refused(protocol.check_environment, only).msg == f"required env variables [{name}] missing"
    assert protocol.check_environment({"CNI_COMMAND": command, **{name: FULL[name] for name in missing}}) == command


def test_version_needs_its_command_only():
    assert protocol.check_environment({"CNI_COMMAND": "VERSION"}) == "VERSION"


@pytest.mark.parametrize("env", [{}, FULL, {"CNI_COMMAND": ""}])
def test_without_a_command_that_is_what_is_missing(env):
    error = refused(protocol.check_environment, env)
    assert (error.code, "CNI_COMMAND" in error.msg) == (4, True)


@pytest.mark.parametrize("command", ["add", "ADD ", "PUT", "\udcff"])
def test_an_unknown_command(command):
    assert refused(protocol.check_environment, {"CNI_COMMAND": command, **FULL}).code == 4


@pytest.mark.parametrize("text", ["c", "0", "A-b_c.d", "f" * 64])
def test_container_ids(text):
    protocol.check_container_id(text)


@pytest.mark.parametrize("text", ["", "-a", ".a", "_a", "a/b", "a b", "a\n", "ä", "../x"])
def test_container_ids_that_are_none(text):
    assert refused(protocol.check_container_id, text).code == 4


@pytest.mark.parametrize("text", ["eth0", "a" * 15, "...", "net@1"])
def test_interface_names(text):
    protocol.check_interface_name(text)


@pytest.mark.parametrize("text", ["", "a" * 16, "ä" * 8, ".", "..", "a/b", "a:b", "a b", "a\tb", "eth0\n"])
def test_interface_names_that_are_none(text):
    assert refused(protocol.check_interface_name, text).code == 4


@pytest.mark.parametrize("name", [None, "", 5, [], "a b", "-a", "a/b", "a\n"])
def test_network_names_that_are_none(name):
    assert refused(protocol.check_network_name, name).code == 7


def test_arguments():
    assert protocol.parse_args("K8S_POD_NAME=web;A=b=c;;E=") == {"K8S_POD_NAME": "web", "A": "b=c", "E": ""}
    assert protocol.parse_args("") == {}
    assert refused(protocol.parse_args, "A=b;c").code == 4


def test_variables_that_are_not_text_are_named():
    error = refused(protocol.check_environment, {"CNI_COMMAND": "ADD", **FULL} | {"CNI_NETNS": "/\udcff", "CNI_ARGS": "\udc80"})
    assert (error.code, error.msg) == (4, "env variables [CNI_ARGS,CNI_NETNS] are not UTF-8")


@given(st.dictionaries(st.sampled_from(["CNI_COMMAND", *FULL, "CNI_ARGS"]), st.text(max_size=20)))
def test_any_environment_is_taken_or_refused_with_code_4(env):
    try:
        code, command = 4, protocol.check_environment(env)
    except CniError as error:
        code, command = error.code, "ADD"
    assert code == 4
    assert command in protocol.REQUIRED


# --- versions --------------------------------


@pytest.mark.parametrize(
    ("version", "command", "is_"),
    [
        (None, "ADD", "0.1.0"),
        ("", "ADD", "0.1.0"),
        ("0.4.0", "CHECK", "0.4.0"),
        ("1.1.0", "GC", "1.1.0"),
        ("1.1.0", "STATUS", "1.1.0"),
        ("0.1.0", "DEL", "0.1.0"),
    ],
)
def test_versions(version, command, is_):
    assert protocol.check_version(version, command) == is_


@pytest.mark.parametrize(
    ("version", "command"),
    [
        ("0.3.1", "CHECK"),
        (None, "CHECK"),
        ("1.0.0", "GC"),
        ("1.0.0", "STATUS"),
        ("1.2.0", "ADD"),
        ("1.1", "ADD"),
        (1.1, "ADD"),
        ([], "ADD"),
    ],
)
def test_versions_that_are_not_allowed(version, command):
    assert refused(protocol.check_version, version, command).code == 1


# --- errors and results --------------------------------


def test_an_error_as_json():
    assert CniError(7, "no name").json() == {"cniVersion": "1.1.0", "code": 7, "msg": "no name"}
    assert CniError(7, "no name", "why").json("0.4.0") == {"cniVersion": "0.4.0", "code": 7, "msg": "no name", "details": "why"}


RESULT = {
    "interfaces": [{"name": "cni0"}, {"name": "eth0", "mac": "02:00:0a:f4:01:05", "mtu": 1450, "sandbox": "/x"}],
    "ips": [
        {"interface": 1, "address": "10.244.1.5/24", "gateway": "10.244.1.1"},
        {"interface": 1, "address": "fd00::5/64"},
    ],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}, {"dst": "::/0", "gw": "fd00::1"}],
    "dns": {},
}


def test_results_of_each_version():
    assert protocol.result_as("1.1.0", RESULT) == {"cniVersion": "1.1.0", **RESULT}
    without_mtu = [{"name": "cni0"}, {"name": "eth0", "mac": "02:00:0a:f4:01:05", "sandbox": "/x"}]
    assert protocol.result_as("1.0.0", RESULT) == {"cniVersion": "1.0.0", **RESULT, "interfaces": without_mtu}
    for version in ("0.3.0", "0.3.1", "0.4.0"):
        ips = [{"version": "4", **RESULT["ips"][0]}, {"version": "6", **RESULT["ips"][1]}]
        assert protocol.result_as(version, RESULT) == {"cniVersion": version, **RESULT, "interfaces": without_mtu, "ips": ips}
    for version in ("0.1.0", "0.2.0"):
        assert protocol.result_as(version, RESULT) == {
            "cniVersion": version,
            "ip4": {"ip": "10.244.1.5/24", "gateway": "10.244.1.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}]},
            "ip6": {"ip": "fd00::5/64", "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
            "dns": {},
        }


def test_a_result_without_interfaces_gets_none():
    """As an IPAM plugin's."""
    result = {"ips": [{"address": "10.244.1.5/24"}]}
    assert all("interfaces" not in protocol.result_as(version, result) for version in protocol.SUPPORTED)


def test_macs_show_their_address():
    assert mac_of("10.244.1.5") == "02:00:0a:f4:01:05"
    assert mac_of("192.168.1.11", "02:f1") == "02:f1:c0:a8:01:0b"
    assert mac_of("fd00::1:5") == "02:00:00:01:00:05"
