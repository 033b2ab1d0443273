"""Generators: items arrive as they are yielded."""

import pytest

pytestmark = pytest.mark.rpc("FunctionCallPutDataOut", "FunctionCallGetDataOut")


@pytest.mark.feature("generators")
def test_generators(entry):
    entry("generators", "plain")


@pytest.mark.feature("generators: aio")
def test_asyncs(entry):
    entry("generators", "asyncs")


@pytest.mark.feature("generators that raise")
def test_raising(entry):
    entry("generators", "raising")


@pytest.mark.feature("generators: live")
def test_items_arrive_while_it_runs(entry):
    entry("generators", "streaming")


@pytest.mark.feature("generators: left early")
def test_left_early(entry):
    entry("generators", "left_early")
