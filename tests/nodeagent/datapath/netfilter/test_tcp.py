"""TCP's states as conntrack sees them. The kernel's opinion on the same sequences: tests/oracle/test_conntrack_kernel.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_nodeagent.datapath.netfilter.tcp import STATES
from podwire_nodeagent.datapath.packet import INVALID
from tests.support.hooks import Gate
from tests.support.packets import tcp

FLAGS = {"S": 2, "SA": 18, "A": 16, "F": 17, "R": 4, "RA": 20, "0": 0, "SF": 3, "PA": 24}


def play(sequence: str, gate: Gate | None = None, seq: int = 100) -> tuple[Gate, list[str]]:
    """`>S <SA >A`: packets of the client and of the server; the state after each (INVALID if it was that)."""
    gate = gate or Gate()
    states = []
    sequences = {">": seq, "<": seq + 9000}
    for word in sequence.split():
        side, flags = word[0], FLAGS[word[1:]]
        ends = ("10.244.1.5", "192.0.2.1", 4000, 80) if side == ">" else ("192.0.2.1", "10.244.1.5", 80, 4000)
        other = "<" if side == ">" else ">"
        gate.forward(tcp(*ends, flags, sequences[side], sequences[other]))
        sequences[side] += bool(flags & 3)
        if gate.packet.ctinfo == INVALID:
            states.append("INVALID")
        else:
            states.append(gate.entries[0].state if gate.entries else "-")
    return gate, states


@pytest.mark.parametrize(
    ("sequence", "states"),
    [
        (">S <SA >A", "SYN_SENT SYN_RECV ESTABLISHED"),
        (">S >S <SA <SA >A", "SYN_SENT SYN_SENT SYN_RECV SYN_RECV ESTABLISHED"),
        (">S <SA >A >F <A <F >A", "SYN_SENT SYN_RECV ESTABLISHED FIN_WAIT CLOSE_WAIT LAST_ACK TIME_WAIT"),
        (">S <SA >A <F >F <A", "SYN_SENT SYN_RECV ESTABLISHED FIN_WAIT LAST_ACK TIME_WAIT"),
        (">S <SA >A >R", "SYN_SENT SYN_RECV ESTABLISHED CLOSE"),
        (">S <RA", "SYN_SENT -"),
        (">S <S >SA <A", "SYN_SENT SYN_SENT2 SYN_RECV ESTABLISHED"),
        (">A <A", "ESTABLISHED ESTABLISHED"),
        (">F", "INVALID"),
        (">R", "INVALID"),
        (">SA", "INVALID"),
        (">0", "INVALID"),
        (">SF", "INVALID"),
        (">S >A", "SYN_SENT INVALID"),
        (">S <F", "SYN_SENT INVALID"),
        (">S <SA >A >F <F >A >S", "SYN_SENT SYN_RECV ESTABLISHED FIN_WAIT LAST_ACK TIME_WAIT SYN_SENT"),
    ],
)
def test_sequences(sequence, states):
    assert play(sequence)[1] == states.split()


def test_assured_with_the_third_packet():
    assert play(">S <SA")[0].entries[0].status == ()
    assert play(">S")[0].entries[0].status == ("UNREPLIED",)
    assert play(">S <SA >A")[0].entries[0].status == ("ASSURED",)


def test_no_pickup_without_loose():
    gate = Gate(sysctls={"net.netfilter.nf_conntrack_tcp_loose": "0"})
    assert play(">A", gate)[1] == ["INVALID"]


def test_reopened_connection_is_a_new_one():
    gate, _ = play(">S <SA >A >F <F >A")
    play(">S", gate, seq=50_000)
    (entry,) = gate.entries
    assert entry.status == ("UNREPLIED",)
    assert entry.packets == (1, 0)


def test_syn_out_of_nowhere_does_not_disturb_an_established_connection():
    """The answer tells: a challenge ACK leaves it, a SYN/ACK to that very SYN begins it anew."""
    gate, _ = play(">S <SA >A")
    gate.forward(tcp("10.244.1.5", "192.0.2.1", 4000, 80, 2, 70_000, 0))
    assert gate.entries[0].state == "ESTABLISHED"
    gate.forward(tcp("192.0.2.1", "10.244.1.5", 80, 4000, 18, 80_000, 70_001))
    assert gate.entries[0].state == "SYN_RECV"


def test_challenge_ack_in_last_ack():
    gate, _ = play(">S <SA >A >F <A <F")
    assert gate.entries[0].state == "LAST_ACK"
    gate.forward(tcp("10.244.1.5", "192.0.2.1", 4000, 80, 2, 70_000, 0))
    gate.forward(tcp("192.0.2.1", "10.244.1.5", 80, 4000, 16, 9102, 102))
    assert gate.entries[0].state == "LAST_ACK"


@pytest.mark.parametrize(
    ("sequence", "seconds"),
    [(">S", 120), (">S <SA", 60), (">S <SA >A", 432000), (">S <SA >A >R", 10), (">A", 300), (">S <SA >A >F <F >A", 120)],
)
def test_timeouts(sequence, seconds):
    assert play(sequence)[0].entries[0].timeout == seconds


@given(st.lists(st.tuples(st.sampled_from("><"), st.sampled_from(sorted(FLAGS))), max_size=12))
def test_any_sequence_keeps_the_table_sound(words):
    gate, states = play(" ".join(side + flags for side, flags in words))
    table = gate.netfilter.conntrack
    assert set(states) <= {*STATES, "INVALID", "-"}
    assert table.count == len(gate.entries)
    assert len(table.entries) == 2 * table.count
