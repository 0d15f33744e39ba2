"""The CNI protocol's vocabulary: commands, versions, error codes, results; shared by the plugin and the runtime.

Rules it keeps: as the CNI specification 1.1 says (containernetworking/cni SPEC.md), including what it says about older versions,
since configurations name the version that they were written for. A failed call is a `CniError` with the code that the
specification gives to its cause, and travels as JSON. No I/O. Imports stay few: a plugin is started for every pod.

Order to read: versions, CniError, the environment, results.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

# --- versions --------------------------------

SUPPORTED = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
LATEST = SUPPORTED[-1]
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}  # commands that came later


def at_least(version: str, wanted: str) -> bool:
    """Both of SUPPORTED."""
    return SUPPORTED.index(version) >= SUPPORTED.index(wanted)


# --- errors --------------------------------

INCOMPATIBLE_VERSION, INVALID_ENVIRONMENT, IO_FAILURE, DECODING, INVALID_CONFIG = 1, 4, 5, 6, 7
TRY_AGAIN = 11
NOT_AVAILABLE, LIMITED_CONNECTIVITY = 50, 51  # STATUS: no ADD now; and existing pods may suffer too
# This plugin's own:
NO_ADDRESS, DUPLICATE, DATAPLANE, CHECK_FAILED = 100, 101, 102, 103
UNTYPED = 999


class CniError(Exception):
    """A failed call. `msg` is one line, `details` may say more."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(f"{msg}: {details}" if details else msg)
        self.code, self.msg, self.details = code, msg, details

    def json(self, version: str = LATEST) -> Json:
        error: Json = {"cniVersion": version, "code": self.code, "msg": self.msg}
        return error | ({"details": self.details} if self.details else {})


def check_version(version: object, command: str) -> str:
    """The version a configuration names (missing: 0.1.0), if this implementation and that command know it."""
    given = "0.1.0" if version in (None, "") else version
    if not isinstance(given, str) or given not in SUPPORTED:
        raise CniError(
            INCOMPATIBLE_VERSION, "incompatible CNI versions", f"config is {given!r}, plugin supports {list(SUPPORTED)}"
        )
    since = SINCE.get(command)
    if since and not at_least(given, since):
        raise CniError(INCOMPATIBLE_VERSION, f"config version {given} does not allow {command}")
    return given


# --- the environment and names --------------------------------

_ALWAYS = ("CNI_COMMAND", "CNI_PATH")
_OF_A_CONTAINER = ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH")
REQUIRED = {
    "ADD": (*_OF_A_CONTAINER, "CNI_NETNS"),
    "CHECK": (*_OF_A_CONTAINER, "CNI_NETNS"),
    "DEL": _OF_A_CONTAINER,
    "GC": _ALWAYS,
    "STATUS": _ALWAYS,
    "VERSION": ("CNI_COMMAND",),
}
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*", re.ASCII)


def check_environment(env: Mapping[str, str]) -> str:
    """The command, if everything it needs is there and well-formed."""
    unreadable = sorted(name for name, value in env.items() if name.startswith("CNI_") and not _is_text(value))
    if unreadable:
        raise CniError(INVALID_ENVIRONMENT, f"env variables [{','.join(unreadable)}] are not UTF-8")
    command = env.get("CNI_COMMAND", "")
    if command and command not in REQUIRED:
        raise CniError(INVALID_ENVIRONMENT, f"unknown CNI_COMMAND: {command}")
    missing = [name for name in REQUIRED[command or "ADD"] if not env.get(name)]
    if missing:
        raise CniError(INVALID_ENVIRONMENT, f"required env variables [{','.join(missing)}] missing")
    if "CNI_CONTAINERID" in REQUIRED[command]:
        check_container_id(env["CNI_CONTAINERID"])
        check_interface_name(env["CNI_IFNAME"])
    return command


def _is_text(value: str) -> bool:
    """Python gives bytes that are not UTF-8 as lone surrogates, which no JSON answer could repeat."""
    return not any("\ud800" <= c <= "\udfff" for c in value)


def check_container_id(text: str) -> None:
    if not _NAME.fullmatch(text):
        raise CniError(INVALID_ENVIRONMENT, "invalid characters in containerID", text)


def check_interface_name(text: str) -> None:
    if not text or len(text.encode()) > 15:
        raise CniError(INVALID_ENVIRONMENT, "interface name must have 1 to 15 characters", text)
    if text in (".", "..") or any(c in "/:" or c.isspace() for c in text):
        raise CniError(INVALID_ENVIRONMENT, "interface name is . or .., or contains / or : or space", text)


def check_network_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise CniError(INVALID_CONFIG, "missing network name")
    if not _NAME.fullmatch(name):
        raise CniError(INVALID_CONFIG, "invalid characters found in network name", name)
    return name


def parse_args(text: str) -> dict[str, str]:
    """CNI_ARGS: "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web"."""
    pairs = (part.partition("=") for part in text.split(";") if part)
    found = {}
    for key, equals, value in pairs:
        if not equals:
            raise CniError(INVALID_ENVIRONMENT, "CNI_ARGS is not KEY=VALUE;…", key)
        found[key] = value
    return found


# --- results --------------------------------


def result_as(version: str, result: Json) -> Json:
    """A result of the latest version in the shape that `version` has."""
    if at_least(version, "1.0.0"):
        return {"cniVersion": version, **result} if at_least(version, LATEST) else {"cniVersion": version, **_without_mtu(result)}
    if at_least(version, "0.3.0"):
        ips = [{"version": "6" if ":" in ip["address"] else "4", **ip} for ip in result.get("ips", [])]
        return {"cniVersion": version, **_without_mtu(result), "ips": ips}
    return _result_of_0_2(version, result)


def _without_mtu(result: Json) -> Json:
    """What 1.1.0 added to interfaces."""
    interfaces = [{k: v for k, v in each.items() if k != "mtu"} for each in result.get("interfaces", [])]
    return {**result, "interfaces": interfaces} if interfaces else dict(result)


def _result_of_0_2(version: str, result: Json) -> Json:
    """One address a family, with the routes of that family."""
    old: Json = {"cniVersion": version}
    for key, v6 in (("ip4", False), ("ip6", True)):
        ip = next((each for each in result.get("ips", []) if (":" in each["address"]) == v6), None)
        if ip is not None:
            routes = [route for route in result.get("routes", []) if (":" in route["dst"]) == v6]
            old[key] = {"ip": ip["address"], "routes": routes} | ({"gateway": ip["gateway"]} if "gateway" in ip else {})
    return {**old, "dns": result.get("dns", {})}
