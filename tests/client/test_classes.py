"""Classes: methods, parameters, options, and what runs when a container begins and ends."""

import pytest

pytestmark = pytest.mark.rpc("ClassCreate", "FunctionBindParams")


@pytest.mark.feature("classes: enter and methods", "generators: methods")
def test_plain(entry):
    entry("classes", "plain")


@pytest.mark.feature("classes: modal.parameter")
def test_parameters(entry):
    entry("classes", "parameters")


@pytest.mark.feature("classes: with_options", "classes: with_concurrency")
def test_options(entry):
    entry("classes", "options")


@pytest.mark.feature("classes: exit")
def test_exit_runs_at_the_end(entry):
    lines = entry("classes", "leaving").out.splitlines()
    for who in ("one", "two"):
        assert [x for x in lines if x.startswith(who)] == [f"{who} {x}" for x in ("enters", "works", "exits", "exits asynchronously")], lines


@pytest.mark.feature("classes: a failing enter")
def test_failing_enter(entry):
    assert "as it should be" in entry("classes", "failing").out
