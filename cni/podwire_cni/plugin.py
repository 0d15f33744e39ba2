"""The CNI plugin "podwire": connects a pod to its node's datapath. Started by a runtime (runtime.py) for every ADD, DEL, CHECK,
GC, STATUS and VERSION, as the CNI specification 1.1 says: parameters in the environment, configuration on stdin, JSON on stdout.

Rules it keeps: stdout carries exactly one JSON document, a result or an error, and the exit status is 1 with an error; DEL may be
repeated, and succeeds where the pod, the datapath or the allocation is already gone; ADD that fails leaves nothing behind. What
only some commands need is imported by them: a start costs every pod's ADD.

    configuration:  {"cniVersion", "name", "type": "podwire", "dataplane": "/run/…/datapath.sock", "bridge": "cni0", "mtu": 1450,
                     "hairpinMode": true, "isDefaultGateway": true, "ipam": {"type": "host-local", "ranges": …, "dataDir": …}}

Order to read: main, the commands, then attach.py (the interface) and ipam.py (the address).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from podwire_cni import protocol
from podwire_cni.protocol import CniError, Json

if TYPE_CHECKING:
    from podwire_cni.attach import Port
    from podwire_cni.ipam import Allocated, HostLocal, Owner
    from podwire_core.rtnetlink import Route

T = TypeVar("T")
MAX_CONFIG = 1 << 20


def main(env: Mapping[str, str] | None = None) -> int:
    import msgspec

    try:
        answer = Call(os.environ if env is None else env).answer()
    except CniError as error:
        answer = error.json()
    except Exception as error:  # a bug: the runtime must still get its JSON
        answer = CniError(protocol.UNTYPED, "podwire plugin failed", repr(error)).json()
    if answer is not None:
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()
    return 1 if answer is not None and "code" in answer else 0


def read_config(data: bytes) -> Json:
    """The configuration; CniError if it is not a JSON object."""
    import msgspec

    try:
        conf = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise CniError(protocol.DECODING, "cannot decode the configuration", str(error)) from None
    if not isinstance(conf, dict):
        raise CniError(protocol.DECODING, "cannot decode the configuration", f"expected an object, got {type(conf).__name__}")
    return conf


class Call:
    """One call: its command, configuration and names, checked in the order that the reference implementation checks them."""

    def __init__(self, env: Mapping[str, str], stdin: bytes | None = None) -> None:
        self.command = protocol.check_environment(env)
        if self.command == "VERSION":
            return
        self.conf = read_config(_read_stdin() if stdin is None else stdin)
        self.network = protocol.check_network_name(self.conf.get("name"))
        self.version = protocol.check_version(self.conf.get("cniVersion"), self.command)
        self.container_id, self.ifname = env.get("CNI_CONTAINERID", ""), env.get("CNI_IFNAME", "")
        self.netns, self.args = env.get("CNI_NETNS", ""), protocol.parse_args(env.get("CNI_ARGS", ""))

    def answer(self) -> Json | None:
        """What is printed; None: nothing, as after DEL."""
        commands: dict[str, Callable[[], Json | None]] = {
            "VERSION": lambda: {"cniVersion": protocol.LATEST, "supportedVersions": list(protocol.SUPPORTED)},
            "ADD": self.add,
            "DEL": self.delete,
            "CHECK": self.check,
            "GC": self.collect,
            "STATUS": self.status,
        }
        return commands[self.command]()

    # --- the commands

    def add(self) -> Json:
        from podwire_cni import attach

        port, ipam, owner = self._port(), self._ipam(), self._owner()
        routes = self._routes()
        allocated = _io(lambda: ipam.add(owner))
        try:
            mac = attach.connect(port, [each.address for each in allocated], _system_routes(routes, allocated, port.ifname))
        except BaseException:
            _io(lambda: ipam.release(owner))
            raise
        return protocol.result_as(self.version, _result(port, mac, allocated, routes))

    def delete(self) -> None:
        from podwire_cni import attach

        ipam, owner = self._ipam(), self._owner()
        attach.disconnect(self._port())
        _io(lambda: ipam.release(owner))

    def check(self) -> None:
        from podwire_cni import attach

        previous = self.conf.get("prevResult")
        if not isinstance(previous, dict):
            raise CniError(protocol.DECODING, "CHECK needs prevResult, the result of ADD")
        ipam, owner = self._ipam(), self._owner()
        mine = _addresses_of(previous, self.ifname)
        missing = [a for a in mine if a.partition("/")[0] not in _io(lambda: ipam.addresses(owner))]
        if missing or not mine:
            raise CniError(
                protocol.CHECK_FAILED, f"{owner.container_id} has no allocation of {', '.join(missing) or 'any address'}"
            )
        attach.check(self._port(), mine, [_kernel_dst(dst) for dst in self._routes()])

    def collect(self) -> None:
        """GC: everything goes that belongs to none of the attachments that the runtime names."""
        from podwire_cni import attach
        from podwire_cni.ipam import Owner

        given = self.conf.get("cni.dev/valid-attachments")
        if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
            raise CniError(protocol.INVALID_CONFIG, "cni.dev/valid-attachments: expected a list of objects")
        valid = {Owner(str(each.get("containerID", "")), str(each.get("ifname", ""))) for each in given}
        ipam = self._ipam()
        for owner in (each for each in _io(ipam.owners) if each not in valid):
            attach.disconnect(attach.Port.of(self.conf, owner.container_id, "", owner.ifname, {}))
            _io(partial(ipam.release, owner))  # after its link, so that nobody gets an address that is still reached

    def status(self) -> None:
        from podwire_cni import attach

        ipam, port = self._ipam(), self._port()
        if not attach.reachable(port.dataplane):
            raise CniError(protocol.LIMITED_CONNECTIVITY, f"the datapath at {port.dataplane} does not answer")
        if not _io(ipam.available):
            raise CniError(protocol.NOT_AVAILABLE, "no IP addresses available")

    # --- parts of the configuration

    def _port(self) -> Port:
        from podwire_cni.attach import Port

        return Port.of(self.conf, self.container_id, self.netns, self.ifname, self.args)

    def _ipam(self) -> HostLocal:
        from podwire_cni.ipam import HostLocal

        return HostLocal(self.network, self.conf.get("ipam"))

    def _owner(self) -> Owner:
        from podwire_cni.ipam import Owner

        return Owner(self.container_id, self.ifname)

    def _routes(self) -> list[str]:
        """Destinations that lead to the gateway."""
        from ipaddress import ip_network

        given = self.conf["ipam"].get("routes", [])
        if not isinstance(given, list) or not all(isinstance(r, dict) and isinstance(r.get("dst"), str) for r in given):
            raise CniError(protocol.INVALID_CONFIG, "ipam.routes: expected a list of {dst}")
        try:
            routes = [str(ip_network(route["dst"])) for route in given]
        except ValueError as error:
            raise CniError(protocol.INVALID_CONFIG, f"ipam.routes: {error}") from None
        return routes or (["0.0.0.0/0"] if self.conf.get("isDefaultGateway") else [])


def _io(call: Callable[[], T]) -> T:
    """Files of the IPAM: a full disk is the runtime's to know."""
    try:
        return call()
    except OSError as error:
        raise CniError(protocol.IO_FAILURE, "cannot keep the allocation", str(error)) from None


def _read_stdin() -> bytes:
    try:
        data = sys.stdin.buffer.read(MAX_CONFIG + 1)
    except OSError as error:
        raise CniError(protocol.IO_FAILURE, "cannot read the configuration from stdin", str(error)) from None
    if len(data) > MAX_CONFIG:
        raise CniError(protocol.IO_FAILURE, f"the configuration has more than {MAX_CONFIG} bytes")
    return data


# --- results --------------------------------


def _result(port: Port, mac: str, allocated: list[Allocated], routes: list[str]) -> Json:
    interfaces = [
        {"name": port.bridge},
        {"name": port.link, "mtu": port.mtu},
        {"name": port.ifname, "mac": mac, "mtu": port.mtu, "sandbox": port.netns},
    ]
    gateways = {":" in each.gateway: each.gateway for each in reversed(allocated)}
    with_gateway = [{"dst": dst, "gw": gateways[":" in dst]} for dst in routes if (":" in dst) in gateways]
    ips = [{"interface": 2, "address": each.address, "gateway": each.gateway} for each in allocated]
    return {"interfaces": interfaces, "ips": ips, "routes": with_gateway, "dns": {}}


def _kernel_dst(dst: str) -> str:
    return "default" if dst.endswith("/0") else dst


def _system_routes(routes: list[str], allocated: list[Allocated], dev: str) -> list[Route]:
    from podwire_core.rtnetlink import Route

    gateways = {":" in each.gateway: each.gateway for each in reversed(allocated)}
    wanted = [(dst, gateways.get(":" in dst)) for dst in routes]
    return [Route(_kernel_dst(dst), dev=dev, via=gateway) for dst, gateway in wanted if gateway]


def _addresses_of(result: Json, ifname: str) -> list[str]:
    """The addresses of that interface in a result; an address that names no interface counts."""
    try:
        named = {i for i, each in enumerate(result.get("interfaces") or []) if each["name"] == ifname}
        return [str(ip["address"]) for ip in result["ips"] if ip.get("interface") in {None, *named}]
    except (TypeError, KeyError, AttributeError):
        raise CniError(protocol.DECODING, "prevResult is not a result of ADD") from None


if __name__ == "__main__":
    sys.exit(main())
