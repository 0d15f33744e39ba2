"""Mixed traffic for minutes while everything changes under it: every byte is compared, every loss must be counted.

Two nodes, two pods on each. Between the nodes' datapath processes stands a relay, which loses, doubles and holds back datagrams
(this kernel has no netem). From a pod of the first node, to one on the same node, to one on the other node, and to a
ClusterIP with a backend on each:

    stream   one TCP connection for the whole run; blocks of random bytes, whose SHA-256 comes back
    short    a TCP connection for a block, again and again
    udp      datagrams of 16 to 4 000 bytes (fragments), numbered and with a checksum, which come back

Meanwhile, a few times a second, one of: a Service more or less, another mode of kube-proxy, a pod's offloads (TSO, GSO,
checksums) off or on, the tunnel's MTU down to 1280 or up again (path MTU discovery), the relay's manners.

What must hold at the end, or the exit status is 1:

    - no block or datagram came back with another content; no TCP connection failed
    - datagrams between the nodes: those that left a node are those that the relay took or its socket dropped, those that it
      sent are those that the other node took or its socket dropped
    - no more of the udp datagrams are missing than relay, datapaths (drop.*) and pods' kernels say they dropped; those between
      pods of one node, not more than a datapath or a pod's kernel says

One JSON line with the figures. --seconds, --seed; --quick is 20 s. Needs root, iproute2, ethtool. Namespaces begin with sk-.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.live import Node, Nodes, inside, mac_of, netns_path
from support.services import by_key, endpoint, endpoint_slice, port, service

from podwire_core import netns
from podwire_core.netlink import LinkSet, UnderlaySet
from podwire_nodeagent.proxy import modes
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.model import NodeFacts

SLOT = 79
TUNNEL_PORT, PORT = 8472, 7100
CLUSTER_IP = "10.96.0.10"
FIRST_HOP = f"127.0.{SLOT}.{{}}"
SO_MEMINFO, DROPS = 55, 8
OFFLOADS = ("tso", "gso", "tx")
MTUS = (1450, 1450, 1400, 1280)
STOP_WITHIN = 40.0  # seconds: a stream may be in the middle of a retransmission


# --- in the pods: servers and clients, each a process --------------------------------


def serve() -> None:
    """Streams: 4 bytes of length and a block, answered with its SHA-256. Datagrams come back as they are."""
    tcp = socket.create_server(("", PORT), backlog=128)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    udp.bind(("", PORT))
    waiting: dict[socket.socket, bytearray] = {}
    print("ready", flush=True)
    while True:
        for ready in select.select([tcp, udp, *waiting], [], [])[0]:
            if ready is tcp:
                waiting[tcp.accept()[0]] = bytearray()
            elif ready is udp:
                data, address = udp.recvfrom(65536)
                udp.sendto(data, address)
            elif not _take(ready, waiting[ready]):
                del waiting[ready]
                ready.close()


def _take(connection: socket.socket, held: bytearray) -> bool:
    """Answers every whole block; False when the connection has ended."""
    data = connection.recv(1 << 20)
    held += data
    while len(held) >= 4 and len(held) >= 4 + (size := int.from_bytes(held[:4], "big")):
        connection.sendall(hashlib.sha256(memoryview(held)[4 : 4 + size]).digest())
        del held[: 4 + size]
    return bool(data)


class Client:
    """A traffic source; prints its figures when SIGTERM has told it to end."""

    def __init__(self, address: str, seed: int) -> None:
        self.address, self.random, self.figures = address, random.Random(seed), Counter[str]()
        self.running = True
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self.running = False

    def _block(self, connection: socket.socket, size: int) -> None:
        data = self.random.randbytes(size)
        connection.sendall(size.to_bytes(4, "big") + data)
        answer = b""
        while len(answer) < 32:
            more = connection.recv(32 - len(answer))
            if not more:
                raise ConnectionError("ended by the server")
            answer += more
        self.figures["blocks"] += 1
        self.figures["bytes"] += size
        if answer != hashlib.sha256(data).digest():
            self.figures["wrong"] += 1

    def stream(self) -> None:
        with socket.create_connection((self.address, PORT), 30) as connection:
            connection.settimeout(60)
            while self.running:
                self._block(connection, self.random.choice([1, 100, 5000, 60_000, 250_000]))

    def short(self) -> None:
        while self.running:
            with socket.create_connection((self.address, PORT), 30) as connection:
                connection.settimeout(60)
                self._block(connection, self.random.randrange(1, 20_000))
            self.figures["connections"] += 1
            time.sleep(0.005)

    def udp(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((self.address, PORT))
            sock.setblocking(False)
            number = 0
            while self.running:
                number += 1
                body = number.to_bytes(8, "big") + self.random.randbytes(self.random.choice([4, 60, 1000, 1400, 4000 - 12]))
                try:
                    sock.send(body + zlib.crc32(body).to_bytes(4, "big"))
                    self.figures["sent"] += 1
                except OSError:  # EMSGSIZE while the path's MTU is learnt; nothing left
                    self.figures["refused"] += 1
                time.sleep(0.002)
                self._echoes(sock)
            end = time.monotonic() + 3
            while self.figures["back"] < self.figures["sent"] and time.monotonic() < end:
                select.select([sock], [], [], 0.1)
                self._echoes(sock)

    def _echoes(self, sock: socket.socket) -> None:
        while True:
            try:
                data = sock.recv(65536)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error came back: told, counted, and the datagram stays missing
                self.figures["icmp"] += 1
                continue
            good = zlib.crc32(data[:-4]).to_bytes(4, "big") == data[-4:]
            self.figures["back" if good else "wrong"] += 1


def run_client(kind: str, address: str, seed: int) -> None:
    client = Client(address, seed)
    try:
        {"stream": client.stream, "short": client.short, "udp": client.udp}[kind]()
    except OSError as error:
        client.figures["failed"] += 1
        print(f"{kind} to {address}: {error}", file=sys.stderr)
    print(json.dumps(client.figures), flush=True)


# --- between the nodes --------------------------------


class Relay:
    """The nodes see each other at its addresses, 127.0.SLOT.111 and .112. Answers every line of stdin (its new manners, or
    nothing) with its figures."""

    def __init__(self) -> None:
        self.random, self.figures = random.Random(7), Counter[str]()
        self.manners = {"lose": 0.0, "double": 0.0, "hold": 0.0}
        self.ends = {node: self._socket(FIRST_HOP.format(100 + node)) for node in (11, 12)}  # a node, as the other sees it
        self.held: list[tuple[float, int, bytes]] = []

    def _socket(self, host: str) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)
        sock.bind((host, TUNNEL_PORT))
        sock.setblocking(False)
        return sock

    def run(self) -> None:
        print("ready", flush=True)
        while True:
            ready = select.select([*self.ends.values(), sys.stdin], [], [], 0.005 if self.held else None)[0]
            for node, end in self.ends.items():
                if end in ready:
                    self._pass(node, end)
            self._release()
            if sys.stdin in ready:
                line = sys.stdin.readline()
                if not line:
                    return
                self.manners |= json.loads(line)
                self._answer()

    def _pass(self, node: int, end: socket.socket) -> None:
        """What is sent to `node`'s address here goes to it, from the other one's."""
        for _ in range(64):
            try:
                data = end.recv(65536)
            except BlockingIOError:
                return
            self.figures[f"taken.{node}"] += 1
            chance = self.random.random()
            if chance < self.manners["lose"]:
                self.figures[f"lost.{node}"] += 1
            elif chance < self.manners["lose"] + self.manners["hold"]:
                self.held.append((time.monotonic() + self.random.uniform(0.0005, 0.005), node, data))
            else:
                self._send(node, data)
                if chance > 1 - self.manners["double"]:
                    self.figures[f"doubled.{node}"] += 1
                    self._send(node, data)

    def _release(self) -> None:
        now = time.monotonic()
        for item in [item for item in self.held if item[0] <= now]:
            self.held.remove(item)
            self._send(item[1], item[2])
            self.figures["held"] += 1

    def _send(self, node: int, data: bytes) -> None:
        try:
            self.ends[23 - node].sendto(data, (FIRST_HOP.format(node), TUNNEL_PORT))
            self.figures[f"sent.{node}"] += 1
        except OSError:
            self.figures[f"lost.{node}"] += 1

    def _answer(self) -> None:
        for node, end in self.ends.items():
            self.figures[f"overflow.{node}"] = int.from_bytes(
                end.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36)[4 * DROPS :], "little"
            )
        print(json.dumps({**self.figures, "waiting": len(self.held)}), flush=True)


class Disturbance:
    """What changes meanwhile; `figures` counts the changes."""

    def __init__(self, nodes: list[Node], relay: subprocess.Popen[str], seed: int, backends: list[str]) -> None:
        self.nodes, self.relay, self.random, self.figures = nodes, relay, random.Random(seed), Counter[str]()
        stable = service("stable", CLUSTER_IP, [port(PORT), port(PORT, "u", "UDP")])
        ports = [port(PORT), port(PORT, "u", "UDP")]
        self.services = by_key([stable])
        self.slices = by_key([endpoint_slice("stable", [endpoint(ip) for ip in backends], ports)])
        self.proxies: list[modes.Proxy] = []
        self.mode(modes.MODES[0])

    def mode(self, name: str = "") -> None:
        name = name or self.random.choice(modes.MODES)
        self.proxies = []
        for node in self.nodes:
            facts = NodeFacts(f"node{node.number}", addresses=(node.ip,), pod_cidrs=(f"10.244.{node.number}.0/24",))
            proxy = modes.make(ProxyConfiguration(mode=name), facts)
            node.netlink.apply(proxy.changes(self.services, self.slices))
            self.proxies.append(proxy)

    def service(self) -> None:
        """One of a hundred Services comes or goes."""
        number = self.random.randrange(100)
        name, key = f"s{number}", f"ns/s{number}"
        gone = key in self.services
        if gone:
            services, slices = {key: None}, {f"ns/{name}-1": None}
            del self.services[key], self.slices[f"ns/{name}-1"]
        else:
            services = by_key([service(name, f"10.96.1.{number}", [port(80)])])
            slices = by_key([endpoint_slice(name, [endpoint(f"10.244.2.{100 + i}") for i in range(3)], [port(80)])])
            self.services |= services
            self.slices |= slices
        for node, proxy in zip(self.nodes, self.proxies, strict=True):
            node.netlink.apply(proxy.changes(services, slices))

    def offloads(self) -> None:
        node = self.random.choice(self.nodes)
        state = self.random.choice(["on", "off"])
        words = [word for feature in OFFLOADS for word in (feature, state)]
        command = inside(f"sk-{self.random.choice(list(node.pods))}", "ethtool", "-K", "eth0", *words)
        subprocess.run(command, check=False, capture_output=True)

    def mtu(self) -> None:
        mtu = self.random.choice(MTUS)
        for node in self.nodes:
            node.netlink.apply([LinkSet("flannel.1", mtu=mtu)])

    def manners(self) -> None:
        worse = self.random.random() < 0.5
        self.tell(lose=0.01 if worse else 0.0, double=0.005 if worse else 0.0, hold=0.02 if worse else 0.0)

    def tell(self, **manners: float) -> dict[str, int]:
        assert self.relay.stdin is not None
        assert self.relay.stdout is not None
        self.relay.stdin.write(json.dumps(manners) + "\n")
        self.relay.stdin.flush()
        answer: dict[str, int] = json.loads(self.relay.stdout.readline())
        return answer

    def step(self) -> None:
        kinds: list[Callable[[], None]] = [
            self.service,
            self.service,
            self.service,
            self.offloads,
            self.mtu,
            self.mode,
            self.manners,
        ]
        kind = self.random.choice(kinds)
        kind()
        self.figures[kind.__name__] += 1


# --- the run --------------------------------


@contextmanager
def process(*command: str, stdin: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """One that says "ready"; killed at the end."""
    made = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, text=True)
    try:
        assert made.stdout is not None
        assert made.stdout.readline() == "ready\n"
        yield made
    finally:
        made.kill()
        made.wait()


def soak(seconds: float, seed: int) -> dict[str, object]:
    me = [sys.executable, __file__]
    with ExitStack() as stack:
        relay = stack.enter_context(process(*me, "--relay", stdin=subprocess.PIPE))
        nodes = stack.enter_context(Nodes("sk", slot=SLOT))
        one, two = nodes.add(2)
        one.netlink.apply([UnderlaySet(two.ip, mac_of(two.ip), FIRST_HOP.format(112), 8473)])
        two.netlink.apply([UnderlaySet(one.ip, mac_of(one.ip), FIRST_HOP.format(111), 8473)])
        one.pod("a")
        near, far = one.pod("b"), two.pod("c")
        two.pod("d")
        for pod in ("b", "c"):
            stack.enter_context(process(*inside(f"sk-{pod}", *me, "--serve")))
        trouble = Disturbance([one, two], relay, seed, [near, far])
        clients = {}
        targets = {"near": near, "far": far, "service": CLUSTER_IP}
        for number, (kind, (place, address)) in enumerate((k, t) for k in ("stream", "short", "udp") for t in targets.items()):
            command = inside("sk-a", *me, "--client", kind, address, str(seed + number))
            clients[f"{kind}.{place}"] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end and all(client.poll() is None for client in clients.values()):
            trouble.step()
            time.sleep(0.2)
        trouble.tell(lose=0.0, double=0.0, hold=0.0)
        for client in clients.values():
            client.terminate()
        figures = {name: json.loads(client.communicate(timeout=STOP_WITHIN)[0]) for name, client in clients.items()}
        return verdict(figures, trouble, [one, two], seconds)


def verdict(figures: dict[str, dict[str, int]], trouble: Disturbance, nodes: list[Node], seconds: float) -> dict[str, object]:
    """Waits until the last datagram has been taken, then compares all counts."""
    until = time.monotonic() + 5
    while True:
        relay, counters = trouble.tell(), [node.counters() for node in nodes]
        wrong = books(relay, counters)
        if not wrong or time.monotonic() > until:
            break
        time.sleep(0.1)
    total = Counter[str]()
    for each in figures.values():
        total.update(each)
    missing = {name: each["sent"] - each.get("back", 0) for name, each in figures.items() if name.startswith("udp")}
    dropped = {name: value for each in counters for name, value in each.items() if name.startswith("drop.") and value}
    in_pods = sum(pod_drops(pod) for node in nodes for pod in node.pods)
    lost = sum(value for name, value in relay.items() if name.startswith(("lost.", "overflow.")))
    counted = lost + sum(dropped.values()) + in_pods
    wrong += [f"{name}: {each['wrong']} with another content" for name, each in figures.items() if each.get("wrong")]
    wrong += [f"{name}: failed" for name, each in figures.items() if each.get("failed")]
    if sum(missing.values()) > counted:
        wrong.append(f"{sum(missing.values())} datagrams are missing, {counted} are counted")
    if missing["udp.near"] > sum(dropped.values()) + in_pods:
        wrong.append(f"{missing['udp.near']} datagrams of one node are missing")
    return {
        "bench": "soak",
        "seconds": seconds,
        "good": not wrong,
        "wrong": wrong,
        "bytes": total["bytes"],
        "blocks": total["blocks"],
        "connections": total["connections"] + sum(name.startswith("stream") for name in figures),
        "datagrams": total["sent"],
        "missing": missing,
        "relay": relay,
        "dropped": dropped,
        "dropped_in_pods": in_pods,
        "changes": dict(trouble.figures),
    }


def books(relay: dict[str, int], counters: list[dict[str, int]]) -> list[str]:
    """Between the nodes nothing may vanish: what does not add up."""
    wrong = []
    for sender, receiver, node in ((counters[0], counters[1], 12), (counters[1], counters[0], 11)):
        taken = relay.get(f"taken.{node}", 0) + relay.get(f"overflow.{node}", 0)
        if sender.get("tunnel_tx", 0) != taken:
            wrong.append(f"{sender.get('tunnel_tx', 0)} datagrams were sent to the relay for {node}, {taken} came")
        arrived = receiver.get("tunnel_rx", 0) + receiver.get("drop.tunnel_overflow", 0)
        if relay.get(f"sent.{node}", 0) != arrived:
            wrong.append(f"the relay sent {relay.get(f'sent.{node}', 0)} datagrams to {node}, {arrived} came")
    return wrong


def pod_drops(pod: str) -> int:
    """Datagrams and frames that the pod's own kernel dropped, and says so. A datagram that lost a fragment is one, too."""
    path = netns_path(f"sk-{pod}")
    with netns.in_netns(path):
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
        devices = Path("/proc/thread-self/net/dev").read_text().splitlines()
    tables = {
        names.split()[0]: dict(zip(names.split()[1:], map(int, values.split()[1:]), strict=True))
        for names, values in zip(lines[::2], lines[1::2], strict=True)
    }
    udp, ip = tables["Udp:"], tables["Ip:"]
    found = udp["RcvbufErrors"] + udp["InErrors"] + udp["SndbufErrors"] + ip["ReasmFails"] + ip["OutDiscards"] + ip["InDiscards"]
    [eth0] = [line.split() for line in devices if line.strip().startswith("eth0:")]
    return found + int(eth0[4]) + int(eth0[12])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--quick", action="store_true", help="20 s")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    args = parser.parse_args()
    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
        sys.exit("bench/soak.py needs root and /dev/net/tun")
    print(f"seed {args.seed}", file=sys.stderr)
    result = soak(20 if args.quick else args.seconds, args.seed)
    print(json.dumps({**result, "seed": args.seed}))
    sys.exit(0 if result["good"] else 1)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--serve"]:
            serve()
        case ["--relay"]:
            Relay().run()
        case ["--client", kind, address, seed]:
            run_client(kind, address, int(seed))
        case _:
            main()
