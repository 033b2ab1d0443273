"""Calls whose caller does something else meanwhile: results, cancelling, time limits."""

import re

import pytest
from conftest import APPS

pytestmark = pytest.mark.rpc("FunctionMap", "FunctionGetOutputs")


@pytest.mark.feature("spawn", "FunctionCall: get", "FunctionCall: from_id", "FunctionCall: gather", "FunctionCall: iter",
                     "FunctionCall: get_call_graph", "experimental_spawn_map")
@pytest.mark.rpc("FunctionCallFromId", "FunctionFinishInputs", "FunctionGetCallGraph")
def test_results(entry, client):
    done = entry("background", "results")
    call, failing = re.search(r"SPAWNED (\S+) (\S+)", done.out).groups()
    code = f"""
import modal
assert modal.FunctionCall.from_id({call!r}).get(timeout=0) == 81
try:
    modal.FunctionCall.from_id({failing!r}).get(timeout=0)
except KeyError as e:
    print("as it was", e)
"""
    assert client.python("-c", code).ok().out == "as it was 'k'\n", "results outlive the app that was run"


@pytest.mark.feature("spawn: aio")
def test_results_async(entry):
    entry("background", "results_async")


def cancelled(client, gate, *args):
    run = client.start_modal("run", f"{APPS}/background.py::cancels", *args, env=gate.env)
    for kind in ("sync", "async"):
        run.wait_for(f"long {kind} begins")
        gate()
    done = run.finish(60).ok()
    assert "queued sync begins" not in done.text and "queued async begins" not in done.text, "what was cancelled in the queue never runs"
    return done


@pytest.mark.feature("FunctionCall: cancel", "Function.get_current_stats")
@pytest.mark.rpc("FunctionCallCancel", "FunctionGetCurrentStats")
def test_cancel(client, gate):
    done = cancelled(client, gate)
    for kind in ("sync", "async"):
        assert f"long {kind} cleans up" in done.out, "the function sees an exception where it is"


@pytest.mark.feature("FunctionCall: cancel with terminate_containers")
@pytest.mark.rpc("FunctionCallCancel")
def test_cancel_with_the_container(client, gate):
    cancelled(client, gate, "--terminate")


@pytest.mark.feature("timeout", "startup_timeout")
def test_timeouts(entry):
    entry("background", "timeouts")


@pytest.mark.feature("spawn: more than may be queued")
def test_crowd(lydian, entry):
    """A call that finds no room waits for it, as a map's inputs do."""
    lydian.stop()
    lydian.up(options=("--queued-inputs", "40"))  # ten a function
    try:
        done = entry("background", "crowd")
        assert "too many inputs of function slowly are queued (10" in done.text, "nothing was held up"
    finally:
        lydian.stop()
        lydian.up()
