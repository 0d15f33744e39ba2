"""Restarts, back-off and order of containers on a virtual clock; phases and conditions that follow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_core import objects
from podwire_nodeagent.kubelet import plan, status
from podwire_nodeagent.kubelet.records import ENDED, INIT, RUNNING, WAITING, Ended, PodRecord, Record


def spec(policy="Always", mains=("a",), inits=(), sidecars=(), **fields):
    init = [{"name": n} for n in inits] + [{"name": n, "restartPolicy": "Always"} for n in sidecars]
    return objects.decode(
        objects.PodSpec, {"restartPolicy": policy, "containers": [{"name": n} for n in mains], "initContainers": init, **fields}
    )


def fresh(pod):
    return {name: Record(name, kind) for name, kind in plan.kinds(pod).items()}


def run(record, now):
    if record.ended is not None:
        record.restarts += 1
        plan.restarted(record, now)
        record.last, record.ended = record.ended, None
    record.state, record.attempt, record.started, record.ready = RUNNING, record.attempt + 1, True, True


def end(record, now, code=0):
    record.state, record.started, record.ready = ENDED, False, False
    record.ended = Ended(code, "Error" if code else "Completed", now - 1, now)


def test_back_off_doubles_to_five_minutes_and_is_forgiven():
    pod = spec()
    records = fresh(pod)
    a, now, waits = records["a"], 1000.0, []
    for _ in range(9):
        assert plan.plan(pod, records, now).start == ["a"]
        run(a, now)
        end(a, now, 1)
        todo = plan.plan(pod, records, now)
        if todo.start:
            waits.append(0.0)
        else:
            assert todo.waiting == {"a": "CrashLoopBackOff"}
            waits.append(todo.look_again - now)
            now = todo.look_again
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300, 300]
    run(a, now)
    end(a, now + 601, 1)
    assert plan.plan(pod, records, now + 601).start == ["a"]
    run(a, now + 601)
    assert a.delay == 10


@pytest.mark.parametrize(
    ("policy", "code", "again", "phase"),
    [
        ("Always", 0, True, "Running"),
        ("Always", 1, True, "Running"),
        ("OnFailure", 0, False, "Succeeded"),
        ("OnFailure", 1, True, "Running"),
        ("Never", 0, False, "Succeeded"),
        ("Never", 1, False, "Failed"),
    ],
)
def test_restart_policies(policy, code, again, phase):
    pod = spec(policy)
    records = fresh(pod)
    run(records["a"], 0)
    end(records["a"], 5, code)
    todo = plan.plan(pod, records, 5)
    assert (todo.start == ["a"], todo.finished) == (again, not again)
    assert status.phase(pod, PodRecord("u", {}, containers=records)) == phase


def test_init_containers_one_by_one():
    pod = spec(inits=("i", "j"))
    records = fresh(pod)
    for name in ("i", "j"):
        assert plan.plan(pod, records, 0).start == [name]
        run(records[name], 0)
        assert plan.plan(pod, records, 0).start == []
        assert status.phase(pod, PodRecord("u", {}, containers=records)) == "Pending"
        end(records[name], 0)
    assert plan.plan(pod, records, 0).start == ["a"]


def test_a_failed_init_container():
    for policy, finished in (("Never", True), ("Always", False)):
        pod = spec(policy, inits=("i",))
        records = fresh(pod)
        run(records["i"], 0)
        end(records["i"], 0, 1)
        assert plan.plan(pod, records, 0).finished == finished
        assert status.phase(pod, PodRecord("u", {}, containers=records)) == ("Failed" if finished else "Pending")


def test_sidecars_start_before_and_stop_after_the_mains():
    pod = spec("OnFailure", mains=("a", "b"), sidecars=("s", "t"))
    records = fresh(pod)
    assert plan.plan(pod, records, 0).start == ["s"]
    run(records["s"], 0)
    records["s"].started = False
    assert plan.plan(pod, records, 0).start == []  # its startup probe has not passed
    records["s"].started = True
    run(records["t"], 0)
    assert plan.plan(pod, records, 0).start == ["a", "b"]
    for name in ("a", "b"):
        run(records[name], 0)
    end(records["s"], 5, 0)
    assert plan.plan(pod, records, 5).start == ["s"]  # sidecars always come back
    run(records["s"], 5)
    end(records["a"], 6)
    assert plan.plan(pod, records, 6).stop == []
    end(records["b"], 7)
    todo = plan.plan(pod, records, 7)
    assert (todo.stop, todo.finished) == (["t", "s"], False)
    for name in ("s", "t"):
        end(records[name], 8, 143)
    assert plan.plan(pod, records, 8).finished


@given(
    st.lists(st.tuples(st.sampled_from("absi"), st.integers(0, 2), st.integers(0, 400)), max_size=30),
    st.sampled_from(["Always", "OnFailure", "Never"]),
)
def test_any_history_keeps_the_rules(history, policy):
    """Nothing is started twice, nothing starts before its time, a finished pod starts nothing, the status can be told."""
    pod = spec(policy, mains=("a", "b"), inits=("i",), sidecars=("s",))
    records, now = fresh(pod), 0.0
    for name, code, passed in history:
        now += passed
        todo = plan.plan(pod, records, now)
        assert not (todo.finished and (todo.start or todo.stop))
        assert todo.look_again is None or todo.look_again > now
        for started in todo.start:
            assert records[started].state != RUNNING
            assert plan.start_due(records[started]) <= now
            run(records[started], now)
        if records[name].state == RUNNING:
            end(records[name], now, code)
        told = status.pod_status(PodRecord("u", {"metadata": {}}, containers=records), pod, "192.168.1.11", now)
        assert told["phase"] in ("Pending", "Running", "Succeeded", "Failed")
        for one in told["containerStatuses"]:
            assert len(one["state"]) == 1


def conditions(pod, record, now=10.0):
    told = status.pod_status(record, pod, "192.168.1.11", now)
    record.pod = {**record.pod, "status": told}
    return {c["type"]: (c["status"], c.get("reason", ""), c["lastTransitionTime"]) for c in told["conditions"]}


def test_conditions_and_their_times():
    pod = spec(inits=("i",), readinessGates=[{"conditionType": "x.io/g"}])
    records = fresh(pod)
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "then"}
    record = PodRecord("u", {"metadata": {}, "status": {"conditions": [scheduled]}}, containers=records)
    early, late = "1970-01-01T00:00:10Z", "1970-01-01T00:00:20Z"
    found = conditions(pod, record)
    assert found["PodScheduled"] == ("True", "", "then")
    assert found["Initialized"] == ("False", "ContainersNotInitialized", early)
    assert found["Ready"] == ("False", "ContainersNotReady", early)
    run(records["i"], 0)
    end(records["i"], 0)
    run(records["a"], 0)
    found = conditions(pod, record, 20)
    assert found["Initialized"] == ("True", "", late)
    assert found["ContainersReady"] == ("True", "", late)
    assert found["Ready"] == ("False", "ReadinessGatesNotReady", early)
    record.pod["status"]["conditions"].append({"type": "x.io/g", "status": "True"})
    told = status.pod_status(record, pod, "h", 20)
    assert next(c for c in told["conditions"] if c["type"] == "Ready")["status"] == "True"
    assert {"type": "x.io/g", "status": "True"} in told["conditions"]  # not ours: as it was
    assert status.pod_status(record, pod, "h", 20) == told


def test_container_statuses():
    pod = spec("Always", mains=("a",))
    records = fresh(pod)
    record = PodRecord("u", {"metadata": {}}, containers=records)
    a = records["a"]
    run(a, 100)
    end(a, 160, 137)
    a.ended.signal = 9
    a.state, a.reason, a.message = WAITING, "CrashLoopBackOff", "back-off"
    told = status.pod_status(record, pod, "h", 200)["containerStatuses"][0]
    assert told["state"] == {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    assert (told["lastState"]["terminated"]["exitCode"], told["lastState"]["terminated"]["signal"]) == (137, 9)
    assert told["ready"] is False
    assert INIT == "init"
