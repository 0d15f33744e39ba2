"""The process: its Corefile with imports and several ports, read again when it changes; a wrong one is not taken."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dnslib
import pytest

SECONDS = 30.0


class Process:
    """podwire_dns at a port of its own on loopback."""

    def __init__(self, folder: Path, corefile: str) -> None:
        self.corefile, self.log, self.port = folder / "Corefile", folder / "log", free_port()
        self.corefile.write_text(corefile)
        (folder / "objects.yaml").write_text("")
        command = [
            sys.executable,
            "-m",
            "podwire_dns",
            "--corefile",
            str(self.corefile),
            "--objects",
            str(folder / "objects.yaml"),
        ]
        with self.log.open("w") as output:
            self.process = subprocess.Popen([*command, "--listen", f"127.0.0.1:{self.port}"], stdout=output, stderr=output)

    def ask(self, name: str, port: int | None = None) -> str:
        """The first record's data, or the response code; "" for no answer."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1.0)
            sock.connect(("127.0.0.1", port or self.port))
            try:
                sock.send(dnslib.DNSRecord.question(name).pack())
                reply = dnslib.DNSRecord.parse(sock.recv(4096))
            except OSError:
                return ""
        return str(reply.rr[0].rdata) if reply.rr else str(dnslib.RCODE[reply.header.rcode])

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def replace(self, text: str) -> None:
        """As a ConfigMap's file is: by renaming."""
        new = self.corefile.with_suffix(".new")
        new.write_text(text)
        os.replace(new, self.corefile)


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[[str], Process]]:
    started: list[Process] = []

    def run(corefile: str) -> Process:
        started.append(Process(tmp_path, corefile))
        return started[-1]

    yield run
    for process in started:
        process.process.kill()
        process.process.wait()


def block(ip: str, head: str = ".") -> str:
    return f"{head} {{\n reload 2s 1s\n hosts /nonexistent {{\n  {ip} a.org\n }}\n}}\n"


def test_a_changed_corefile_is_taken_and_a_wrong_one_is_not(start):
    dns = start(block("192.0.2.1"))
    dns.until(lambda: dns.ask("a.org") == "192.0.2.1")
    dns.replace(block("192.0.2.2").replace("hosts", "nonsense"))
    dns.until(lambda: "reload: " in dns.log.read_text())
    assert f"{dns.corefile}:3: plugin nonsense: unknown" in dns.log.read_text()
    assert "the running configuration stays" in dns.log.read_text()
    assert dns.ask("a.org") == "192.0.2.1"
    other = free_port()
    dns.replace(block("192.0.2.3") + block("192.0.2.4", f".:{other}").replace(" reload 2s 1s\n", ""))
    dns.until(lambda: dns.ask("a.org") == "192.0.2.3" and dns.ask("a.org", other) == "192.0.2.4")


def test_an_imported_file_is_followed_too(start, tmp_path):
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra/a.conf").write_text("hosts /nonexistent {\n 192.0.2.1 a.org\n}\n")
    dns = start(". {\n reload 2s 1s\n import extra/*.conf\n}\n")
    dns.until(lambda: dns.ask("a.org") == "192.0.2.1")
    (tmp_path / "extra/a.conf").write_text("hosts /nonexistent {\n 192.0.2.2 a.org\n}\n")
    dns.until(lambda: dns.ask("a.org") == "192.0.2.2")


def test_lameduck_goes_on_serving(start):
    port = free_port()
    dns = start(f". {{\n health 127.0.0.1:{port} {{\n  lameduck 1s\n }}\n whoami\n}}\n")
    dns.until(lambda: dns.ask("a.org") == "NOERROR")
    dns.process.send_signal(signal.SIGTERM)
    assert dns.ask("a.org") == "NOERROR"
    assert dns.process.wait(10) == 0


def test_a_loop_ends_it(start):
    dns = start("")  # its port is known only now
    dns.process.wait(10)
    text = f". {{\n loop\n forward . 127.0.0.1:{dns.port}\n}}\n"
    dns.corefile.write_text(text)
    again = subprocess.run([*dns.process.args], capture_output=True, text=True, timeout=20, check=False)
    assert (again.returncode, "loop detected for zone ." in again.stderr) == (2, True)


@pytest.mark.parametrize(("text", "line"), [("", "Corefile:1: no server block"), (". {\n nope\n}\n", "Corefile:2: plugin nope")])
def test_a_wrong_corefile_at_the_start_is_status_2(start, text, line):
    dns = start(text)
    assert dns.process.wait(20) == 2
    assert line in dns.log.read_text()
