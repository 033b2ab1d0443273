"""Every way to call a function."""

import re
import signal

import pytest

pytestmark = pytest.mark.rpc("AppCreate", "AppClientDisconnect", "AppHeartbeat", "AppPublish", "EnvironmentGetOrCreate", "FunctionPrecreate",
                             "FunctionCreate", "FunctionMap", "FunctionPutInputs", "FunctionGetOutputs", "FunctionGetInputs",
                             "FunctionPutOutputs", "ContainerHello", "ContainerHeartbeat", "MountGetOrCreate", "MountBatchedCheckExistence",
                             "MountPutFile", "ImageGetOrCreate", "ImageJoinStreaming", "AppGetLogs")

PLAIN = """
import modal
app = modal.App("plain")

@app.function()
def double(x):
    print(f"doubling {x}")
    return 2 * x

if __name__ == "__main__":
    with app.run():
        assert double.remote(4) == 8
        assert list(double.map(range(3))) == [0, 2, 4]
    with modal.enable_output(), app.run():
        assert double.remote(5) == 10
    print("finished")
"""


SERIALIZED = """
import modal

app = modal.App("serialized")

def main(base):
    class Helper:
        def add(self, x):
            return x + base

    @app.function(serialized=True)
    def closure(x):
        return Helper().add(x), modal.is_local()

    @app.function(serialized=True)
    async def items(n):
        for i in range(n):
            yield base + i

    @app.cls(serialized=True)
    class Table:
        name: str = modal.parameter()

        @modal.enter()
        def begin(self):
            self.rows = [base]

        @modal.method()
        def add(self, x):
            self.rows.append(x)
            return self.name, self.rows

    with app.run():
        assert closure.remote(5) == (base + 5, False) and closure.local(1) == (base + 1, True)
        assert list(closure.map(range(3))) == [(base + i, False) for i in range(3)]
        assert list(items.remote_gen(3)) == [base, base + 1, base + 2]
        assert Table(name="t").add.remote(7) == ("t", [base, 7])
    print("finished")

assert modal.is_local()
main(100)
"""


@pytest.mark.feature("first image")
def test_default_image_is_built_first(entry):
    """The longest step of a new state: gcc and its friends by apt. Others find it there."""
    entry("calls", "serialized", timeout=900)


@pytest.mark.feature("local", "remote")
def test_remote(entry):
    entry("calls", "remote")


@pytest.mark.feature("map", "starmap", "for_each")
def test_map(entry):
    done = entry("calls", "maps")
    assert sorted(re.findall(r"noted \d", done.text)) == ["noted 0", "noted 1", "noted 2"]


@pytest.mark.feature("nested calls")
def test_nested(entry):
    entry("calls", "nested")


@pytest.mark.feature("async functions")
def test_async(entry):
    entry("calls", "asyncs")


@pytest.mark.feature("spawn")
def test_spawn(entry):
    entry("calls", "spawned")


@pytest.mark.feature("app.run from plain Python")
def test_plain_python(client, program):
    done = client.python(program(PLAIN)).ok()
    assert done.out.endswith("finished\n")
    assert "doubling 5" in done.out and "doubling 4" not in done.out, "logs are shown only where output is enabled"


@pytest.mark.feature("serialized=True")
def test_serialized(client, program):
    """Code that no file of the container has: closures, and what only a running program defines."""
    assert client.python(program(SERIALIZED)).ok().out == "finished\n"


@pytest.mark.feature("modal run -m")
def test_run_module(client, program):
    program('GREETING = "hello"\n', "pkg/words.py")
    program("", "pkg/__init__.py")
    path = program("""
import modal
from . import words
app = modal.App("packaged")

@app.function()
def greet(name):
    return words.GREETING + " " + name, __name__

@app.local_entrypoint()
def main():
    assert greet.remote("you") == ("hello you", "pkg.main"), greet.remote("you")
    print("finished")
""", "pkg/main.py")
    assert "finished" in client.modal("run", "-m", "pkg.main", cwd=path.parents[1]).ok().out


@pytest.mark.feature("arguments of a local entrypoint")
def test_arguments(entry, client):
    done = entry("calls", "arguments", "--name", "it's \u00fc", "--count", "3", "--loud")
    assert 'name="it\'s \u00fc" count=3 loud=True remote=9' in done.out


@pytest.mark.feature("modal run of a function")
def test_run_function_directly(client):
    from conftest import APPS
    done = client.modal("run", f"{APPS}/calls.py::note", "--x", "7").ok()
    assert "noted 7" in done.out


@pytest.mark.feature("modal run -q")
def test_quiet(client):
    from conftest import APPS
    done = client.modal("run", "-q", f"{APPS}/calls.py::arguments", "--name", "n").ok()
    assert done.out.strip() == "name='n' count=1 loud=False remote=1"
    assert "Initialized" not in done.text


def test_exit_code_of_the_entrypoint(client):
    from conftest import APPS
    assert client.modal("run", f"{APPS}/calls.py::fails_here").code == 7


@pytest.mark.feature("Ctrl-C")
def test_interrupt(client):
    from conftest import APPS
    run = client.start_modal("run", f"{APPS}/calls.py::long")
    run.wait_for("slow begins")
    run.signal(signal.SIGINT)
    done = run.finish(20)
    assert "App aborted" in done.out and "slow ends" not in done.text and "Timed out waiting for final app logs" not in done.text, done
