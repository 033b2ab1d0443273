"""Last: nothing that ran left anything; Ctrl-C of up stops everything cleanly."""

import os
import signal

import pytest
from harness.lydian import until, wait_gone


def counts(lydian):
    pids = {role: lydian.pid(role) for role in ("control", "worker", "spawner")}
    return {"fds": {r: len(os.listdir(f"/proc/{p}/fd")) for r, p in pids.items()}, "mounts": len(lydian.mounts()), "cgroups": len(lydian.cgroups()),
            "processes": len(lydian.processes())}


@pytest.mark.feature("nothing leaks")
def test_runs_leave_nothing(entry, lydian):
    until("no task is left", 30, lambda: not lydian.tasks())
    entry("faults", "mapping", "--count", "3")
    until("no task is left", 30, lambda: not lydian.tasks())
    before = counts(lydian)
    for _ in range(5):
        entry("faults", "mapping", "--count", "3")
    until("no task is left", 30, lambda: not lydian.tasks())

    def settled():
        now = counts(lydian)
        return (now["cgroups"] <= before["cgroups"] and now["processes"] <= before["processes"] and now["mounts"] <= before["mounts"]
                and all(now["fds"][r] <= before["fds"][r] + 3 for r in now["fds"]))
    until("counts are back to what they were", 20, settled)


@pytest.mark.feature("lydian up: Ctrl-C")
def test_stop_leaves_nothing(client, lydian):
    from conftest import APPS
    run = client.start_modal("run", f"{APPS}/faults.py::sleeping")
    run.wait_for("sleeping")
    lydian.stop()
    run.finish(60)
    left = lydian.leftovers()
    left.pop("links", None), left.pop("tables", None)  # the bridge may stay for the next start
    assert not left, left
    lydian.up()
    client.modal("app", "list").ok()


@pytest.mark.feature("lydian down")
@pytest.mark.parametrize("killed", [("up",), ("up", "worker", "control", "spawner")])
def test_down_removes_what_killed_daemons_left(lydian, killed):
    pids = {role: lydian.pid(role) for role in ("up", "worker", "control", "spawner")}
    for role in killed:
        os.kill(pids[role], signal.SIGKILL)
        assert wait_gone(pids[role], 10)
    lydian.cli("down")
    assert not lydian.cgroups() and not lydian.processes()
    lydian.up()
