"""host-local: which address is next, what is never given, when there is none, concurrent plugins, and what a crash leaves."""

from __future__ import annotations

import ipaddress
import multiprocessing
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from podwire_cni.ipam import HostLocal, Owner, parse_ranges
from podwire_cni.protocol import CniError

NET = "10.244.1.0/29"  # .1 the gateway, .2 to .6 for pods


def ipam(folder: Path, *sets) -> HostLocal:
    return HostLocal("cbr0", {"type": "host-local", "dataDir": str(folder), "ranges": list(sets) or [[{"subnet": NET}]]})


def owner(number: int, ifname: str = "eth0") -> Owner:
    return Owner(f"c{number}", ifname)


def addresses(store: HostLocal, *numbers: int) -> list[str]:
    return [each.address for n in numbers for each in store.add(owner(n))]


def code(call, *args) -> int:
    with pytest.raises(CniError) as caught:
        call(*args)
    return caught.value.code


def test_round_robin_from_the_last_one_given(tmp_path):
    store = ipam(tmp_path)
    assert addresses(store, 1, 2) == ["10.244.1.2/29", "10.244.1.3/29"]
    assert store.release(owner(1)) == ["10.244.1.2"]
    assert addresses(store, 3, 4, 5) == ["10.244.1.4/29", "10.244.1.5/29", "10.244.1.6/29"]
    assert addresses(ipam(tmp_path), 6) == ["10.244.1.2/29"]  # round the end; another process knows as well


def test_never_network_broadcast_or_gateway_and_then_none(tmp_path):
    store = ipam(tmp_path, [{"subnet": NET, "gateway": "10.244.1.4"}])
    got = addresses(store, *range(5))
    assert sorted(got) == [f"10.244.1.{n}/29" for n in (1, 2, 3, 5, 6)]
    assert code(store.add, owner(9)) == 100
    assert not store.available()
    store.release(owner(3))
    assert store.available()
    assert addresses(store, 9) == [got[3]]


def test_the_gateway_is_the_first_address_unless_given(tmp_path):
    [given_] = ipam(tmp_path).add(owner(1))
    assert given_.gateway == "10.244.1.1"


def test_an_owner_has_its_addresses_once_an_interface(tmp_path):
    store = ipam(tmp_path)
    store.add(owner(1))
    assert code(store.add, owner(1)) == 101
    store.add(owner(1, "net1"))
    assert store.addresses(owner(1)) == ["10.244.1.2"]
    store.release(owner(1))
    assert store.addresses(owner(1, "net1")) == ["10.244.1.3"]
    assert store.release(owner(1)) == []  # again


def test_a_set_of_ranges_is_one_ring(tmp_path):
    first = {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.10", "rangeEnd": "10.0.0.11"}
    second = {"subnet": "10.0.1.0/24", "rangeStart": "10.0.1.10", "rangeEnd": "10.0.1.10", "gateway": "10.0.1.254"}
    store = ipam(tmp_path, [first, second])
    assert addresses(store, 1, 2, 3) == ["10.0.0.10/24", "10.0.0.11/24", "10.0.1.10/24"]
    store.release(owner(2))
    assert addresses(store, 4) == ["10.0.0.11/24"]


def test_several_sets_give_all_or_nothing(tmp_path):
    store = ipam(tmp_path, [{"subnet": "fd00::/120"}], [{"subnet": "10.0.0.0/30"}])
    assert addresses(store, 1) == ["fd00::2/120", "10.0.0.2/30"]
    assert code(store.add, owner(2)) == 100
    assert store.addresses(owner(2)) == []


def test_sets_that_share_addresses_are_available_together_or_not(tmp_path):
    same = [{"subnet": "10.0.0.0/29", "rangeStart": "10.0.0.2", "rangeEnd": "10.0.0.4"}]
    store = ipam(tmp_path, same, same)
    assert addresses(store, 1) == ["10.0.0.2/29", "10.0.0.3/29"]
    assert not store.available()  # one is left, two are needed
    assert code(store.add, owner(2)) == 100


def test_a_large_ipv6_range(tmp_path):
    store = ipam(tmp_path, [{"subnet": "fd00:1::/64"}])
    assert addresses(store, 1, 2) == ["fd00:1::2/64", "fd00:1::3/64"]
    assert store.addresses(owner(2)) == ["fd00:1::3"]


def test_the_plain_subnet(tmp_path):
    store = HostLocal("cbr0", {"subnet": NET, "dataDir": str(tmp_path)})
    assert addresses(store, 1) == ["10.244.1.2/29"]


@pytest.mark.parametrize(
    "given_",
    [
        {},
        {"subnet": 5},
        {"subnet": "10.0.0.0"},
        {"subnet": "10.0.0.1/24"},
        {"subnet": "10.0.0.0/31"},
        {"subnet": "10.0.0.0/32"},
        {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"},
        {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.0"},
        {"subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.255"},
        {"subnet": "10.0.0.0/24", "rangeEnd": "10.0.1.1"},
        {"subnet": "10.0.0.0/24", "rangeStart": "::a00:5"},
        {"subnet": "10.0.0.0/24", "rangeStart": []},
        {"subnet": "10.0.0.0/24", "rangeStart": 167772170},
        {"subnet": "10.0.0.0/24", "gateway": "x"},
        {"subnet": "10.0.0.0/24", "gateway": "fd00::1"},
        {"subnet": "fd00::/64", "gateway": "10.0.0.1"},
    ],
)
def test_ranges_that_are_none(given_):
    assert code(parse_ranges, {"ranges": [[given_]]}) == 7


@pytest.mark.parametrize("ranges", [5, [], [[]], {}, [5], ["10.0.0.0/24"]])
def test_range_sets_that_are_none(ranges):
    assert code(parse_ranges, {"ranges": ranges}) == 7


@pytest.mark.parametrize("given_", [None, [], {"type": "dhcp"}, {"subnet": NET, "dataDir": 5}])
def test_sections_that_are_none(given_):
    assert code(HostLocal, "cbr0", given_) == 7


# --- crashes and concurrency --------------------------------


def test_what_a_crash_leaves(tmp_path):
    """A draft not yet renamed, a last address cut off, the lock file of a dead process, files that are not ours."""
    store = ipam(tmp_path)
    store.add(owner(1))
    folder = tmp_path / "cbr0"
    (folder / "draft").write_text("c7")
    (folder / "last_reserved_ip.0").write_text("10.24")
    (folder / "README").write_text("?")
    assert addresses(ipam(tmp_path), 2) == ["10.244.1.3/29"]
    assert ipam(tmp_path).release(owner(1)) == ["10.244.1.2"]


def test_an_address_without_a_readable_owner_stays_taken(tmp_path):
    store = ipam(tmp_path)
    store.add(owner(1))
    (tmp_path / "cbr0" / "10.244.1.3").write_text("")
    assert addresses(store, 2) == ["10.244.1.4/29"]


def test_a_crash_before_the_second_address_leaves_one_that_goes_with_its_owner(tmp_path, monkeypatch):
    sets = [{"subnet": "10.0.0.0/29"}], [{"subnet": "fd00::/120"}]
    store, replace, calls = ipam(tmp_path, *sets), os.replace, []

    def crash(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        store.add(owner(1))
    monkeypatch.undo()
    assert store.addresses(owner(1)) == ["10.0.0.2"]
    assert ipam(tmp_path, *sets).release(owner(1)) == ["10.0.0.2"]


def take(folder: str, first: int, count: int, results) -> None:
    store = HostLocal("cbr0", {"dataDir": folder, "ranges": [[{"subnet": "10.1.0.0/24"}]]})
    results.put([store.add(owner(n))[0].address for n in range(first, first + count)])


def test_concurrent_plugins_get_different_addresses(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=take, args=(str(tmp_path), 20 * n, 20, results)) for n in range(3)]
    for worker in workers:
        worker.start()
    got = [address for _ in workers for address in results.get(timeout=60)]
    for worker in workers:
        worker.join()
    assert len(set(got)) == 60


class Allocations(RuleBasedStateMachine):
    """Against a plain dictionary: whatever the order, an address has one owner and none is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.have: dict[int, str] = {}

    @property
    def store(self) -> HostLocal:
        return ipam(Path(self.temporary.name))

    @rule(number=st.integers(0, 9))
    def add(self, number: int) -> None:
        if number in self.have:
            assert code(self.store.add, owner(number)) == 101
        elif len(self.have) == 5:
            assert code(self.store.add, owner(number)) == 100
        else:
            [got] = self.store.add(owner(number))
            assert got.address not in self.have.values()
            host = ipaddress.ip_interface(got.address).ip
            assert host in list(ipaddress.ip_network(NET).hosts())
            assert str(host) != got.gateway
            self.have[number] = got.address

    @rule(number=st.integers(0, 9))
    def release(self, number: int) -> None:
        had = self.have.pop(number, "")
        assert self.store.release(owner(number)) == ([had.partition("/")[0]] if had else [])

    @invariant()
    def the_files_say_the_same(self) -> None:
        assert self.store.available() == (len(self.have) < 5)
        assert self.store.owners() == sorted(owner(n) for n in self.have)

    def teardown(self) -> None:
        self.temporary.cleanup()


TestAllocations = Allocations.TestCase
TestAllocations.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda e: st.lists(e) | st.dictionaries(st.text(), e)))
def test_any_section_is_taken_or_refused(section):
    with tempfile.TemporaryDirectory() as folder:
        given_ = section | {"dataDir": folder} if isinstance(section, dict) else section
        assert code(HostLocal, "cbr0", given_) == 7
