"""kill -9 of each of our processes in the middle of a run: the same client finishes, each output is delivered once."""

import json
import os
import re
import signal
from collections import Counter

import pytest
from conftest import APPS
from harness.lydian import alive, until

FAULTS = f"{APPS}/faults.py"


def ran(done):
    return Counter(int(x) for x in re.findall(r"ran (\d+)\.", done.out))


@pytest.mark.feature("kill -9 of control")
def test_control_is_killed_in_a_map(client, lydian):
    run = client.start_modal("run", f"{FAULTS}::mapping")
    run.wait_for("ran 12.")
    old = lydian.kill("control")
    lydian.back("control", old, timeout=5)
    done = run.finish(90).ok()
    assert "DELIVERED 60" in done.out
    assert ran(done) == {i: 1 for i in range(60)}, "the containers lived on: every input ran once, and no line is lost or doubled"


@pytest.mark.feature("kill -9 of control")
def test_control_is_killed_again_and_again(client, lydian):
    run = client.start_modal("run", f"{FAULTS}::mapping", "--count", "100")
    for at in (5, 30, 60):
        run.wait_for(f"ran {at}.", 60)
        lydian.back("control", lydian.kill("control"), timeout=5)
    done = run.finish(120).ok()
    assert "DELIVERED 100" in done.out and ran(done) == {i: 1 for i in range(100)}, ran(done)


@pytest.mark.feature("kill -9 of the worker")
def test_worker_is_killed_in_a_map(client, lydian):
    run = client.start_modal("run", f"{FAULTS}::mapping")
    run.wait_for("ran 12.")
    old = lydian.kill("worker")
    lydian.back("worker", old, timeout=5)
    done = run.finish(90).ok()
    assert "DELIVERED 60" in done.out and set(ran(done)) == set(range(60)), ran(done)


@pytest.mark.feature("kill -9 of control and the worker")
def test_control_and_worker_are_killed_in_a_map(client, lydian):
    """What containers put out while control was away is in files of the worker that is killed next: nothing is lost, and nothing runs twice."""
    run = client.start_modal("run", f"{FAULTS}::mapping", "--count", "300", "--seconds", "0.02")
    run.wait_for("ran 40.")
    old = {role: lydian.kill(role) for role in ("control", "worker")}
    for role, pid in old.items():
        lydian.back(role, pid, timeout=5)
    done = run.finish(90).ok()
    assert "DELIVERED 300" in done.out
    assert ran(done) == {i: 1 for i in range(300)}, {i: n for i, n in ran(done).items() if n != 1}


@pytest.mark.feature("kill -9 of the worker")
def test_worker_is_killed_while_a_function_talks(client, lydian):
    """It adopts what runs: the input goes on, and its log misses no line and doubles none."""
    run = client.start_modal("run", f"{FAULTS}::talking", "--lines", "80")
    run.wait_for("line 15.")
    container = {t["container_id"] for t in lydian.tasks()}
    lydian.back("worker", lydian.kill("worker"), timeout=5)
    run.wait_for("line 60.")
    assert {t["container_id"] for t in lydian.tasks()} == container
    done = run.finish(60).ok()
    assert "RESULT done talking" in done.out
    assert [int(x) for x in re.findall(r"line (\d+)\.", done.out)] == list(range(80))


@pytest.mark.feature("kill -9 of the spawner")
def test_spawner_is_killed_in_a_map(client, lydian):
    run = client.start_modal("run", f"{FAULTS}::mapping")
    run.wait_for("ran 12.")
    inside = [t["pid"] for t in lydian.tasks()]
    lydian.back("spawner", lydian.kill("spawner"), timeout=5)
    until("its containers have ended", 10, lambda: not [p for p in inside if alive(p)])
    done = run.finish(90).ok()
    assert "DELIVERED 60" in done.out and set(ran(done)) == set(range(60)), ran(done)


@pytest.mark.feature("kill -9 of up")
def test_up_is_killed_in_a_map(client, lydian):
    run = client.start_modal("run", f"{FAULTS}::mapping")
    run.wait_for("ran 12.")
    before = {role: lydian.pid(role) for role in ("control", "worker", "spawner")}
    old = lydian.kill("up")
    lydian.up()
    assert lydian.pid("up") != old
    assert {role: lydian.pid(role) for role in before} == before, "a new up takes over what lives"
    done = run.finish(90).ok()
    assert "DELIVERED 60" in done.out and ran(done) == {i: 1 for i in range(60)}
    # and it watches them
    lydian.back("control", lydian.kill("control"), timeout=5)
    assert "DELIVERED 5" in client.modal("run", f"{FAULTS}::mapping", "--count", "5").ok().out


@pytest.mark.feature("everything is killed")
def test_all_are_killed_and_up_again(client, lydian):
    """As after a crash of the machine: state is kept, leftovers of containers are cleared away."""
    client.modal("secret", "create", "--force", "kept", "A=1").ok()
    run = client.start_modal("run", f"{FAULTS}::sleeping")
    run.wait_for("sleeping")
    pids = {role: lydian.pid(role) for role in ("up", "control", "worker", "spawner")}
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    run.kill()
    run.finish()
    until("all have ended", 10, lambda: not [p for p in pids.values() if alive(p)])
    lydian.up()
    assert "kept" in client.modal("secret", "list", "--json").ok().out
    client.modal("secret", "delete", "kept", "--yes").ok()
    assert "DELIVERED 5" in client.modal("run", f"{FAULTS}::mapping", "--count", "5").ok().out


@pytest.mark.feature("vanishing clients", "modal run --detach", "modal app stop")
def test_clients_that_vanish(client, lydian):
    attached = client.start_modal("run", f"{FAULTS}::sleeping")
    detached = client.start_modal("run", "--detach", f"{FAULTS}::sleeping", "--seconds", "200")
    ids = []
    for run in (attached, detached):
        run.wait_for("sleeping")
        ids.append(re.search(r"ap-\w{22}", run.text())[0])
    assert {t["app_id"] for t in lydian.tasks()} >= set(ids)
    attached.kill()
    detached.kill()

    def left():
        return {t["app_id"] for t in lydian.tasks()}
    until("the attached run's containers are gone", 62, lambda: ids[0] not in left(), every=0.5)
    assert ids[1] in left(), "--detach keeps them"
    states = {v: x for x in json.loads(client.modal("app", "list", "--json").ok().out) for k, v in x.items() if k.lower().replace(" ", "_") == "app_id"}
    state = {i: next(v for k, v in states[i].items() if k.lower() == "state") for i in ids}
    assert "stopped" in state[ids[0]] and "detached" in state[ids[1]], state
    client.modal("app", "stop", ids[1], "--yes").ok()
    until("app stop ends its containers", 10, lambda: ids[1] not in left())
