"""`ipvsadm`: -L (-n, --stats, --rate, -c), -S, -C, -A, -E, -D, -a, -e, -d, as ipvsadm 1.31 prints and takes them."""

from __future__ import annotations

import msgspec

from podwire_core.ipvs import FORWARDING, SCHEDULERS, ConnectionInfo, RealServer, ServerInfo, ServiceInfo, VirtualService
from podwire_core.netlink import IpvsDel, IpvsReplace, IpvsServerDel, IpvsServerSet, IpvsSet, NetlinkError, Op
from podwire_nodeagent.tools.common import Client, ToolError, Words, unsupported

VERSION = "IP Virtual Server version 1.2.1 (size=4096)"
_COMMANDS = {
    "--list": "-L",
    "-l": "-L",
    "--save": "-S",
    "--clear": "-C",
    "--add-service": "-A",
    "--edit-service": "-E",
    "--delete-service": "-D",
    "--add-server": "-a",
    "--edit-server": "-e",
    "--delete-server": "-d",
}
_SERVICES = {"-t": "tcp", "--tcp-service": "tcp", "-u": "udp", "--udp-service": "udp", "--sctp-service": "sctp"}
_OPTIONS = {"tcp": "-t", "udp": "-u", "sctp": "--sctp-service"}
_ANSWERS = {
    "EEXIST": "Service already exists",
    "ESRCH": "No such service",
    "ENOENT": "No such destination",
    "EINVAL": "Invalid argument",
}


class Request(msgspec.Struct):
    """What a command line says."""

    protocol: str = ""
    address: str = ""
    port: int = 0
    scheduler: str = ""
    persistent: int | None = None
    flags: tuple[str, ...] | None = None
    server: str = ""
    server_port: int = 0
    weight: int = 1
    switches: frozenset[str] = frozenset()


def main(argv: list[str], client: Client) -> str:
    words = Words(_split(argv) or ["-L"])
    command = words.next()
    command = _COMMANDS.get(command, command)
    request = _request(words)
    if command == "-L":
        return _list(client, request)
    if command == "-S":
        return "".join(line + "\n" for service in _chosen(client, request) for line in saved(service))
    operation = _operation(command, request, client)
    if operation is None:
        raise unsupported("ipvsadm", argv)
    try:
        client.apply([operation])
    except NetlinkError as error:
        raise ToolError(_ANSWERS.get(error.errno_name, error.message), 255) from None
    return ""


def _split(argv: list[str]) -> list[str]:
    """`-Ln` is `-L -n`."""
    found: list[str] = []
    for word in argv:
        joined = len(word) > 2 and word[0] == "-" and word[1] in "LlS" and word[1] != "-"
        found += [f"-{letter}" for letter in word[1:]] if joined else [word]
    return found


def _request(words: Words) -> Request:
    found, switches = Request(), set()
    while words:
        word = words.next()
        if word in _SERVICES:
            found.protocol = _SERVICES[word]
            found.address, found.port = _endpoint(words.next(word))
        elif word in ("-s", "--scheduler"):
            found.scheduler = words.next(word)
        elif word in ("-p", "--persistent"):
            found.persistent = _number(words.next(word)) if words.peek().isdigit() else 300
        elif word in ("-b", "--sched-flags"):
            found.flags = tuple(words.next(word).split(","))
        elif word in ("-r", "--real-server"):
            found.server, found.server_port = _endpoint(words.next(word))
        elif word in ("-w", "--weight"):
            found.weight = _number(words.next(word))
        elif word in ("-n", "--numeric", "-c", "--connection", "--stats", "--rate", "--exact", "--sort", "--nosort", "-m"):
            switches.add({"--connection": "-c"}.get(word, word))
        elif word != "--masquerading":
            raise unsupported("ipvsadm", [word])
    found.switches = frozenset(switches)
    return found


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ToolError(f"illegal number `{text}' specified", 255)
    return int(text)


def _endpoint(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    if not address or not port.isdecimal():
        raise ToolError(f"illegal virtual server or real server address[:port] specified: {text}", 255)
    return address.strip("[]"), int(port)


# --- changes --------------------------------


def _operation(command: str, request: Request, client: Client) -> Op | None:
    if command == "-C":
        return IpvsReplace(())
    key = request.protocol, request.address, request.port
    if not request.protocol:
        raise ToolError("You need to supply the 'service-address' option", 255)
    there = next((s for s in client.dump("ipvs") if (s.protocol, s.address, s.port) == key), None)
    if command == "-D":
        return IpvsDel(*key)
    if command in ("-A", "-E"):
        if (there is not None) != (command == "-E"):
            raise ToolError("Service already exists" if there else "No such service", 255)
        return _service(request, there)
    server = RealServer(request.server, request.server_port or request.port, request.weight)
    if command in ("-a", "-e"):
        return IpvsServerSet(*key, server, replace=command == "-e")
    return IpvsServerDel(*key, server) if command == "-d" else None


def _service(request: Request, there: ServiceInfo | None) -> IpvsSet:
    servers = tuple(RealServer(s.address, s.port, s.weight) for s in reversed(there.servers)) if there else ()
    scheduler = request.scheduler or "wlc"
    if scheduler not in SCHEDULERS:
        raise ToolError(f"Scheduler or persistence engine not found: {scheduler}", 255)
    flags, origin = request.flags or (), there.origin if there else ""
    key = request.protocol, request.address, request.port
    return IpvsSet(VirtualService(*key, scheduler, request.persistent or 0, flags, servers, origin))


# --- lists --------------------------------


def _chosen(client: Client, request: Request) -> list[ServiceInfo]:
    wanted = request.protocol, request.address, request.port
    found: list[ServiceInfo] = client.dump("ipvs")
    return [s for s in found if not request.protocol or (s.protocol, s.address, s.port) == wanted]


def _list(client: Client, request: Request) -> str:
    if "-c" in request.switches:
        entries: list[ConnectionInfo] = client.dump("ipvs.connections")
        head = ["IPVS connection entries", "pro expire state       source             virtual            destination"]
        return "".join(line + "\n" for line in [*head, *map(connection_line, entries)])
    services, exact = _chosen(client, request), "--exact" in request.switches
    if "--stats" in request.switches or "--rate" in request.switches:
        stats = "--stats" in request.switches
        names = ("Conns", "InPkts", "OutPkts", "InBytes", "OutBytes") if stats else ("CPS", "InPPS", "OutPPS", "InBPS", "OutBPS")
        head = [VERSION, f"{'Prot LocalAddress:Port':<33}" + "".join(f" {n:>8}" for n in names), "  -> RemoteAddress:Port"]
        lines = [line for service in services for line in _counted(service, stats, exact)]
    else:
        head = [VERSION, "Prot LocalAddress:Port Scheduler Flags"]
        head.append("  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn")
        lines = [line for service in services for line in _described(service)]
    return "".join(line + "\n" for line in [*head, *lines])


def endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _described(service: ServiceInfo) -> list[str]:
    text = f"{service.protocol.upper():<4} {endpoint(service.address, service.port)} {service.scheduler}"
    text += f" persistent {service.persistent}" if service.persistent else ""
    text += f" ({','.join(service.flags)})" if service.flags else ""
    return [text, *map(_server_line, service.servers)]


def _server_line(server: ServerInfo) -> str:
    end = endpoint(server.address, server.port)
    return f"  -> {end:<28} {FORWARDING:<7} {server.weight:<6} {server.active:<10} {server.inactive:<10}"


def _counted(service: ServiceInfo, stats: bool, exact: bool) -> list[str]:
    name = f"{service.protocol.upper():<4} {endpoint(service.address, service.port)}"
    lines = [f"{name:<33}" + _numbers(service.stats if stats else service.rates, exact)]
    for server in service.servers:
        end = endpoint(server.address, server.port)
        lines.append(f"  -> {end:<28}" + _numbers(server.stats if stats else server.rates, exact))
    return lines


def _numbers(values: tuple[int, ...], exact: bool) -> str:
    return "".join(f" {value if exact else large(value):>8}" for value in values)


def large(value: int) -> str:
    """As ipvsadm shortens: 8 digits, then K, M, G, T."""
    if value < 10**8:
        return str(value)
    for power, unit in ((10**3, "K"), (10**6, "M"), (10**9, "G")):
        if value < 10**8 * power:
            return f"{value // power}{unit}"
    return f"{value // 10**12}T"


def connection_line(entry: ConnectionInfo) -> str:
    minutes, seconds = divmod(entry.expires, 60)
    ends = endpoint(entry.client, entry.client_port), endpoint(entry.virtual, entry.virtual_port)
    left = f"{entry.protocol.upper():<3} {f'{minutes:02}:{seconds:02}':<6} {entry.state:<11} {ends[0]:<18} {ends[1]:<18}"
    return f"{left} {endpoint(entry.server, entry.server_port)}"


def saved(service: ServiceInfo) -> list[str]:
    """As `ipvsadm -Sn`, which `ipvsadm -R` reads."""
    name = f"{_OPTIONS[service.protocol]} {endpoint(service.address, service.port)}"
    head = f"-A {name} -s {service.scheduler}"
    head += f" -p {service.persistent}" if service.persistent else ""
    head += f" -b {','.join(service.flags)}" if service.flags else ""
    return [head, *(f"-a {name} -r {endpoint(s.address, s.port)} -m -w {s.weight}" for s in service.servers)]
