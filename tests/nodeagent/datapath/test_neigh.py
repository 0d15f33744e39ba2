"""Neighbour states: every way through the table at the head of neigh.py."""

from __future__ import annotations

import pytest

from podwire_nodeagent.datapath.links import Link
from podwire_nodeagent.datapath.neigh import MAX_DYNAMIC, Neighbours

IP, MAC, OTHER = b"\x0a\0\0\1", b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"


class Case:
    def __init__(self) -> None:
        self.changes = 0
        self.link = Link(2, "eth0", "dummy", bytes(6))
        self.table = Neighbours(self.changed)

    def changed(self) -> None:
        self.changes += 1

    def confirm(self, now, mac=MAC, reply=True, create=False):
        return self.table.confirm(self.link, IP, mac, now, reply=reply, create=create)

    def state(self) -> str:
        entry = self.table.get(self.link, IP)
        return entry.state if entry else "NONE"


@pytest.fixture
def case() -> Case:
    return Case()


def test_unanswered_requests_fail_after_three(case):
    entry, ask = case.table.use(case.link, IP, 0.0)
    assert (entry.state, ask) == ("INCOMPLETE", True)
    assert case.table.use(case.link, IP, 0.1)[1] is False
    case.table.enqueue(entry, "packet")
    requests = [len(case.table.tick(now).requests) for now in (0.5, 1.0, 1.5, 2.0)]
    assert requests == [0, 1, 0, 1]
    due = case.table.tick(3.0)
    assert (due.failed, case.state()) == ([(entry, ["packet"])], "FAILED")
    assert case.table.use(case.link, IP, 4.0)[1] is True
    assert case.state() == "INCOMPLETE"


def test_failed_and_unused_goes_away(case):
    case.table.use(case.link, IP, 0.0)
    for now in (1, 2, 3, 64):
        case.table.tick(float(now))
    assert case.state() == "NONE"


def test_an_answer_makes_it_reachable_then_stale_then_probed(case):
    case.table.use(case.link, IP, 0.0)
    case.confirm(0.2)
    assert case.state() == "REACHABLE"
    case.table.tick(31.0)
    assert case.state() == "STALE"
    case.table.use(case.link, IP, 40.0)
    assert case.state() == "DELAY"
    due = case.table.tick(45.0)
    assert (case.state(), [e.mac for e in due.requests]) == ("PROBE", [MAC])
    case.confirm(45.1)
    assert case.state() == "REACHABLE"


def test_a_probe_without_answer_fails_and_says_that_the_mac_is_void(case):
    case.confirm(0.0, create=True, reply=False)
    case.table.use(case.link, IP, 0.0)
    changes = [case.changes for now in (5, 6, 7, 8) if case.table.tick(float(now)) is not None]
    assert (case.state(), changes) == ("FAILED", [0, 0, 0, 1])


def test_only_who_asked_for_us_is_remembered(case):
    assert case.confirm(0.0) is None
    assert case.state() == "NONE"
    assert case.confirm(0.0, create=True, reply=False) is not None
    assert case.state() == "STALE"


def test_a_new_mac_is_believed_and_told(case):
    case.table.use(case.link, IP, 0.0)
    case.confirm(0.0)
    case.confirm(1.0)
    assert case.changes == 0
    case.confirm(2.0, OTHER, reply=False)
    entry = case.table.get(case.link, IP)
    assert (entry.mac, entry.state, case.changes) == (OTHER, "STALE", 1)


def test_permanent_is_permanent(case):
    case.table.insert_permanent(case.link, IP, MAC, 0.0)
    case.confirm(1.0, OTHER)
    case.table.tick(1e6)
    entry, ask = case.table.use(case.link, IP, 1e6)
    assert (entry.mac, entry.state, ask) == (MAC, "PERMANENT", False)


def test_three_packets_wait(case):
    entry, _ = case.table.use(case.link, IP, 0.0)
    assert [case.table.enqueue(entry, i) for i in range(5)] == [None, None, None, 0, 1]
    assert entry.queue == [2, 3, 4]


def test_the_table_is_bounded(case):
    for i in range(MAX_DYNAMIC + 100):
        case.table.use(case.link, i.to_bytes(4, "big"), float(i))
    assert len(list(case.table)) == MAX_DYNAMIC
    assert case.table.get(case.link, (99).to_bytes(4, "big")) is None
    assert case.table.get(case.link, (100).to_bytes(4, "big")) is not None
