"""Namespaces, TAPs and rtnetlink against the running kernel; `ip` from iproute2 is the judge of what was configured."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from podwire_core import netns
from podwire_core.rtnetlink import Route

pytestmark = pytest.mark.root


@pytest.fixture
def space(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "netns" / "pod")
    netns.create(path)
    yield path
    netns.delete(path)


def ip(space: str, *args: str) -> list[dict]:
    out = subprocess.run(["nsenter", f"--net={space}", "ip", "-j", *args], check=True, capture_output=True, text=True).stdout
    return json.loads(out or "[]")


def test_thread_returns_to_its_namespace_on_every_way_out(space: str) -> None:
    home = os.stat("/proc/thread-self/ns/net").st_ino
    with netns.in_netns(space):
        assert os.stat("/proc/thread-self/ns/net").st_ino == os.stat(space).st_ino != home
    with pytest.raises(ZeroDivisionError), netns.in_netns(space):
        _ = 1 / 0
    assert os.stat("/proc/thread-self/ns/net").st_ino == home


def test_create_and_delete(space: str) -> None:
    assert netns.is_mounted(space)
    assert "UP" in ip(space, "link", "show", "lo")[0]["flags"]
    with pytest.raises(FileExistsError):
        netns.create(space)
    netns.delete(space)
    netns.delete(space)
    assert not netns.is_mounted(space)
    assert not Path(space).exists()


def test_tap_is_configured_as_asked(space: str) -> None:
    fd = netns.create_tap(space, "eth0", "02:00:0a:f4:01:05", 1450)
    with netns.configure(space) as net:
        net.set_link("eth0", up=True)
        net.add_address("eth0", "10.244.1.5/24")
        net.add_address("eth0", "10.244.1.5/24")  # stating it again is fine
        net.add_address("eth0", "fd00::5/64")
        net.add_neighbour("eth0", "169.254.1.1", "02:00:a9:fe:01:01")
        wanted = Route("default", dev="eth0", via="169.254.1.1", src="10.244.1.5", mtu=1400, onlink=True)
        net.add_route(wanted)
        net.add_route(wanted)
        net.add_route(Route("10.9.0.0/16", dev="eth0", via="10.244.1.1"))
        assert net.routes("eth0")[:2] == [wanted, Route("10.9.0.0/16", dev="eth0", via="10.244.1.1")]
        assert {"10.244.1.5/24", "fd00::5/64"} < set(net.addresses("eth0"))
        net.delete_route(Route("10.9.0.0/16", dev="eth0", via="10.244.1.1"))
        with pytest.raises(OSError, match=r"route 10\.9\.0\.0/16 dev eth0: No such process"):
            net.delete_route(Route("10.9.0.0/16", dev="eth0", via="10.244.1.1"))
    link = ip(space, "link", "show", "eth0")[0]
    assert (link["address"], link["mtu"], "LOWER_UP" in link["flags"]) == ("02:00:0a:f4:01:05", 1450, True)
    default = ip(space, "route", "show", "default")[0]
    assert (default["gateway"], default["prefsrc"], default["flags"]) == ("169.254.1.1", "10.244.1.5", ["onlink"])
    assert ip(space, "neigh")[0]["state"] == ["PERMANENT"]
    os.close(fd)


def test_tap_outlives_its_holder_and_is_reattached(space: str) -> None:
    fd = netns.create_tap(space, "eth0", "02:00:0a:f4:01:05", 1450)
    with pytest.raises(OSError) as caught:
        netns.create_tap(space, "eth0")
    assert caught.value.errno == errno.EEXIST
    with pytest.raises(OSError) as caught:
        netns.reattach_tap(space, "eth0")
    assert caught.value.errno == errno.EBUSY
    netns.set_up(space, "eth0")
    netns.add_address(space, "eth0", "10.244.1.5/24")
    os.close(fd)
    fd = netns.reattach_tap(space, "eth0")
    assert ip(space, "addr", "show", "eth0")[0]["addr_info"][0]["local"] == "10.244.1.5"
    os.close(fd)
    with pytest.raises(OSError) as caught:
        netns.reattach_tap(space, "eth9")
    assert caught.value.errno == errno.ENODEV


def test_sysctl_is_the_namespaces(space: str) -> None:
    netns.set_sysctl(space, "net.ipv4.ip_unprivileged_port_start", "0")
    with netns.in_netns(space):
        assert Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text() == "0\n"
    assert Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text() != "0\n"
