"""The probe state machine against a naive twin."""

from hypothesis import given
from hypothesis import strategies as st

from podwire_core.objects import Probe
from podwire_nodeagent.kubelet.probes import LIVENESS, READINESS, STARTUP, ProbeState


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 4), st.integers(1, 4))
def test_verdicts(results, success, failure):
    """Ready after `success` good results in a row, unready again after `failure` bad ones."""
    state = ProbeState(READINESS, Probe(success_threshold=success, failure_threshold=failure))
    ready = False
    for n, result in enumerate(results):
        state.observe(result)
        if results[: n + 1][-success:] == [True] * success:
            ready = True
        elif results[: n + 1][-failure:] == [False] * failure:
            ready = False
        assert bool(state.verdict) == ready


def test_liveness_fails_once_after_its_threshold():
    state = ProbeState(LIVENESS, Probe(failure_threshold=3), verdict=True)
    assert [state.observe(ok) for ok in (False, False, True, False, False, False, False)] == [False] * 5 + [True, False]
    assert state.verdict is False


def test_startup_passes_once():
    state = ProbeState(STARTUP, Probe(failure_threshold=3))
    assert [state.observe(ok) for ok in (False, False, True)] == [False, False, True]


def test_eager_until_ready():
    state = ProbeState(READINESS, Probe(period_seconds=1, failure_threshold=1))
    delays = []
    for _ in range(6):
        state.observe(False)
        delays.append(state.next_delay())
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert state.observe(True)
    assert state.next_delay() == 1.0
    assert state.observe(False)
    assert state.next_delay() == 1.0
    assert ProbeState(LIVENESS, Probe(period_seconds=7), verdict=True).next_delay() == 7.0
