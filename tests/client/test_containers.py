"""How many containers a function has, how many inputs each of them takes, and how long it lives."""

import re

import pytest
from conftest import APPS

pytestmark = pytest.mark.rpc("FunctionCreate", "FunctionGetInputs")


@pytest.mark.feature("batched")
def test_batches(entry):
    entry("containers", "batches")


@pytest.mark.feature("concurrent", "concurrent: async")
@pytest.mark.rpc("FunctionGetDynamicConcurrency")
def test_concurrent(entry):
    entry("containers", "concurrent")


@pytest.mark.feature("concurrent: target_inputs")
def test_target_inputs(client, gate):
    """Two inputs that one container could hold: the target of one each brings a second."""
    run = client.start_modal("run", f"{APPS}/containers.py::target", env=gate.env)
    run.wait_for("one of two is up", times=2)
    gate()
    run.finish(30).ok()


@pytest.mark.feature("max_containers", "single_use_containers")
def test_counts(entry):
    entry("containers", "counts")


@pytest.mark.feature("min_containers", "scaledown_window", "buffer_containers")
def test_lives(client, gate):
    run = client.start_modal("run", f"{APPS}/containers.py::lives", env=gate.env)
    run.wait_for("warm ta-")
    gate()
    run.wait_for("leaves")
    run.wait_for("is up", times=2)
    gate()
    done = run.finish(30).ok()
    warm = set(re.findall(r"warm (ta-\w+)", done.out))
    assert len(warm) == 1 and set(re.findall(r"served by (ta-\w+)", done.out)) == warm, "the one that was there first serves, and stays"
