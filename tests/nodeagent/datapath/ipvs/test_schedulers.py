"""The schedulers by their definitions: exact where they are exact, by a distribution where they are hashes."""

from __future__ import annotations

from collections import Counter
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_core.ipvs import SCHEDULERS as NAMES
from podwire_nodeagent.datapath.ipvs import maglev
from podwire_nodeagent.datapath.ipvs.schedulers import SCHEDULERS
from podwire_nodeagent.datapath.ipvs.servers import Server

FLOW = SimpleNamespace(src=b"\x0a\xf4\x01\x05", dst=b"\x0a\x60\x00\x0a", sport=40000, dport=80)


def servers(*weights):
    return [Server(bytes((10, 244, 2, 10 + i)), 8080, weight) for i, weight in enumerate(weights)]


def scheduler(name, given, flags=()):
    made = SCHEDULERS[name](flags)
    made.update(given)
    return made


def picks(made, given, count):
    """Indexes of the servers that are chosen."""
    return [given.index(made.pick(FLOW)) for _ in range(count)]


def load(given, loads):
    """What each server carries: (weight, active, inactive)."""
    for server, (_, active, inactive) in zip(given, loads, strict=True):
        server.active, server.inactive = active, inactive


def flow(number):
    return SimpleNamespace(src=number.to_bytes(4, "big"), dst=FLOW.dst, sport=40000, dport=80)


def test_every_name_has_a_scheduler():
    assert set(SCHEDULERS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_server_or_a_weight_there_is_no_choice(name):
    assert scheduler(name, []).pick(FLOW) is None
    assert scheduler(name, servers(0, 0)).pick(FLOW) is None


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.sampled_from(NAMES), st.integers(0, 1 << 32))
def test_a_quiescent_server_is_never_chosen(weights, name, seed):
    made, rng = scheduler(name, servers(*weights)), Random(seed)
    for _ in range(20):
        chosen = made.pick(flow(rng.getrandbits(32)))
        assert chosen is None or chosen.weight > 0


# --- in turn


def test_rr_takes_each_in_turn():
    given = servers(1, 0, 5, 1)
    assert picks(scheduler("rr", given), given, 7) == [0, 2, 3, 0, 2, 3, 0]


@given(st.integers(1, 9), st.integers(1, 30))
def test_rr_is_exact(size, rounds):
    given = servers(*[1] * size)
    assert set(Counter(picks(scheduler("rr", given), given, size * rounds)).values()) == {rounds}


def test_rr_goes_on_where_it_was_when_servers_change():
    given = servers(1, 1, 1, 1)
    made = scheduler("rr", given)
    assert picks(made, given, 2) == [0, 1]
    made.update([given[0], given[1], given[3]])
    assert picks(made, given, 2) == [3, 0]
    made.update([given[1], given[3]])  # the last one chosen is gone
    assert sorted(picks(made, given, 2)) == [1, 3]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((4, 3, 2), [0, 0, 1, 0, 1, 2, 0, 1, 2]), ((1, 1), [0, 1, 0, 1]), ((2, 0, 4), [2, 0, 2]), ((3, 1), [0, 0, 0, 1])],
)
def test_wrr_by_linux_sequence(weights, expected):
    given = servers(*weights)
    assert picks(scheduler("wrr", given), given, len(expected)) == expected


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), st.integers(1, 5))
def test_wrr_is_exact_by_weight(weights, rounds):
    given = servers(*weights)
    counted = Counter(picks(scheduler("wrr", given), given, sum(weights) * rounds))
    assert [counted[i] for i in range(len(weights))] == [w * rounds for w in weights]


# --- by load


LOADS = [
    # scheduler, (weight, active, inactive) of each, chosen
    ("lc", [(1, 2, 0), (1, 1, 255), (1, 1, 257)], 1),
    ("lc", [(9, 2, 0), (1, 1, 0)], 1),
    ("lc", [(0, 0, 0), (1, 5, 5)], 1),
    ("lc", [(1, 1, 0), (1, 1, 0)], 0),
    ("wlc", [(1, 1, 0), (3, 2, 0)], 1),
    ("wlc", [(1, 1, 0), (2, 2, 0)], 0),
    ("wlc", [(4, 0, 9), (1, 0, 2)], 1),
    ("sed", [(1, 0, 0), (3, 1, 0)], 1),
    ("sed", [(1, 0, 0), (2, 1, 0)], 0),
    ("sed", [(1, 0, 900), (3, 3, 0)], 0),
    ("nq", [(9, 1, 0), (1, 0, 7)], 1),
    ("nq", [(9, 1, 0), (1, 2, 0)], 0),
    ("nq", [(1, 1, 0), (0, 0, 0)], 0),
]


@pytest.mark.parametrize(("name", "loads", "chosen"), LOADS)
def test_the_least_loaded(name, loads, chosen):
    given = servers(*[weight for weight, _, _ in loads])
    load(given, loads)
    assert given.index(scheduler(name, given).pick(FLOW)) == chosen


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=8))
def test_wlc_and_sed_minimise_what_they_say(loads):
    given = servers(*[weight for weight, _, _ in loads])
    load(given, loads)
    chosen = scheduler("wlc", given).pick(FLOW)
    assert all((chosen.active * 256 + chosen.inactive) * s.weight <= (s.active * 256 + s.inactive) * chosen.weight for s in given)
    chosen = scheduler("sed", given).pick(FLOW)
    assert all((chosen.active + 1) * s.weight <= (s.active + 1) * chosen.weight for s in given)


# --- by hash


@pytest.mark.parametrize("name", ["sh", "dh", "mh"])
def test_hashing_remembers_nothing(name):
    given = servers(1, 1, 1)
    made = scheduler(name, given)
    assert not made.by_history
    assert len(set(picks(made, given, 9))) == 1


def test_sh_by_client_and_with_its_flag_by_port():
    given = servers(1, 1, 1, 1)
    made = scheduler("sh", given, ("sh-port",))
    chosen = {given.index(made.pick(SimpleNamespace(**vars(FLOW) | {"sport": port}))) for port in range(1024, 1200)}
    assert chosen == {0, 1, 2, 3}


def test_sh_follows_weights_over_its_256_buckets():
    given = servers(3, 1)
    made = scheduler("sh", given)
    assert Counter(made.table) == {0: 192, 1: 64}


def test_sh_falls_back_only_if_told_to():
    given = servers(1, 1)
    plain, falling = scheduler("sh", given), scheduler("sh", given, ("sh-fallback",))
    hit = plain.pick(FLOW)
    hit.weight = 0
    assert plain.pick(FLOW) is None
    assert falling.pick(FLOW) is next(server for server in given if server is not hit)


def chi_square(counts, expected):
    return sum((count - expected) ** 2 / expected for count in counts)


def test_mh_spreads_clients_evenly():
    given, rng = servers(*[1] * 10), Random(7)
    made = scheduler("mh", given)
    counts = Counter(given.index(made.pick(flow(rng.getrandbits(32)))) for _ in range(10_000))
    assert chi_square([counts[i] for i in range(10)], 1000) < 27.9  # 9 degrees of freedom, p = .001


# --- Maglev's table


def test_siphash_by_its_reference_vector():
    """SipHash-1-3 of a 32-bit word, computed by the definition with Python's integers, one step a line."""

    def rotl(x, b):
        return (x << b | x >> 64 - b) & (1 << 64) - 1

    def sip_round(v):
        a, b, c, d = v
        a = a + b & (1 << 64) - 1
        b = rotl(b, 13) ^ a
        a = rotl(a, 32)
        c = c + d & (1 << 64) - 1
        d = rotl(d, 16) ^ c
        a = a + d & (1 << 64) - 1
        d = rotl(d, 21) ^ a
        c = c + b & (1 << 64) - 1
        b = rotl(b, 17) ^ c
        return [a, b, rotl(c, 32), d]

    key, word = 2654435761, 0x0AF40105
    v = [key ^ int.from_bytes(text, "big") for text in (b"somepseu", b"dorandom", b"lygenera", b"tedbytes")]
    block = word | 4 << 56
    v[3] ^= block
    v = sip_round(v)
    v[0] ^= block
    v[2] ^= 0xFF
    for _ in range(3):
        v = sip_round(v)
    assert maglev.siphash13(word, key) == (v[0] ^ v[1] ^ v[2] ^ v[3]) & 0xFFFFFFFF


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12).filter(any))
def test_maglev_gives_slots_by_weight(weights):
    table = maglev.populate(servers(*weights), 251)
    counts = Counter(table)
    assert len(table) == 251
    assert min(table) >= 0
    total = sum(weights)
    for index, weight in enumerate(weights):
        assert abs(counts[index] - 251 * weight / total) <= max(weights)


def test_maglev_disrupts_little():
    """One of 100 backends goes: what was not its own hardly moves."""
    backends = [Server(bytes((10, 244, i // 250, i % 250 + 1)), 8080) for i in range(100)]
    before = maglev.populate(backends)
    moved = []
    for gone in (0, 17, 42, 63, 99):
        rest = [server for index, server in enumerate(backends) if index != gone]
        after = maglev.populate(rest)
        kept = [slot for slot, index in enumerate(before) if index != gone]
        moved.append(sum(backends[before[slot]] is not rest[after[slot]] for slot in kept) / len(kept))
    assert sum(moved) / len(moved) <= 0.01, moved
