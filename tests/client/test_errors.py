"""What goes wrong says what it was; nothing hangs; the next call works."""

import pytest
from conftest import APPS

pytestmark = pytest.mark.rpc("TaskResult", "FunctionGetOutputs")


@pytest.mark.feature("exceptions")
def test_exceptions(entry):
    entry("errors", "exceptions")


@pytest.mark.feature("exceptions of unknown type")
def test_exception_of_a_type_only_known_there(entry):
    assert "as it should be" in entry("stranger", "main").out


@pytest.mark.feature("import failure")
def test_import_failure(entry):
    done = entry("broken", "main")
    assert "as it should be" in done.out and "for a map too" in done.out


@pytest.mark.feature("container deaths")
def test_deaths(entry, lydian):
    done = entry("errors", "deaths")
    assert "dying by exit" in done.out, "what it printed before it died arrives"


@pytest.mark.feature("out of memory")
def test_out_of_memory(entry, lydian):
    entry("errors", "memory")


@pytest.mark.feature("remote traceback")
def test_uncaught_ends_the_run(client):
    done = client.modal("run", f"{APPS}/errors.py::uncaught")
    assert done.code == 1 and "ValueError" in done.text and "bad value" in done.text and "deeper" in done.text, done


@pytest.mark.feature("retries")
def test_retries(entry, lydian):
    done = entry("retry", "main")
    for kind in ("exception", "kill", "exit"):
        assert done.out.count(f"attempt of {kind}\n") == 3, done
    assert done.out.count("attempt of once") == 1 and done.out.count("third's attempt") == 3, done
